//! Tests of uploads with a real content store and a real image store, without the network API.

mod images;
mod sweeps;

use std::io::Read as _;

use bytes::Bytes;
use hearth_pack::FileKind;
use hearth_pack::identity::{HashCache, HashedContent, HashedTree, hash_tree};
use hearth_pack::pieces::{self, CompressionEffort, LARGE_FILE};
use hearth_pack::walk::{WalkOptions, WalkedTree, walk};

use super::store::AppendError;
use super::*;
use crate::context::{LayerInspection, LayerLimits};
use crate::image::ImageError;
use crate::model::RoomRegistries;
use crate::model::id::PackId;
use crate::registry::blobs::BlobStore;
use crate::store::StateStore;

const LIMITS: StoreLimits = StoreLimits { total: 1 << 30, per_owner: 1 << 30, min_free: 0 };

/// Sweep without any retention time: removes everything that is not in use.
const EVERYTHING_OLD: PackSweepPolicy = PackSweepPolicy {
    keep: Duration::ZERO,
    short_lived_owner: None,
    grace: Duration::ZERO,
    abandoned_upload: None,
};

struct Room {
    directory: tempfile::TempDir,
    packs: PackStore,
    images: ImageStore,
    store: StateStore,
}

fn open(directory: tempfile::TempDir, limits: StoreLimits) -> Room {
    let path = directory.path();
    let blobs = BlobStore::open(&path.join("registry")).unwrap();
    let store = StateStore::open(&path.join("state.db")).unwrap();
    let inspection = LayerInspection::new(LayerLimits::default());
    let images = ImageStore::new(
        RoomRegistries::default(),
        Arc::new(blobs),
        Arc::new(store.clone()),
        Arc::new(inspection),
    );
    let keep = Duration::from_secs(24 * 3600);
    let options = PackOptions { directory: path.join("packs"), limits, keep };
    let packs = PackStore::open(options, images.clone()).unwrap();
    Room { directory, packs, images, store }
}

fn room_with(limits: StoreLimits) -> Room {
    open(tempfile::tempdir().unwrap(), limits)
}

fn room() -> Room {
    room_with(LIMITS)
}

impl Room {
    /// Opens the packs again without closing the open handles, as after kill -9.
    fn restart(self) -> Self {
        open(self.directory, LIMITS)
    }
}

/// Returns content that does not compress.
fn noise(seed: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new_keyed(&[seed; 32]).finalize_xof().fill(&mut bytes);
    bytes
}

/// A directory that is hashed in the same way as by a client.
struct Local {
    directory: tempfile::TempDir,
    tree: WalkedTree,
    hashed: HashedTree,
}

fn local(files: &[(&str, &[u8])]) -> Local {
    let directory = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = directory.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    Local::of(directory)
}

impl Local {
    fn of(directory: tempfile::TempDir) -> Self {
        let tree = walk(directory.path(), &WalkOptions::default()).unwrap();
        let hashed = hash_tree(&tree, &mut HashCache::default(), None, &|_| {}).unwrap();
        Self { directory, tree, hashed }
    }

    async fn list(&self, packs: &PackStore, owner: &str, id: &str) -> Arc<UploadPlan> {
        let mut lister = packs.listing_receiver(owner, id).unwrap();
        for (entry, hashed) in self.tree.entries.iter().zip(&self.hashed.entries) {
            let (kind, mode) = match &entry.kind {
                FileKind::Directory => (FileKind::Directory, entry.mode),
                FileKind::File(()) => (
                    FileKind::File(HashedContent { size: entry.size, hash: hashed.content.unwrap() }),
                    entry.mode,
                ),
                FileKind::Symlink(target) => (FileKind::Symlink(target.as_slice()), 0o777),
                FileKind::HardLink(to) => (FileKind::HardLink(to.as_slice()), entry.mode),
                FileKind::Special(never) => match *never {},
            };
            lister.push(&TreeNode { path: &entry.path, mode, kind, xattrs: &hashed.xattrs }).unwrap();
        }
        lister.finish().await.unwrap()
    }

    /// Sends these entries. Returns the number of sent pieces and bytes.
    async fn send(
        &self,
        packs: &PackStore,
        owner: &str,
        id: &str,
        entries: &[u32],
    ) -> Result<(u64, u64), PackError> {
        let mut wanted = Vec::new();
        for &entry in entries {
            let (size, hash) = (
                self.tree.entries[entry as usize].size,
                self.hashed.entries[entry as usize].content.unwrap(),
            );
            if size <= LARGE_FILE {
                wanted.push(pieces::FilePiece { entry, number: 0, offset: 0, size: size as u32, hash });
                continue;
            }
            let cut = pieces::split_file(&self.tree, entry, &hash).unwrap();
            let named = cut.iter().map(|piece| ContentPiece { hash: piece.hash, size: piece.size }).collect();
            for (_, missing) in packs.register_chunks(owner, id, vec![(entry, named)]).await? {
                wanted.extend(missing.iter().map(|number| cut[*number as usize]));
            }
        }
        let batches = parking_lot::Mutex::new(Vec::new());
        pieces::send_batches(
            &self.tree,
            &pieces::plan_batches(wanted),
            (Some(1), CompressionEffort::Remote),
            &|_, batch| {
                batches.lock().push(batch);
                true
            },
        )
        .unwrap();
        let mut receiver = packs.piece_receiver(owner, id)?;
        for batch in batches.into_inner() {
            let sent = batch.pieces.iter();
            let sent =
                sent.map(|piece| SentPiece { entry: piece.entry, chunk: piece.number, size: piece.size });
            receiver.receive(sent.collect(), PieceData::Zstd(batch.frame.into())).await?;
        }
        receiver.finish().await?;
        Ok((receiver.pieces, receiver.bytes))
    }

    async fn begin(&self, packs: &PackStore, owner: &str) -> PackBeginOutcome {
        packs.begin(self.hashed.digest, destination(owner, None)).await.unwrap()
    }

    /// Runs a whole upload. Returns the result and the number of sent pieces.
    async fn upload(
        &self,
        packs: &PackStore,
        to: PackDestination,
    ) -> Result<(CommittedPack, u64), PackError> {
        let owner = to.owner.clone();
        let id = match packs.begin(self.hashed.digest, to).await? {
            PackBeginOutcome::Done(ready) => return Ok((packs.publish(*ready).await?, 0)),
            PackBeginOutcome::Upload(id) => id,
        };
        let list = self.list(packs, &owner, &id).await;
        let (count, _) = self.send(packs, &owner, &id, &list.missing).await?;
        let proof = pieces::prove(&self.tree, &list.prove, &list.proof_key).unwrap();
        let proof = (!list.prove.is_empty()).then_some(proof);
        let ready = packs.commit(&owner, &id, proof).await?;
        Ok((packs.publish(ready).await?, count))
    }
}

fn destination(owner: &str, tag: Option<&str>) -> PackDestination {
    PackDestination {
        owner: owner.to_owned(),
        tag: tag.map(|tag| Reference::parse_tag(tag).unwrap()),
        archive: None,
        image: PackImageOptions::default(),
        lineage: String::new(),
    }
}

fn upload_id(begun: PackBeginOutcome) -> String {
    match begun {
        PackBeginOutcome::Upload(id) => id,
        PackBeginOutcome::Done(committed) => panic!("it was there: {committed:?}"),
    }
}

fn sample() -> Local {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path();
    std::fs::create_dir_all(path.join("d/empty")).unwrap();
    for (name, content) in [
        ("a", b"one".to_vec()),
        ("d/b", b"two".to_vec()),
        ("d/same", b"one".to_vec()),
        ("large", noise(1, 6_000_000)),
        ("zero", Vec::new()),
    ] {
        std::fs::write(path.join(name), content).unwrap();
    }
    std::fs::hard_link(path.join("a"), path.join("d/z")).unwrap();
    std::os::unix::fs::symlink("../a", path.join("d/link")).unwrap();
    Local::of(directory)
}

async fn tree_of(packs: &PackStore, owner: &str, local: &Local) -> PackTree {
    packs.tree(owner, local.hashed.digest).await.unwrap()
}

fn content_of(tree: &PackTree, path: &str) -> Vec<u8> {
    let entry = tree.listing.entry(tree.listing.find(path.as_bytes()).unwrap());
    let (hash, size) = entry.content().unwrap();
    let mut content = Vec::new();
    tree.open(&hash, size).unwrap().read_to_end(&mut content).unwrap();
    content
}

#[tokio::test]
async fn a_tree_that_was_sent_is_there_whole_and_the_next_time_at_once() {
    let room = room();
    let local = sample();
    let (committed, sent) = local.upload(&room.packs, destination("ann", None)).await.unwrap();
    assert!(committed.pack.is_some() && committed.made.is_none());
    // `a` and `d/same` have the same content, and the large file consists of several pieces.
    assert!(sent > 6, "{sent}");
    let tree = tree_of(&room.packs, "ann", &local).await;
    assert_eq!(tree.listing.len(), local.tree.entries.len());
    assert_eq!(content_of(&tree, "d/b"), b"two");
    assert_eq!(content_of(&tree, "zero"), b"");
    assert_eq!(content_of(&tree, "large"), noise(1, 6_000_000));
    let mut middle = Vec::new();
    let (hash, size) = tree.listing.entry(tree.listing.find(b"large").unwrap()).content().unwrap();
    tree.open_at(&hash, size, 5_000_000).unwrap().read_to_end(&mut middle).unwrap();
    assert_eq!(middle, noise(1, 6_000_000)[5_000_000..]);
    let again = match local.begin(&room.packs, "ann").await {
        PackBeginOutcome::Done(ready) => room.packs.publish(*ready).await.unwrap(),
        PackBeginOutcome::Upload(_) => panic!("it asks for what it has"),
    };
    assert_ne!(again.pack, committed.pack);
}

#[tokio::test]
async fn only_what_changed_is_sent() {
    let room = room();
    let one = local(&[("a", b"1"), ("b", b"2"), ("large", &noise(1, 9_000_000))]);
    one.upload(&room.packs, destination("ann", None)).await.unwrap();
    let mut changed = noise(1, 9_000_000);
    changed[4_000_000] ^= 1;
    let two = local(&[("a", b"1"), ("b", b"changed"), ("large", &changed)]);
    let (_, sent) = two.upload(&room.packs, destination("ann", None)).await.unwrap();
    assert!((2..=3).contains(&sent), "{sent} pieces: one file, and one or two of the large one");
    assert_eq!(content_of(&tree_of(&room.packs, "ann", &two).await, "large"), changed);
}

#[tokio::test]
async fn an_upload_that_was_cut_off_goes_on_where_it_was_even_after_a_kill() {
    let room = room();
    let local = sample();
    let id = upload_id(local.begin(&room.packs, "ann").await);
    let list = local.list(&room.packs, "ann", &id).await;
    let (first, rest) = list.missing.split_at(2);
    local.send(&room.packs, "ann", &id, first).await.unwrap();
    let room = room.restart();
    assert!(matches!(room.packs.piece_receiver("ann", &id), Err(PackError::NoUpload { .. })));
    let id = upload_id(local.begin(&room.packs, "ann").await);
    let list = local.list(&room.packs, "ann", &id).await;
    assert_eq!(list.missing, rest);
    local.send(&room.packs, "ann", &id, rest).await.unwrap();
    // All content has been received, and the daemon is killed before the commit.
    let room = room.restart();
    let id = upload_id(local.begin(&room.packs, "ann").await);
    let list = local.list(&room.packs, "ann", &id).await;
    let large = local.tree.entries.iter().position(|entry| entry.path == b"large").unwrap() as u32;
    // The store has only the pieces of the large file: its recipe is stored by the commit.
    assert_eq!(list.missing, [large]);
    assert_eq!(local.send(&room.packs, "ann", &id, &list.missing).await.unwrap(), (0, 0));
    room.packs.commit("ann", &id, None).await.unwrap();
    assert_eq!(content_of(&tree_of(&room.packs, "ann", &local).await, "large"), noise(1, 6_000_000));
}

#[tokio::test]
async fn two_at_once_with_the_same_tree_both_end_well() {
    let room = room();
    let local = sample();
    let (one, two) = (local.begin(&room.packs, "ann").await, local.begin(&room.packs, "ann").await);
    let (one, two) = (upload_id(one), upload_id(two));
    let lists = (local.list(&room.packs, "ann", &one).await, local.list(&room.packs, "ann", &two).await);
    local.send(&room.packs, "ann", &one, &lists.0.missing).await.unwrap();
    local.send(&room.packs, "ann", &two, &lists.1.missing).await.unwrap();
    let one = room.packs.commit("ann", &one, None).await.unwrap();
    let one = room.packs.publish(one).await.unwrap();
    let two = room.packs.commit("ann", &two, None).await.unwrap();
    let two = room.packs.publish(two).await.unwrap();
    assert!(one.pack.is_some() && two.pack.is_some() && one.pack != two.pack);
}

#[tokio::test]
async fn a_commit_without_all_content_says_what_is_missing_and_the_upload_goes_on() {
    let room = room();
    let local = local(&[("a", b"1"), ("b", b"2")]);
    let id = upload_id(local.begin(&room.packs, "ann").await);
    assert!(matches!(room.packs.commit("ann", &id, None).await, Err(PackError::NoList)));
    let list = local.list(&room.packs, "ann", &id).await;
    local.send(&room.packs, "ann", &id, &list.missing[..1]).await.unwrap();
    let error = room.packs.commit("ann", &id, None).await.unwrap_err();
    assert!(matches!(&error, PackError::Incomplete { count: 1, path } if path == "b"), "{error}");
    local.send(&room.packs, "ann", &id, &list.missing[1..]).await.unwrap();
    room.packs.commit("ann", &id, None).await.unwrap();
}

#[tokio::test]
async fn content_and_trees_that_are_not_what_they_claim_are_refused() {
    let room = room();
    let honest = local(&[("a", b"right")]);
    let id = upload_id(honest.begin(&room.packs, "ann").await);
    honest.list(&room.packs, "ann", &id).await;
    let mut receiver = room.packs.piece_receiver("ann", &id).unwrap();
    let piece = SentPiece { entry: 0, chunk: 0, size: 5 };
    let mut take =
        async |piece: SentPiece, data: PieceData| receiver.receive(vec![piece], data).await.unwrap_err();
    let plain = |bytes: &'static [u8]| PieceData::Plain(bytes.into());
    let error = take(piece, plain(b"wrong")).await;
    assert!(matches!(&error, PackError::ContentMismatch { path } if path == "a"), "{error}");
    assert!(matches!(take(piece, plain(b"right and more")).await, PackError::Data(_)));
    assert!(matches!(take(piece, PieceData::Zstd(b"no frame"[..].into())).await, PackError::Data(_)));
    let bomb = zstd::bulk::compress(&vec![0; 64 << 20], 1).unwrap();
    assert!(matches!(take(piece, PieceData::Zstd(bomb.into())).await, PackError::Data(_)));
    assert!(matches!(take(SentPiece { size: 4, ..piece }, plain(b"righ")).await, PackError::Piece { .. }));
    assert!(matches!(take(SentPiece { chunk: 1, ..piece }, plain(b"right")).await, PackError::Piece { .. }));
    assert!(matches!(
        take(SentPiece { entry: 7, ..piece }, plain(b"right")).await,
        PackError::NotAskedFor { .. }
    ));
    assert!(matches!(take(SentPiece { size: u32::MAX, ..piece }, plain(b"right")).await, PackError::Data(_)));
    assert!(room.packs.commit("ann", &id, None).await.is_err());

    let other = TreeDigest::from_bytes([3; 32]);
    let id = upload_id(room.packs.begin(other, destination("ann", None)).await.unwrap());
    let mut lister = room.packs.listing_receiver("ann", &id).unwrap();
    lister.push(&TreeNode { path: b"d", mode: 0o755, kind: FileKind::Directory, xattrs: &[] }).unwrap();
    assert!(matches!(lister.finish().await, Err(PackError::TreeMismatch { .. })));
    assert!(room.packs.tree("ann", other).await.is_err(), "nothing is kept as a tree");
}

#[tokio::test]
async fn pieces_that_are_not_the_file_are_found_at_the_commit() {
    let room = room();
    let lying = noise(9, 6_000_000);
    let whole = ContentHash::of(b"something else");
    let kind = FileKind::File(HashedContent { size: lying.len() as u64, hash: whole });
    let node = TreeNode { path: b"large", mode: 0o644, kind, xattrs: &[] };
    let mut sum = hearth_pack::identity::TreeHasher::default();
    sum.node(&node);
    let id = upload_id(room.packs.begin(sum.finish(), destination("ann", None)).await.unwrap());
    let mut lister = room.packs.listing_receiver("ann", &id).unwrap();
    lister.push(&node).unwrap();
    lister.finish().await.unwrap();
    let halves = [&lying[..3_000_000], &lying[3_000_000..]];
    let named = |halves: &[&[u8]]| -> Vec<ContentPiece> {
        halves
            .iter()
            .map(|half| ContentPiece { hash: ContentHash::of(half), size: half.len() as u32 })
            .collect()
    };
    for wrong in [named(&halves[..1]), vec![ContentPiece { hash: whole, size: 6_000_000 }], Vec::new()] {
        let error = room.packs.register_chunks("ann", &id, vec![(0, wrong)]).await.unwrap_err();
        assert!(matches!(error, PackError::Chunks { .. }), "{error}");
    }
    room.packs.register_chunks("ann", &id, vec![(0, named(&halves))]).await.unwrap();
    let mut receiver = room.packs.piece_receiver("ann", &id).unwrap();
    for (chunk, half) in (0..).zip(halves) {
        let piece = SentPiece { entry: 0, chunk, size: half.len() as u32 };
        receiver.receive(vec![piece], PieceData::Plain(Bytes::copy_from_slice(half))).await.unwrap();
    }
    let error = room.packs.commit("ann", &id, None).await.unwrap_err();
    assert!(matches!(error, PackError::ContentMismatch { .. }), "{error}");
}

#[tokio::test]
async fn content_of_another_participant_is_not_to_be_had_by_its_hash() {
    let room = room();
    let files = local(&[("a", b"secret of ann"), ("large", &noise(1, 5_000_000))]);
    let (committed, _) = files.upload(&room.packs, destination("ann", None)).await.unwrap();
    // Another participant has the same files: nothing is sent, and a proof is required.
    let id = upload_id(files.begin(&room.packs, "bob").await);
    let list = files.list(&room.packs, "bob", &id).await;
    assert_eq!((list.missing.len(), list.prove.len()), (0, 2));
    // A participant without the files: no proof, a wrong proof, a proof with another key.
    assert!(matches!(room.packs.commit("bob", &id, None).await, Err(PackError::Incomplete { count: 2, .. })));
    let stale = pieces::prove(&files.tree, &list.prove, &[0; 32]).unwrap();
    for proof in [[0; 32], stale] {
        assert!(matches!(room.packs.commit("bob", &id, Some(proof)).await, Err(PackError::Proof)));
    }
    assert!(matches!(room.packs.tree("bob", files.hashed.digest).await, Err(PackError::TreeGone { .. })));
    // The pack, tree or upload of another participant gives no access either.
    let pack: PackId = committed.pack.unwrap();
    assert!(matches!(room.images.pack(&pack, "bob").await, Err(ImageError::PackNotFound { .. })));
    assert!(matches!(room.packs.piece_receiver("eve", &id), Err(PackError::NoUpload { .. })));
    // With the files the proof succeeds.
    let proof = pieces::prove(&files.tree, &list.prove, &list.proof_key).unwrap();
    room.packs.commit("bob", &id, Some(proof)).await.unwrap();
    assert_eq!(content_of(&tree_of(&room.packs, "bob", &files).await, "a"), b"secret of ann");
    // Pieces of another participant's large file have to be sent.
    let id = upload_id(files.begin(&room.packs, "eve").await);
    let list = files.list(&room.packs, "eve", &id).await;
    let (sent, _) = files.send(&room.packs, "eve", &id, &list.prove).await.unwrap();
    assert!(sent > 2);
    room.packs.commit("eve", &id, None).await.unwrap();
}

#[tokio::test]
async fn a_quota_that_is_hit_is_an_error_and_gives_the_space_back() {
    let room = room_with(StoreLimits { per_owner: 3_000_000, ..LIMITS });
    let small = local(&[("a", &noise(1, 500_000))]);
    small.upload(&room.packs, destination("ann", None)).await.unwrap();
    let large =
        local(&[("a", &noise(2, 1_000_000)), ("b", &noise(3, 1_000_000)), ("c", &noise(4, 1_000_000))]);
    let error = large.upload(&room.packs, destination("ann", None)).await.unwrap_err();
    assert!(matches!(error, PackError::Store(AppendError::OwnerQuota { .. })), "{error}");
    assert!(room.packs.0.store.used_bytes() < 600_000, "{}", room.packs.0.store.used_bytes());
    assert_eq!(content_of(&tree_of(&room.packs, "ann", &small).await, "a"), noise(1, 500_000));
    // Other participants have a quota of their own.
    let bob = local(&[("a", &noise(5, 2_000_000))]);
    bob.upload(&room.packs, destination("bob", None)).await.unwrap();
}

#[tokio::test]
async fn what_services_send_counts_for_whoever_deployed_them() {
    let room = room_with(StoreLimits { per_owner: 3_000_000, ..LIMITS });
    let owners = ShareOwnerResolver::default();
    owners.set_service_creators(|service| (service != "bobs").then(|| "ann".to_owned()));
    room.packs.set_share_owners(owners);
    for (seed, sender) in [(1, "ann"), (2, "service:1")] {
        let files = local(&[("a", &noise(seed, 1_200_000))]);
        files.upload(&room.packs, destination(sender, None)).await.unwrap();
    }
    let third = local(&[("a", &noise(9, 1_200_000))]);
    for sender in ["service:2", "ann", "service:1"] {
        let error = third.upload(&room.packs, destination(sender, None)).await.unwrap_err();
        assert!(matches!(error, PackError::Store(AppendError::OwnerQuota { .. })), "{sender}: {error}");
    }
    third.upload(&room.packs, destination("service:bobs", None)).await.unwrap();
    // They share only the quota: access to each other's content still needs a proof.
    let theirs = local(&[("a", &noise(1, 1_200_000))]);
    let known = theirs.begin(&room.packs, "service:1").await;
    assert!(matches!(known, PackBeginOutcome::Upload(_)));
}

#[tokio::test]
async fn uploads_of_one_participant_are_counted_and_idle_ones_are_forgotten() {
    let room = room();
    let tree = |number: u8| TreeDigest::from_bytes([number; 32]);
    let mut ids = Vec::new();
    for number in 0..MAX_UPLOADS_PER_OWNER {
        let begun = room.packs.begin(tree(number as u8), destination("ann", None)).await.unwrap();
        ids.push(upload_id(begun));
    }
    let refused = room.packs.begin(tree(99), destination("ann", None)).await.unwrap_err();
    assert!(matches!(refused, PackError::TooManyUploads { .. }) && refused.retryable());
    room.packs.begin(tree(99), destination("bob", None)).await.unwrap();
    room.packs.sweep().await.unwrap();
    assert!(room.packs.listing_receiver("ann", &ids[0]).is_ok(), "none of them is old yet");
}

#[tokio::test]
async fn trees_go_some_time_after_the_last_pack_of_them_and_content_with_them() {
    let room = room();
    let local = sample();
    let (committed, _) = local.upload(&room.packs, destination("ann", None)).await.unwrap();
    let id = committed.pack.unwrap();
    room.packs.run_sweep(EVERYTHING_OLD).await.unwrap();
    assert_eq!(content_of(&tree_of(&room.packs, "ann", &local).await, "a"), b"one", "its pack is there");
    room.images.hold_pack(&id, "ann").await.unwrap();
    room.images.release_pack(&id).await.unwrap();
    assert!(room.images.pack(&id, "ann").await.is_err(), "dropped with its last build");
    room.packs.sweep().await.unwrap();
    assert!(room.packs.tree("ann", local.hashed.digest).await.is_ok(), "kept for the next pack");
    let swept = room.packs.run_sweep(EVERYTHING_OLD).await.unwrap();
    assert!(swept.contents > 5 && room.packs.0.store.used_bytes() == 0, "{swept:?}");
    assert!(room.packs.tree("ann", local.hashed.digest).await.is_err());
}
