use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// A storage in its own directory, beside a secret that no operation may reach.
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

    fn put(&self, path: &str, content: &str) -> Result<StorageEntry, StorageError> {
        let mut writer = self.root.write(Path::new(path), WriteOptions::default())?;
        writer.append(content.as_bytes())?;
        writer.finish()
    }

    fn get(&self, path: &str) -> Result<String, StorageError> {
        let (_, mut file) = self.root.read(Path::new(path))?;
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        Ok(text)
    }

    fn list(&self, path: &str, recursive: bool) -> Vec<String> {
        let listing = self.root.list(Path::new(path), recursive).unwrap();
        listing.map(|stat| stat.unwrap().path.to_str().unwrap().to_owned()).collect()
    }

    /// Everything on disk, hidden names included.
    fn on_disk(&self, path: &str) -> Vec<String> {
        let names = fs::read_dir(self.at(path)).unwrap();
        let mut names: Vec<_> = names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn what_is_written_is_read_and_listed() {
    let room = Room::new();
    let stat = room.put("/apps//my-app/./Dockerfile", "FROM scratch").unwrap();
    assert_eq!((stat.path.as_path(), stat.size, stat.mode), (Path::new("apps/my-app/Dockerfile"), 12, 0o644));
    assert_eq!(room.get("apps/my-app/Dockerfile").unwrap(), "FROM scratch");
    room.put("apps/my-app-2", "").unwrap();
    symlink("/etc", room.at("apps/link")).unwrap();
    assert_eq!(room.list("apps", false), ["apps/link", "apps/my-app", "apps/my-app-2"]);
    let all = ["apps", "apps/link", "apps/my-app", "apps/my-app/Dockerfile", "apps/my-app-2"];
    assert_eq!(room.list("", true), all);
    assert_eq!(room.list("apps/my-app-2", false), ["apps/my-app-2"]);
    assert_eq!(room.root.stat(Path::new("apps/link")).unwrap().kind, FileKind::Symlink("/etc".into()));
}

#[test]
fn no_path_leads_out_of_the_storage() {
    let room = Room::new();
    symlink("../secret", room.at("relative")).unwrap();
    symlink(room.directory.path().join("secret"), room.at("absolute")).unwrap();
    symlink(room.directory.path(), room.at("out")).unwrap();
    symlink("/proc/self/cwd", room.at("magic")).unwrap();
    for path in ["../secret", "a/../../secret", "relative", "absolute", "out/secret", "magic/secret"] {
        assert!(matches!(room.get(path), Err(StorageError::Escapes { .. })), "{path}: {:?}", room.get(path));
    }
    for path in ["../x", "out/x", "out/new/x", "magic/x"] {
        let result = room.put(path, "x");
        assert!(matches!(result, Err(StorageError::Escapes { .. })), "{path}: {result:?}");
        let result = room.root.remove(Path::new(path), true);
        assert!(matches!(result, Err(StorageError::Escapes { .. })), "{path}: {result:?}");
    }
    assert!(matches!(room.root.list(Path::new("out"), true), Err(StorageError::Escapes { .. })));
    assert_eq!(fs::read(room.directory.path().join("secret")).unwrap(), b"canary");
    symlink("loop", room.at("loop")).unwrap();
    assert!(matches!(room.get("loop"), Err(StorageError::LinkLoop { .. })));
}

#[test]
fn links_inside_the_storage_are_followed() {
    let room = Room::new();
    room.put("v2/file", "two").unwrap();
    symlink("v2", room.at("current")).unwrap();
    assert_eq!(room.get("current/file").unwrap(), "two");
    room.put("current/new/other", "x").unwrap();
    assert_eq!(room.get("v2/new/other").unwrap(), "x");
}

#[test]
fn where_links_are_refused_none_on_the_way_is_followed() {
    let mut room = Room::new();
    room.put("theirs/secret", "secret").unwrap();
    room.put("mine/file", "mine").unwrap();
    symlink("../theirs", room.at("mine/to-theirs")).unwrap();
    symlink("../theirs/secret", room.at("mine/secret")).unwrap();
    symlink("file", room.at("mine/here")).unwrap();
    room.root = room.root.with_links(SymlinkPolicy::Refused);
    let is_link = |error: StorageError| matches!(error, StorageError::IsLink { .. });
    for path in ["mine/to-theirs/secret", "mine/secret", "mine/here"] {
        assert!(is_link(room.get(path).unwrap_err()), "{path}");
        assert!(is_link(room.root.list(Path::new(path), true).err().unwrap()), "{path}");
    }
    assert!(is_link(room.put("mine/to-theirs/new", "x").unwrap_err()));
    assert!(is_link(room.put("mine/to-theirs/deep/new", "x").unwrap_err()));
    assert!(is_link(room.root.remove(Path::new("mine/to-theirs/secret"), false).unwrap_err()));
    assert!(is_link(room.root.open_mount_source(Path::new("mine/to-theirs/deep")).unwrap_err()));
    assert!(is_link(room.root.make_mount_source(Path::new("mine/to-theirs/deep")).unwrap_err()));
    assert!(!room.at("theirs/deep").exists() && !room.at("theirs/new").exists());
    // A path without a symbolic link behaves as always; a link itself can be listed and removed.
    assert_eq!(room.get("mine/file").unwrap(), "mine");
    assert_eq!(room.root.stat(Path::new("mine/here")).unwrap().kind, FileKind::Symlink("file".into()));
    room.root.remove(Path::new("mine/secret"), false).unwrap();
    room.put("mine/here", "mine again").unwrap();
    assert_eq!(room.get("mine/here").unwrap(), "mine again");
    room.put("mine/new/deep", "x").unwrap();
}

#[test]
fn a_put_replaces_a_link_and_never_writes_through_it() {
    let room = Room::new();
    symlink("../secret", room.at("link")).unwrap();
    room.put("link", "mine").unwrap();
    assert_eq!(room.get("link").unwrap(), "mine");
    assert_eq!(fs::read(room.directory.path().join("secret")).unwrap(), b"canary");
}

#[test]
fn a_put_that_does_not_finish_leaves_nothing() {
    let room = Room::new();
    room.put("d/file", "old").unwrap();
    let mut writer = room.root.write(Path::new("d/file"), WriteOptions::default()).unwrap();
    writer.append(b"half of the new").unwrap();
    assert_eq!(room.get("d/file").unwrap(), "old");
    assert_eq!(room.list("", true), ["d", "d/file"]);
    drop(writer);
    let wrong = WriteOptions { size: Some(3), ..WriteOptions::default() };
    let mut writer = room.root.write(Path::new("d/file"), wrong).unwrap();
    let error = writer.append(b"four").unwrap_err();
    assert!(matches!(error, StorageError::SizeMismatch { expected: 3, actual: 4, .. }), "{error}");
    writer.append(b"ab").unwrap();
    assert!(matches!(writer.finish(), Err(StorageError::SizeMismatch { expected: 3, actual: 2, .. })));
    assert_eq!(room.on_disk("d"), ["file"]);
    assert_eq!(room.get("d/file").unwrap(), "old");
}

#[test]
fn unfinished_files_are_in_no_listing_and_cannot_be_asked_for() {
    let room = Room::new();
    fs::write(room.at(".hearth-unfinished-0123456789abcdef"), "x").unwrap();
    fs::write(room.at(".hearth-unfinished-other"), "x").unwrap();
    assert_eq!(room.list("", true), [".hearth-unfinished-other"]);
    assert!(room.put(".hearth-unfinished-0123456789abcdef", "x").is_err());
}

#[test]
fn a_reader_sees_the_old_content_or_the_new_and_nothing_between() {
    let room = Room::new();
    let (old, new) = ("a".repeat(200_000), "b".repeat(300_000));
    room.put("file", &old).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for turn in 0..60 {
                room.put("file", if turn % 2 == 0 { &new } else { &old }).unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            let text = room.get("file").unwrap();
            assert!(text == old || text == new, "{} bytes", text.len());
        }
    });
    assert_eq!(room.on_disk(""), ["file"]);
}

#[test]
fn mode_bits_are_kept_but_never_setuid() {
    let room = Room::new();
    let options = WriteOptions { mode: 0o4755, size: None };
    let stat = room.root.write(Path::new("tool"), options).unwrap().finish().unwrap();
    assert_eq!(stat.mode, 0o755);
    assert_eq!(fs::metadata(room.at("tool")).unwrap().permissions().mode() & 0o7777, 0o755);
}

#[test]
fn wrong_kinds_have_their_own_errors() {
    let room = Room::new();
    room.put("dir/file", "x").unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, room.at("fifo"), FileType::Fifo, Mode::from_raw_mode(0o644), 0)
        .unwrap();
    // Opening the FIFO would block forever.
    assert!(matches!(room.get("fifo"), Err(StorageError::NotAFile { .. })));
    assert!(matches!(room.get("dir"), Err(StorageError::IsADirectory { .. })));
    assert!(matches!(room.get("dir/file/x"), Err(StorageError::NotADirectory { .. })));
    assert!(matches!(room.get("none"), Err(StorageError::NotFound { .. })));
    assert!(matches!(room.put("dir", "x"), Err(StorageError::IsADirectory { .. })));
    assert!(matches!(room.put("dir/file/x", "x"), Err(StorageError::NotADirectory { .. })));
    assert!(matches!(room.put("", "x"), Err(StorageError::IsTheRoot { .. })));
    assert!(matches!(room.put("a\0b", "x"), Err(StorageError::BadPath { .. })));
    assert!(matches!(room.put(&"n".repeat(300), "x"), Err(StorageError::BadPath { .. })));
    assert!(matches!(StorageRoot::open(&room.at("dir/file")), Err(StorageError::NotADirectory { .. })));
    assert!(matches!(StorageRoot::open(&room.at("none")), Err(StorageError::NotFound { .. })));
}

#[test]
fn removal_never_goes_through_a_link() {
    let room = Room::new();
    let outside = room.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "canary").unwrap();
    room.put("d/deep/er/file", "x").unwrap();
    symlink(&outside, room.at("d/deep/link")).unwrap();
    symlink(&outside, room.at("top")).unwrap();
    assert!(matches!(room.root.remove(Path::new("d"), false), Err(StorageError::IsADirectory { .. })));
    room.root.remove(Path::new("d"), true).unwrap();
    room.root.remove(Path::new("top"), true).unwrap();
    assert!(room.on_disk("").is_empty());
    assert_eq!(fs::read(outside.join("kept")).unwrap(), b"canary");
    assert!(matches!(room.root.remove(Path::new("/"), true), Err(StorageError::IsTheRoot { .. })));
    assert!(matches!(room.root.remove(Path::new("none"), true), Err(StorageError::NotFound { .. })));
}

#[test]
fn removal_while_directories_and_links_swap_stays_inside() {
    let room = Room::new();
    let outside = room.directory.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "canary").unwrap();
    symlink(&outside, room.at("link")).unwrap();
    let done = AtomicBool::new(false);
    let exchange = rustix::fs::RenameFlags::EXCHANGE;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                // Fails while the directory is moved away, which the test expects.
                let _ = rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    room.at("d/sub"),
                    rustix::fs::CWD,
                    room.at("link"),
                    exchange,
                );
            }
        });
        for _ in 0..200 {
            // Through the storage, too: a write never follows a symbolic link on its path.
            let _ = room.put("d/sub/kept", "x");
            let _ = room.root.remove(Path::new("d"), true);
            if fs::symlink_metadata(room.at("link")).is_err() {
                symlink(&outside, room.at("link")).unwrap();
            }
        }
        done.store(true, Ordering::SeqCst);
    });
    assert_eq!(fs::read(outside.join("kept")).unwrap(), b"canary");
}

#[test]
fn a_deep_tree_needs_no_more_file_descriptors_than_a_flat_one() {
    let room = Room::new();
    let deep = vec!["d"; 1500].join("/");
    room.put(&format!("{deep}/file"), "x").unwrap();
    assert_eq!(room.list("", true).len(), 1501);
    room.root.remove(Path::new("d"), true).unwrap();
    assert!(room.on_disk("").is_empty());
}

#[test]
fn two_writers_that_make_the_same_directories_both_succeed() {
    let room = Room::new();
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let room = &room;
            scope.spawn(move || room.put(&format!("a/b/c/d/{writer}"), "x").unwrap());
        }
    });
    assert_eq!(room.on_disk("a/b/c/d").len(), 8);
    assert_eq!(fs::metadata(room.at("a/b")).unwrap().mode() & 0o7777, 0o755);
}

#[test]
fn a_link_is_made_inside_the_storage_only() {
    let room = Room::new();
    let link = |path: &str, target: &str| room.root.make_link(Path::new(path), Path::new(target));
    room.put("pkg/lint.js", "lint").unwrap();
    room.put("bin/lint", "before").unwrap();
    let made = link("/bin/lint", "../pkg/./lint.js").unwrap();
    assert_eq!(made.kind, FileKind::Symlink("../pkg/./lint.js".into()));
    assert_eq!(room.get("bin/lint").unwrap(), "lint");
    link("bin/lint", "dangling").unwrap();
    link("new/dir/root", "../..").unwrap();
    assert_eq!(room.on_disk("bin"), ["lint"], "no hidden name is left");
    for (path, target) in [("bin/x", "../../secret"), ("x", ".."), ("x", "/etc/passwd"), ("x", "")] {
        let error = link(path, target).unwrap_err();
        assert!(
            matches!(error, StorageError::Escapes { .. } | StorageError::BadPath { .. }),
            "{target}: {error}"
        );
    }
    assert!(matches!(link("pkg", "bin").unwrap_err(), StorageError::IsADirectory { .. }));
    assert!(matches!(link("/", "bin").unwrap_err(), StorageError::IsTheRoot { .. }));
    assert_eq!(room.on_disk(""), ["bin", "new", "pkg"]);
}
