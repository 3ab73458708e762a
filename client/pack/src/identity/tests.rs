use super::*;

fn digest(nodes: &[TreeNode<'_>]) -> TreeDigest {
    let mut hasher = TreeHasher::default();
    nodes.iter().for_each(|node| hasher.node(node));
    hasher.finish()
}

const fn node<'a>(path: &'a [u8], kind: FileKind<HashedContent, &'a [u8], &'a [u8]>) -> TreeNode<'a> {
    TreeNode { path, mode: 0o644, kind, xattrs: &[] }
}

#[test]
fn every_part_of_a_node_counts() {
    let content = ContentHash::of(b"x");
    let file = FileKind::File(HashedContent { size: 1, hash: content });
    let xattrs = [(b"user.a".to_vec(), b"1".to_vec())];
    let all = [
        digest(&[]),
        digest(&[node(b"a", file)]),
        digest(&[node(b"b", file)]),
        digest(&[TreeNode { mode: 0o755, ..node(b"a", file) }]),
        digest(&[TreeNode { xattrs: &xattrs, ..node(b"a", file) }]),
        digest(&[node(b"a", FileKind::File(HashedContent { size: 1, hash: ContentHash::of(b"y") }))]),
        digest(&[node(b"a", FileKind::Directory)]),
        digest(&[node(b"a", FileKind::Symlink(b"b"))]),
        digest(&[node(b"a", FileKind::HardLink(b"b"))]),
        digest(&[node(b"a", FileKind::Special(SpecialFile::Fifo))]),
        digest(&[node(b"a", FileKind::Special(SpecialFile::Socket))]),
        digest(&[node(b"a", FileKind::Special(SpecialFile::Device { character: true, major: 1, minor: 3 }))]),
        digest(&[node(
            b"a",
            FileKind::Special(SpecialFile::Device { character: false, major: 1, minor: 3 }),
        )]),
        digest(&[node(b"a", file), node(b"b", file)]),
    ];
    let distinct: std::collections::HashSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len());
}

/// Pinned digest. Changing it gives every tree another identity, so that packs and contexts are sent again.
#[test]
fn the_encoding_stays_what_it_is() {
    let file = FileKind::File(HashedContent { size: 5, hash: ContentHash::of(b"hello") });
    let tree = [node(b"dir", FileKind::Directory), node(b"dir/file", file)];
    assert_eq!(
        digest(&tree).to_string(),
        "blake3:a8bbefdd29a2dec715e1892929204d3c8dbaa7e34606a0b88ad17e45a4cfca09"
    );
}

#[test]
fn a_hash_is_read_back_from_its_text() {
    let hash = ContentHash::of(b"content");
    assert_eq!(hash.to_string().parse(), Ok(hash));
    for wrong in ["", "blake3:", "sha256:00", &hash.to_string().to_uppercase(), &format!("{hash}0")] {
        assert_eq!(wrong.parse::<ContentHash>(), Err(InvalidHash), "{wrong}");
    }
}

const SECOND: i64 = 1_000_000_000;

const fn stamp(changed: i64) -> FileStamp {
    FileStamp { device: 1, inode: 2, size: 3, modified: 4, changed }
}

#[test]
fn a_file_in_another_state_is_not_known() {
    let mut cache = HashCache::default();
    let seen = stamp(10 * SECOND + 1);
    cache.insert_hash(&seen, 20 * SECOND, ContentHash::of(b"abc"));
    assert_eq!(cache.get(&seen), Some(ContentHash::of(b"abc")));
    assert_eq!(cache.get(&stamp(10 * SECOND + 2)), None);
    assert_eq!(cache.get(&FileStamp { size: 4, ..seen }), None);
    assert_eq!(cache.get(&FileStamp { modified: 5, ..seen }), None);
    assert_eq!(cache.get(&FileStamp { inode: 3, ..seen }), None);
}

#[test]
fn a_file_as_young_as_the_scan_is_not_remembered() {
    let mut cache = HashCache::default();
    let now = 10 * SECOND + 5;
    for (changed, remembered) in
        [(now, false), (now - 1_000_000, false), (now - 30_000_000, true), (9 * SECOND, false)]
    {
        let seen = stamp(changed);
        cache.insert_hash(&seen, now, ContentHash::of(b""));
        assert_eq!(cache.get(&seen).is_some(), remembered, "{changed}");
    }
}

#[test]
fn change_times_settle_after_a_step_of_the_clock() {
    assert!(!is_settled(1_000_000_001, 1_000_000_001));
    assert!(!is_settled(1_000_000_001, 1_019_000_000));
    assert!(is_settled(1_000_000_001, 1_030_000_000));
    assert!(!is_settled(1_000_000_000, 2_900_000_000), "whole seconds are a coarse clock");
    assert!(!is_settled(5_000_000_001, 1_000_000_000), "the future is never settled");
    for (changed, now) in [(1_000_000_001, 1_005_000_000), (3_000_000_000, 4_000_000_000), (900, 100)] {
        let left = i64::try_from(settles_in(changed, now)).unwrap();
        assert!(left > 0 && is_settled(changed, now + left), "{changed} {now}");
        assert!(!is_settled(changed, now + left - 1), "{changed} {now}");
        assert_eq!(settles_in(changed, now + left), 0);
    }
}

#[test]
fn a_cache_comes_back_as_it_was_saved_and_damage_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hashes");
    assert!(HashCache::load(&path).unwrap().is_empty());
    let mut cache = HashCache::default();
    for inode in 0..100 {
        let seen = FileStamp { inode, ..stamp(SECOND + 1) };
        cache.insert_hash(&seen, 9 * SECOND, ContentHash::of(&inode.to_le_bytes()));
    }
    let bare = FileStamp { inode: 200, ..stamp(SECOND + 1) };
    let remembered = CachedHash { hash: ContentHash::of(b"bare"), bare: true };
    cache.insert(&bare, 9 * SECOND, remembered);
    cache.save(&path).unwrap();
    let mut back = HashCache::load(&path).unwrap();
    assert_eq!(back.len(), 101);
    assert_eq!(back.lookup(&bare), Some(remembered));
    let seen = FileStamp { inode: 42, ..stamp(SECOND + 1) };
    assert_eq!(back.get(&seen), Some(ContentHash::of(&42u64.to_le_bytes())));
    assert!(back.lookup(&seen).is_some_and(|seen| !seen.bare));

    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    assert!(matches!(HashCache::load(&path), Err(CacheError::Damaged { .. })));
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(HashCache::load(&path), Err(CacheError::Damaged { .. })));
}

#[test]
fn what_nobody_asks_for_is_forgotten() {
    let mut cache = HashCache::default();
    let (kept, lost) = (stamp(SECOND + 1), FileStamp { inode: 9, ..stamp(SECOND + 1) });
    cache.insert_hash(&kept, 9 * SECOND, ContentHash::of(b"kept"));
    cache.insert_hash(&lost, 9 * SECOND, ContentHash::of(b"lost"));
    for _ in 0..4 {
        cache.next_round(2);
        assert!(cache.get(&kept).is_some());
    }
    assert_eq!(cache.len(), 1);
    assert!(cache.get(&lost).is_none());
}
