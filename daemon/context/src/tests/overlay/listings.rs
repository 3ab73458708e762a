//! Directories of a mount that are read while they change.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, FileTimes};
use std::path::Path;
use std::time::{Duration, Instant};

use super::Place;
use super::mounted::Point;

const LIMIT: Duration = Duration::from_secs(5);
/// The kernel reads a directory of this size in several parts.
const MANY: usize = 2000;

fn fill(directory: &Path) {
    fs::create_dir_all(directory).unwrap();
    (0..MANY).for_each(|number| fs::write(directory.join(name(number)), "one").unwrap());
}

fn name(number: usize) -> OsString {
    format!("a-name-that-takes-some-room-in-a-listing-{number:04}").into()
}

fn names(directory: &Path) -> Vec<OsString> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn what_was_listed_long_before_it_is_read_is_asked_for_again() {
    let place = Place::new();
    fill(&place.lower());
    let at = place.path("at");
    let _point = Point::fuse(&at, place.read_only());
    // It stays the last one as long as the mount exists.
    let last = names(&at).pop().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let mut entries = fs::read_dir(&at).unwrap();
    entries.next().unwrap().unwrap().metadata().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    fs::write(place.lower().join(&last), "longer").unwrap();
    // Reading the metadata of each entry makes the kernel request attributes with the names.
    let sizes = entries.map(|entry| {
        let entry = entry.unwrap();
        (entry.file_name(), entry.metadata().unwrap().len())
    });
    let found = sizes.filter(|(name, _)| *name == last).map(|(_, size)| size).collect::<Vec<_>>();
    assert_eq!(found, [6]);
}

#[test]
fn no_listing_is_kept_although_the_time_of_its_directory_stays() {
    let place = Place::new();
    let below = place.lower().join("d");
    fs::create_dir(&below).unwrap();
    fs::write(below.join("old"), "").unwrap();
    let at = place.path("at");
    let _point = Point::fuse(&at, place.read_only());
    let modified = fs::metadata(&below).unwrap().modified().unwrap();
    assert_eq!(names(&at.join("d")), ["old"]);
    fs::write(below.join("new"), "").unwrap();
    fs::remove_file(below.join("old")).unwrap();
    File::open(&below).unwrap().set_times(FileTimes::new().set_modified(modified)).unwrap();
    let start = Instant::now();
    while names(&at.join("d")) != ["new"] {
        assert!(start.elapsed() < LIMIT, "{:?} is still listed", names(&at.join("d")));
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Reads a directory in part, makes changes, and reads the rest: every entry that existed all the time is
/// returned once.
fn reads_on(at: &Path, change: impl FnOnce(&Path)) {
    let mut entries = fs::read_dir(at).unwrap();
    let mut met = vec![entries.next().unwrap().unwrap().file_name()];
    change(at);
    met.extend(entries.map(|entry| entry.unwrap().file_name()));
    let all: BTreeSet<_> = met.iter().cloned().collect();
    assert_eq!(all.len(), met.len(), "some were met twice");
    for number in (1..MANY).step_by(2) {
        assert!(all.contains(&name(number)), "{number} was not met");
    }
}

/// Removes half of the names, creates new ones, and reads the directory with another reader meanwhile.
fn changes(directory: &Path, at: &Path) {
    (0..MANY).step_by(2).for_each(|number| fs::remove_file(directory.join(name(number))).unwrap());
    (MANY..MANY + MANY / 2).for_each(|number| fs::write(directory.join(name(number)), "").unwrap());
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(names(at).len(), MANY);
}

#[test]
fn a_reader_goes_on_where_it_stood_whatever_changed_below() {
    let place = Place::new();
    fill(&place.lower());
    let at = place.path("at");
    let _point = Point::fuse(&at, place.read_only());
    reads_on(&at, |at| changes(&place.lower(), at));
}

#[test]
fn a_reader_goes_on_where_it_stood_whatever_it_changed() {
    let place = Place::new();
    fill(&place.lower());
    let at = place.path("at");
    let _point = Point::fuse(&at, place.union());
    reads_on(&at, |at| changes(at, at));
    fs::create_dir(at.join("d")).unwrap();
    fill(&at.join("d/e"));
    fs::remove_dir_all(at.join("d")).unwrap();
    assert!(!at.join("d").exists());
}

#[test]
fn more_readers_than_are_remembered_all_read_to_the_end() {
    const ENTRIES: usize = 200;
    // The kernel reads some eighty of them at a time.
    let name = |number: usize| format!("{number:0240}");
    let place = Place::new();
    let all: Vec<_> = (0..40).map(|number| format!("d{number}")).collect();
    for directory in all.iter().map(|name| place.lower().join(name)) {
        fs::create_dir(&directory).unwrap();
        (0..ENTRIES).for_each(|number| fs::write(directory.join(name(number)), "").unwrap());
    }
    let at = place.path("at");
    let _point = Point::fuse(&at, place.read_only());
    let mut readers: Vec<_> = all.iter().map(|name| fs::read_dir(at.join(name)).unwrap()).collect();
    let mut met = vec![BTreeSet::new(); all.len()];
    for _ in 0..ENTRIES {
        for (reader, met) in readers.iter_mut().zip(&mut met) {
            assert!(met.insert(reader.next().unwrap().unwrap().file_name()));
        }
    }
    assert!(readers.iter_mut().all(|reader| reader.next().is_none()));
}

/// Creates directories `d00`, `d01` and so on, with a file in each.
fn directories(lower: &Path) {
    for directory in (0..20).map(|number| lower.join(format!("d{number:02}"))) {
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("old"), "").unwrap();
    }
}

#[test]
fn a_walk_meets_what_it_made_itself_in_a_directory_that_was_listed_ahead() {
    let place = Place::new();
    directories(&place.lower());
    let at = place.path("at");
    let _point = Point::fuse(&at, place.union());
    for directory in names(&at).into_iter().map(|name| at.join(name)) {
        // Leaves time to prefetch the directory after the one before it was read.
        std::thread::sleep(Duration::from_millis(5));
        fs::write(directory.join("new"), "").unwrap();
        fs::remove_file(directory.join("old")).unwrap();
        assert_eq!(names(&directory), ["new"]);
    }
}

#[test]
fn a_walk_meets_what_came_below_a_while_before() {
    let place = Place::new();
    directories(&place.lower());
    let at = place.path("at");
    let _point = Point::fuse(&at, place.read_only());
    for directory in names(&at) {
        std::thread::sleep(Duration::from_millis(5));
        let below = place.lower().join(&directory);
        fs::write(below.join("new"), "").unwrap();
        fs::remove_file(below.join("old")).unwrap();
        std::thread::sleep(Duration::from_millis(110));
        assert_eq!(names(&at.join(&directory)), ["new"]);
    }
}

#[test]
fn a_walk_through_a_tree_that_loses_its_directories_ends_well() {
    let place = Place::new();
    directories(&place.lower());
    let at = place.path("at");
    let _point = Point::fuse(&at, place.read_only());
    let all = names(&at);
    for directory in &all[..10] {
        assert_eq!(names(&at.join(directory)), ["old"]);
    }
    std::thread::sleep(Duration::from_millis(5));
    all[10..].iter().for_each(|name| fs::remove_dir_all(place.lower().join(name)).unwrap());
    std::thread::sleep(Duration::from_millis(150));
    assert!(all[10..].iter().all(|name| fs::read_dir(at.join(name)).is_err()));
    assert_eq!(names(&at).len(), 10);
}
