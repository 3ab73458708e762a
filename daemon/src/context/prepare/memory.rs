//! What the daemon remembers of contexts, between builds and between its own runs.
//!
//! ```text
//! context/hashes      content hashes of files on disk, by their stat
//! context/lineages    what BuildKit was sent under which key; there only while no daemon runs
//! context/session.key, context/retired    see `versions`
//! ```

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hearth_pack::identity::{CacheError, HashCache};
use parking_lot::{Mutex, MutexGuard};

use super::recall::Recall;
use crate::context::lineage::{Limits, LineageFileError, LineageId, Lineages, Seen};
use crate::context::tree::TreeIdentity;
use crate::context::versions::Versions;

const LIMITS: Limits = Limits { lineages: 64, files: 1_500_000 };
/// Between two times that the hashes are written.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// Hashes that no scan asked for between this many savings are forgotten.
const ROUNDS: u32 = 200;
/// The same once there are as many as this.
const CROWDED: usize = 500_000;
const CROWDED_ROUNDS: u32 = 5;
/// Origins of which all is covered; beyond that the set starts anew.
const MOST_WHOLE: usize = 1000;

pub(super) struct Memory {
    directory: PathBuf,
    hashes: Mutex<HashCache>,
    recall: Recall,
    lineages: Mutex<Lineages>,
    versions: Versions,
    /// Where a Dockerfile asked for more than it seemed to.
    whole: Mutex<HashSet<LineageId>>,
    saved: Mutex<Instant>,
}

/// Of values that a panic leaves whole, or at worst poorer than they could be.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl Memory {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let hashes = HashCache::load(&directory.join("hashes")).or_else(|error| match error {
            CacheError::Damaged { .. } => {
                tracing::warn!(%error, "content hashes are made anew");
                Ok(HashCache::default())
            }
            CacheError::Io { source, .. } => Err(source),
        })?;
        let lineages = Lineages::consume(&directory.join("lineages"), LIMITS);
        let lineages = lineages.or_else(|error| match error {
            LineageFileError::Damaged { .. } => {
                tracing::warn!(%error, "changed contexts are sent whole once");
                Ok(Lineages::new(LIMITS))
            }
            LineageFileError::Io { source, .. } => Err(source),
        })?;
        Ok(Self {
            directory: directory.to_owned(),
            hashes: Mutex::new(hashes),
            recall: Recall::default(),
            lineages: Mutex::new(lineages),
            versions: Versions::open(directory)?,
            whole: Mutex::default(),
            saved: Mutex::new(Instant::now()),
        })
    }

    pub(super) const fn hashes(&self) -> &Mutex<HashCache> {
        &self.hashes
    }

    pub(super) const fn recall(&self) -> &Recall {
        &self.recall
    }

    pub(super) fn session_id(&self, lineage: &LineageId, identity: &TreeIdentity) -> String {
        self.versions.name(&[b"context", &lineage.0, identity.digest.as_bytes(), &identity.times])
    }

    pub(super) fn dockerfile_id(&self, lineage: &LineageId, files: &[(String, Vec<u8>)]) -> String {
        let mut parts: Vec<&[u8]> = vec![b"dockerfile", &lineage.0];
        parts.extend(files.iter().flat_map(|(name, content)| [name.as_bytes(), content.as_slice()]));
        self.versions.name(&parts)
    }

    pub(super) fn retire(&self, session: &str) -> io::Result<()> {
        self.versions.retire(session)
    }

    pub(super) fn shared_key<'a>(
        &self,
        lineage: LineageId,
        identity: &TreeIdentity,
        seen: impl Iterator<Item = Seen<'a>>,
    ) -> String {
        let mut version = blake3::Hasher::new();
        version.update(identity.digest.as_bytes()).update(&identity.times);
        lock(&self.lineages).key(lineage, version.finalize().into(), seen)
    }

    pub(super) fn needs_all(&self, origin: &LineageId) -> bool {
        lock(&self.whole).contains(origin)
    }

    pub(super) fn cover_all(&self, origin: LineageId) {
        let mut whole = lock(&self.whole);
        if whole.len() >= MOST_WHOLE {
            whole.clear();
        }
        whole.insert(origin);
    }

    /// Writes the hashes when that is due. Blocking.
    pub(super) fn save_now_and_then(&self) {
        let mut saved = lock(&self.saved);
        if saved.elapsed() >= SAVE_EVERY {
            *saved = Instant::now();
            drop(saved);
            self.save_hashes();
        }
    }

    fn save_hashes(&self) {
        let mut hashes = lock(&self.hashes);
        if hashes.is_changed() {
            let rounds = if hashes.len() > CROWDED { CROWDED_ROUNDS } else { ROUNDS };
            hashes.next_round(rounds);
            if let Err(error) = hashes.save(&self.directory.join("hashes")) {
                tracing::warn!(%error, "content hashes are not saved; files are hashed again after a restart");
            }
        }
    }

    pub(super) fn save_all(&self) {
        self.save_hashes();
        if let Err(error) = lock(&self.lineages).save(&self.directory.join("lineages")) {
            tracing::warn!(%error, "changed contexts are sent whole once after a restart");
        }
    }
}
