use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo};

use super::*;
use crate::netlink::NetlinkRequest;

/// Many changes in a row, as when services start on a busy machine: no single dump of links is consistent meanwhile,
/// but each returned list must be.
#[test]
fn lists_of_links_are_whole_while_links_come() {
    const LINKS: usize = 400;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("netns");
    let mut made = namespace::create(&file).unwrap();
    let mut listed = namespace::open(&file).unwrap();
    std::thread::scope(|scope| {
        let making = scope.spawn(move || {
            for number in 0..LINKS {
                let mut message = links::named(&format!("one{number}"));
                message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Bridge)]));
                made.run(vec![NetlinkRequest::create("link", RouteNetlinkMessage::NewLink(message))])
                    .unwrap();
            }
        });
        let mut last = 0;
        while !making.is_finished() {
            let count = links::links(&mut listed).unwrap().len();
            assert!(count >= last, "{count} links after {last}");
            last = count;
        }
    });
    assert_eq!(links::links(&mut listed).unwrap().len(), LINKS + 1);
    namespace::remove(&file).unwrap();
}
