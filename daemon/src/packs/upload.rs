//! One upload: the content that its file list asks for, and how much of it has been received.
//!
//! ```text
//! begun --list--> listed --(chunks | pieces)*--> complete --commit--> gone
//! ```
//!
//! An upload exists in memory only. After a restart of the daemon the client begins a new upload; the content
//! received before is still in the store.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hearth_pack::identity::{ContentHash, TreeDigest};
use hearth_pack::listing::TreeListing;
use parking_lot::{Mutex, MutexGuard};

use super::store::{ContentPresence, MAX_PIECE_SIZE, OwnerKey};
use super::{PackDestination, PackError};
use crate::context::ContentPiece;

/// Maximum number of chunks in all files of one upload: 72 MB of memory.
const MAX_CHUNKS: usize = 2_000_000;

/// An upload in progress.
#[derive(Debug)]
pub(super) struct PackUpload {
    pub owner: OwnerKey,
    pub tree: TreeDigest,
    pub destination: PackDestination,
    state: Mutex<PackUploadState>,
    started_at: Instant,
    pub(super) last_used: Mutex<Instant>,
    active_requests: AtomicUsize,
}

/// An upload that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfinishedPack {
    pub caller: String,
    pub tree: TreeDigest,
    /// Number of bytes received so far.
    pub bytes: u64,
    pub age: Duration,
}

#[derive(Debug, Default)]
struct PackUploadState {
    list: Option<Arc<UploadPlan>>,
    requested: HashMap<u32, RequestedContent>,
    chunks: usize,
}

/// Received file list of an upload, and the entries whose content the client has to send or prove.
#[derive(Debug)]
pub struct UploadPlan {
    pub listing: TreeListing,
    pub missing: Vec<u32>,
    pub prove: Vec<u32>,
    pub proof_key: [u8; 32],
    /// Share of the memory for lists, released on drop.
    pub(super) _memory: super::memory::MemoryReservation,
}

/// Content of one entry that the client has to send, or may send instead of a proof.
#[derive(Debug)]
struct RequestedContent {
    /// Pieces of the content, each with a flag that says whether it has been received. A file that was not split into
    /// chunks is one piece.
    pieces: Vec<(ContentPiece, bool)>,
    cut: bool,
}

/// A large file whose pieces have all been received; the content as a whole is still to be verified.
pub(super) struct ChunkedFile {
    pub entry: u32,
    pub content: ContentHash,
    pub pieces: Vec<ContentPiece>,
}

/// Guard for a request that works on an upload. The upload is not idle while a guard exists.
#[derive(Debug)]
pub(super) struct UploadGuard(Arc<PackUpload>);

impl std::ops::Deref for UploadGuard {
    type Target = Arc<PackUpload>;
    fn deref(&self) -> &Arc<PackUpload> {
        &self.0
    }
}

impl Drop for UploadGuard {
    fn drop(&mut self) {
        *self.0.last_used.lock() = Instant::now();
        self.0.active_requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl PackUpload {
    pub(super) fn new(owner: OwnerKey, tree: TreeDigest, destination: PackDestination) -> Self {
        Self {
            owner,
            tree,
            destination,
            state: Mutex::default(),
            started_at: Instant::now(),
            last_used: Mutex::new(Instant::now()),
            active_requests: AtomicUsize::new(0),
        }
    }

    pub(super) fn guard(self: &Arc<Self>) -> UploadGuard {
        self.active_requests.fetch_add(1, Ordering::Relaxed);
        UploadGuard(Arc::clone(self))
    }

    pub(super) fn unfinished_upload(&self) -> UnfinishedPack {
        let state = self.state();
        let pieces = state.requested.values().flat_map(|wanted| &wanted.pieces);
        let bytes = pieces.filter(|(_, here)| *here).map(|(piece, _)| u64::from(piece.size)).sum();
        let caller = self.destination.owner.clone();
        UnfinishedPack { caller, tree: self.tree, bytes, age: self.started_at.elapsed() }
    }

    /// Returns the time since the last request for this upload, or zero while a request is running.
    pub(super) fn idle_time(&self) -> Duration {
        if self.active_requests.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        self.last_used.lock().elapsed()
    }

    fn state(&self) -> MutexGuard<'_, PackUploadState> {
        // The received content is in the store, so the state is usable even after a panic.
        self.state.lock()
    }

    pub(super) fn has_list(&self) -> bool {
        self.state().list.is_some()
    }

    pub(super) fn list(&self) -> Result<Arc<UploadPlan>, PackError> {
        self.state().list.clone().ok_or(PackError::NoList)
    }

    /// Sets the file list. `firsts` holds, for each distinct content, the first entry that has it; `presence` says in
    /// the same order whether the store has that content.
    pub(super) fn set_list(
        &self,
        listing: TreeListing,
        firsts: &[(u32, ContentRef)],
        presence: &[ContentPresence],
        memory: super::memory::MemoryReservation,
    ) -> Result<Arc<UploadPlan>, PackError> {
        let mut state = self.state();
        if state.list.is_some() {
            return Err(PackError::SecondList);
        }
        let (mut missing, mut prove) = (Vec::new(), Vec::new());
        for ((entry, _), presence) in firsts.iter().zip(presence) {
            match presence {
                ContentPresence::Missing => missing.push(*entry),
                ContentPresence::Foreign => prove.push(*entry),
                ContentPresence::Own => {}
            }
        }
        let list =
            Arc::new(UploadPlan { listing, missing, prove, proof_key: rand::random(), _memory: memory });
        state.list = Some(Arc::clone(&list));
        for ((entry, content), presence) in firsts.iter().zip(presence) {
            if *presence != ContentPresence::Own {
                let size = u32::try_from(content.size).unwrap_or(u32::MAX);
                let whole = (ContentPiece { hash: content.hash, size }, false);
                state.requested.insert(*entry, RequestedContent { pieces: vec![whole], cut: false });
            }
        }
        Ok(list)
    }

    /// Sets the pieces that a large file consists of.
    pub(super) fn set_chunks(&self, entry: u32, pieces: &[ContentPiece]) -> Result<(), PackError> {
        let list = self.list()?;
        let mut state = self.state();
        let wrong = |reason| PackError::Chunks { path: display_path(&list.listing, entry), reason };
        let size = match list.listing.len() > entry as usize {
            true => list.listing.entry(entry as usize).content().map(|(_, size)| size),
            false => None,
        };
        let count = state.chunks + pieces.len();
        let wanted = state.requested.get_mut(&entry).ok_or(PackError::NotAskedFor { entry })?;
        if wanted.cut {
            return Err(wrong("the file was split into chunks before"));
        }
        if pieces.iter().any(|piece| piece.size == 0 || piece.size > MAX_PIECE_SIZE) {
            return Err(wrong("a chunk has from 1 byte to 4 MiB"));
        }
        if Some(pieces.iter().map(|piece| u64::from(piece.size)).sum()) != size {
            return Err(wrong("their sizes do not add up to the file's"));
        }
        if count > MAX_CHUNKS {
            return Err(wrong("too many for one upload"));
        }
        wanted.cut = true;
        wanted.pieces = pieces.iter().map(|piece| (*piece, false)).collect();
        state.chunks = count;
        Ok(())
    }

    /// Marks the pieces of a file that need not be sent. Returns the numbers of the others.
    pub(super) fn mark_present_chunks(&self, entry: u32, presence: &[ContentPresence]) -> Vec<u32> {
        let mut state = self.state();
        let Some(wanted) = state.requested.get_mut(&entry) else { return Vec::new() };
        let mut missing = Vec::new();
        for (number, ((_, here), presence)) in (0..).zip(wanted.pieces.iter_mut().zip(presence)) {
            // A proof covers whole files only, so a single piece that only other participants own has to be sent.
            if *presence == ContentPresence::Own {
                *here = true;
            } else {
                missing.push(number);
            }
        }
        missing
    }

    /// Returns the hash and size that a piece must have.
    pub(super) fn expected_piece(
        &self,
        entry: u32,
        chunk: u32,
        size: u32,
    ) -> Result<ContentPiece, PackError> {
        let state = self.state();
        let list = state.list.as_ref().ok_or(PackError::NoList)?;
        let wrong = |reason| PackError::Piece { path: display_path(&list.listing, entry), reason };
        let wanted = state.requested.get(&entry).ok_or(PackError::NotAskedFor { entry })?;
        let (piece, _) = wanted.pieces.get(chunk as usize).ok_or_else(|| wrong("there is no such chunk"))?;
        if piece.size > MAX_PIECE_SIZE {
            return Err(wrong("a file of more than 4 MiB must be split with Chunks first"));
        }
        if piece.size != size {
            return Err(wrong("its size is not the listed one"));
        }
        Ok(*piece)
    }

    pub(super) fn mark_received(&self, entry: u32, chunk: u32) {
        let mut state = self.state();
        let piece = state.requested.get_mut(&entry).and_then(|wanted| wanted.pieces.get_mut(chunk as usize));
        if let Some((_, here)) = piece {
            *here = true;
        }
    }

    /// Checks that all missing content has been received. `proven` says whether the client proves possession of the
    /// content in `prove`; otherwise that content must have been received, too.
    pub(super) fn check_complete(&self, proven: bool) -> Result<(), PackError> {
        let state = self.state();
        let list = state.list.as_ref().ok_or(PackError::NoList)?;
        let is_open = |entry: &&u32| {
            state.requested.get(entry).is_some_and(|wanted| wanted.pieces.iter().any(|(_, here)| !here))
        };
        let proven_away: &[u32] = if proven { &[] } else { &list.prove };
        let open: Vec<u32> = list.missing.iter().chain(proven_away).filter(is_open).copied().collect();
        match open.iter().min() {
            None => Ok(()),
            Some(first) => {
                Err(PackError::Incomplete { count: open.len(), path: display_path(&list.listing, *first) })
            }
        }
    }

    /// Returns the hashes of all content of this upload: present before, received, or still to be sent.
    pub(super) fn contents(&self) -> Vec<ContentHash> {
        let state = self.state();
        let Some(list) = &state.list else { return Vec::new() };
        let listed = list.listing.entries().filter_map(|entry| Some(entry.content()?.0));
        let pieces = state.requested.values().flat_map(|wanted| &wanted.pieces).map(|(piece, _)| piece.hash);
        listed.chain(pieces).collect()
    }

    /// Returns the files that were split into chunks and are complete.
    pub(super) fn complete_chunked_files(&self) -> Vec<ChunkedFile> {
        let state = self.state();
        let Some(list) = &state.list else { return Vec::new() };
        let whole = |(entry, wanted): (&u32, &RequestedContent)| {
            let complete = wanted.cut && wanted.pieces.iter().all(|(_, here)| *here);
            let (content, _) = list.listing.entry(*entry as usize).content()?;
            let pieces = wanted.pieces.iter().map(|(piece, _)| *piece).collect();
            complete.then_some(ChunkedFile { entry: *entry, content, pieces })
        };
        state.requested.iter().filter_map(whole).collect()
    }
}

/// Hash and size of content of any size.
#[derive(Clone, Copy, Debug)]
pub(super) struct ContentRef {
    pub hash: ContentHash,
    pub size: u64,
}

/// Returns the path of an entry for messages.
pub(super) fn display_path(listing: &TreeListing, entry: u32) -> String {
    match (entry as usize) < listing.len() {
        true => String::from_utf8_lossy(listing.path(entry as usize)).into_owned(),
        false => format!("entry {entry}"),
    }
}
