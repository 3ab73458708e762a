use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::walk::{WalkOptions, walk};

fn sample(dir: &Path) {
    fs::create_dir_all(dir.join("a/b")).unwrap();
    fs::write(dir.join("a/b/file"), "content").unwrap();
    fs::hard_link(dir.join("a/b/file"), dir.join("a/second")).unwrap();
    symlink("nowhere", dir.join("link")).unwrap();
    for number in 0..300 {
        fs::write(dir.join(format!("f{number}")), format!("{number}")).unwrap();
    }
}

fn hashed(dir: &Path, cache: &mut HashCache, workers: u32) -> HashedTree {
    let tree = walk(dir, &WalkOptions::default()).unwrap();
    hash_tree(&tree, cache, Some(workers), &|_| {}).unwrap()
}

fn digest(dir: &Path) -> TreeDigest {
    hashed(dir, &mut HashCache::default(), 1).digest
}

fn settle() {
    std::thread::sleep(Duration::from_millis(60));
}

#[test]
fn threads_and_the_cache_do_not_show_in_the_result() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    settle();
    let mut cache = HashCache::default();
    let first = hashed(dir.path(), &mut cache, 1);
    // The count includes the two directories.
    assert_eq!(cache.len(), 303);
    for workers in [1, 2, 5] {
        assert_eq!(hashed(dir.path(), &mut cache, workers), first);
        assert_eq!(hashed(dir.path(), &mut HashCache::default(), workers), first);
    }
    let content = |hash| HashedEntry { content: Some(hash), ..HashedEntry::default() };
    assert!(first.entries.contains(&content(ContentHash::of(b"content"))));
}

#[test]
fn times_and_the_place_play_no_part_and_all_that_a_build_sees_does() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    sample(one.path());
    sample(two.path());
    let before = digest(one.path());
    let at = |name: &str| two.path().join(name);
    let time = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000);
    fs::File::open(at("a/b/file")).unwrap().set_modified(time).unwrap();
    assert_eq!(digest(two.path()), before);

    let mut seen = vec![before];
    let mut differs = |change: &dyn Fn()| {
        change();
        let now = digest(two.path());
        assert!(!seen.contains(&now));
        seen.push(now);
    };
    differs(&|| fs::write(at("f7"), "8").unwrap());
    differs(&|| fs::set_permissions(at("f7"), fs::Permissions::from_mode(0o4755)).unwrap());
    differs(&|| fs::rename(at("f7"), at("g7")).unwrap());
    differs(&|| fs::create_dir(at("empty")).unwrap());
    differs(&|| {
        fs::remove_file(at("link")).unwrap();
        symlink("elsewhere", at("link")).unwrap();
    });
    differs(&|| {
        fs::remove_file(at("a/second")).unwrap();
        fs::write(at("a/second"), "content").unwrap();
    });
    differs(&|| fs::set_permissions(at("empty"), fs::Permissions::from_mode(0o700)).unwrap());
}

#[test]
fn a_change_of_equal_size_and_time_is_seen_through_the_cache() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    settle();
    let mut cache = HashCache::default();
    let before = hashed(dir.path(), &mut cache, 2).digest;
    let path = dir.path().join("f1");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "2").unwrap();
    fs::File::open(&path).unwrap().set_modified(time).unwrap();
    assert_ne!(hashed(dir.path(), &mut cache, 2).digest, before);
    // The file is too young to be cached, so the next change is detected, too.
    fs::write(&path, "1").unwrap();
    fs::File::open(&path).unwrap().set_modified(time).unwrap();
    assert_eq!(hashed(dir.path(), &mut cache, 2).digest, before);
}

#[test]
fn attributes_count_also_of_a_file_that_the_cache_knows() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    fs::create_dir(dir.path().join("dir")).unwrap();
    xattr::set(dir.path().join("file"), "user.a", b"1").unwrap();
    xattr::set(dir.path().join("dir"), "user.b", b"2").unwrap();
    settle();
    let mut cache = HashCache::default();
    let first = hashed(dir.path(), &mut cache, 1);
    assert_eq!(first.entries[0].xattrs, [(b"user.b".to_vec(), b"2".to_vec())]);
    assert_eq!(first.entries[1].xattrs, [(b"user.a".to_vec(), b"1".to_vec())]);
    assert_eq!(cache.len(), 1);
    assert_eq!(hashed(dir.path(), &mut cache, 1), first);
    xattr::set(dir.path().join("dir"), "user.b", b"3").unwrap();
    assert_ne!(hashed(dir.path(), &mut cache, 1).digest, first.digest);
}

#[test]
fn an_attribute_that_comes_or_goes_is_seen_through_the_cache() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    fs::create_dir(dir.path().join("dir")).unwrap();
    settle();
    let mut cache = HashCache::default();
    let bare = hashed(dir.path(), &mut cache, 1);
    assert_eq!(cache.len(), 2);
    for name in ["file", "dir"] {
        let path = dir.path().join(name);
        let time = fs::metadata(&path).unwrap().modified().unwrap();
        xattr::set(&path, "user.a", b"1").unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().modified().unwrap(),
            time,
            "the time of its content is as before"
        );
        let with = hashed(dir.path(), &mut cache, 1);
        assert_ne!(with.digest, bare.digest);
        settle();
        assert_eq!(hashed(dir.path(), &mut cache, 1), with);
        xattr::remove(&path, "user.a").unwrap();
        assert_eq!(hashed(dir.path(), &mut cache, 1), bare);
        settle();
        assert_eq!(hashed(dir.path(), &mut cache, 1), bare);
    }
}

#[test]
fn what_is_known_and_bare_is_not_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    settle();
    let mut cache = HashCache::default();
    let first = hashed(dir.path(), &mut cache, 1);
    let tree = walk(dir.path(), &WalkOptions::default()).unwrap();
    fs::remove_file(dir.path().join("f3")).unwrap();
    assert_eq!(hash_tree(&tree, &mut cache, Some(1), &|_| {}).unwrap(), first);
    assert!(hash_tree(&tree, &mut HashCache::default(), Some(1), &|_| {}).is_err());
}

#[test]
fn a_file_that_changed_since_it_was_listed_is_named() {
    let dir = tempfile::tempdir().unwrap();
    sample(dir.path());
    let tree = walk(dir.path(), &WalkOptions::default()).unwrap();
    settle();
    fs::write(dir.path().join("f5"), "6").unwrap();
    let error = hash_tree(&tree, &mut HashCache::default(), Some(2), &|_| {}).unwrap_err();
    assert!(matches!(&error, ContentError::Changed { path, .. } if path == "f5"), "{error}");
}
