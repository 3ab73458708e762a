//! Directories of earlier releases, with an index file beside each segment.

use super::super::earlier_index::{OWNER, PIECE, RECIPE, rows_path};
use super::*;

/// Returns a row as earlier releases wrote it.
fn row(content: &[u8], owner: &str, [start, length, inside, size, kind]: [u32; 5]) -> Vec<u8> {
    let mut bytes = ContentHash::of(content).as_bytes().to_vec();
    bytes.extend(OwnerKey::of(owner).0);
    bytes.extend([start, length, inside, size, kind].into_iter().flat_map(u32::to_le_bytes));
    let sum = blake3::hash(&bytes);
    bytes.extend(&sum.as_bytes()[..8]);
    bytes
}

/// Returns a directory with two segments. The frame of `one` and `two`, which ann has sent, was moved to the second.
fn earlier() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let write = |segment: u32, content: &[u8], rows: &[Vec<u8>]| {
        fs::write(directory.path().join(format!("{segment:08}.content")), content).unwrap();
        fs::write(rows_path(directory.path(), segment), rows.concat()).unwrap();
    };
    let moved = zstd::bulk::compress(b"onetwo", 1).unwrap();
    let length = moved.len() as u32;
    let place = |inside| [0, length, inside, 3, PIECE];
    let owner = row(b"two", "bob", [0, 0, 0, 0, OWNER]);
    write(4, &moved, &[row(b"one", "ann", place(0)), row(b"two", "ann", place(3)), owner]);
    let list = [ContentHash::of(b"one").as_bytes().as_slice(), &3u32.to_le_bytes()].concat().repeat(2);
    let list = zstd::bulk::compress(&list, 1).unwrap();
    let recipe = [length, list.len() as u32, 0, 72, RECIPE];
    let end = length + list.len() as u32;
    let torn = vec![7; 50];
    let rows = [
        row(b"one", "ann", place(0)),
        row(b"two", "ann", place(3)),
        row(b"oneone", "bob", recipe),
        torn,
        row(b"after the torn row", "ann", [end, 9, 0, 18, PIECE]),
    ];
    write(5, &[&moved[..], &list, b"a frame that no row points to"].concat(), &rows);
    // Of this segment, nothing is known.
    fs::write(directory.path().join("00000006.content"), b"lost").unwrap();
    directory
}

#[test]
fn the_index_files_of_an_earlier_release_are_read_once_up_to_a_torn_row() {
    let directory = earlier();
    for round in 0..2 {
        let store = ContentStore::open(directory.path(), LIMITS).unwrap();
        assert_eq!(count(&store), 3, "{round}");
        assert_eq!(
            (read(&store, b"one").unwrap(), read(&store, b"two").unwrap()),
            ("one".into(), "two".into())
        );
        assert_eq!(store.0.locate(&ContentHash::of(b"one")).unwrap().unwrap().frame.segment, 5);
        let piece = ContentPiece { hash: ContentHash::of(b"one"), size: 3 };
        assert_eq!(store.pieces(&ContentHash::of(b"oneone")).unwrap().unwrap(), [piece, piece]);
        for (owner, content, expected) in [
            ("ann", &b"one"[..], ContentPresence::Own),
            ("ann", b"two", ContentPresence::Own),
            ("bob", b"two", ContentPresence::Own),
            ("bob", b"one", ContentPresence::Foreign),
            ("bob", b"oneone", ContentPresence::Own),
        ] {
            assert_eq!(presence(&store, owner, content), expected, "{owner}, {round}");
        }
        assert!(store.bytes_sent_by(&OwnerKey::of("ann")) > 0);
        let files: HashSet<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(!files.iter().any(|name| name.to_string_lossy().ends_with(".rows")), "{files:?}");
        assert!(!files.contains(std::ffi::OsStr::new("00000006.content")));
        // The store works on, and the empty copy of the moved frame goes.
        put(&store, "ann", &[b"new"]).unwrap();
        store.sync().unwrap();
        let all = [&b"one"[..], b"two", b"oneone"].map(ContentHash::of);
        store.sweep(&HashSet::from(all), Duration::ZERO, None).unwrap();
        assert!(!directory.path().join("00000004.content").exists());
    }
}

#[test]
fn an_import_that_was_cut_short_is_done_again() {
    let directory = earlier();
    // The database was made, and the process was killed before the import was committed.
    drop(index::ContentIndex::open(&directory.path().join("index.db")).unwrap());
    assert_eq!(count(&ContentStore::open(directory.path(), LIMITS).unwrap()), 3);
    // It was killed after the commit and before the files were removed.
    fs::write(rows_path(directory.path(), 5), row(b"two", "eve", [0, 9, 0, 3, OWNER])).unwrap();
    let store = ContentStore::open(directory.path(), LIMITS).unwrap();
    assert_eq!(presence(&store, "eve", b"two"), ContentPresence::Foreign);
    assert!(!rows_path(directory.path(), 5).exists());
}
