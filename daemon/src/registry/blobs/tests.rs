use std::collections::HashSet;
use std::io::{Cursor, Read as _};
use std::time::{Duration, SystemTime};

use sha2::{Digest as _, Sha256};

use super::*;

fn digest_of(content: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(content).into())
}

struct Fixture {
    root: tempfile::TempDir,
    store: BlobStore,
}

fn fixture() -> Fixture {
    let root = tempfile::tempdir().unwrap();
    let store = BlobStore::open(root.path()).unwrap();
    Fixture { root, store }
}

impl Fixture {
    fn put(&self, content: &[u8]) -> StoredBlob {
        self.store.put(&digest_of(content), &mut Cursor::new(content)).unwrap()
    }

    fn uploads(&self) -> usize {
        fs::read_dir(self.root.path().join("uploads")).unwrap().count()
    }
}

#[test]
fn content_comes_back_as_it_was_put_and_only_the_first_put_stores_it() {
    let fixture = fixture();
    let content = vec![7u8; 3 * READ_CHUNK_BYTES + 5];
    let first = fixture.put(&content);
    assert!(first.fresh.is_some());
    assert_eq!(first.size, content.len() as u64);
    assert_eq!(fixture.put(&content).fresh, None);
    let mut back = Vec::new();
    fixture.store.open(&first.digest).unwrap().unwrap().read_to_end(&mut back).unwrap();
    assert!(back == content);
    assert_eq!(fixture.uploads(), 0);
    assert!(fixture.store.open(&digest_of(b"other")).unwrap().is_none());
    assert_eq!(fixture.put(b"").size, 0);
}

#[test]
fn content_with_another_digest_leaves_nothing() {
    let fixture = fixture();
    let known = fixture.put(b"known");
    for expected in [digest_of(b"expected"), known.digest] {
        let refused = fixture.store.put(&expected, &mut Cursor::new(b"something else"));
        assert!(matches!(refused, Err(BlobError::Mismatch { .. })), "{refused:?}");
    }
    assert_eq!(fixture.uploads(), 0);
    assert_eq!(fixture.store.size(&digest_of(b"expected")).unwrap(), None);
    assert_eq!(fixture.store.size(&known.digest).unwrap(), Some(5));
}

#[test]
fn a_dropped_spool_and_one_of_a_killed_daemon_leave_nothing() {
    let fixture = fixture();
    let mut spool = fixture.store.spool().unwrap();
    spool.write(b"half").unwrap();
    assert_eq!(fixture.uploads(), 1);
    drop(spool);
    assert_eq!(fixture.uploads(), 0);
    fs::write(fixture.root.path().join("uploads/left"), b"half").unwrap();
    BlobStore::open(fixture.root.path()).unwrap();
    assert_eq!(fixture.uploads(), 0);
}

#[test]
fn the_sweep_spares_what_is_live_and_what_was_touched() {
    let fixture = fixture();
    let [live, touched, stale] =
        [b"live" as &[u8], b"touched", b"stale"].map(|content| fixture.put(content).digest);
    std::thread::sleep(Duration::from_millis(5));
    let before = SystemTime::now();
    fixture.store.touch(&touched).unwrap();
    let swept = fixture.store.sweep(&HashSet::from([live]), before).unwrap();
    assert_eq!(swept, SweptBlobs { blobs: 1, bytes: 5 });
    assert!(fixture.store.size(&live).unwrap().is_some());
    assert!(fixture.store.size(&touched).unwrap().is_some());
    assert!(fixture.store.size(&stale).unwrap().is_none());
}

#[test]
fn what_is_taken_back_goes_unless_someone_else_came_to_rely_on_it() {
    let fixture = fixture();
    let [alone, shared] = [b"alone" as &[u8], b"shared"].map(|content| fixture.put(content));
    let known = fixture.put(b"shared");
    for stored in [alone, shared, known] {
        fixture.store.undo_put(&stored).unwrap();
    }
    assert_eq!(fixture.store.size(&alone.digest).unwrap(), None);
    assert_eq!(fixture.store.size(&shared.digest).unwrap(), Some(6));
}
