use std::collections::HashSet;
use std::time::Duration;

use super::*;

mod earlier_index;
mod full_disk;

const LIMITS: StoreLimits = StoreLimits { total: 1 << 30, per_owner: 1 << 30, min_free: 0 };
const HOUR: Duration = Duration::from_secs(3600);

struct Fixture {
    directory: tempfile::TempDir,
    store: ContentStore,
}

impl Fixture {
    fn new(limits: StoreLimits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = ContentStore::open(directory.path(), limits).unwrap();
        Self { directory, store }
    }

    /// Moves the store's clock forward.
    fn wait(&mut self, time: Duration) {
        Arc::get_mut(&mut self.store.0).unwrap().opened -= time;
    }

    /// Opens a copy of the files as they are now, as after a crash.
    fn reopened(&self) -> ContentStore {
        let copy = self.crashed();
        let _ = fs::remove_dir_all(&copy);
        fs::create_dir(&copy).unwrap();
        for entry in fs::read_dir(self.directory.path()).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
            }
        }
        ContentStore::open(&copy, LIMITS).unwrap()
    }

    /// Directory of [`Self::reopened`].
    fn crashed(&self) -> PathBuf {
        self.directory.path().join("crashed")
    }
}

fn put(store: &ContentStore, owner: &str, contents: &[&[u8]]) -> Result<(), AppendError> {
    let pieces: Vec<ContentPiece> = contents
        .iter()
        .map(|content| ContentPiece { hash: ContentHash::of(content), size: content.len() as u32 })
        .collect();
    let frame = zstd::bulk::compress(&contents.concat(), 1).unwrap();
    store.append(&OwnerKey::of(owner), &ContentBatch { frame: &frame, pieces: &pieces })
}

fn presence(store: &ContentStore, owner: &str, content: &[u8]) -> ContentPresence {
    let (hash, size) = (ContentHash::of(content), content.len() as u64);
    store.presence(&OwnerKey::of(owner), [(&hash, size)].into_iter()).unwrap()[0]
}

fn count(store: &ContentStore) -> u32 {
    let index = store.0.index();
    index.database.query_row("SELECT count(*) FROM contents", [], |row| row.get(0)).unwrap()
}

fn read(store: &ContentStore, content: &[u8]) -> Option<Bytes> {
    store.reader().piece(&ContentHash::of(content)).unwrap()
}

/// Returns content that does not compress.
fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut bytes);
    bytes
}

#[test]
fn content_comes_back_and_stays_through_a_restart() {
    let fixture = Fixture::new(LIMITS);
    put(&fixture.store, "ann", &[b"one", b"", b"three"]).unwrap();
    fixture.store.sync().unwrap();
    for store in [fixture.store.clone(), fixture.reopened()] {
        for content in [&b"one"[..], b"", b"three"] {
            assert_eq!(read(&store, content).unwrap(), content);
            assert_eq!(presence(&store, "ann", content), ContentPresence::Own);
        }
        assert_eq!(presence(&store, "ann", b"two"), ContentPresence::Missing);
    }
}

#[test]
fn what_was_not_synced_when_the_daemon_was_killed_is_gone_and_what_was_is_whole() {
    let fixture = Fixture::new(LIMITS);
    put(&fixture.store, "ann", &[b"durable"]).unwrap();
    fixture.store.sync().unwrap();
    put(&fixture.store, "ann", &[b"not yet"]).unwrap();
    let again = fixture.reopened();
    assert_eq!(read(&again, b"durable").unwrap(), &b"durable"[..]);
    assert_eq!(read(&again, b"not yet"), None);
    assert_eq!(again.used_bytes(), fs::metadata(fixture.crashed().join("00000000.content")).unwrap().len());
    // The content can be stored now.
    put(&again, "ann", &[b"not yet"]).unwrap();
    assert_eq!(read(&again, b"not yet").unwrap(), &b"not yet"[..]);
}

#[test]
fn damaged_content_is_an_error_and_never_another_content() {
    let fixture = Fixture::new(LIMITS);
    let content = noise(1, 5000);
    put(&fixture.store, "ann", &[&content]).unwrap();
    fixture.store.sync().unwrap();
    let path = fixture.directory.path().join("00000000.content");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(fixture.reopened().reader().piece(&ContentHash::of(&content)).is_err());
}

#[test]
fn content_of_others_is_foreign_until_it_was_sent_or_proven() {
    let fixture = Fixture::new(LIMITS);
    put(&fixture.store, "ann", &[b"a", b"b"]).unwrap();
    assert_eq!(presence(&fixture.store, "bob", b"a"), ContentPresence::Foreign);
    put(&fixture.store, "bob", &[b"a"]).unwrap();
    fixture
        .store
        .add_owner(&OwnerKey::of("bob"), &[ContentHash::of(b"b"), ContentHash::of(b"nothing")])
        .unwrap();
    fixture.store.sync().unwrap();
    for store in [fixture.store.clone(), fixture.reopened()] {
        for (owner, content, expected) in [
            ("bob", b"a", ContentPresence::Own),
            ("bob", b"b", ContentPresence::Own),
            ("ann", b"a", ContentPresence::Own),
            ("eve", b"a", ContentPresence::Foreign),
        ] {
            assert_eq!(presence(&store, owner, content), expected);
        }
    }
    assert_eq!(count(&fixture.store), 2, "nothing is stored twice");
}

#[test]
fn a_size_that_a_content_does_not_have_makes_it_missing() {
    let fixture = Fixture::new(LIMITS);
    put(&fixture.store, "ann", &[b"abc"]).unwrap();
    let owner = OwnerKey::of("ann");
    let whole = ContentHash::of(b"abcabc");
    let piece = ContentPiece { hash: ContentHash::of(b"abc"), size: 3 };
    fixture.store.put_recipe(&owner, &whole, &[piece, piece]).unwrap();
    for (hash, size, expected) in [
        (piece.hash, 3, ContentPresence::Own),
        (piece.hash, 4, ContentPresence::Missing),
        (whole, 6, ContentPresence::Own),
        (whole, 7, ContentPresence::Missing),
    ] {
        assert_eq!(fixture.store.presence(&owner, [(&hash, size)].into_iter()).unwrap(), [expected]);
    }
    assert_eq!(fixture.store.pieces(&whole).unwrap().unwrap(), [piece, piece]);
    assert_eq!(fixture.store.pieces(&piece.hash).unwrap().unwrap(), [piece]);
}

#[test]
fn limits_are_kept_and_say_which() {
    let limits = StoreLimits { total: 10_000, per_owner: 6000, min_free: 0 };
    let fixture = Fixture::new(limits);
    put(&fixture.store, "ann", &[&noise(1, 5000)]).unwrap();
    let refused = put(&fixture.store, "ann", &[&noise(2, 4000)]).unwrap_err();
    assert!(matches!(refused, AppendError::OwnerQuota { limit: 6000 }), "{refused}");
    let refused = put(&fixture.store, "bob", &[&noise(3, 5500)]).unwrap_err();
    assert!(matches!(refused, AppendError::Quota { limit: 10_000 }), "{refused}");
    // Content that is already present does not count again.
    put(&fixture.store, "bob", &[&noise(1, 5000)]).unwrap();
    let full = Fixture::new(StoreLimits { min_free: u64::MAX / 2, ..LIMITS });
    assert!(matches!(put(&full.store, "ann", &[b"x"]), Err(AppendError::NoSpace)));
}

#[test]
fn the_sweep_leaves_what_a_tree_needs_and_what_was_asked_for_lately() {
    let fixture = Fixture::new(LIMITS);
    put(&fixture.store, "ann", &[b"live", b"dead", b"part"]).unwrap();
    let piece = ContentPiece { hash: ContentHash::of(b"part"), size: 4 };
    let whole = ContentHash::of(b"partpart");
    fixture.store.put_recipe(&OwnerKey::of("ann"), &whole, &[piece, piece]).unwrap();
    let live = HashSet::from([ContentHash::of(b"live"), whole]);
    assert_eq!(fixture.store.sweep(&live, HOUR, None).unwrap().contents, 0);
    assert_eq!(fixture.store.sweep(&live, Duration::ZERO, None).unwrap().contents, 1);
    assert_eq!(read(&fixture.store, b"dead"), None);
    assert!(read(&fixture.store, b"live").is_some() && read(&fixture.store, b"part").is_some());
    assert!(fixture.store.pieces(&whole).unwrap().is_some());
}

#[test]
fn sparse_segments_are_moved_together_and_give_their_space_back() {
    let fixture = Fixture::new(LIMITS);
    let large: Vec<Vec<u8>> = (0..20).map(|seed| noise(seed, 4 << 20)).collect();
    for content in &large {
        put(&fixture.store, "ann", &[content]).unwrap();
    }
    put(&fixture.store, "bob", &[&large[3]]).unwrap();
    fixture.store.sync().unwrap();
    assert_eq!(fixture.store.0.index().segments.len(), 2);
    let before = fixture.store.used_bytes();
    let live = HashSet::from([ContentHash::of(&large[3]), ContentHash::of(&large[19])]);
    let swept = fixture.store.sweep(&live, Duration::ZERO, None).unwrap();
    assert_eq!(swept.contents, 18);
    assert!(fixture.store.used_bytes() < before / 2, "{} of {before}", fixture.store.used_bytes());
    for store in [fixture.store.clone(), fixture.reopened()] {
        assert_eq!(read(&store, &large[3]).unwrap(), large[3]);
        assert_eq!(read(&store, &large[19]).unwrap(), large[19]);
        assert_eq!(presence(&store, "bob", &large[3]), ContentPresence::Own);
        assert_eq!(presence(&store, "bob", &large[19]), ContentPresence::Foreign);
    }
    assert!(!fixture.directory.path().join("00000000.content").exists());
}

#[test]
fn content_that_somebody_asked_for_or_sent_again_lately_outlives_the_sweep() {
    let mut fixture = Fixture::new(LIMITS);
    put(&fixture.store, "ann", &[b"asked for", b"sent again", b"forgotten"]).unwrap();
    fixture.wait(2 * HOUR);
    assert_eq!(presence(&fixture.store, "bob", b"asked for"), ContentPresence::Foreign);
    put(&fixture.store, "bob", &[b"sent again", b"new"]).unwrap();
    assert_eq!(fixture.store.sweep(&HashSet::new(), HOUR, None).unwrap().contents, 1);
    for (content, is_there) in
        [(&b"asked for"[..], true), (b"sent again", true), (b"new", true), (b"forgotten", false)]
    {
        assert_eq!(read(&fixture.store, content).is_some(), is_there, "{}", content.escape_ascii());
    }
    fixture.wait(2 * HOUR);
    assert_eq!(fixture.store.sweep(&HashSet::new(), HOUR, None).unwrap().contents, 3);
}

#[test]
fn the_clock_goes_on_after_a_restart_where_it_was() {
    let mut fixture = Fixture::new(LIMITS);
    put(&fixture.store, "ann", &[b"asked for", b"forgotten"]).unwrap();
    fixture.wait(2 * HOUR);
    presence(&fixture.store, "bob", b"asked for");
    fixture.store.sync().unwrap();
    let again = fixture.reopened();
    assert_eq!(again.sweep(&HashSet::new(), HOUR, None).unwrap().contents, 1);
    assert!(read(&again, b"asked for").is_some());
}

#[test]
fn contents_of_an_ended_upload_go_at_once_but_for_those_that_others_need_or_have() {
    let fixture = Fixture::new(LIMITS);
    let all: [&[u8]; 5] = [b"alone", b"live", b"bob has it", b"of bob", b"of another upload"];
    put(&fixture.store, "bob", &[b"of bob"]).unwrap();
    put(&fixture.store, "ann", &all).unwrap();
    put(&fixture.store, "bob", &[b"bob has it"]).unwrap();
    let ended = (OwnerKey::of("ann"), all[..4].iter().map(|content| ContentHash::of(content)).collect());
    let live = HashSet::from([ContentHash::of(b"live")]);
    assert_eq!(fixture.store.sweep(&live, HOUR, Some(&ended)).unwrap().contents, 1);
    for content in all {
        assert_eq!(
            read(&fixture.store, content).is_some(),
            content != b"alone",
            "{}",
            content.escape_ascii()
        );
    }
}

#[test]
fn who_reads_during_a_sweep_reads_on_wherever_the_content_goes() {
    let fixture = Fixture::new(LIMITS);
    let large: Vec<Vec<u8>> = (0..20).map(|seed| noise(seed, 4 << 20)).collect();
    for content in &large {
        put(&fixture.store, "ann", &[content]).unwrap();
    }
    let hash = ContentHash::of(&large[3]);
    let reader = fixture.store.reader();
    // The content is located before the sweep and read after it.
    let lying = fixture.store.0.locate(&hash).unwrap().unwrap();
    assert_eq!(reader.piece(&hash).unwrap().unwrap(), large[3]);
    fixture.store.sweep(&HashSet::from([hash]), Duration::ZERO, None).unwrap();
    assert_ne!(
        fixture.store.0.locate(&hash).unwrap().unwrap().frame.segment,
        lying.frame.segment,
        "nothing was moved"
    );
    assert_eq!(lying.content.slice_of(&frames::read_frame(&lying).unwrap()).unwrap(), large[3]);
    assert_eq!(reader.piece(&hash).unwrap().unwrap(), large[3]);
    assert_eq!(reader.piece(&ContentHash::of(&large[4])).unwrap(), None);
}
