use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn id(n: u8) -> LineageId {
    LineageId([n; 32])
}

fn file(path: &'static str, mtime: i64, content: u64) -> ScannedFile<'static> {
    let content = ContentHash::of(&content.to_le_bytes());
    ScannedFile { path: path.as_bytes(), mode: 0o644, size: 1, mtime, content, xattrs: &[] }
}

fn lineages(lineages: usize) -> LineageTable {
    LineageTable::new(LineageLimits { lineages, files: 1_000_000 })
}

impl LineageTable {
    /// Uses a version that differs from the previous one.
    fn next<'a>(&mut self, id: LineageId, scan: impl Iterator<Item = ScannedFile<'a>>) -> String {
        self.shared_key(id, rand::random(), scan)
    }
}

#[test]
fn the_key_stays_while_every_change_shows_in_the_stat() {
    let mut lineages = lineages(4);
    let first = lineages.next(id(1), [file("a", 1, 10)].into_iter());
    assert_eq!(lineages.next(id(1), [file("a", 1, 10), file("b", 1, 11)].into_iter()), first);
    assert_eq!(lineages.next(id(1), [file("a", 2, 10)].into_iter()), first);
    assert_ne!(lineages.next(id(2), [file("a", 1, 10)].into_iter()), first);
}

#[test]
fn a_change_with_equal_stat_begins_a_new_generation() {
    let mut lineages = lineages(4);
    let first = lineages.next(id(1), [file("a", 1, 10)].into_iter());
    let second = lineages.next(id(1), [file("a", 1, 11)].into_iter());
    assert_ne!(first, second);
    assert_eq!(lineages.next(id(1), [file("a", 1, 11)].into_iter()), second);
}

#[test]
fn a_file_that_was_away_for_a_scan_is_not_forgotten() {
    let mut lineages = lineages(4);
    let first = lineages.next(id(1), [file("a", 1, 10)].into_iter());
    assert_eq!(lineages.next(id(1), std::iter::empty()), first);
    assert_ne!(lineages.next(id(1), [file("a", 1, 11)].into_iter()), first);
}

#[test]
fn a_change_of_attributes_alone_begins_a_new_generation() {
    let attributes = [(b"user.a".to_vec(), b"1".to_vec())];
    let with = ScannedFile { xattrs: &attributes, ..file("a", 1, 10) };
    let mut lineages = lineages(4);
    let first = lineages.next(id(1), [file("a", 1, 10)].into_iter());
    assert_ne!(lineages.next(id(1), [with].into_iter()), first);
}

#[test]
fn a_version_that_was_looked_at_last_is_not_looked_at_again() {
    let mut lineages = lineages(4);
    let first = lineages.shared_key(id(1), [1; 32], [file("a", 1, 10)].into_iter());
    let unread = std::iter::from_fn(|| -> Option<ScannedFile<'static>> { panic!("read") });
    assert_eq!(lineages.shared_key(id(1), [1; 32], unread), first);
    assert_ne!(lineages.shared_key(id(1), [2; 32], [file("a", 1, 11)].into_iter()), first);
}

#[test]
fn the_files_of_all_lineages_together_are_bounded() {
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    let mut lineages = LineageTable::new(LineageLimits { lineages: 100, files: 10 });
    for n in 0..20 {
        lineages.next(id(n), NAMES.iter().map(|name| file(name, 1, 1)));
        assert!(lineages.generations.values().map(|g| g.files.len()).sum::<usize>() <= 10);
        assert!(lineages.generations.contains_key(&id(n)));
    }
}

#[test]
fn a_file_of_lineages_serves_one_run() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lineages");
    let limits = LineageLimits { lineages: 4, files: 1000 };
    let mut before = lineages(4);
    let first = before.next(id(1), [file("a", 1, 10)].into_iter());
    before.save(&path).unwrap();
    let mut after = LineageTable::consume(&path, limits).unwrap();
    assert!(!path.exists(), "a run that ends without saving leaves nothing behind");
    assert_eq!(after.next(id(1), [file("a", 1, 10), file("b", 1, 1)].into_iter()), first);
    assert_ne!(after.next(id(1), [file("a", 1, 11)].into_iter()), first, "what was seen before still counts");
    let mut killed = LineageTable::consume(&path, limits).unwrap();
    assert_ne!(killed.next(id(1), [file("a", 1, 10)].into_iter()), first);
}

#[test]
fn a_damaged_lineage_file_is_reported_and_removed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lineages");
    let limits = LineageLimits { lineages: 4, files: 1000 };
    let mut before = lineages(4);
    before.next(id(1), [file("a", 1, 10), file("b", 1, 10)].into_iter());
    before.save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() - 40] ^= 1;
    // The file count of the only lineage, far beyond the actual number.
    let mut huge = whole.clone();
    huge[18 + 32 + 16 + 64 + 24..][..8].fill(0xff);
    for damaged in [&whole[..whole.len() - 1], &flipped, &huge, b"x", b""] {
        std::fs::write(&path, damaged).unwrap();
        let result = LineageTable::consume(&path, limits);
        assert!(matches!(result, Err(LineageFileError::Damaged { .. })));
        assert!(!path.exists());
    }
}

#[test]
fn the_lineages_used_last_are_kept() {
    let mut lineages = lineages(2);
    let one = lineages.next(id(1), std::iter::empty());
    let two = lineages.next(id(2), std::iter::empty());
    assert_eq!(lineages.next(id(1), std::iter::empty()), one);
    lineages.next(id(3), std::iter::empty());
    assert_eq!(lineages.next(id(1), std::iter::empty()), one);
    assert_ne!(lineages.next(id(2), std::iter::empty()), two);
}

#[test]
fn a_file_that_changes_for_ever_does_not_fill_the_memory() {
    let mut lineages = lineages(2);
    for turn in 0..100_000 {
        lineages.next(id(1), [file("a", turn, 1)].into_iter());
    }
    assert!(lineages.generations[&id(1)].files.len() <= 10_004);
}

/// An event between two builds, about one of three files.
#[derive(Clone, Debug)]
enum Step {
    /// Other content, with the same or another mtime. Device, inode or change time always change.
    Write {
        file: usize,
        mtime: i64,
    },
    Remove {
        file: usize,
    },
    /// A build whose scan takes place, and whose transfer updates the files in the mask.
    Build {
        transferred: u8,
        complete: bool,
    },
    /// The daemon stops and starts again, after a drain or a kill.
    Restart {
        saved: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3usize, 0..2i64).prop_map(|(file, mtime)| Step::Write { file, mtime }),
        (0..3usize).prop_map(|file| Step::Remove { file }),
        (0..8u8, any::<bool>()).prop_map(|(transferred, complete)| Step::Build { transferred, complete }),
        any::<bool>().prop_map(|saved| Step::Restart { saved }),
    ]
}

proptest! {
    /// The model of BuildKit stores by key what it received, and requests a file again only when its stat
    /// differs. Whatever is written, removed and built, it never keeps outdated content.
    #[test]
    fn a_transfer_never_leaves_stale_content(steps in prop::collection::vec(step(), 1..60)) {
        const PATHS: [&str; 3] = ["a", "b", "c"];
        let mut lineages = lineages(4);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lineages");
        let hasher = std::hash::RandomState::new();
        let mut received: BTreeMap<String, BTreeMap<usize, (i64, u64)>> = BTreeMap::new();
        let mut disk: BTreeMap<usize, (i64, u64)> = BTreeMap::new();
        let mut content = 0;
        for step in steps {
            match step {
                Step::Write { file, mtime } => {
                    content += 1;
                    disk.insert(file, (mtime, content));
                }
                Step::Remove { file } => drop(disk.remove(&file)),
                Step::Restart { saved } => {
                    if saved {
                        lineages.save(&path).unwrap();
                    }
                    lineages = LineageTable::consume(&path, LineageLimits { lineages: 4, files: 1000 }).unwrap();
                }
                Step::Build { transferred, complete } => {
                    let scan = disk.iter().map(|(index, (mtime, content))| file(PATHS[*index], *mtime, *content));
                    let mut version = [0; 32];
                    version[..8].copy_from_slice(&std::hash::BuildHasher::hash_one(&hasher, &disk).to_le_bytes());
                    let key = lineages.shared_key(id(1), version, scan);
                    let copy = received.entry(key).or_default();
                    if complete {
                        copy.retain(|index, _| disk.contains_key(index));
                    }
                    for (index, (mtime, content)) in &disk {
                        if complete || transferred & (1 << index) != 0 {
                            let kept = copy.entry(*index).or_insert((*mtime, *content));
                            if kept.0 != *mtime {
                                *kept = (*mtime, *content);
                            }
                            prop_assert_eq!(kept.1, *content, "stale content of {}", PATHS[*index]);
                        }
                    }
                }
            }
        }
    }
}
