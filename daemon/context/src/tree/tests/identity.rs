use std::time::{Duration, SystemTime};

use hearth_pack::identity::{HashCache, TreeDigest};
use hearth_pack::ignore::IgnorePatterns;
use parking_lot::Mutex;

use super::*;

/// Waits until everything that was written is older than the resolution of time stamps.
fn settle() {
    std::thread::sleep(Duration::from_millis(40));
}

fn identify(tree: &ContextTree, hashes: &Mutex<HashCache>) -> TreeIdentity {
    covered(tree, hashes, &CopySelection::default(), "")
}

fn covered(
    tree: &ContextTree,
    hashes: &Mutex<HashCache>,
    selection: &CopySelection,
    ignore: &str,
) -> TreeIdentity {
    let mut snapshot = tree.scan(&target("/context"), &ScanBounds::default()).unwrap();
    let covered = snapshot.covered(selection, Some(IgnorePatterns::parse_file(ignore.as_bytes()).unwrap()));
    snapshot.identify(covered, hashes, &tokio_util::sync::CancellationToken::new()).unwrap().identity
}

fn digest_of(room: &Room, source: &str) -> TreeDigest {
    identify(&room.tree(&[(source, "/context")]), &Mutex::default()).digest
}

fn set_time(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn a_copy_at_another_path_with_other_times_has_the_same_digest() {
    let room = Room::new();
    for top in ["one", "two/deep"] {
        room.file(&format!("{top}/a"), "1").file(&format!("{top}/d/b"), "2").link(&format!("{top}/l"), "a");
        fs::hard_link(room.at(&format!("{top}/a")), room.at(&format!("{top}/z"))).unwrap();
        fs::create_dir(room.at(&format!("{top}/empty"))).unwrap();
    }
    set_time(&room.at("one/a"), 1000);
    assert_eq!(digest_of(&room, "one"), digest_of(&room, "two/deep"));
    let tree = room.tree(&[("one", "/context")]);
    let hashes = Mutex::default();
    let before = identify(&tree, &hashes);
    set_time(&room.at("one/a"), 2000);
    let after = identify(&tree, &hashes);
    assert_eq!(after.digest, before.digest);
    assert_ne!(after.times, before.times, "they reach an image");
}

#[test]
fn whatever_a_build_could_see_changes_the_digest() {
    let change = |change: &dyn Fn(&Room)| {
        let room = Room::new();
        room.file("a", "1").file("b", "1").file("d/c", "2").link("l", "a");
        fs::create_dir(room.at("e")).unwrap();
        let before = digest_of(&room, "");
        change(&room);
        assert_ne!(digest_of(&room, ""), before);
    };
    let mode = |path: &'static str, mode| {
        move |room: &Room| fs::set_permissions(room.at(path), fs::Permissions::from_mode(mode)).unwrap()
    };
    change(&|room| _ = room.file("a", "2"));
    change(&|room| fs::rename(room.at("a"), room.at("a2")).unwrap());
    change(&|room| fs::remove_dir(room.at("e")).unwrap());
    change(&mode("a", 0o755));
    change(&mode("a", 0o4644));
    change(&mode("d", 0o700));
    change(&|room| {
        fs::remove_file(room.at("l")).unwrap();
        room.link("l", "b");
    });
    change(&|room| {
        fs::remove_file(room.at("b")).unwrap();
        fs::hard_link(room.at("a"), room.at("b")).unwrap();
    });
    change(&|room| {
        fs::remove_dir(room.at("e")).unwrap();
        room.fifo("e");
    });
    for path in ["a", "d"] {
        change(&|room| xattr::set(room.at(path), "user.k", b"v").unwrap());
    }
}

#[test]
fn a_change_that_the_stat_hides_is_seen_with_a_warm_cache() {
    let room = Room::new();
    room.file("a", "11").file("b", "22");
    set_time(&room.at("a"), 1000);
    settle();
    let (tree, hashes) = (room.tree(&[("", "/context")]), Mutex::default());
    let before = identify(&tree, &hashes);
    assert_eq!(hashes.lock().len(), 2);
    assert_eq!(identify(&tree, &hashes), before);
    room.file("a", "33");
    set_time(&room.at("a"), 1000);
    assert_ne!(identify(&tree, &hashes).digest, before.digest);
}

#[test]
fn files_with_attributes_are_looked_at_each_time() {
    let room = Room::new();
    room.file("a", "1").file("b", "2");
    xattr::set(room.at("a"), "user.k", b"v").unwrap();
    settle();
    let (tree, hashes) = (room.tree(&[("", "/context")]), Mutex::default());
    let before = identify(&tree, &hashes);
    assert_eq!(hashes.lock().len(), 1);
    xattr::set(room.at("b"), "user.k", b"v").unwrap();
    assert_ne!(identify(&tree, &hashes).digest, before.digest, "the change time told");
    let mut snapshot = tree.scan(&target("/context"), &ScanBounds::default()).unwrap();
    let all = snapshot.covered(&CopySelection::default(), None);
    snapshot.identify(all, &hashes, &tokio_util::sync::CancellationToken::new()).unwrap();
    assert_eq!(snapshot.xattrs(snapshot.find(b"a").unwrap()), [(b"user.k".to_vec(), b"v".to_vec())]);
}

#[test]
fn what_is_ignored_or_not_copied_is_neither_read_nor_counted() {
    let room = Room::new();
    room.file("src/a", "1").file("src/x.tmp", "2").file("other/b", "3").file(".dockerignore", "*.tmp");
    settle();
    let (tree, hashes) = (room.tree(&[("", "/context")]), Mutex::default());
    let selection = CopySelection::of([b"src".to_vec(), b"src/deep".to_vec()]);
    assert_eq!(selection.roots.as_deref().unwrap(), [b"src".to_vec()]);
    let before = covered(&tree, &hashes, &selection, "**/*.tmp\n");
    assert_eq!(hashes.lock().len(), 2, "`src/a` and the ignore file");
    room.file("src/x.tmp", "22").file("other/b", "33").file("other/c", "");
    assert_eq!(covered(&tree, &hashes, &selection, "**/*.tmp\n").digest, before.digest);
    assert_ne!(covered(&tree, &hashes, &selection, "").digest, before.digest);
    room.file("src/a", "9");
    assert_ne!(covered(&tree, &hashes, &selection, "**/*.tmp\n").digest, before.digest);
    // With a symbolic link on the path, the copied files are elsewhere, so everything is covered.
    room.link("ln", "other");
    let through = CopySelection::of([b"ln/b".to_vec()]);
    let before = covered(&tree, &hashes, &through, "");
    room.file("src/a", "10");
    assert_ne!(covered(&tree, &hashes, &through, "").digest, before.digest);
}

#[test]
fn only_what_is_covered_may_be_sent() {
    let room = Room::new();
    room.file("src/keep", "1").file("src/no/deep", "2").file("src/no/back", "3").file("x", "4");
    let mut snapshot =
        room.tree(&[("", "/context")]).scan(&target("/context"), &ScanBounds::default()).unwrap();
    let ignore = IgnorePatterns::parse_file(b"src/no\n!src/no/back\n").unwrap();
    let covered = snapshot.covered(&CopySelection::of([b"src".to_vec()]), Some(ignore));
    assert!(snapshot.is_covered(snapshot.find(b"x").unwrap()), "before anything is known");
    snapshot.identify(covered, &Mutex::default(), &tokio_util::sync::CancellationToken::new()).unwrap();
    let shown = (0..snapshot.len()).filter(|index| snapshot.is_covered(*index));
    let shown: Vec<_> = shown.map(|index| String::from_utf8_lossy(snapshot.entry(index).path)).collect();
    assert_eq!(shown, ["src", "src/keep", "src/no", "src/no/back"]);
}

#[test]
fn a_scan_within_bounds_finds_the_same_as_a_whole_one() {
    let room = Room::new();
    for name in ["src/app/a", "src/app/deep/b", "src/other/c", "lib/d", "lib/.git/e", "node_modules/x/f", "g"]
    {
        room.file(name, name);
    }
    room.link("ln", "lib");
    settle();
    let (tree, hashes) = (room.tree(&[("", "/context"), ("lib", "/context/src/mounted")]), Mutex::default());
    for roots in
        [None, Some(vec!["src/app"]), Some(vec!["lib", "g"]), Some(vec!["src/mounted/d"]), Some(vec![])]
    {
        for ignore in ["", "**/.git\nnode_modules\n", "src\n!src/app/deep\n"] {
            let selection = match &roots {
                None => CopySelection::default(),
                Some(roots) => CopySelection::of(roots.iter().map(|root| root.as_bytes().to_vec())),
            };
            let patterns = IgnorePatterns::parse_file(ignore.as_bytes()).unwrap();
            let look = |bounds: &ScanBounds<'_>| {
                let mut snapshot = tree.scan(&target("/context"), bounds).unwrap();
                let covered = snapshot.covered(&selection, Some(patterns.clone()));
                let identity = snapshot
                    .identify(covered, &hashes, &tokio_util::sync::CancellationToken::new())
                    .unwrap()
                    .identity;
                (identity, snapshot.len())
            };
            let (whole, all) = look(&ScanBounds::default());
            let (bounded, fewer) = look(&ScanBounds::new(&selection, Some(&patterns)));
            assert_eq!(bounded, whole, "{roots:?} {ignore:?}");
            assert!(fewer <= all);
            if roots.as_ref().is_some_and(Vec::is_empty) {
                assert_eq!(fewer, 5, "only what lies at the root");
            }
        }
    }
}

#[test]
fn each_mount_has_the_digest_of_what_it_gave() {
    let room = Room::new();
    room.file("app/a", "1").file("app/vendor/hidden", "x").file("lib/g", "2").file("lib/d/h", "3");
    let both = room.tree(&[("app", "/context"), ("lib", "/context/vendor")]);
    let identity = identify(&both, &Mutex::default());
    let [(app, of_app), (lib, of_lib)] = &*identity.mounts else { panic!("{:?}", identity.mounts) };
    assert_eq!((app.as_str(), lib.as_str()), ("/context", "/context/vendor"));
    assert_eq!(*of_lib, digest_of(&room, "lib"));
    assert_ne!(*of_app, identity.digest);
    room.file("lib/g", "4");
    let after = identify(&both, &Mutex::default());
    assert_eq!(after.mounts[0].1, *of_app);
    assert_ne!(after.mounts[1].1, *of_lib);
    let alone = identify(&room.tree(&[("lib", "/context")]), &Mutex::default());
    assert_eq!(alone.mounts[0].1, alone.digest);
}

#[test]
fn a_hard_link_whose_first_name_is_not_covered_is_the_file() {
    let room = Room::new();
    room.file("a/f", "1").file("one/g", "1");
    fs::create_dir(room.at("b")).unwrap();
    fs::hard_link(room.at("a/f"), room.at("b/g")).unwrap();
    fs::hard_link(room.at("a/f"), room.at("b/h")).unwrap();
    fs::hard_link(room.at("one/g"), room.at("one/h")).unwrap();
    let hashes = Mutex::default();
    let through = |source: &str| {
        let tree = room.tree(&[(source, "/context/x"), ("a", "/context/b")]);
        covered(&tree, &hashes, &CopySelection::of([b"x".to_vec()]), "").digest
    };
    let tree = room.tree(&[("", "/context")]);
    let beside = covered(&tree, &hashes, &CopySelection::of([b"b".to_vec()]), "").mounts[0].1;
    room.file("a/unrelated", "");
    assert_eq!(covered(&tree, &hashes, &CopySelection::of([b"b".to_vec()]), "").mounts[0].1, beside);
    assert_eq!(through("b"), through("one"), "the same two names of one content");
}

#[test]
fn a_file_with_ambiguous_times_is_compared_by_content() {
    let room = Room::new();
    room.file("a", "1111");
    // A clock that was set back leaves a change time in the future.
    let mut snapshot =
        room.tree(&[("", "/context")]).scan(&target("/context"), &ScanBounds::default()).unwrap();
    snapshot.set_unsettled(vec![0]);
    let all = snapshot.covered(&CopySelection::default(), None);
    snapshot.identify(all, &Mutex::default(), &tokio_util::sync::CancellationToken::new()).unwrap();
    assert_eq!(content(&snapshot, 0), "1111");
    snapshot.unsettled_contents.insert(0, hearth_pack::identity::ContentHash::of(b"2222"));
    let mut read = Vec::new();
    let error = snapshot.open(0).unwrap().read_to_end(&mut read).unwrap_err();
    assert!(error.to_string().contains("/context/a") && read.is_empty(), "{error}");
}

#[test]
fn an_error_of_hashing_names_the_first_file() {
    let room = Room::new();
    for n in 0..300 {
        room.file(&format!("f{n:03}"), "1");
    }
    let mut snapshot =
        room.tree(&[("", "/context")]).scan(&target("/context"), &ScanBounds::default()).unwrap();
    for n in [17, 250] {
        room.file(&format!("f{n:03}"), "other");
    }
    let all = snapshot.covered(&CopySelection::default(), None);
    match snapshot.identify(all, &Mutex::default(), &tokio_util::sync::CancellationToken::new()).map(|_| ()) {
        Err(ContextError::Changed { path }) => assert_eq!(path, "/context/f017"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_reading_of_files_ends_when_nobody_waits_for_it() {
    let room = Room::new();
    room.file("r/large", "");
    // A sparse file takes long to read, and no space.
    fs::File::options().write(true).open(room.at("r/large")).unwrap().set_len(1 << 40).unwrap();
    let tree = room.tree(&[("r", "/context")]);
    let mut snapshot = tree.scan(&target("/context"), &ScanBounds::default()).unwrap();
    let all = snapshot.covered(&CopySelection::default(), None);
    let stop = tokio_util::sync::CancellationToken::new();
    let later = stop.clone();
    let canceller = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        later.cancel();
    });
    let begun = std::time::Instant::now();
    let ended = snapshot.identify(all, &Mutex::default(), &stop).map(|_| ());
    assert!(matches!(ended, Err(ContextError::Cancelled)), "{ended:?}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    canceller.join().unwrap();
}
