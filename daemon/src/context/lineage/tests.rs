use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn id(n: u8) -> LineageId {
    LineageId([n; 32])
}

fn file(path: &'static str, mtime: i64, inode: u64) -> Seen<'static> {
    let identity = Identity::File { device: 1, inode, changed: 7 };
    Seen { path: path.as_bytes(), mode: 0o644, size: 1, mtime, identity }
}

#[test]
fn the_key_stays_while_every_change_shows_in_the_stat() {
    let mut lineages = Lineages::new(4);
    let first = lineages.key(&id(1), [file("a", 1, 10)].into_iter());
    assert_eq!(lineages.key(&id(1), [file("a", 1, 10), file("b", 1, 11)].into_iter()), first);
    assert_eq!(lineages.key(&id(1), [file("a", 2, 10)].into_iter()), first);
    assert_ne!(lineages.key(&id(2), [file("a", 1, 10)].into_iter()), first);
}

#[test]
fn a_change_with_equal_stat_begins_a_new_generation() {
    let mut lineages = Lineages::new(4);
    let first = lineages.key(&id(1), [file("a", 1, 10)].into_iter());
    let second = lineages.key(&id(1), [file("a", 1, 11)].into_iter());
    assert_ne!(first, second);
    assert_eq!(lineages.key(&id(1), [file("a", 1, 11)].into_iter()), second);
}

#[test]
fn a_file_that_was_away_for_a_scan_is_not_forgotten() {
    let mut lineages = Lineages::new(4);
    let first = lineages.key(&id(1), [file("a", 1, 10)].into_iter());
    assert_eq!(lineages.key(&id(1), std::iter::empty()), first);
    assert_ne!(lineages.key(&id(1), [file("a", 1, 11)].into_iter()), first);
}

#[test]
fn a_file_as_young_as_the_scan_counts_as_changed_next_time() {
    let mut lineages = Lineages::new(4);
    let unsure = Seen { identity: Identity::Unsure, ..file("a", 1, 10) };
    let first = lineages.key(&id(1), [unsure].into_iter());
    let second = lineages.key(&id(1), [file("a", 1, 10)].into_iter());
    assert_ne!(first, second);
    assert_eq!(lineages.key(&id(1), [file("a", 1, 10)].into_iter()), second);
    assert_ne!(lineages.key(&id(1), [unsure].into_iter()), second);
}

#[test]
fn the_lineages_used_last_are_kept() {
    let mut lineages = Lineages::new(2);
    let one = lineages.key(&id(1), std::iter::empty());
    let two = lineages.key(&id(2), std::iter::empty());
    assert_eq!(lineages.key(&id(1), std::iter::empty()), one);
    lineages.key(&id(3), std::iter::empty());
    assert_eq!(lineages.key(&id(1), std::iter::empty()), one);
    assert_ne!(lineages.key(&id(2), std::iter::empty()), two);
}

#[test]
fn a_file_that_changes_for_ever_does_not_fill_the_memory() {
    let mut lineages = Lineages::new(2);
    for turn in 0..100_000 {
        lineages.key(&id(1), [file("a", turn, 1)].into_iter());
    }
    assert!(lineages.generations[&id(1)].seen.len() <= 10_004);
}

/// What can happen between two builds to one of three files.
#[derive(Clone, Debug)]
enum Step {
    /// Other content; with the same mtime or another one. Device, inode or change time always move.
    Write {
        file: usize,
        mtime: i64,
    },
    Remove {
        file: usize,
    },
    /// A build whose scan takes place, and whose transfer brings the files in the mask up to date.
    Build {
        transferred: u8,
        unsure: u8,
        complete: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3usize, 0..2i64).prop_map(|(file, mtime)| Step::Write { file, mtime }),
        (0..3usize).prop_map(|file| Step::Remove { file }),
        (0..8u8, 0..8u8, any::<bool>()).prop_map(|(transferred, unsure, complete)| Step::Build {
            transferred,
            // Mostly sure.
            unsure: if unsure > 3 { 0 } else { unsure },
            complete,
        }),
    ]
}

proptest! {
    /// The model's BuildKit keeps, by key, what it received, and takes a file anew only when its
    /// stat differs. Whatever is written, removed and built, it never keeps an old content.
    #[test]
    fn a_transfer_never_leaves_stale_content(steps in prop::collection::vec(step(), 1..60)) {
        const PATHS: [&str; 3] = ["a", "b", "c"];
        let mut lineages = Lineages::new(4);
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
                Step::Build { transferred, unsure, complete } => {
                    let scan = disk.iter().map(|(index, (mtime, content))| {
                        let seen = file(PATHS[*index], *mtime, *content);
                        if unsure & (1 << index) == 0 { seen } else { Seen { identity: Identity::Unsure, ..seen } }
                    });
                    let key = lineages.key(&id(1), scan);
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
