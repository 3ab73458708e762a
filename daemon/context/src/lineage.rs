//! Lineages: which parts of an earlier transfer to BuildKit a later one may reuse.
//!
//! BuildKit stores what it received under the session's shared key, and requests a file's content only when
//! its path, mode, size or mtime differ from what it has. Two files with the same path, mode, size and mtime but
//! different content must therefore never be sent under the same key. A *lineage* identifies where files come from:
//! room, mounts, context path, Dockerfile path, target stage, copied paths. Its key consists of the lineage and a
//! random *generation*:
//!
//! ```text
//! scan --> every file is new, or has its earlier content --> same generation: BuildKit requests the new files
//!     '--> a file has the path, mode, size and mtime of an earlier one, but other content
//!                                                        --> new generation: BuildKit requests all files
//! ```
//!
//! A generation never drops a file that it has recorded: BuildKit may still have it, because a build that
//! fails or needs other files does not update BuildKit's copy. When the daemon stops, it writes the generations to a
//! file, which the next run deletes after reading it. If the file is missing, for example after a crash, it is unknown
//! what BuildKit received, and every lineage starts a new generation.

mod file;

use std::collections::HashMap;

use hearth_pack::identity::ContentHash;
use hearth_pack::sorted_map::SortedMap;

use hearth_overlay::attr::Xattr;

pub use file::LineageFileError;

/// A regular file that a scan of the build context found.
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
    /// Secret key of the hashes in [`LineageGeneration::files`].
    key: [u8; 32],
    generations: HashMap<LineageId, LineageGeneration>,
    limits: LineageLimits,
    clock: u64,
}

/// Limits of the stored lineages; beyond them the least recently used lineage is dropped.
#[derive(Clone, Copy, Debug)]
pub struct LineageLimits {
    pub lineages: usize,
    /// Maximum number of recorded files of all lineages together. Each takes 16 bytes.
    pub files: usize,
}

struct LineageGeneration {
    /// Random part of the shared key.
    name: u64,
    /// Value of the table's clock at the last use.
    used: u64,
    /// Version of the tree at the last scan.
    version: [u8; 32],
    /// Recorded files: the hash of path, mode, size and mtime, mapped to the hash of content and extended attributes.
    files: SortedMap<u64, u64>,
    /// Number of files in the largest scan.
    largest_scan: usize,
}

impl LineageGeneration {
    fn new(used: u64) -> Self {
        Self { name: rand::random(), used, version: [0; 32], files: SortedMap::default(), largest_scan: 0 }
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
        let hashes: Vec<(u64, u64)> = scan.map(|file| hashes(&self.key, &file)).collect();
        let generation = self.generations.entry(id).or_insert_with(|| LineageGeneration::new(clock));
        let looks_alike_but_is_not = |(appearance, content): &(u64, u64)| {
            generation.files.get(appearance).is_some_and(|known| known != content)
        };
        generation.largest_scan = generation.largest_scan.max(hashes.len());
        // Files that no scan finds any more stay recorded; a new generation limits their number.
        let crowded = generation.files.len() > 3 * generation.largest_scan + 10_000;
        if crowded || hashes.iter().any(looks_alike_but_is_not) {
            *generation = LineageGeneration::new(clock);
            generation.largest_scan = hashes.len();
        }
        generation.used = clock;
        generation.version = version;
        generation.files.extend(hashes);
        self.evict(&id);
    }

    fn evict(&mut self, keep: &LineageId) {
        let files =
            |all: &HashMap<LineageId, LineageGeneration>| all.values().map(|g| g.files.len()).sum::<usize>();
        while self.generations.len() > self.limits.lineages || files(&self.generations) > self.limits.files {
            let others = self.generations.iter().filter(|(id, _)| *id != keep);
            let Some(oldest) = others.min_by_key(|(_, generation)| generation.used).map(|(id, _)| *id) else {
                return;
            };
            self.generations.remove(&oldest);
        }
    }
}

/// Returns the part of the shared key that names the lineage.
pub fn lineage_name(id: &LineageId) -> String {
    format!("hearth-{}", hex::encode(&id.0[..12]))
}

/// Returns the hash of path, mode, size and mtime, and the hash of content and extended attributes.
fn hashes(key: &[u8; 32], file: &ScannedFile<'_>) -> (u64, u64) {
    let mut appearance = blake3::Hasher::new_keyed(key);
    let mut fixed = [0; 20];
    fixed[..4].copy_from_slice(&file.mode.to_le_bytes());
    fixed[4..12].copy_from_slice(&file.size.to_le_bytes());
    fixed[12..].copy_from_slice(&file.mtime.to_le_bytes());
    appearance.update(&fixed).update(file.path);
    let first = |sum: &[u8; 32]| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&sum[..8]);
        u64::from_le_bytes(bytes)
    };
    let mut content = first(file.content.as_bytes());
    if !file.xattrs.is_empty() {
        let mut sum = blake3::Hasher::new_keyed(key);
        sum.update(file.content.as_bytes());
        for part in file.xattrs.iter().flat_map(|(name, value)| [name, value]) {
            sum.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        content = first(sum.finalize().as_bytes());
    }
    (first(appearance.finalize().as_bytes()), content)
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
