//! What a transfer to BuildKit may reuse of an earlier one.
//!
//! BuildKit keeps what it received under the session's shared key, and asks for a file's content
//! only when its path, mode, size or mtime differ from what it has. So a key must never cover two
//! contents that look the same. A *lineage* is where files come from: room, mounts, context path,
//! Dockerfile path, target stage. Its key is the lineage and a random *generation*:
//!
//! ```text
//! scan --> every file unseen, or as it was seen --> same generation: BuildKit takes what is new
//!     '--> a file looks like one seen before, but is another or was written since
//!                                               --> new generation: BuildKit takes everything
//! ```
//!
//! "Another or written since" is told by device, inode and change time, which nobody sets at will.
//! What was seen is never forgotten within a generation: BuildKit may still have it, since a build
//! that fails or needs other files does not bring its copy up to date. A change time so young that
//! a later write could bear the same one says nothing; such a file never counts as seen before.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};

use hearth_pack::identity::ContentHash;

/// A regular file of a scan.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    pub path: &'a [u8],
    pub mode: u32,
    pub size: u64,
    pub mtime: i64,
    pub identity: Identity,
}

/// Equal for two sights of a file only when its content is equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    File {
        device: u64,
        inode: u64,
        changed: i64,
    },
    /// Bytes at this offset of the layer whose DiffID begins so.
    Layer {
        diff_id: u64,
        offset: u64,
    },
    /// The content itself, by its hash.
    Content(ContentHash),
    /// Not known; equal to nothing, itself included.
    Unsure,
}

/// A name for where the files of a build come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LineageId(pub [u8; 32]);

/// Lineages of this daemon, the latest ones. After a restart all generations are new.
pub struct Lineages {
    hasher: RandomState,
    generations: HashMap<LineageId, Generation>,
    limit: usize,
    clock: u64,
}

struct Generation {
    name: u64,
    used: u64,
    /// Hash of path, mode, size and mtime, and hash of the identity; [`UNSURE`] for none. 16 bytes a file.
    seen: HashMap<u64, u64, Hashed>,
    /// Files of the largest scan.
    files: usize,
}

const UNSURE: u64 = 0;

impl Generation {
    fn new(used: u64) -> Self {
        Self { name: rand::random(), used, seen: HashMap::default(), files: 0 }
    }
}

impl Lineages {
    /// Keeps at most `limit` lineages, those used last.
    pub fn new(limit: usize) -> Self {
        Self { hasher: RandomState::new(), generations: HashMap::new(), limit: limit.max(1), clock: 0 }
    }

    /// Takes a scan into account and gives the shared key for its transfer.
    pub fn key<'a>(&mut self, id: &LineageId, scan: impl Iterator<Item = Seen<'a>>) -> String {
        self.clock += 1;
        if !self.generations.contains_key(id) && self.generations.len() >= self.limit {
            let oldest = self.generations.iter().min_by_key(|(_, generation)| generation.used);
            if let Some(oldest) = oldest.map(|(id, _)| id.clone()) {
                self.generations.remove(&oldest);
            }
        }
        let hashes: Vec<(u64, u64)> = scan.map(|seen| self.hashes(&seen)).collect();
        let clock = self.clock;
        let generation = self.generations.entry(id.clone()).or_insert_with(|| Generation::new(clock));
        generation.used = clock;
        let looks_alike_but_is_not = |(look, identity): &(u64, u64)| match generation.seen.get(look) {
            Some(known) => known != identity || *identity == UNSURE,
            None => false,
        };
        generation.files = generation.files.max(hashes.len());
        // What old versions of files left behind: bounded, by starting anew.
        let crowded = generation.seen.len() > 3 * generation.files + 10_000;
        if crowded || hashes.iter().any(looks_alike_but_is_not) {
            *generation = Generation::new(clock);
            generation.files = hashes.len();
        }
        generation.seen.extend(hashes);
        let lineage: String = id.0[..12].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("hearth-{lineage}-{:016x}", generation.name)
    }

    fn hashes(&self, seen: &Seen<'_>) -> (u64, u64) {
        let look = self.hasher.hash_one((seen.path, seen.mode, seen.size, seen.mtime));
        let identity = match seen.identity {
            Identity::Unsure => UNSURE,
            known => self.hasher.hash_one(known).max(1),
        };
        (look, identity)
    }
}

/// Keys are hashes already.
#[derive(Clone, Copy, Default)]
struct Hashed;

impl BuildHasher for Hashed {
    type Hasher = Identical;
    fn build_hasher(&self) -> Identical {
        Identical(0)
    }
}

struct Identical(u64);

impl Hasher for Identical {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

/// Hashes the parts of a lineage's name, each with its length.
#[derive(Default)]
pub struct LineageName(sha2::Sha256);

impl LineageName {
    pub fn part(mut self, part: impl AsRef<[u8]>) -> Self {
        use sha2::Digest as _;
        let part = part.as_ref();
        self.0.update((part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    pub fn id(self) -> LineageId {
        use sha2::Digest as _;
        LineageId(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests;
