//! One upload: what its list asks for, and what of that has arrived.
//!
//! ```text
//! begun --list--> listed --(chunks | pieces)*--> complete --commit--> gone
//! ```
//!
//! Lives in memory only: after a restart the client begins anew, and content that arrived is there.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hearth_pack::identity::{ContentHash, TreeDigest};
use hearth_pack::listing::Listing;
use parking_lot::{Mutex, MutexGuard};

use super::store::{MAX_PIECE, OwnerKey, Piece, Presence};
use super::{Destination, PackError};

/// Chunks of all files of one upload: 72 MB of memory.
const MAX_CHUNKS: usize = 2_000_000;

#[derive(Debug)]
pub(super) struct Upload {
    pub owner: OwnerKey,
    pub tree: TreeDigest,
    pub destination: Destination,
    state: Mutex<State>,
    begun: Instant,
    pub(super) used: Mutex<Instant>,
    calls: AtomicUsize,
}

/// An upload that has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnfinishedPack {
    pub caller: String,
    pub tree: TreeDigest,
    /// What has arrived.
    pub bytes: u64,
    pub age: Duration,
}

#[derive(Debug, Default)]
struct State {
    list: Option<Arc<List>>,
    wanted: HashMap<u32, Wanted>,
    chunks: usize,
}

/// What the caller was answered to its list.
#[derive(Debug)]
pub struct List {
    pub listing: Listing,
    pub missing: Vec<u32>,
    pub prove: Vec<u32>,
    pub proof_key: [u8; 32],
    /// Counted against the memory for lists until this goes.
    pub(super) _memory: super::memory::Share,
}

/// Content that is asked for, or may be sent instead of a proof.
#[derive(Debug)]
struct Wanted {
    /// Of more than one piece when the file was cut up.
    pieces: Vec<(Piece, bool)>,
    cut: bool,
}

/// A large file whose pieces are all there: to be verified as a whole.
pub(super) struct Whole {
    pub entry: u32,
    pub content: ContentHash,
    pub pieces: Vec<Piece>,
}

/// A call on an upload that is under way: it is not idle meanwhile.
#[derive(Debug)]
pub(super) struct Call(Arc<Upload>);

impl std::ops::Deref for Call {
    type Target = Arc<Upload>;
    fn deref(&self) -> &Arc<Upload> {
        &self.0
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        *self.0.used.lock() = Instant::now();
        self.0.calls.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Upload {
    pub(super) fn new(owner: OwnerKey, tree: TreeDigest, destination: Destination) -> Self {
        Self {
            owner,
            tree,
            destination,
            state: Mutex::default(),
            begun: Instant::now(),
            used: Mutex::new(Instant::now()),
            calls: AtomicUsize::new(0),
        }
    }

    pub(super) fn call(self: &Arc<Self>) -> Call {
        self.calls.fetch_add(1, Ordering::Relaxed);
        Call(Arc::clone(self))
    }

    pub(super) fn unfinished(&self) -> UnfinishedPack {
        let state = self.state();
        let pieces = state.wanted.values().flat_map(|wanted| &wanted.pieces);
        let bytes = pieces.filter(|(_, here)| *here).map(|(piece, _)| u64::from(piece.size)).sum();
        let caller = self.destination.owner.clone();
        UnfinishedPack { caller, tree: self.tree, bytes, age: self.begun.elapsed() }
    }

    /// For how long nobody has spoken to it.
    pub(super) fn idle(&self) -> Duration {
        if self.calls.load(Ordering::Relaxed) > 0 {
            return Duration::ZERO;
        }
        self.used.lock().elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Whatever panicked, what has arrived lies in the store.
        self.state.lock()
    }

    pub(super) fn has_list(&self) -> bool {
        self.state().list.is_some()
    }

    pub(super) fn list(&self) -> Result<Arc<List>, PackError> {
        self.state().list.clone().ok_or(PackError::NoList)
    }

    /// Takes the list: `firsts` are the entries that are the first with their content, and what is there of it.
    pub(super) fn take_list(
        &self,
        listing: Listing,
        firsts: &[(u32, Piece64)],
        presence: &[Presence],
        memory: super::memory::Share,
    ) -> Result<Arc<List>, PackError> {
        let mut state = self.state();
        if state.list.is_some() {
            return Err(PackError::SecondList);
        }
        let (mut missing, mut prove) = (Vec::new(), Vec::new());
        for ((entry, _), presence) in firsts.iter().zip(presence) {
            match presence {
                Presence::Missing => missing.push(*entry),
                Presence::Foreign => prove.push(*entry),
                Presence::Own => {}
            }
        }
        let list = Arc::new(List { listing, missing, prove, proof_key: rand::random(), _memory: memory });
        state.list = Some(Arc::clone(&list));
        for ((entry, content), presence) in firsts.iter().zip(presence) {
            if *presence != Presence::Own {
                let size = u32::try_from(content.size).unwrap_or(u32::MAX);
                let whole = (Piece { hash: content.hash, size }, false);
                state.wanted.insert(*entry, Wanted { pieces: vec![whole], cut: false });
            }
        }
        Ok(list)
    }

    /// Says what a large file is made of.
    pub(super) fn cut(&self, entry: u32, pieces: &[Piece]) -> Result<(), PackError> {
        let list = self.list()?;
        let mut state = self.state();
        let wrong = |reason| PackError::Chunks { path: path(&list.listing, entry), reason };
        let size = match list.listing.len() > entry as usize {
            true => list.listing.entry(entry as usize).content().map(|(_, size)| size),
            false => None,
        };
        let count = state.chunks + pieces.len();
        let wanted = state.wanted.get_mut(&entry).ok_or(PackError::NotAskedFor { entry })?;
        if wanted.cut {
            return Err(wrong("the file was cut up before"));
        }
        if pieces.iter().any(|piece| piece.size == 0 || piece.size > MAX_PIECE) {
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

    /// Notes which pieces of a file need not be sent; gives the numbers of the others.
    pub(super) fn cut_presence(&self, entry: u32, presence: &[Presence]) -> Vec<u32> {
        let mut state = self.state();
        let Some(wanted) = state.wanted.get_mut(&entry) else { return Vec::new() };
        let mut missing = Vec::new();
        for (number, ((_, here), presence)) in (0..).zip(wanted.pieces.iter_mut().zip(presence)) {
            // Content of others is proven by the file as a whole or not at all.
            if *presence == Presence::Own {
                *here = true;
            } else {
                missing.push(number);
            }
        }
        missing
    }

    /// What a piece must be.
    pub(super) fn expected(&self, entry: u32, chunk: u32, size: u32) -> Result<Piece, PackError> {
        let state = self.state();
        let list = state.list.as_ref().ok_or(PackError::NoList)?;
        let wrong = |reason| PackError::Piece { path: path(&list.listing, entry), reason };
        let wanted = state.wanted.get(&entry).ok_or(PackError::NotAskedFor { entry })?;
        let (piece, _) = wanted.pieces.get(chunk as usize).ok_or_else(|| wrong("there is no such chunk"))?;
        if piece.size > MAX_PIECE {
            return Err(wrong("a file of more than 4 MiB is cut up with Chunks first"));
        }
        if piece.size != size {
            return Err(wrong("its size is not the listed one"));
        }
        Ok(*piece)
    }

    pub(super) fn arrived(&self, entry: u32, chunk: u32) {
        let mut state = self.state();
        let piece = state.wanted.get_mut(&entry).and_then(|wanted| wanted.pieces.get_mut(chunk as usize));
        if let Some((_, here)) = piece {
            *here = true;
        }
    }

    /// Checks that all that is missing has come. `proven` says whether a proof stands for the rest.
    pub(super) fn check_complete(&self, proven: bool) -> Result<(), PackError> {
        let state = self.state();
        let list = state.list.as_ref().ok_or(PackError::NoList)?;
        let is_open = |entry: &&u32| {
            state.wanted.get(entry).is_some_and(|wanted| wanted.pieces.iter().any(|(_, here)| !here))
        };
        let proven_away: &[u32] = if proven { &[] } else { &list.prove };
        let open: Vec<u32> = list.missing.iter().chain(proven_away).filter(is_open).copied().collect();
        match open.iter().min() {
            None => Ok(()),
            Some(first) => {
                Err(PackError::Incomplete { count: open.len(), path: path(&list.listing, *first) })
            }
        }
    }

    /// All that it has been told to be there, or has sent, or may still send.
    pub(super) fn contents(&self) -> Vec<ContentHash> {
        let state = self.state();
        let Some(list) = &state.list else { return Vec::new() };
        let listed = list.listing.entries().filter_map(|entry| Some(entry.content()?.0));
        let pieces = state.wanted.values().flat_map(|wanted| &wanted.pieces).map(|(piece, _)| piece.hash);
        listed.chain(pieces).collect()
    }

    /// Files that were cut up and are complete.
    pub(super) fn wholes(&self) -> Vec<Whole> {
        let state = self.state();
        let Some(list) = &state.list else { return Vec::new() };
        let whole = |(entry, wanted): (&u32, &Wanted)| {
            let complete = wanted.cut && wanted.pieces.iter().all(|(_, here)| *here);
            let (content, _) = list.listing.entry(*entry as usize).content()?;
            let pieces = wanted.pieces.iter().map(|(piece, _)| *piece).collect();
            complete.then_some(Whole { entry: *entry, content, pieces })
        };
        state.wanted.iter().filter_map(whole).collect()
    }
}

/// A content of any size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece64 {
    pub hash: ContentHash,
    pub size: u64,
}

/// The path of an entry as people read it.
pub(super) fn path(listing: &Listing, entry: u32) -> String {
    match (entry as usize) < listing.len() {
        true => String::from_utf8_lossy(listing.path(entry as usize)).into_owned(),
        false => format!("entry {entry}"),
    }
}
