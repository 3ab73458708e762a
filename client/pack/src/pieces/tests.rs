use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use parking_lot::Mutex;

use super::*;
use crate::identity::{HashCache, HashedTree, hash_tree};
use crate::walk::{WalkOptions, WalkedTree, walk};

/// Returns content that does not compress and has no pattern.
fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut bytes);
    bytes
}

fn hashed(dir: &Path) -> (WalkedTree, HashedTree) {
    let tree = walk(dir, &WalkOptions::default()).unwrap();
    let hashed = hash_tree(&tree, &mut HashCache::default(), None, &|_| {}).unwrap();
    (tree, hashed)
}

fn whole(tree: &WalkedTree, hashed: &HashedTree, entry: usize) -> FilePiece {
    let size = u32::try_from(tree.entries[entry].size).unwrap();
    FilePiece {
        entry: entry as u32,
        number: 0,
        offset: 0,
        size,
        hash: hashed.entries[entry].content.unwrap(),
    }
}

fn all_content(tree: &WalkedTree, batches: &[Vec<FilePiece>]) -> BTreeMap<(u32, u32), Vec<u8>> {
    let found = Mutex::new(BTreeMap::new());
    send_batches(tree, batches, (Some(3), CompressionEffort::Local), &|_, batch| {
        let content = zstd::decode_all(batch.frame.as_slice()).unwrap();
        let mut rest = content.as_slice();
        for piece in &batch.pieces {
            let (content, after) = rest.split_at(piece.size as usize);
            rest = after;
            found.lock().insert((piece.entry, piece.number), content.to_vec());
        }
        assert!(rest.is_empty());
        true
    })
    .unwrap();
    found.into_inner()
}

#[test]
fn small_files_come_in_batches_and_each_with_its_content() {
    let dir = tempfile::tempdir().unwrap();
    for number in 0..40u8 {
        fs::write(dir.path().join(format!("{number:02}")), noise(number, 100_000)).unwrap();
    }
    fs::write(dir.path().join("zero"), "").unwrap();
    let (tree, hashed) = hashed(dir.path());
    let batches = plan_batches((0..tree.entries.len()).map(|entry| whole(&tree, &hashed, entry)).collect());
    assert_eq!(batches.len(), 4);
    assert!(
        batches.iter().all(|batch| batch.iter().map(|piece| u64::from(piece.size)).sum::<u64>() <= MAX_BATCH)
    );
    let content = all_content(&tree, &batches);
    for number in 0..40u8 {
        assert_eq!(content[&(number.into(), 0)], noise(number, 100_000));
    }
    assert_eq!(content[&(40, 0)], b"");
}

#[test]
fn a_change_in_a_large_file_changes_few_of_its_pieces() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = noise(1, 20_000_000);
    fs::write(dir.path().join("large"), &bytes).unwrap();
    let (tree, hashed_tree) = hashed(dir.path());
    let before = split_file(&tree, 0, &hashed_tree.entries[0].content.unwrap()).unwrap();
    let content = all_content(&tree, &plan_batches(before.clone()));
    assert_eq!(content.into_values().collect::<Vec<_>>().concat(), bytes);

    bytes.splice(7_000_000..7_000_000, *b"a few bytes more");
    fs::write(dir.path().join("large"), &bytes).unwrap();
    let (tree, hashed_tree) = hashed(dir.path());
    let after = split_file(&tree, 0, &hashed_tree.entries[0].content.unwrap()).unwrap();
    let new = after.iter().filter(|piece| before.iter().all(|old| old.hash != piece.hash)).count();
    assert!(before.len() > 8 && new <= 2, "{new} of {} are new", after.len());
}

#[test]
fn a_file_that_changed_since_it_was_hashed_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("f"), "before").unwrap();
    fs::write(dir.path().join("large"), noise(1, 3_000_000)).unwrap();
    let (tree, hashed) = hashed(dir.path());
    let batches = plan_batches(vec![whole(&tree, &hashed, 0)]);
    fs::write(dir.path().join("f"), "after!").unwrap();
    let error = send_batches(&tree, &batches, (None, CompressionEffort::Remote), &|_, _| true).unwrap_err();
    assert!(
        matches!(&error, PieceError::Content(ContentError::Changed { path, .. }) if path == "f"),
        "{error}"
    );
    assert!(split_file(&tree, 1, &ContentHash::of(b"another")).unwrap_err().to_string().contains("large"));
}

#[test]
fn a_proof_is_the_keyed_hash_of_all_contents_together() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "one").unwrap();
    fs::write(dir.path().join("b"), "two").unwrap();
    let (tree, _) = hashed(dir.path());
    let expected = blake3::keyed_hash(&[9; 32], b"onetwo");
    assert_eq!(prove(&tree, &[0, 1], &[9; 32]).unwrap(), *expected.as_bytes());
    assert_ne!(prove(&tree, &[0], &[9; 32]).unwrap(), *expected.as_bytes());
}
