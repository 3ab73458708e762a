use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::timeout;

use super::*;
use crate::context::{FileKind, TreeEntry};

/// Tree of files with the given contents, which may be shorter than their entries say.
struct Contents {
    entries: Vec<(Vec<u8>, u64)>,
    /// Index of the entry that is not covered.
    beyond: Option<usize>,
    contents: Vec<Vec<u8>>,
}

impl Contents {
    fn of(files: &[(&str, &[u8])]) -> Self {
        let entry = |(path, content): &(&str, &[u8])| (path.as_bytes().to_vec(), content.len() as u64);
        Self {
            beyond: None,
            entries: files.iter().map(entry).collect(),
            contents: files.iter().map(|(_, content)| content.to_vec()).collect(),
        }
    }
}

impl FileTree for Contents {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn entry(&self, index: usize) -> TreeEntry<'_> {
        let (path, size) = &self.entries[index];
        TreeEntry { path, kind: FileKind::File(()), mode: 0o644, size: *size, mtime: 0 }
    }

    fn is_covered(&self, index: usize) -> bool {
        self.beyond != Some(index)
    }

    fn open(&self, index: usize) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(io::Cursor::new(self.contents[index].clone())))
    }
}

fn request(kind: PacketKind, id: u32) -> Result<FsutilPacket, Status> {
    Ok(FsutilPacket { kind: kind.into(), id, ..FsutilPacket::default() })
}

/// Requests the given ids, then ends. Returns all packets that were sent.
async fn exchange(tree: Contents, ids: &[u32]) -> Vec<Result<FsutilPacket, Status>> {
    let mut requests: Vec<_> = ids.iter().map(|id| request(PacketKind::Req, *id)).collect();
    requests.push(request(PacketKind::Fin, 0));
    watched(tree, requests, Arc::new(Watched::default())).await
}

#[derive(Default)]
struct Watched {
    sent: AtomicUsize,
    beyond: AtomicUsize,
}

impl TransferWatch for Watched {
    fn files_sent(&self) {
        self.sent.fetch_add(1, Ordering::SeqCst);
    }

    fn uncovered_requested(&self) {
        self.beyond.fetch_add(1, Ordering::SeqCst);
    }
}

async fn watched(
    tree: Contents,
    requests: Vec<Result<FsutilPacket, Status>>,
    watch: Arc<Watched>,
) -> Vec<Result<FsutilPacket, Status>> {
    let requests = futures::stream::iter(requests);
    let sent = transfer(TreeSource { tree: Arc::new(tree), watch }, SelectionPatterns::default(), requests)
        .collect();
    timeout(Duration::from_secs(10), sent).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_for_is_sent_whole_and_once() {
    let big = vec![3; 3 * DATA_CHUNK + 5];
    let sent =
        exchange(Contents::of(&[("a", b"one"), ("b", &big), ("c", b""), ("d", b"not asked")]), &[1, 2, 0])
            .await;
    let packets: Vec<FsutilPacket> = sent.into_iter().map(Result::unwrap).collect();
    let mut stats = 0;
    let mut files: BTreeMap<u32, (Vec<u8>, bool)> = BTreeMap::new();
    for packet in &packets {
        match PacketKind::try_from(packet.kind).unwrap() {
            PacketKind::Stat if packet.stat.is_some() => stats += 1,
            PacketKind::Data => {
                let file = files.entry(packet.id).or_default();
                assert!(!file.1, "nothing comes after the end of a file");
                file.0.extend_from_slice(&packet.data);
                file.1 = packet.data.is_empty();
            }
            _ => {}
        }
    }
    assert_eq!(stats, 4);
    let whole = |content: &[u8]| (content.to_vec(), true);
    assert_eq!(files, BTreeMap::from([(0, whole(b"one")), (1, whole(&big)), (2, whole(b""))]));
    assert_eq!(packets.last().unwrap(), &FsutilPacket::fin());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changed_fails_the_transfer_and_is_named() {
    for (content, word) in [(b"shorter".as_slice(), "shrank"), (b"longer than before", "grew")] {
        let mut tree = Contents::of(&[("dir/f", b"0123456789")]);
        tree.contents[0] = content.to_vec();
        let sent = exchange(tree, &[0]).await;
        let error = sent.last().unwrap().as_ref().unwrap_err();
        assert!(error.message().contains("`dir/f`") && error.message().contains(word), "{error}");
        let error_packet = sent.iter().flatten().find(|p| p.kind == i32::from(PacketKind::Err)).unwrap();
        assert!(String::from_utf8_lossy(&error_packet.data).contains("`dir/f`"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_for_what_was_not_offered_is_refused() {
    for ids in [[7, 7], [0, 0]] {
        let sent = exchange(Contents::of(&[("a", b"one")]), &ids).await;
        assert!(sent.iter().any(Result::is_err));
    }
}

#[test]
fn lists_come_from_headers_escaped_or_not() {
    let mut metadata = MetadataMap::new();
    metadata.insert("dir-name", "context".parse().unwrap());
    metadata.append("exclude-patterns", "a b".parse().unwrap());
    metadata.append("exclude-patterns", "!c+d".parse().unwrap());
    metadata.insert("followpaths", "n%C3%BC+x".parse().unwrap());
    metadata.insert("followpaths-encoded", "1".parse().unwrap());
    let (dir, wanted) = requested_selection(&metadata);
    assert_eq!(dir, b"context");
    assert_eq!(wanted.excludes, [b"a b".to_vec(), b"!c+d".to_vec()]);
    assert_eq!(wanted.follow, ["n\u{fc} x".as_bytes().to_vec()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_ends_when_the_receiver_of_an_error_has_gone() {
    let mut tree = Contents::of(&[("changed", b"0123456789"), ("still", b"one")]);
    tree.contents[0] = b"shorter".to_vec();
    let (ask, asked) = mpsc::channel(4);
    ask.send(request(PacketKind::Req, 0)).await.unwrap();
    let source = TreeSource { tree: Arc::new(tree), watch: Arc::new(Watched::default()) };
    let mut sent = transfer(source, SelectionPatterns::default(), ReceiverStream::new(asked)).boxed();
    let limit = Duration::from_secs(10);
    loop {
        let packet = timeout(limit, sent.next()).await.unwrap().unwrap().unwrap();
        if packet.kind == i32::from(PacketKind::Err) {
            break;
        }
    }
    // The receiver has not read the error yet, and sends another request.
    ask.send(request(PacketKind::Req, 1)).await.unwrap();
    assert!(timeout(Duration::from_millis(100), sent.next()).await.is_err(), "it ends under the receiver");
    drop(ask);
    let error = timeout(limit, sent.next()).await.unwrap().unwrap().unwrap_err();
    assert!(error.message().contains("`changed`"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sent_of_a_request_that_goes_beyond_what_the_tree_is_known_by() {
    let mut tree = Contents::of(&[("a", b"one"), ("b", b"two")]);
    tree.beyond = Some(1);
    let watch = Arc::new(Watched::default());
    let sent = watched(tree, vec![request(PacketKind::Fin, 0)], Arc::clone(&watch)).await;
    assert!(sent.iter().flatten().all(|packet| packet.stat.is_none()), "no stat leaves");
    let error = sent.last().unwrap().as_ref().unwrap_err();
    assert!(error.message().starts_with("context selection: `b`"), "{error}");
    assert_eq!((watch.beyond.load(Ordering::SeqCst), watch.sent.load(Ordering::SeqCst)), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tree_is_looked_at_again_after_its_transfer() {
    let watch = Arc::new(Watched::default());
    let tree = Contents::of(&[("a", b"one"), ("b", b"two")]);
    let sent =
        watched(tree, vec![request(PacketKind::Req, 0), request(PacketKind::Fin, 0)], Arc::clone(&watch))
            .await;
    assert_eq!(sent.last().unwrap().as_ref().unwrap(), &FsutilPacket::fin());
    let end = std::time::Instant::now() + Duration::from_secs(10);
    while watch.sent.load(Ordering::SeqCst) == 0 && std::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!((watch.sent.load(Ordering::SeqCst), watch.beyond.load(Ordering::SeqCst)), (1, 0));
}
