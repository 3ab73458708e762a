//! Cases that random histories do not cover: times, holes, dead ends, hostile names, lower trees that change.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use hearth_overlay::union::{CreateAttr, OverlayFs, ROOT, RenameMode, SetAttr};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::mounted::Point;
use super::{Place, tree_of};

const MAKER: CreateAttr = CreateAttr { uid: 0, gid: 0, mode: 0o644 };

fn write(union: &OverlayFs, inode: u64, content: &[u8]) {
    let handle = union.open(inode, true).unwrap().handle;
    union.write(handle, content, 0).unwrap();
    union.release(handle);
}

fn read(union: &OverlayFs, inode: u64) -> Result<Vec<u8>, Errno> {
    let handle = union.open(inode, false)?.handle;
    let mut content = vec![0; 4096];
    let count = union.read(handle, &mut content, 0);
    union.release(handle);
    content.truncate(count?);
    Ok(content)
}

fn age(path: &Path, seconds: u64) {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    File::open(path).unwrap().set_times(fs::FileTimes::new().set_modified(time).set_accessed(time)).unwrap();
}

#[test]
fn a_copy_keeps_everything_and_leaves_no_trace_in_its_directory() {
    let place = Place::new();
    let (directory, file) = (place.lower().join("d"), place.lower().join("d/f"));
    fs::create_dir(&directory).unwrap();
    let sparse = File::create(&file).unwrap();
    sparse.write_all_at(b"begin", 0).unwrap();
    sparse.write_all_at(b"end", 64 << 20).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4711)).unwrap();
    std::os::unix::fs::chown(&file, Some(7), Some(8)).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o4711)).unwrap();
    xattr::set(&file, "user.a", b"1").unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(&file, "security.capability", &capability).unwrap();
    age(&file, 1000);
    age(&directory, 2000);
    let union = place.union();
    let d = union.lookup(ROOT, b"d").unwrap();
    let f = union.lookup(d.inode, b"f").unwrap();
    // A change without a visible effect, which copies the file up.
    union.set_xattr(f.inode, b"user.b", b"2", rustix::fs::XattrFlags::empty()).unwrap();
    let copied = union.attr(f.inode).unwrap();
    assert_eq!((copied.mode, copied.uid, copied.gid, copied.size), (0o4711, 7, 8, (64 << 20) + 3));
    assert_eq!(copied.modified, f.attr.modified);
    assert!(copied.blocks * 512 < 1 << 20, "holes were filled: {} blocks", copied.blocks);
    assert_eq!(union.xattr(f.inode, b"user.a").unwrap(), b"1");
    assert_eq!(union.xattr(f.inode, b"security.capability").unwrap(), capability);
    assert_eq!(union.attr(d.inode).unwrap().modified, d.attr.modified);
    assert_eq!(fs::metadata(&file).unwrap().mtime(), 1000);
    assert!(xattr::get(&file, "user.b").unwrap().is_none(), "the lower was changed");
}

#[test]
fn the_number_of_a_file_outlives_its_copy_rename_and_removal() {
    let place = Place::new();
    fs::write(place.lower().join("f"), "below").unwrap();
    let union = place.union();
    let found = union.lookup(ROOT, b"f").unwrap();
    let reader = union.open(found.inode, false).unwrap().handle;
    write(&union, found.inode, b"above");
    assert_eq!(union.lookup(ROOT, b"f").unwrap().inode, found.inode);
    union.rename(ROOT, b"f", ROOT, b"g", RenameMode::Replace).unwrap();
    assert_eq!(union.lookup(ROOT, b"g").unwrap().inode, found.inode);
    union.unlink(ROOT, b"g").unwrap();
    assert_eq!(union.attr(found.inode).unwrap().links, 0);
    let mut content = [0; 5];
    // Opened before the copy was made, and reads the copy all the same.
    assert_eq!(union.read(reader, &mut content, 0), Ok(5));
    assert_eq!(&content, b"above");
    union.release(reader);
    assert_eq!(union.lookup(ROOT, b"f").unwrap_err(), Errno::NOENT);
    union.forget(found.inode, 3);
    assert_eq!(union.node_count(), 1);
}

#[test]
fn a_removed_lower_file_that_is_open_can_still_be_changed() {
    let place = Place::new();
    fs::write(place.lower().join("f"), "below").unwrap();
    let union = place.union();
    let found = union.lookup(ROOT, b"f").unwrap();
    union.unlink(ROOT, b"f").unwrap();
    let attr = union.set_attr(found.inode, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    assert_eq!((attr.mode, attr.links), (0o600, 0));
    assert_eq!(read(&union, found.inode).unwrap(), b"below");
    assert_eq!(union.make_hard_link(found.inode, ROOT, b"again").unwrap_err(), Errno::NOENT);
    union.forget(found.inode, 1);
    assert_eq!(fs::read_dir(place.path("upper/work")).unwrap().count(), 0);
}

#[test]
fn devices_are_refused_so_nobody_makes_a_whiteout() {
    let place = Place::new();
    let union = place.union();
    for kind in [FileType::CharacterDevice, FileType::BlockDevice] {
        assert_eq!(union.make_node(ROOT, b"null", kind, &MAKER).unwrap_err(), Errno::PERM);
    }
    assert_eq!(union.lookup(ROOT, b"null").unwrap_err(), Errno::NOENT);
}

#[test]
fn without_an_upper_everything_that_changes_is_refused() {
    let place = Place::new();
    fs::write(place.lower().join("f"), "below").unwrap();
    let union = place.read_only();
    let f = union.lookup(ROOT, b"f").unwrap().inode;
    let refused = [
        union.unlink(ROOT, b"f"),
        union.open(f, true).map(|_| ()),
        union.make_directory(ROOT, b"d", &MAKER).map(|_| ()),
        union.make_node(ROOT, b"d", FileType::CharacterDevice, &MAKER).map(|_| ()),
        union.set_attr(f, &SetAttr::default()).map(|_| ()),
        union.rename(ROOT, b"f", ROOT, b"g", RenameMode::Replace),
        union.make_hard_link(f, ROOT, b"g").map(|_| ()),
        union.set_xattr(f, b"user.a", b"", rustix::fs::XattrFlags::empty()),
    ];
    assert_eq!(refused, [Err(Errno::ROFS); 8]);
    assert_eq!(read(&union, f).unwrap(), b"below");
}

#[test]
fn names_are_what_file_systems_take_and_nothing_more() {
    let place = Place::new();
    let union = place.union();
    let longest = [b'x'; 255];
    for name in [&b"a\nb"[..], b"\xff\xfe", &longest, b".wh..wh..opq", b" "] {
        let made = union.make_node(ROOT, name, FileType::RegularFile, &MAKER).unwrap();
        assert_eq!(union.lookup(ROOT, name).unwrap().inode, made.inode);
    }
    assert_eq!(place.union().list(ROOT).unwrap().entries().len(), 5);
    let cases: [(&[u8], Errno); 6] = [
        (&[b'x'; 256], Errno::NAMETOOLONG),
        (b"", Errno::INVAL),
        (b"..", Errno::INVAL),
        (b".", Errno::INVAL),
        (b"a/b", Errno::INVAL),
        (b"a\0b", Errno::INVAL),
    ];
    for (name, errno) in cases {
        assert_eq!(union.make_directory(ROOT, name, &MAKER).unwrap_err(), errno);
        assert_eq!(union.lookup(ROOT, name).unwrap_err(), errno);
    }
}

#[test]
fn a_tree_may_be_as_deep_as_a_path_is_long() {
    let place = Place::new();
    let union = place.union();
    let mut parent = ROOT;
    let mut depth = 0;
    let errno = loop {
        match union.make_directory(parent, &[b'd'; 100], &CreateAttr { mode: 0o755, ..MAKER }) {
            Ok(found) => (parent, depth) = (found.inode, depth + 1),
            Err(errno) => break errno,
        }
    };
    assert_eq!((errno, depth), (Errno::NAMETOOLONG, 40));
    let file = union.make_node(parent, b"f", FileType::RegularFile, &MAKER).unwrap();
    write(&union, file.inode, b"deep");
    assert_eq!(read(&union, file.inode).unwrap(), b"deep");
    // One rename moves all of it.
    union.rename(ROOT, &[b'd'; 100], ROOT, b"e", RenameMode::Replace).unwrap();
    assert_eq!(read(&union, file.inode).unwrap(), b"deep");
}

#[test]
fn a_listing_is_what_was_there_and_never_brings_back_what_is_gone() {
    let place = Place::new();
    for name in ["a", "b", "c"] {
        fs::write(place.lower().join(name), name).unwrap();
    }
    let union = place.union();
    let listing = union.list(ROOT).unwrap();
    union.unlink(ROOT, b"a").unwrap();
    union.make_node(ROOT, b"d", FileType::RegularFile, &MAKER).unwrap();
    let b = union.lookup(ROOT, b"b").unwrap();
    write(&union, b.inode, b"longer");
    assert!(union.lookup_listed(&listing, 0).unwrap().is_none());
    let found = union.lookup_listed(&listing, 1).unwrap().unwrap();
    assert_eq!((found.inode, found.attr.size), (b.inode, 6));
    assert_eq!(listing.entries().len(), 3);
}

#[test]
fn links_in_the_lower_are_shown_and_never_followed() {
    let place = Place::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("canary"), "secret").unwrap();
    symlink(outside.path(), place.lower().join("out")).unwrap();
    symlink(outside.path().join("canary"), place.lower().join("file")).unwrap();
    let union = place.union();
    let out = union.lookup(ROOT, b"out").unwrap();
    assert_eq!(out.attr.kind, FileType::Symlink);
    assert_eq!(&*union.read_link(out.inode).unwrap(), outside.path().as_os_str().as_bytes());
    assert_eq!(union.lookup(out.inode, b"canary").unwrap_err(), Errno::NOTDIR);
    let file = union.lookup(ROOT, b"file").unwrap();
    assert_eq!(read(&union, file.inode).unwrap_err(), Errno::NXIO);
    assert_eq!(
        union.set_attr(file.inode, &SetAttr { size: Some(0), ..SetAttr::default() }).unwrap_err(),
        Errno::INVAL
    );
    // The symbolic link itself is changed, not its target.
    union.set_attr(file.inode, &SetAttr { uid: Some(5), ..SetAttr::default() }).unwrap();
    assert_eq!(fs::metadata(outside.path().join("canary")).unwrap().uid(), 0);
    assert_eq!(fs::read(outside.path().join("canary")).unwrap(), b"secret");
}

#[test]
fn a_directory_swapped_for_a_link_leads_nowhere() {
    let place = Place::new();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("f"), "secret").unwrap();
    let (directory, aside) = (place.lower().join("d"), place.lower().join("aside"));
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("f"), "inside").unwrap();
    let union = place.union();
    let d = union.lookup(ROOT, b"d").unwrap().inode;
    let f = union.lookup(d, b"f").unwrap().inode;
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                fs::rename(&directory, &aside).unwrap();
                symlink(outside.path(), &directory).unwrap();
                fs::remove_file(&directory).unwrap();
                fs::rename(&aside, &directory).unwrap();
            }
        });
        let start = Instant::now();
        let mut seen = 0;
        while start.elapsed() < Duration::from_millis(500) {
            for inode in [Ok(f), union.lookup(d, b"f").map(|found| found.inode)].into_iter().flatten() {
                if let Ok(content) = read(&union, inode) {
                    assert_eq!(content, b"inside");
                    seen += 1;
                }
            }
            // Copying up reads, too.
            if let Ok(found) = union.lookup(d, b"f") {
                let _ = union.xattr_names(found.inode);
                assert_ne!(found.attr.size, 6 + 100);
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(seen > 0, "nothing was ever read");
    });
}

#[test]
fn changes_are_listed_from_the_upper() {
    let place = Place::new();
    for directory in ["keep", "gone", "old"] {
        fs::create_dir(place.lower().join(directory)).unwrap();
        fs::write(place.lower().join(directory).join("f"), directory).unwrap();
    }
    let union = place.union();
    let keep = union.lookup(ROOT, b"keep").unwrap().inode;
    let f = union.lookup(keep, b"f").unwrap().inode;
    write(&union, f, b"changed");
    union.make_node(keep, b"new", FileType::RegularFile, &MAKER).unwrap();
    let gone = union.lookup(ROOT, b"gone").unwrap().inode;
    union.unlink(gone, b"f").unwrap();
    union.remove_directory(ROOT, b"gone").unwrap();
    union.rename(ROOT, b"old", ROOT, b"renamed", RenameMode::Replace).unwrap();
    let mut told = Vec::new();
    union
        .changes(&mut |difference, path| {
            told.push(format!("{difference:?} {}", path.escape_ascii()));
            true
        })
        .unwrap();
    assert_eq!(
        told,
        [
            "Removed gone",
            "Changed keep/f",
            "Added keep/new",
            "Removed old",
            "Added renamed",
            "Added renamed/f",
        ]
    );
}

#[test]
fn a_mounted_lower_that_changes_is_seen_soon() {
    let place = Place::new();
    fs::write(place.lower().join("f"), "one").unwrap();
    let at = place.path("at");
    let _point = Point::fuse(&at, place.read_only());
    assert_eq!(fs::read(at.join("f")).unwrap(), b"one");
    fs::write(place.lower().join("new"), "two").unwrap();
    fs::rename(place.lower().join("new"), place.lower().join("f")).unwrap();
    fs::write(place.lower().join("g"), "three").unwrap();
    let start = Instant::now();
    while fs::read(at.join("f")).unwrap() != b"two" || !at.join("g").exists() {
        assert!(start.elapsed() < Duration::from_secs(5), "the change is not seen");
        std::thread::sleep(Duration::from_millis(20));
    }
    fs::remove_file(place.lower().join("f")).unwrap();
    let start = Instant::now();
    while at.join("f").exists() {
        assert!(start.elapsed() < Duration::from_secs(5), "the removal is not seen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_mount_serves_many_readers_and_large_files_whole() {
    let place = Place::new();
    let content: Vec<u8> = (0..3_000_000u32).flat_map(u32::to_le_bytes).collect();
    fs::write(place.lower().join("large"), &content).unwrap();
    for (name, union) in [("read-only", place.read_only()), ("writable", place.union())] {
        let at = place.path(name);
        let _point = Point::fuse(&at, union);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert!(fs::read(at.join("large")).unwrap() == content, "{name}"));
            }
        });
        if name == "writable" {
            let mut file = File::options().append(true).open(at.join("large")).unwrap();
            file.write_all(b"tail").unwrap();
            file.sync_all().unwrap();
            let mut all = Vec::new();
            File::open(at.join("large")).unwrap().read_to_end(&mut all).unwrap();
            assert!(all.ends_with(b"tail") && all.len() == content.len() + 4);
        }
    }
    assert_eq!(fs::metadata(place.lower().join("large")).unwrap().len(), content.len() as u64);
}

#[test]
fn users_meet_the_permissions_of_the_files() {
    let place = Place::new();
    fs::write(place.lower().join("secret"), "secret").unwrap();
    fs::set_permissions(place.lower().join("secret"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(place.directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(place.lower().join("open"), "open").unwrap();
    let at = place.path("at");
    let _point = Point::fuse(&at, place.union());
    let as_nobody = |script: &str| {
        use std::os::unix::process::CommandExt as _;
        let mut command = std::process::Command::new("sh");
        command.args(["-c", script]).current_dir(&at).uid(65534).gid(65534);
        command.output().unwrap()
    };
    assert_eq!(as_nobody("cat open").stdout, b"open");
    assert!(!as_nobody("cat secret").status.success());
    assert!(!as_nobody("echo x > new").status.success());
    assert!(!as_nobody("rm open").status.success());
    assert!(at.join("open").exists());
}

#[test]
fn a_tree_of_several_mounts_is_one_union() {
    let place = Place::new();
    let other = tempfile::tempdir().unwrap();
    fs::write(place.lower().join("f"), "room").unwrap();
    fs::write(other.path().join("g"), "project").unwrap();
    let layer = |path: &Path| {
        let root = crate::storage::StorageRoot::open(path).unwrap();
        crate::tree::DirectoryLayer::open(&root, Path::new("")).unwrap()
    };
    let mounted = |target: &str, path: &Path| {
        crate::tree::MountedLayer::directory(target.parse().unwrap(), layer(path))
    };
    let tree = crate::tree::ContextTree::new(vec![
        mounted("/context", &place.lower()),
        mounted("/context/deep/lib", other.path()),
    ])
    .unwrap();
    let upper = hearth_overlay::union::UpperLayer::open(&place.path("upper")).unwrap();
    let union = OverlayFs::new(tree, b"context", Some(upper)).unwrap();
    let deep = union.lookup(ROOT, b"deep").unwrap().inode;
    let lib = union.lookup(deep, b"lib").unwrap().inode;
    let g = union.lookup(lib, b"g").unwrap().inode;
    write(&union, g, b"changed");
    assert_eq!(read(&union, g).unwrap(), b"changed");
    union.rename(ROOT, b"deep", ROOT, b"moved", RenameMode::Replace).unwrap();
    assert_eq!(read(&union, g).unwrap(), b"changed");
    let moved = union.lookup(ROOT, b"moved").unwrap().inode;
    assert_eq!(union.list(moved).unwrap().entries().len(), 1);
    assert_eq!(fs::read(other.path().join("g")).unwrap(), b"project");
    drop(tree_of(other.path()));
}
