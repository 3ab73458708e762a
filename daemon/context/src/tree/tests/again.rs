//! Tests of [`ScanBaseline`] and revalidation.

use std::time::Duration;

use super::*;

/// Waits until directories that were created or changed are older than a clock step.
fn settle() {
    std::thread::sleep(Duration::from_millis(40));
}

fn scanned(tree: &ContextTree) -> TreeSnapshot {
    tree.scan(&target("/context"), &ScanBounds::default()).unwrap()
}

fn fingerprint(snapshot: &TreeSnapshot) -> [u8; 32] {
    snapshot.fingerprint(&[]).unwrap()
}

fn known(tree: &ContextTree) -> ScanBaseline {
    settle();
    scanned(tree).baseline().unwrap()
}

fn again(tree: &ContextTree, known: &ScanBaseline) -> Option<TreeSnapshot> {
    tree.revalidate(&target("/context"), known)
}

/// Creates a directory deeper than the number of open directories, and files at all levels above it.
fn full(room: &Room) {
    room.file("app/a/x", "1").file("app/a/y", "2").file("app/a-b", "3").link("app/a/to", "x");
    fs::hard_link(room.at("app/a/x"), room.at("app/z")).unwrap();
    fs::create_dir(room.at("app/empty")).unwrap();
    room.fifo("app/fifo");
    let mut deep = "app/deep".to_owned();
    for level in 0..100 {
        room.file(&format!("{deep}/0"), "first").file(&format!("{deep}/z"), &level.to_string());
        deep.push_str("/d");
    }
    (0..600).for_each(|number| _ = room.file(&format!("app/many/{number}"), "m"));
}

#[test]
fn what_nobody_touched_is_what_a_scan_finds() {
    let room = Room::new();
    full(&room);
    let tree = room.tree(&[("app", "/context")]);
    let known = known(&tree);
    // Another build opens the same files again, and context paths may be below the mount.
    let tree = room.tree(&[("app", "/context")]);
    let (found, scanned) = (again(&tree, &known).unwrap(), scanned(&tree));
    assert_eq!(lines(&found), lines(&scanned));
    assert_eq!(fingerprint(&found), fingerprint(&scanned));
    assert!(again(&tree, &found.baseline().unwrap()).is_some(), "it stays known");

    let below = tree.scan(&target("/context/deep/d"), &ScanBounds::default()).unwrap().baseline().unwrap();
    let found = tree.revalidate(&target("/context/deep/d"), &below).unwrap();
    assert_eq!(found.find(b"d/z").map(|index| content(&found, index)), Some("2".to_owned()));
    assert!(again(&tree, &below).is_none(), "another context path");
    assert!(tree.revalidate(&target("/context/deep/d"), &known).is_none(), "another context path");
}

#[test]
fn whatever_changes_in_a_directory_it_is_not_what_was_known() {
    let exchange = |room: &Room, a: &str, b: &str| {
        let flags = rustix::fs::RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(rustix::fs::CWD, room.at(a), rustix::fs::CWD, room.at(b), flags).unwrap();
    };
    type Change<'c> = (&'c str, &'c dyn Fn(&Room));
    let deepest = format!("app/deep{}", "/d".repeat(99));
    let changes: [Change<'_>; 16] = [
        ("a name more at the root", &|room| _ = room.file("app/new", "n")),
        ("a name more", &|room| _ = room.file("app/many/new", "n")),
        ("a name more, deep down", &|room| _ = room.file(&format!("{deepest}/new"), "n")),
        ("a name less", &|room| fs::remove_file(room.at("app/many/300")).unwrap()),
        ("another name", &|room| fs::rename(room.at("app/many/300"), room.at("app/many/3000")).unwrap()),
        ("names that changed places", &|room| exchange(room, "app/a/x", "app/a/y")),
        ("directories that changed places", &|room| exchange(room, "app/a", "app/empty")),
        ("content", &|room| fs::write(room.at(&format!("{deepest}/z")), "??").unwrap()),
        ("content with the old length and time", &|room| {
            let path = room.at("app/a/y");
            let modified = fs::metadata(&path).unwrap().modified().unwrap();
            fs::write(&path, "9").unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        }),
        ("a mode", &|room| {
            fs::set_permissions(room.at("app/empty"), fs::Permissions::from_mode(0o700)).unwrap();
        }),
        ("a hard link elsewhere", &|room| fs::hard_link(room.at("app/a-b"), room.at("outside")).unwrap()),
        ("another target of a link", &|room| {
            fs::remove_file(room.at("app/a/to")).unwrap();
            symlink("y", room.at("app/a/to")).unwrap();
        }),
        ("a link in place of the same directory", &|room| {
            fs::rename(room.at("app/many"), room.at("many")).unwrap();
            symlink("../many", room.at("app/many")).unwrap();
        }),
        ("a file in place of a fifo", &|room| {
            fs::remove_file(room.at("app/fifo")).unwrap();
            room.file("app/fifo", "");
        }),
        ("an attribute of a directory", &|room| xattr::set(room.at("app/empty"), "user.k", b"v").unwrap()),
        ("another directory in its place", &|room| {
            fs::rename(room.at("app"), room.at("old")).unwrap();
            full(room);
        }),
    ];
    for (what, change) in changes {
        let room = Room::new();
        full(&room);
        let known = known(&room.tree(&[("app", "/context")]));
        assert!(again(&room.tree(&[("app", "/context")]), &known).is_some(), "before {what}");
        change(&room);
        assert!(again(&room.tree(&[("app", "/context")]), &known).is_none(), "{what}");
    }
}

#[test]
fn a_directory_that_changed_as_the_scan_began_is_not_known() {
    let room = Room::new();
    room.file("app/lib/a", "1").file("app/b", "2");
    settle();
    let mut snapshot = scanned(&room.tree(&[("app", "/context")]));
    assert!(snapshot.baseline().is_some());
    let EntryOrigin::Disk { changed, .. } = snapshot.origin(snapshot.find(b"lib").unwrap()) else {
        panic!("on disk");
    };
    // A name created immediately after this scan would have given the directory the same time.
    snapshot.root.as_mut().unwrap().observed_at = changed + 5_000_000;
    assert!(snapshot.baseline().is_none());
    snapshot.root.as_mut().unwrap().observed_at = changed - 1;
    assert!(snapshot.baseline().is_none(), "a time in the future");
}

#[test]
fn only_one_directory_of_a_file_system_that_keeps_times_is_known() {
    let room = Room::new();
    room.file("app/lib/a", "1").file("other/b", "2");
    settle();
    let is_known = |mounts: &[(&str, &str)], path: &str| {
        room.tree(mounts).scan(&target(path), &ScanBounds::default()).unwrap().baseline().is_some()
    };
    assert!(is_known(&[("app", "/context")], "/context/lib"));
    assert!(!is_known(&[("app", "/context"), ("other", "/context/lib/b")], "/context"));
    assert!(!is_known(&[("app", "/context/app")], "/context"), "the union's own directory");
    // The change times of its directories stay as old as the machine, whatever is created and removed in
    // them.
    let root = StorageRoot::open_or_create(Path::new("/sys/kernel")).unwrap();
    let layer = DirectoryLayer::open(&root, Path::new("mm")).unwrap();
    let tree = ContextTree::new(vec![MountedLayer::directory(target("/context"), layer)]).unwrap();
    let mut snapshot = tree.scan(&target("/context"), &ScanBounds::default()).unwrap();
    snapshot.set_unsettled(Vec::new());
    snapshot.root.as_mut().unwrap().observed_at = i64::MAX;
    assert!(snapshot.baseline().is_none());
}

#[derive(Clone, Debug)]
enum Step {
    Write(u8, u8),
    Remove(u8),
    Rename(u8, u8),
    Link(u8, u8),
    Directory(u8),
    Nothing,
}

fn step() -> impl Strategy<Value = Step> {
    let place = 0u8..12;
    prop_oneof![
        (place.clone(), 0u8..3).prop_map(|(a, b)| Step::Write(a, b)),
        place.clone().prop_map(Step::Remove),
        (place.clone(), place.clone()).prop_map(|(a, b)| Step::Rename(a, b)),
        (place.clone(), place.clone()).prop_map(|(a, b)| Step::Link(a, b)),
        place.prop_map(Step::Directory),
        Just(Step::Nothing),
    ]
}

impl Step {
    /// Performs the step; a step that is impossible does nothing.
    fn run(&self, room: &Room) {
        let at = |place: u8| {
            let directory = ["", "d", "d/e", "f"][usize::from(place % 4)];
            room.at("app").join(directory).join(["a", "b", "g"][usize::from(place / 4)])
        };
        let _ = match *self {
            Self::Write(place, content) => fs::write(at(place), [content; 3]),
            Self::Remove(place) => fs::remove_file(at(place)).or_else(|_| fs::remove_dir_all(at(place))),
            Self::Rename(from, to) => fs::rename(at(from), at(to)),
            Self::Link(from, to) => fs::hard_link(at(from), at(to)),
            Self::Directory(place) => fs::create_dir_all(at(place)),
            Self::Nothing => Ok(()),
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The steps and the scans after them happen within one clock step.
    #[test]
    fn what_is_found_again_is_what_a_scan_finds(
        before in prop::collection::vec(step(), 0..20),
        after in prop::collection::vec(step(), 0..6),
    ) {
        let room = Room::new();
        room.file("app/d/e/x", "1").file("app/f/y", "2");
        before.iter().for_each(|step| step.run(&room));
        let tree = room.tree(&[("app", "/context")]);
        let mut known = known(&tree);
        for step in after {
            step.run(&room);
            let found = again(&tree, &known);
            let scanned = scanned(&tree);
            match &found {
                Some(found) => prop_assert_eq!(lines(found), lines(&scanned), "{:?}", step),
                // A file that changed just now may change once more.
                None => prop_assert!(!matches!(step, Step::Nothing), "nothing changed"),
            }
            if let Some(next) = scanned.baseline() {
                known = next;
            } else if found.is_none() {
                settle();
                known = super::again::scanned(&tree).baseline().unwrap();
            }
        }
    }
}
