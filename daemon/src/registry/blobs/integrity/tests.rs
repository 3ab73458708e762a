use std::io::Cursor;
use std::path::PathBuf;

use super::*;
use crate::model::Digest;

struct Fixture {
    root: tempfile::TempDir,
    store: BlobStore,
}

impl Fixture {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let store = BlobStore::open(root.path()).unwrap();
        Self { root, store }
    }

    fn put(&self, content: &[u8]) -> Digest {
        let digest = Digest::from_sha256(Sha256::digest(content).into());
        self.store.put(&digest, &mut Cursor::new(content)).unwrap();
        digest
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.store.path(digest)
    }

    /// Forgets what this run has verified.
    fn restart(&mut self) {
        self.store = BlobStore::open(self.root.path()).unwrap();
    }

    fn damage(&self, digest: &Digest) {
        use std::os::unix::fs::FileExt as _;
        let file = File::options().write(true).open(self.path(digest)).unwrap();
        let last = file.metadata().unwrap().len() - 1;
        file.write_all_at(b"!", last).unwrap();
    }
}

const LARGE: usize = HASHED_FIRST_BYTES as usize + 5;

#[test]
fn what_was_received_or_verified_is_not_hashed_again_until_its_file_changes() {
    let mut fixture = Fixture::new();
    let digest = fixture.put(&vec![7; LARGE]);
    let needs_check =
        |fixture: &Fixture| fixture.store.open_checked(&digest, true).unwrap().unwrap().check.is_some();
    // Opening touches the file, which is no change of its content.
    assert!(!needs_check(&fixture) && !needs_check(&fixture));
    fixture.restart();
    assert!(needs_check(&fixture), "after a start");
    let OpenedBlob { file, check, .. } = fixture.store.open_checked(&digest, true).unwrap().unwrap();
    let mut check = check.unwrap();
    let mut content = Vec::new();
    (&file).read_to_end(&mut content).unwrap();
    check.update(&content);
    assert!(check.finish().unwrap());
    assert!(!needs_check(&fixture));
    fixture.damage(&digest);
    assert!(needs_check(&fixture), "its file was written to");
}

#[test]
fn damaged_content_is_quarantined_and_can_be_sent_again() {
    let mut fixture = Fixture::new();
    for (content, whole) in [(&b"small"[..], true), (&[7; LARGE][..], false), (&[8; LARGE][..], true)] {
        let digest = fixture.put(content);
        fixture.restart();
        fixture.damage(&digest);
        match fixture.store.open_checked(&digest, whole).unwrap() {
            // Its bytes are hashed while they are sent.
            Some(OpenedBlob { check: Some(mut check), .. }) => {
                assert!(whole && content.len() == LARGE);
                check.update(&fs::read(fixture.path(&digest)).unwrap());
                assert!(!check.finish().unwrap());
            }
            Some(_) => panic!("damaged content was opened"),
            None => {}
        }
        assert_eq!(fixture.store.size(&digest).unwrap(), None);
        assert_eq!(fixture.store.quarantined().unwrap(), [digest]);
        fixture.put(content);
        assert_eq!(fixture.store.quarantined().unwrap(), []);
        assert!(fixture.store.open_checked(&digest, false).unwrap().is_some());
    }
}

#[tokio::test]
async fn the_background_verification_does_not_rely_on_what_is_known() {
    let fixture = Fixture::new();
    let [intact, damaged] = [b"intact" as &[u8], b"damaged"].map(|content| fixture.put(content));
    fixture.damage(&damaged);
    assert_eq!(fixture.store.digests().unwrap().len(), 2);
    scrub_once(&fixture.store, 1 << 30).await.unwrap();
    assert_eq!(fixture.store.quarantined().unwrap(), [damaged]);
    assert_eq!(fixture.store.verify(intact, 0).await.unwrap(), BlobState::Intact { bytes: 6 });
    assert_eq!(fixture.store.verify(damaged, 0).await.unwrap(), BlobState::Missing);
}

#[test]
fn the_table_of_verified_blobs_has_a_bound() {
    let table = VerifiedBlobs::default();
    let digest = |n: usize| Digest::from_sha256(Sha256::digest(n.to_string()).into());
    let stamp = FileStamp { inode: 1, size: 1, changed: (1, 1) };
    for n in 0..3 * GENERATION {
        table.insert(digest(n), stamp);
    }
    assert!(table.0.lock().iter().map(HashMap::len).sum::<usize>() <= 2 * GENERATION);
    assert!(table.contains(&digest(3 * GENERATION - 1), stamp) && !table.contains(&digest(0), stamp));
    let changed = FileStamp { size: 2, ..stamp };
    assert!(!table.contains(&digest(3 * GENERATION - 1), changed));
}
