//! Writes that leave the stat of their file unchanged, including the change time.

use std::time::{Duration, SystemTime};

use hearth_overlay::attr::coarse_clock::{FrozenChangeTime, freeze_change_time};
use hearth_pack::identity::{HashCache, TreeDigest};
use parking_lot::Mutex;

use super::*;
use crate::tree::scan::since_epoch;

const SECOND: i64 = 1_000_000_000;

/// Writes without a trace: the length and the modification time stay equal, too.
fn write_unseen(path: &Path, content: &str) {
    let before = fs::metadata(path).unwrap();
    assert_eq!(before.len(), content.len() as u64);
    fs::write(path, content).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_modified(before.modified().unwrap()).unwrap();
}

/// Creates a file whose change time never differs from that of the next write, in each of the known ways.
fn never_sure(room: &Room, way: &str) -> FrozenChangeTime {
    room.file("f", "one").file("other", "x");
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    fs::File::options().write(true).open(room.at("f")).unwrap().set_modified(long_ago).unwrap();
    let changed = match way {
        "a clock that was set back" => since_epoch() + 3600 * SECOND,
        // The next whole second is at most one ahead, and two must have passed.
        "whole seconds" => (since_epoch() / SECOND + 1) * SECOND,
        _ => unreachable!(),
    };
    freeze_change_time(&room.at("f"), changed).unwrap()
}

fn scanned(room: &Room) -> TreeSnapshot {
    room.tree(&[("", "/context")]).scan(&target("/context"), &ScanBounds::default()).unwrap()
}

fn identified(room: &Room, hashes: &Mutex<HashCache>) -> (TreeSnapshot, TreeDigest) {
    let mut snapshot = scanned(room);
    let all = snapshot.covered(&CopySelection::default(), None);
    let digest =
        snapshot.identify(all, hashes, &tokio_util::sync::CancellationToken::new()).unwrap().identity.digest;
    (snapshot, digest)
}

#[test]
fn a_write_that_the_stat_does_not_show_changes_the_digest_all_the_same() {
    for way in ["a clock that was set back", "whole seconds"] {
        let room = Room::new();
        let _standing = never_sure(&room, way);
        let hashes = Mutex::default();
        let (before, first) = identified(&room, &hashes);
        write_unseen(&room.at("f"), "two");
        let (after, second) = identified(&room, &hashes);
        let index = before.find(b"f").unwrap();
        assert_eq!(before.stamp(index), after.stamp(index), "the write left a trace: {way}");
        assert_ne!(first, second, "{way}");
        write_unseen(&room.at("f"), "one");
        assert_eq!(identified(&room, &hashes).1, first, "{way}");
    }
}

#[test]
fn content_that_changed_behind_an_equal_stat_is_not_sent_as_what_it_was() {
    for way in ["a clock that was set back", "whole seconds"] {
        let room = Room::new();
        let _standing = never_sure(&room, way);
        let (snapshot, _) = identified(&room, &Mutex::default());
        let index = snapshot.find(b"f").unwrap();
        assert_eq!(content(&snapshot, index), "one");
        write_unseen(&room.at("f"), "two");
        let mut sent = Vec::new();
        let error = snapshot.open(index).unwrap().read_to_end(&mut sent).unwrap_err();
        assert!(error.to_string().contains("/context/f") && sent.is_empty(), "{way}: {error}");
    }
}

#[test]
fn a_tree_with_an_unsettled_file_is_never_revalidated() {
    for way in ["a clock that was set back", "whole seconds"] {
        let room = Room::new();
        let standing = never_sure(&room, way);
        // Its directory is old enough, so only the file is unsettled.
        std::thread::sleep(Duration::from_millis(40));
        let snapshot = scanned(&room);
        assert_eq!(snapshot.unsettled(), [snapshot.find(b"f").unwrap() as u32], "{way}");
        assert!(snapshot.fingerprint(&[]).is_none() && snapshot.baseline().is_none(), "{way}");
        drop(standing);
        std::thread::sleep(Duration::from_millis(40));
        let snapshot = scanned(&room);
        assert!(
            snapshot.fingerprint(&[]).is_some() && snapshot.baseline().is_some(),
            "on a clock as it should be"
        );
    }
}

#[test]
fn a_directory_whose_time_may_be_that_of_its_next_name_is_never_known_again() {
    let room = Room::new();
    room.file("lib/a", "1");
    std::thread::sleep(Duration::from_millis(40));
    for directory in ["", "lib"] {
        let standing =
            freeze_change_time(&room.at(directory), (since_epoch() / SECOND + 1) * SECOND).unwrap();
        assert!(scanned(&room).baseline().is_none(), "`{directory}`");
        drop(standing);
        assert!(scanned(&room).baseline().is_some(), "`{directory}`");
    }
}

/// A second write within one step of the clock, while the scan waits for that step to end.
#[test]
fn a_scan_outlasts_the_step_of_the_clock_that_its_youngest_file_was_written_in() {
    for _ in 0..5 {
        let room = Room::new();
        room.file("f", "one");
        let (path, written) = (room.at("f"), since_epoch());
        let _standing = freeze_change_time(&path, written).unwrap();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(8));
            write_unseen(&path, "two");
            since_epoch()
        });
        let (snapshot, digest) = identified(&room, &Mutex::default());
        // After that clock step, the change time would have moved.
        if writer.join().unwrap() - written < 20_000_000 {
            assert_eq!(content(&snapshot, 0), "two");
            assert_eq!(digest, identified(&room, &Mutex::default()).1);
            return;
        }
    }
    eprintln!("skipped: the machine is too busy to write twice within 20 ms");
}
