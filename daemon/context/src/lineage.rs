//! Lineages: which parts of an earlier transfer to BuildKit a later one may reuse.
//!
//! BuildKit stores what it received under the session's shared key, and requests a file's content only when
//! its path, mode, size or mtime differ from what it has. A key must therefore never cover two contents that
//! look the same. A *lineage* identifies where files come from: room, mounts, context path, Dockerfile path,
//! target stage, copied paths. Its key consists of the lineage and a random *generation*:
//!
//! ```text
//! scan --> every file is new, or has its earlier content --> same generation: BuildKit requests what is new
//!     '--> a file looks like an earlier one, and has other content
//!                                                        --> new generation: BuildKit requests everything
//! ```
//!
//! A generation never drops a file that it has recorded: BuildKit may still have it, because a build that
//! fails or needs other files does not update BuildKit's copy. Between two runs of the daemon the generations
//! are kept in a file that is deleted when it is read. After a run that ended without writing the file,
//! nobody knows what BuildKit was sent, and all generations are new.

mod file;

use std::collections::HashMap;

use hearth_pack::identity::ContentHash;
use hearth_pack::sorted_map::SortedMap;

use hearth_overlay::attr::Xattr;

pub use file::LineageFileError;

/// A regular file of a scan.
#[derive(Clone, Copy, Debug)]
pub struct ScannedFile<'a> {
    pub path: &'a [u8],
    pub mode: u32,
    pub size: u64,
    pub mtime: i64,
    pub content: ContentHash,
    pub xattrs: &'a [Xattr],
}

/// Hash of everything that determines where the files of a build come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LineageId(pub [u8; 32]);

/// The most recently used lineages of this daemon.
pub struct LineageTable {
    /// Key of the hashes in `seen`.
    key: [u8; 32],
    generations: HashMap<LineageId, LineageGeneration>,
    limits: LineageLimits,
    clock: u64,
}

/// Limits of the stored lineages; beyond them the least recently used lineage is dropped.
#[derive(Clone, Copy, Debug)]
pub struct LineageLimits {
    pub lineages: usize,
    /// Maximum number of files in all lineages together, at 16 bytes each.
    pub files: usize,
}

struct LineageGeneration {
    name: u64,
    used: u64,
    /// Version of the tree at the last scan.
    version: [u8; 32],
    /// Hash of path, mode, size and mtime, mapped to the hash of content and extended attributes.
    seen: SortedMap<u64, u64>,
    /// Number of files of the largest scan.
    files: usize,
}

impl LineageGeneration {
    fn new(used: u64) -> Self {
        Self { name: rand::random(), used, version: [0; 32], seen: SortedMap::default(), files: 0 }
    }
}

impl LineageTable {
    pub fn new(limits: LineageLimits) -> Self {
        Self { key: rand::random(), generations: HashMap::new(), limits, clock: 0 }
    }

    /// Records a scan and returns the shared key for its transfer. `version` is equal for two scans only if
    /// everything they found is equal.
    pub fn shared_key<'a>(
        &mut self,
        id: LineageId,
        version: [u8; 32],
        scan: impl Iterator<Item = ScannedFile<'a>>,
    ) -> String {
        self.clock += 1;
        let clock = self.clock;
        match self.generations.get_mut(&id) {
            Some(known) if known.version == version => known.used = clock,
            _ => self.record_scan(id, version, scan),
        }
        let name = self.generations.get(&id).map_or(0, |generation| generation.name);
        format!("{}-{name:016x}", lineage_name(&id))
    }

    fn record_scan<'a>(
        &mut self,
        id: LineageId,
        version: [u8; 32],
        scan: impl Iterator<Item = ScannedFile<'a>>,
    ) {
        let clock = self.clock;
        let hashes: Vec<(u64, u64)> = scan.map(|seen| hashes(&self.key, &seen)).collect();
        let generation = self.generations.entry(id).or_insert_with(|| LineageGeneration::new(clock));
        let looks_alike_but_is_not =
            |(look, content): &(u64, u64)| generation.seen.get(look).is_some_and(|known| known != content);
        generation.files = generation.files.max(hashes.len());
        // Limits what old versions of files leave behind, by starting a new generation.
        let crowded = generation.seen.len() > 3 * generation.files + 10_000;
        if crowded || hashes.iter().any(looks_alike_but_is_not) {
            *generation = LineageGeneration::new(clock);
            generation.files = hashes.len();
        }
        generation.used = clock;
        generation.version = version;
        generation.seen.extend(hashes);
        self.evict(&id);
    }

    fn evict(&mut self, keep: &LineageId) {
        let files =
            |all: &HashMap<LineageId, LineageGeneration>| all.values().map(|g| g.seen.len()).sum::<usize>();
        while self.generations.len() > self.limits.lineages || files(&self.generations) > self.limits.files {
            let others = self.generations.iter().filter(|(id, _)| *id != keep);
            let Some(oldest) = others.min_by_key(|(_, generation)| generation.used).map(|(id, _)| *id) else {
                return;
            };
            self.generations.remove(&oldest);
        }
    }
}

/// Returns the form of a lineage id that appears in keys.
pub fn lineage_name(id: &LineageId) -> String {
    format!("hearth-{}", hex::encode(&id.0[..12]))
}

fn hashes(key: &[u8; 32], seen: &ScannedFile<'_>) -> (u64, u64) {
    let mut look = blake3::Hasher::new_keyed(key);
    let mut fixed = [0; 20];
    fixed[..4].copy_from_slice(&seen.mode.to_le_bytes());
    fixed[4..12].copy_from_slice(&seen.size.to_le_bytes());
    fixed[12..].copy_from_slice(&seen.mtime.to_le_bytes());
    look.update(&fixed).update(seen.path);
    let first = |sum: &[u8; 32]| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&sum[..8]);
        u64::from_le_bytes(bytes)
    };
    let mut content = first(seen.content.as_bytes());
    if !seen.xattrs.is_empty() {
        let mut sum = blake3::Hasher::new_keyed(key);
        sum.update(seen.content.as_bytes());
        for part in seen.xattrs.iter().flat_map(|(name, value)| [name, value]) {
            sum.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        content = first(sum.finalize().as_bytes());
    }
    (first(look.finalize().as_bytes()), content)
}

/// Hashes the parts of a lineage id, each with its length.
#[derive(Clone, Default)]
pub struct LineageIdBuilder(blake3::Hasher);

impl LineageIdBuilder {
    pub fn part(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        self.0.update(&(part.len() as u64).to_le_bytes()).update(part);
        self
    }

    pub fn id(self) -> LineageId {
        LineageId(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests;
