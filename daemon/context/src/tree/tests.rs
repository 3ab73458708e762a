mod again;
mod coarse_clock;
mod identity;

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::port::FileTree;
use crate::storage::{StorageError, StorageRoot};

struct Room {
    directory: tempfile::TempDir,
    root: StorageRoot,
}

impl Room {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("secret"), "canary").unwrap();
        let root = StorageRoot::open_or_create(&directory.path().join("room")).unwrap();
        Self { directory, root }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join("room").join(path)
    }

    fn file(&self, path: &str, content: &str) -> &Self {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), content).unwrap();
        self
    }

    fn link(&self, path: &str, target: &str) -> &Self {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        symlink(target, self.at(path)).unwrap();
        self
    }

    fn fifo(&self, path: &str) -> &Self {
        let mode = rustix::fs::Mode::from_raw_mode(0o644);
        rustix::fs::mknodat(rustix::fs::CWD, self.at(path), rustix::fs::FileType::Fifo, mode, 0).unwrap();
        self
    }

    fn layer(&self, source: &str) -> DirectoryLayer {
        DirectoryLayer::open(&self.root, Path::new(source)).unwrap()
    }

    fn tree(&self, mounts: &[(&str, &str)]) -> ContextTree {
        let mounted = |(source, at): &(&str, &str)| MountedLayer::directory(target(at), self.layer(source));
        ContextTree::new(mounts.iter().map(mounted).collect()).unwrap()
    }
}

fn target(path: &str) -> MountTarget {
    path.parse().unwrap()
}

/// Returns each entry as one line: path, then `/`, `=content`, `->target`, `~other name` or `?`.
fn lines(snapshot: &TreeSnapshot) -> Vec<String> {
    let line = |index: usize| {
        let entry = snapshot.entry(index);
        let path = String::from_utf8_lossy(entry.path);
        match &entry.kind {
            FileKind::Directory => format!("{path}/"),
            FileKind::File(()) => format!("{path}={}", content(snapshot, index)),
            FileKind::Symlink(target) => format!("{path}->{}", String::from_utf8_lossy(target)),
            FileKind::HardLink(first) => {
                format!("{path}~{}", String::from_utf8_lossy(snapshot.entry(*first).path))
            }
            _ => format!("{path}?"),
        }
    };
    (0..snapshot.len()).map(line).collect()
}

fn content(snapshot: &TreeSnapshot, index: usize) -> String {
    let mut text = String::new();
    snapshot.open(index).unwrap().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn a_directory_is_scanned_in_the_order_of_file_sync() {
    let room = Room::new();
    room.file("a/x", "1").file("a-b", "2").file("a.c", "3").file("b", "4").link("a/to", "/etc/passwd");
    fs::hard_link(room.at("a/x"), room.at("z")).unwrap();
    room.fifo("fifo");
    fs::set_permissions(room.at("b"), fs::Permissions::from_mode(0o4711)).unwrap();
    let snapshot = room.tree(&[("", "/context")]).scan(&target("/context"), &ScanBounds::default()).unwrap();
    let expected = ["a/", "a/to->/etc/passwd", "a/x=1", "a-b=2", "a.c=3", "b=4", "fifo?", "z~a/x"];
    assert_eq!(lines(&snapshot), expected);
    let entries: Vec<crate::port::TreeEntry<'_>> = (&snapshot as &dyn FileTree).entries().collect();
    assert!(entries.is_sorted_by(|a, b| path_order(a.path, b.path).is_lt()));
    assert_eq!(entries[snapshot.find(b"b").unwrap()].mode, 0o4711);
    assert_eq!(content(&snapshot, snapshot.find(b"z").unwrap()), "1");
    assert_eq!(snapshot.files(), (4, 4));
    assert!(snapshot.open(snapshot.find(b"fifo").unwrap()).is_err());
}

#[test]
fn the_deeper_mount_wins_over_files_links_directories_and_nothing() {
    let room = Room::new();
    room.file("app/main", "m").file("app/vendor/old", "o").file("app/plain", "p");
    room.link("app/link", "/etc").file("lib/new", "n");
    let tree = room.tree(&[
        ("app", "/context"),
        ("lib", "/context/vendor"),
        ("lib", "/context/plain"),
        ("lib", "/context/link/below"),
        ("lib", "/context/not/there/yet"),
        ("app/main", "/context/single"),
    ]);
    let snapshot = tree.scan(&target("/context"), &ScanBounds::default()).unwrap();
    let expected = [
        "link/",
        "link/below/",
        "link/below/new=n",
        "main=m",
        "not/",
        "not/there/",
        "not/there/yet/",
        "not/there/yet/new=n",
        "plain/",
        "plain/new=n",
        "single=m",
        "vendor/",
        "vendor/new=n",
    ];
    assert_eq!(lines(&snapshot), expected);
    let made = snapshot.entry(snapshot.find(b"not/there").unwrap());
    assert_eq!((made.mode, made.mtime), (0o755, 0));
}

#[test]
fn the_context_path_may_be_anywhere_in_the_union() {
    let room = Room::new();
    room.file("app/src/deep/f", "1").file("lib/g", "2").link("app/current", "src");
    let tree = room.tree(&[("app", "/a/b"), ("lib", "/a/b/src/deep/lib"), ("lib", "/a/c/d")]);
    let scan = |path: &str| tree.scan(&target(path), &ScanBounds::default()).map(|snapshot| lines(&snapshot));
    assert_eq!(scan("/a/b/src/deep").unwrap(), ["f=1", "lib/", "lib/g=2"]);
    assert_eq!(scan("/a/b/current/deep").unwrap(), ["f=1", "lib/", "lib/g=2"]);
    assert_eq!(scan("/a/c").unwrap(), ["d/", "d/g=2"]);
    assert_eq!(
        scan("/").unwrap(),
        [
            "a/",
            "a/b/",
            "a/b/current->src",
            "a/b/src/",
            "a/b/src/deep/",
            "a/b/src/deep/f=1",
            "a/b/src/deep/lib/",
            "a/b/src/deep/lib/g=2",
            "a/c/",
            "a/c/d/",
            "a/c/d/g=2",
        ]
    );
    assert!(matches!(scan("/nowhere"), Err(ContextError::ContextPathNotFound { .. })));
    assert!(matches!(scan("/a/b/src/none"), Err(ContextError::ContextPathNotFound { .. })));
    assert!(matches!(scan("/a/b/src/deep/f"), Err(ContextError::ContextNotADirectory { .. })));
}

#[test]
fn the_context_may_be_a_parent_that_the_union_made() {
    let room = Room::new();
    room.file("app/f", "1").file("lib/g", "2");
    let tree = room.tree(&[("app", "/context"), ("lib", "/context/made/lib")]);
    assert_eq!(
        lines(&tree.scan(&target("/context/made"), &ScanBounds::default()).unwrap()),
        ["lib/", "lib/g=2"]
    );
}

#[test]
fn an_empty_mount_is_an_empty_directory() {
    let room = Room::new();
    room.file("app/cache/f", "1").file("lib/g", "2");
    let tree = ContextTree::new(vec![
        MountedLayer::directory(target("/context"), room.layer("app")),
        MountedLayer::empty(target("/context/cache")),
        MountedLayer::directory(target("/context/cache/lib"), room.layer("lib")),
    ])
    .unwrap();
    assert_eq!(
        lines(&tree.scan(&target("/context"), &ScanBounds::default()).unwrap()),
        ["cache/", "cache/lib/", "cache/lib/g=2"]
    );
    assert!(matches!(
        ContextTree::new(vec![MountedLayer::empty(target("/x")), MountedLayer::empty(target("/x")),]),
        Err(ContextError::DuplicateTarget { .. })
    ));
}

#[test]
fn a_source_that_is_missing_outside_or_a_fifo_is_refused() {
    let room = Room::new();
    room.link("out", "..").link("magic", "/proc/self/root").link("ok", "app").file("app/f", "1");
    room.fifo("fifo");
    let open = |path: &str| DirectoryLayer::open(&room.root, Path::new(path)).map(|_| ());
    assert!(matches!(open("none"), Err(StorageError::NotFound { .. })));
    assert!(matches!(open("out"), Err(StorageError::Escapes { .. })));
    assert!(matches!(open("out/secret"), Err(StorageError::Escapes { .. })));
    assert!(matches!(open("magic"), Err(StorageError::Escapes { .. })));
    assert!(matches!(open("fifo"), Err(StorageError::NotADirectory { .. })));
    assert!(open("ok").is_ok());
}

#[test]
fn a_link_is_followed_inside_the_tree_only() {
    let room = Room::new();
    room.file("app/real/Dockerfile", "D").file("lib/other", "O").link("app/rel", "real/Dockerfile");
    room.link("app/abs", "/context/real/Dockerfile").link("app/cross", "../lib/other");
    room.link("app/out", "../../secret").link("app/host", "/etc/passwd").link("app/dir", "real");
    room.link("app/dangling", "real/none").link("app/loop", "loop").link("app/up", "../../../..");
    fs::create_dir_all(room.at("app")).unwrap();
    room.fifo("app/fifo");
    let tree = room.tree(&[("app", "/context"), ("lib", "/lib")]);
    let read = |path: &str| tree.read_small(&target(path), 100);
    for (path, text) in [("rel", "D"), ("abs", "D"), ("cross", "O"), ("dir/Dockerfile", "D")] {
        assert_eq!(read(&format!("/context/{path}")).unwrap().unwrap(), text.as_bytes(), "{path}");
    }
    assert!(read("/context/none").unwrap().is_none());
    assert!(read("/context/real/Dockerfile/x").unwrap().is_none());
    for path in ["out", "host", "up/secret"] {
        let result = read(&format!("/context/{path}"));
        assert!(matches!(result, Err(ContextError::LinkOutOfTree { .. })), "{path}: {result:?}");
    }
    assert!(matches!(read("/context/dangling"), Err(ContextError::DanglingLink { .. })));
    assert!(matches!(read("/context/loop"), Err(ContextError::LinkLoop { .. })));
    assert!(matches!(read("/context/fifo"), Err(ContextError::NotAFile { what: "a fifo", .. })));
    assert!(matches!(read("/context/real"), Err(ContextError::NotAFile { what: "a directory", .. })));
    let opened = |path: &str| tree.reader(path.as_bytes()).map(|_| ()).unwrap_err().to_string();
    assert_eq!(opened("context/real"), "`/context/real` is a directory, not a file");
    assert_eq!(opened("context/fifo"), "`/context/fifo` is a fifo, not a file");
    assert_eq!(opened(""), "`/` is a directory, not a file");
    room.file("app/big", &"x".repeat(101));
    assert!(matches!(read("/context/big"), Err(ContextError::TooLarge { size: 101, .. })));
}

#[test]
fn a_file_that_changed_since_the_scan_is_an_error_that_names_it() {
    let room = Room::new();
    room.file("a", "11").file("b", "22").file("c", "33").file("d", "44").file("dir/e", "55");
    let snapshot = room.tree(&[("", "/context")]).scan(&target("/context"), &ScanBounds::default()).unwrap();
    let of = |path: &str| {
        let mut text = String::new();
        let reader = snapshot.open(snapshot.find(path.as_bytes()).unwrap());
        reader
            .and_then(|mut reader| reader.read_to_string(&mut text))
            .map(|_| text)
            .map_err(|e| e.to_string())
    };
    let old = fs::metadata(room.at("a")).unwrap().modified().unwrap();
    // Equal size and equal mtime: only the change time differs.
    room.file("a", "xx");
    fs::File::options().write(true).open(room.at("a")).unwrap().set_modified(old).unwrap();
    assert_eq!(of("a").unwrap_err(), "`/context/a` changed while it was read");
    fs::remove_file(room.at("b")).unwrap();
    room.link("b", "../secret");
    assert_eq!(of("b").unwrap_err(), "`/context/b` changed while it was read");
    fs::remove_file(room.at("c")).unwrap();
    room.fifo("c");
    assert!(of("c").is_err());
    fs::rename(room.at("dir"), room.at("moved")).unwrap();
    room.link("dir", "moved");
    assert!(of("dir/e").is_err());
    assert_eq!(of("d").unwrap(), "44");
}

#[test]
fn a_file_that_changes_under_the_reader_is_never_taken_for_whole() {
    let room = Room::new();
    room.file("a", &"x".repeat(100_000));
    let snapshot = room.tree(&[("", "/context")]).scan(&target("/context"), &ScanBounds::default()).unwrap();
    let mut reader = snapshot.open(0).unwrap();
    let mut half = vec![0; 50_000];
    reader.read_exact(&mut half).unwrap();
    room.file("a", &"y".repeat(100_000));
    assert!(reader.read_exact(&mut half).is_err());
}

#[test]
fn a_scan_and_its_reads_never_leave_while_directories_and_links_swap() {
    let room = Room::new();
    let outside = room.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    for name in 0..20 {
        fs::write(outside.join(format!("f{name}")), "canary").unwrap();
        room.file(&format!("app/d/f{name}"), "inside");
        room.file(&format!("app/e/sub/f{name}"), "inside");
    }
    symlink(&outside, room.at("app/link")).unwrap();
    let tree = room.tree(&[("app", "/context")]);
    let done = AtomicBool::new(false);
    let mut served = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let cwd = rustix::fs::CWD;
            while !done.load(Ordering::SeqCst) {
                for path in ["app/d", "app/e/sub"] {
                    let exchange = rustix::fs::RenameFlags::EXCHANGE;
                    for _ in 0..2 {
                        rustix::fs::renameat_with(cwd, room.at(path), cwd, room.at("app/link"), exchange)
                            .unwrap();
                    }
                }
            }
        });
        for _ in 0..150 {
            let snapshot = match tree.scan(&target("/context"), &ScanBounds::default()) {
                Ok(snapshot) => snapshot,
                Err(ContextError::Changed { .. }) => continue,
                Err(error) => panic!("{error}"),
            };
            for index in 0..snapshot.len() {
                if snapshot.entry(index).kind != FileKind::File(()) {
                    continue;
                }
                let mut text = String::new();
                if let Ok(mut reader) = snapshot.open(index)
                    && reader.read_to_string(&mut text).is_ok()
                {
                    assert_eq!(text, "inside");
                    served += 1;
                }
            }
        }
        done.store(true, Ordering::SeqCst);
    });
    assert!(served > 0);
}

#[test]
fn unreadable_files_are_errors_and_never_left_out() {
    let room = Room::new();
    room.file("dir/f", "x");
    fs::set_permissions(room.at("dir"), fs::Permissions::from_mode(0o000)).unwrap();
    let as_nobody = || {
        // Applies to this thread only, and is undone even if the scan fails.
        let before = rustix::thread::Uid::from_raw(0);
        rustix::thread::set_thread_res_uid(before, rustix::thread::Uid::from_raw(65534), before).unwrap();
        let result =
            room.tree(&[("", "/context")]).scan(&target("/context"), &ScanBounds::default()).map(|_| ());
        rustix::thread::set_thread_res_uid(before, before, before).unwrap();
        result
    };
    if rustix::process::geteuid().is_root() {
        fs::set_permissions(room.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let error = std::thread::scope(|scope| scope.spawn(as_nobody).join().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "the daemon has no permission to read `/context/dir`");
    }
    fs::set_permissions(room.at("dir"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn odd_names_are_kept_and_depth_is_no_limit() {
    use std::os::unix::ffi::OsStrExt as _;
    let room = Room::new();
    let odd: &[u8] = b"new\nline \xff\xfe";
    fs::write(room.at("").join(std::ffi::OsStr::from_bytes(odd)), "odd").unwrap();
    room.file(&format!("{}/f", vec!["d"; 1400].join("/")), "deep").file(&"n".repeat(255), "long");
    let snapshot = room.tree(&[("", "/context")]).scan(&target("/context"), &ScanBounds::default()).unwrap();
    assert_eq!(snapshot.len(), 1403);
    assert_eq!(content(&snapshot, snapshot.find(odd).unwrap()), "odd");
    assert_eq!(content(&snapshot, 1400), "deep");
}

#[test]
fn files_of_an_unfinished_put_are_no_part_of_a_context() {
    let room = Room::new();
    room.file(".hearth-unfinished-0123456789abcdef", "x").file("a", "1");
    assert_eq!(lines(&room.tree(&[("", "/")]).scan(&target("/"), &ScanBounds::default()).unwrap()), ["a=1"]);
}

/// Files of a directory, by relative path.
type Model = BTreeMap<String, String>;

fn names() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "a-b", "a.b", "b"]), 1..4)
        .prop_map(|names| names.join("/"))
}

/// Writes files into a new directory, and skips those that conflict with others.
fn write_model(room: &Room, top: &str, files: &[String], model: &mut Model) {
    fs::create_dir_all(room.at(top)).unwrap();
    for path in files {
        let full = room.at(&format!("{top}/{path}"));
        if fs::create_dir_all(full.parent().unwrap()).is_ok() && !full.is_dir() {
            fs::write(&full, format!("{top}:{path}")).unwrap();
            model.insert(path.clone(), format!("{top}:{path}"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The union of mounted directories equals copying them over each other, the shallower ones first, each
    /// into an emptied place.
    #[test]
    fn a_union_equals_a_merged_copy(
        layers in prop::collection::vec((prop::collection::vec(names(), 0..8), prop::option::of(names())), 1..5),
    ) {
        let room = Room::new();
        let mut mounts: BTreeMap<String, usize> = BTreeMap::new();
        let mut models = Vec::new();
        for (index, (files, at)) in layers.iter().enumerate() {
            let mut model = Model::new();
            write_model(&room, &format!("l{index}"), files, &mut model);
            models.push(model);
            let target = at.as_ref().filter(|_| index > 0).map_or("/c".to_owned(), |at| format!("/c/{at}"));
            mounts.entry(target).or_insert(index);
        }
        let mounted = |(at, index): (&String, &usize)| MountedLayer::directory(target(at), room.layer(&format!("l{index}")));
        let snapshot = ContextTree::new(mounts.iter().map(mounted).collect()).unwrap().scan(&target("/c"), &ScanBounds::default()).unwrap();

        // `mounts` is in path order, so a shallower target comes before those below it.
        let mut merged = Model::new();
        for (at, index) in &mounts {
            let at = at.strip_prefix("/c").unwrap().trim_start_matches('/');
            let inside = |path: &String| at.is_empty() || path == at || path.starts_with(&format!("{at}/"));
            let above = |path: &String| at.starts_with(&format!("{path}/"));
            merged.retain(|path, _| !inside(path) && !above(path));
            for (path, content) in &models[*index] {
                merged.insert(if at.is_empty() { path.clone() } else { format!("{at}/{path}") }, content.clone());
            }
        }
        let files: Model = (0..snapshot.len())
            .filter(|index| snapshot.entry(*index).kind == FileKind::File(()))
            .map(|index| {
                let path = String::from_utf8(snapshot.entry(index).path.to_vec()).unwrap();
                (path, content(&snapshot, index))
            })
            .collect();
        prop_assert_eq!(files, merged);
        prop_assert!((&snapshot as &dyn FileTree).entries().is_sorted_by(|a, b| path_order(a.path, b.path).is_lt()));
    }
}

#[test]
fn a_large_tree_is_scanned_fast_and_kept_small() {
    let room = Room::new();
    for directory in 0..60 {
        fs::create_dir_all(room.at(&format!("d{directory}"))).unwrap();
        for file in 0..100 {
            fs::File::create(room.at(&format!("d{directory}/file-{file}"))).unwrap();
        }
    }
    std::thread::sleep(std::time::Duration::from_millis(30));
    let tree = room.tree(&[("", "/context")]);
    let start = std::time::Instant::now();
    let snapshot = tree.scan(&target("/context"), &ScanBounds::default()).unwrap();
    let elapsed = start.elapsed();
    assert_eq!(snapshot.len(), 6060);
    // The two cores are shared with other processes, so only a wrong algorithm exceeds this limit.
    assert!(elapsed < std::time::Duration::from_secs(2), "{elapsed:?}");
    eprintln!("6,060 entries in {elapsed:?}");
    // 48 bytes and the path, after spare capacity was released.
    assert!(snapshot.entries.bytes() <= 6060 * (48 + 12), "{}", snapshot.entries.bytes());
}
