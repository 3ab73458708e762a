//! Concurrent events: changes of a file while it is copied up, and renames over open files.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hearth_overlay::union::{OpenedFile, OverlayFs, ROOT, RenameMode, SetAttr};
use rustix::io::Errno;

use super::Place;

/// Calls `act` each time a file's content was copied and the copy is not yet in its place. Counts the calls.
fn after_each_copy(union: &OverlayFs, mut act: impl FnMut(usize) + Send + 'static) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let act = move || act(counted.fetch_add(1, Ordering::Relaxed) + 1);
    union.set_after_copy_hook(act);
    count
}

fn read(union: &OverlayFs, handle: u64) -> Vec<u8> {
    let mut content = vec![0; 4096];
    let count = union.read(handle, &mut content, 0).unwrap();
    content.truncate(count);
    content
}

fn content(union: &OverlayFs, inode: u64) -> Result<Vec<u8>, Errno> {
    let OpenedFile { handle, .. } = union.open(inode, false)?;
    let content = read(union, handle);
    union.release(handle);
    Ok(content)
}

fn assert_nothing_is_left(place: &Place, union: &OverlayFs) {
    assert_eq!(fs::read_dir(place.path("upper/work")).unwrap().count(), 0, "a copy stays in work/");
    assert_eq!(union.node_count(), 1, "nodes that nobody knows stay");
}

#[test]
fn a_lower_file_that_is_written_during_its_copy_is_copied_again() {
    type Write = fn(&File);
    let writes: [(&str, Write, &[u8]); 3] = [
        ("longer", |file| file.write_all_at(b"twice as long", 0).unwrap(), b"twice as long"),
        ("of the same length", |file| file.write_all_at(b"other", 0).unwrap(), b"other"),
        ("shorter", |file| file.set_len(2).unwrap(), b"be"),
    ];
    for (what, write, expected) in writes {
        let place = Place::new();
        let path = place.lower().join("f");
        fs::write(&path, "below").unwrap();
        let union = place.union();
        let found = union.lookup(ROOT, b"f").unwrap();
        let copies = after_each_copy(&union, move |number| {
            if number == 1 {
                write(&File::options().write(true).open(&path).unwrap());
            }
        });
        let handle = union.open(found.inode, true).unwrap().handle;
        assert_eq!(
            read(&union, handle).escape_ascii().to_string(),
            expected.escape_ascii().to_string(),
            "{what}"
        );
        assert_eq!(copies.load(Ordering::Relaxed), 2, "{what}");
        union.release(handle);
        union.forget(found.inode, 1);
        assert_nothing_is_left(&place, &union);
    }
}

#[test]
fn a_lower_file_that_never_stands_still_is_an_error_and_no_mixture() {
    let place = Place::new();
    let path = place.lower().join("f");
    fs::write(&path, "0").unwrap();
    let union = place.union();
    let found = union.lookup(ROOT, b"f").unwrap();
    let written = path.clone();
    let copies = after_each_copy(&union, move |number| fs::write(&written, vec![b'x'; number]).unwrap());
    assert_eq!(union.open(found.inode, true).map(|_| ()), Err(Errno::STALE));
    let tried = copies.load(Ordering::Relaxed);
    assert!(tried > 1 && tried < 20, "tried {tried} times");
    assert!(!place.path("upper/tree").join("f").exists(), "a copy took its place");
    // The file is still that of the lower tree, and can be changed as soon as it stops changing.
    union.set_after_copy_hook(|| {});
    assert_eq!(content(&union, found.inode).unwrap(), vec![b'x'; tried]);
    let handle = union.open(found.inode, true).unwrap().handle;
    assert_eq!(read(&union, handle), vec![b'x'; tried]);
    union.release(handle);
    union.forget(found.inode, 1);
    assert_nothing_is_left(&place, &union);
}

#[test]
fn a_lower_file_that_another_replaces_during_its_copy_is_not_taken_for_it() {
    let place = Place::new();
    let path = place.lower().join("f");
    fs::write(&path, "below").unwrap();
    fs::write(place.lower().join("other"), "other").unwrap();
    let union = place.union();
    let found = union.lookup(ROOT, b"f").unwrap();
    let (other, replaced) = (place.lower().join("other"), path.clone());
    let copies = after_each_copy(&union, move |_| _ = fs::rename(&other, &replaced));
    assert_eq!(union.open(found.inode, true).map(|_| ()), Err(Errno::STALE));
    assert_eq!(copies.load(Ordering::Relaxed), 1);
    union.forget(found.inode, 1);
    // A lookup now finds the other file.
    let found = union.lookup(ROOT, b"f").unwrap();
    assert_eq!(content(&union, found.inode).unwrap(), b"other");
    union.forget(found.inode, 1);
    assert_nothing_is_left(&place, &union);
}

#[test]
fn of_two_copies_that_are_made_at_once_one_counts() {
    let place = Place::new();
    fs::write(place.lower().join("f"), "below").unwrap();
    let union = place.union();
    let found = union.lookup(ROOT, b"f").unwrap();
    let other = Arc::downgrade(&union);
    after_each_copy(&union, move |_| {
        let union = other.upgrade().unwrap();
        let handle = union.open(found.inode, true).unwrap().handle;
        union.write(handle, b"ABOVE", 0).unwrap();
        union.release(handle);
    });
    let handle = union.open(found.inode, true).unwrap().handle;
    assert_eq!(read(&union, handle), b"ABOVE", "the first writer's copy replaced what the second wrote");
    union.release(handle);
    union.forget(found.inode, 1);
    assert_nothing_is_left(&place, &union);
}

#[test]
fn a_file_that_is_renamed_or_removed_during_its_copy_is_where_it_went() {
    let place = Place::new();
    fs::create_dir(place.lower().join("d")).unwrap();
    fs::write(place.lower().join("f"), "below").unwrap();
    fs::write(place.lower().join("g"), "gone").unwrap();
    let union = place.union();
    let f = union.lookup(ROOT, b"f").unwrap().inode;
    let g = union.lookup(ROOT, b"g").unwrap().inode;
    let d = union.lookup(ROOT, b"d").unwrap().inode;
    let other = Arc::downgrade(&union);
    after_each_copy(&union, move |number| {
        let union = other.upgrade().unwrap();
        match number {
            1 => union.rename(ROOT, b"f", d, b"moved", RenameMode::Replace).unwrap(),
            _ => union.unlink(ROOT, b"g").unwrap(),
        }
    });
    let set = |inode| union.set_attr(inode, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
    assert_eq!((set(f).mode, set(f).links), (0o600, 1));
    assert_eq!(union.lookup(ROOT, b"f").unwrap_err(), Errno::NOENT);
    let moved = union.lookup(d, b"moved").unwrap();
    assert_eq!((moved.inode, moved.attr.mode), (f, 0o600));
    assert_eq!((set(g).mode, set(g).links), (0o600, 0));
    assert_eq!(content(&union, g).unwrap(), b"gone");
    assert_eq!(union.lookup(ROOT, b"g").unwrap_err(), Errno::NOENT);
    for (inode, count) in [(f, 2), (g, 1), (d, 1)] {
        union.forget(inode, count);
    }
    assert_nothing_is_left(&place, &union);
    let again = place.union();
    assert_eq!(again.list(ROOT).unwrap().entries().len(), 1, "only the directory is left at the top");
}

/// Origin of a file that a rename is about to replace.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Covered {
    Below,
    Changed,
    Made,
    /// It has another name, which remains.
    LinkedBelow,
    LinkedChanged,
}

#[test]
fn who_has_a_file_open_keeps_it_when_another_is_renamed_over_it() {
    use Covered::{Below, Changed, LinkedBelow, LinkedChanged, Made};
    for covered in [Below, Changed, Made, LinkedBelow, LinkedChanged] {
        let linked = matches!(covered, LinkedBelow | LinkedChanged);
        let place = Place::new();
        let lower = place.lower();
        fs::write(lower.join("new"), "new").unwrap();
        let inode_below = match covered {
            Made => None,
            _ => {
                fs::write(lower.join("f"), "old").unwrap();
                Some(fs::metadata(lower.join("f")).unwrap().ino())
            }
        };
        if linked {
            fs::hard_link(lower.join("f"), lower.join("stays")).unwrap();
        }
        let union = place.union();
        if covered == Made {
            let maker = hearth_overlay::union::CreateAttr { uid: 0, gid: 0, mode: 0o644 };
            let made = union.make_node(ROOT, b"f", rustix::fs::FileType::RegularFile, &maker).unwrap();
            let handle = union.open(made.inode, true).unwrap().handle;
            union.write(handle, b"old", 0).unwrap();
            union.release(handle);
            union.forget(made.inode, 1);
        }
        let old = union.lookup(ROOT, b"f").unwrap().inode;
        if matches!(covered, Changed | LinkedChanged) {
            union.set_attr(old, &SetAttr { mode: Some(0o600), ..SetAttr::default() }).unwrap();
        }
        let reader = union.open(old, false).unwrap().handle;
        union.rename(ROOT, b"new", ROOT, b"f", RenameMode::Replace).unwrap();

        assert_eq!(read(&union, reader), b"old", "{covered:?}");
        let links = u32::from(linked);
        assert_eq!(union.attr(old).unwrap().links, links, "{covered:?}");
        assert_eq!(content(&union, old).unwrap(), b"old", "opened again by its number: {covered:?}");
        // It can be written, and the change is visible nowhere else.
        let writer = union.open(old, true).unwrap().handle;
        union.write(writer, b"OLD", 0).unwrap();
        assert_eq!(read(&union, reader), b"OLD", "{covered:?}");
        let new = union.lookup(ROOT, b"f").unwrap();
        assert_ne!(new.inode, old, "{covered:?}");
        assert_eq!(content(&union, new.inode).unwrap(), b"new", "{covered:?}");
        if linked {
            let stays = union.lookup(ROOT, b"stays").unwrap();
            assert_eq!((stays.inode, content(&union, old).unwrap()), (old, b"OLD".to_vec()));
            union.forget(old, 1);
        }
        union.release(reader);
        union.release(writer);
        for inode in [old, new.inode] {
            union.forget(inode, 1);
        }
        assert_nothing_is_left(&place, &union);
        let again = place.union();
        let found = again.lookup(ROOT, b"f").unwrap();
        assert_eq!(content(&again, found.inode).unwrap(), b"new", "after a restart: {covered:?}");
        if let Some(inode) = inode_below {
            let below = fs::metadata(lower.join("f")).unwrap();
            assert_eq!((below.ino(), fs::read(lower.join("f")).unwrap()), (inode, b"old".to_vec()));
        }
    }
}

#[test]
fn files_that_change_places_under_their_readers_keep_their_readers() {
    let place = Place::new();
    fs::write(place.lower().join("a"), "A").unwrap();
    fs::write(place.lower().join("b"), "B").unwrap();
    let union = place.union();
    let [a, b] = [b"a", b"b"].map(|name| union.lookup(ROOT, name).unwrap().inode);
    let [of_a, of_b] = [a, b].map(|inode| union.open(inode, false).unwrap().handle);
    union.rename(ROOT, b"a", ROOT, b"b", RenameMode::Exchange).unwrap();
    assert_eq!((read(&union, of_a), read(&union, of_b)), (b"A".to_vec(), b"B".to_vec()));
    assert_eq!([b"b", b"a"].map(|name| union.lookup(ROOT, name).unwrap().inode), [a, b]);
    for (inode, handle) in [(a, of_a), (b, of_b)] {
        union.release(handle);
        union.forget(inode, 2);
    }
    assert_nothing_is_left(&place, &union);
}
