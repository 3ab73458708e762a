//! Two namespaces, each connected to the host by a routed pair, with no firewall.

use std::net::UdpSocket;

use super::super::routed_pair::RoutedPair;
use super::*;

/// Namespace with its pair, and a link that has the host's address.
struct TestPair {
    pair: RoutedPair,
    namespace: PathBuf,
    inside: NetlinkSocket,
    _dir: tempfile::TempDir,
}

impl TestPair {
    /// The first two addresses of `net` belong to the host and the gateway.
    fn make(net: Ipv4Net, number: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let namespace = dir.path().join("netns");
        let pair = RoutedPair {
            outside: format!("tst{:08x}{number}", rand::random::<u32>()),
            inside: "eth1".to_owned(),
            address: nth(net, number),
            gateway: Ipv4Addr::new(169, 254, 1, 1),
            source: nth(net, 1),
            group: 77,
        };
        let inside = namespace::create(&namespace).unwrap();
        let mut pair = Self { pair, namespace, inside, _dir: dir };
        pair.again();
        pair
    }

    fn again(&mut self) {
        let file = File::open(&self.namespace).unwrap();
        self.pair.create(&mut NetlinkSocket::open().unwrap(), file.as_fd(), &mut self.inside).unwrap();
    }

    fn is_whole(&mut self) -> bool {
        self.pair.is_intact(&mut NetlinkSocket::open().unwrap(), &mut self.inside).unwrap()
    }
}

impl Drop for TestPair {
    fn drop(&mut self) {
        let gone =
            NetlinkSocket::open().and_then(|mut host| host.run(vec![links::delete_link(&self.pair.outside)]));
        gone.and_then(|()| namespace::remove(&self.namespace)).unwrap();
    }
}

/// Link that has the host's address while the pairs exist.
struct AddressHolder(String);

impl AddressHolder {
    fn make(net: Ipv4Net) -> Self {
        let holder = Self(format!("tst{:08x}h", rand::random::<u32>()));
        links::ensure_gateway_link(&mut NetlinkSocket::open().unwrap(), &holder.0, net).unwrap();
        holder
    }
}

impl Drop for AddressHolder {
    fn drop(&mut self) {
        NetlinkSocket::open().unwrap().run(vec![links::delete_link(&self.0)]).unwrap();
    }
}

fn nth(net: Ipv4Net, number: u32) -> Ipv4Addr {
    (u32::from(net.network()) + number).into()
}

fn some_net() -> Ipv4Net {
    Ipv4Net::new((0xc612_0000 | (rand::random::<u32>() & 0x1_fff0)).into(), 28).unwrap()
}

fn run(namespace: &Path, words: &[&str]) -> String {
    let output = namespace::within(namespace, || Command::new(words[0]).args(&words[1..]).output());
    let output = output.unwrap().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_pair_reaches_the_host_and_the_other_pair_through_it_at_once() {
    let net = some_net();
    let _holder = AddressHolder::make(net);
    let (one, two) = (TestPair::make(net, 3), TestPair::make(net, 4));
    enable_forwarding().unwrap();
    let _listens = listen(&two.namespace, 80);
    let begun = Instant::now();
    let stream = connect((two.pair.address, 80)).unwrap();
    assert_eq!(stream.local_addr().unwrap().ip(), one.pair.source);
    connect_inside(&one.namespace, (two.pair.address, 80)).unwrap();
    let host = TcpListener::bind((one.pair.source, 0)).unwrap();
    connect_inside(&one.namespace, host.local_addr().unwrap()).unwrap();
    // An ARP lookup would take at least 0.85 s.
    assert!(begun.elapsed() < Duration::from_millis(600), "{:?}", begun.elapsed());
}

#[test]
fn no_end_has_ipv6_or_answers_arp_and_the_inner_one_has_a_single_address() {
    let net = some_net();
    let _holder = AddressHolder::make(net);
    let one = TestPair::make(net, 3);
    let shown = run(&one.namespace, &["ip", "-o", "address"]);
    let own: Vec<_> = shown.lines().filter(|line| !line.contains(": lo ")).collect();
    assert!(own.len() == 1 && own[0].contains(&format!("inet {}/32", one.pair.address)), "{shown}");
    assert!(!shown.contains("inet6"), "{shown}");
    let host = Command::new("ip").args(["-o", "address", "show", "dev", &one.pair.outside]).output().unwrap();
    assert_eq!(String::from_utf8(host.stdout).unwrap(), "");
    let link = links::link(&mut NetlinkSocket::open().unwrap(), &one.pair.outside).unwrap().unwrap();
    assert!(!link.arp && link.group == 77 && link.bridge.is_none());
    // A neighbour other than the gateway does not answer ARP: nothing but the host is on this link.
    run(&one.namespace, &["ip", "route", "add", "198.51.100.7/32", "dev", "eth1"]);
    namespace::within(&one.namespace, || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
        socket.send_to(b"x", "198.51.100.7:9").unwrap();
    })
    .unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let neighbour = run(&one.namespace, &["ip", "neighbour", "show", "198.51.100.7"]);
    assert!(!neighbour.contains("lladdr"), "{neighbour}");
}

#[test]
fn a_pair_that_was_changed_is_seen_and_made_again() {
    let net = some_net();
    let _holder = AddressHolder::make(net);
    let mut one = TestPair::make(net, 3);
    let _listens = listen(&one.namespace, 80);
    let (link, address) = (one.pair.outside.clone(), one.pair.address.to_string());
    assert!(one.is_whole());
    let harms: [(bool, &[&str]); 8] = [
        (false, &["ip", "link", "set", &link, "group", "0"]),
        (false, &["ip", "link", "set", &link, "arp", "on"]),
        (false, &["ip", "route", "delete", &address]),
        (false, &["ip", "neighbour", "flush", "dev", &link, "nud", "permanent"]),
        (false, &["ip", "link", "delete", &link]),
        (true, &["ip", "address", "add", "192.0.2.1/32", "dev", "eth1"]),
        (true, &["ip", "route", "delete", "default"]),
        (true, &["ip", "link", "set", "lo", "down"]),
    ];
    for (inside, command) in harms {
        if inside {
            run(&one.namespace, command);
        } else {
            assert!(Command::new(command[0]).args(&command[1..]).status().unwrap().success(), "{command:?}");
        }
        assert!(!one.is_whole(), "{command:?}");
        one.again();
        assert!(one.is_whole(), "{command:?}");
        connect((one.pair.address, 80)).unwrap();
    }
}
