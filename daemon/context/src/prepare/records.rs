//! Persistent and in-memory records of contexts, kept between builds and between runs of the daemon.
//!
//! ```text
//! context/hashes      content hashes of files on disk, by their stat
//! context/lineages    what BuildKit was sent under which key; exists only while no daemon runs
//! context/session.key, context/retired    see `session_ids`
//! ```

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hearth_pack::identity::{CacheError, HashCache};
use parking_lot::{Mutex, MutexGuard};

use super::scan_cache::ScanCache;
use crate::lineage::{LineageFileError, LineageId, LineageLimits, LineageTable, ScannedFile};
use crate::session_ids::SessionIds;
use crate::tree::TreeIdentity;

const LIMITS: LineageLimits = LineageLimits { lineages: 64, files: 1_500_000 };
/// Minimum time between two writes of the hash cache.
const SAVE_EVERY: Duration = Duration::from_secs(60);
/// Number of saves after which a hash that no scan requested is dropped.
const MAX_UNUSED_SAVES: u32 = 200;
/// Number of hashes above which [`CROWDED_ROUNDS`] applies instead.
const CROWDED: usize = 500_000;
const CROWDED_ROUNDS: u32 = 5;
/// Maximum number of origins in `fully_covered`; beyond it the set is cleared.
const MAX_FULLY_COVERED: usize = 1000;

/// Hash cache, scan cache, lineages and session ids of all contexts.
pub(super) struct ContextRecords {
    directory: PathBuf,
    hashes: Mutex<HashCache>,
    scan_cache: ScanCache,
    lineages: Mutex<LineageTable>,
    session_ids: SessionIds,
    /// Origins whose Dockerfile requested more than the selection contained.
    fully_covered: Mutex<HashSet<LineageId>>,
    last_saved: Mutex<Instant>,
}

/// Locks a mutex. A panic while it is held leaves these values consistent, at worst incomplete.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

impl ContextRecords {
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        fs::create_dir_all(directory)?;
        let hashes = HashCache::load(&directory.join("hashes")).or_else(|error| match error {
            CacheError::Damaged { .. } => {
                tracing::warn!(%error, "failed to read the content hash cache; files are hashed again");
                Ok(HashCache::default())
            }
            CacheError::Io { source, .. } => Err(source),
        })?;
        let lineages = LineageTable::consume(&directory.join("lineages"), LIMITS);
        let lineages = lineages.or_else(|error| match error {
            LineageFileError::Damaged { .. } => {
                tracing::warn!(%error, "failed to read the lineages; changed contexts are sent in full once");
                Ok(LineageTable::new(LIMITS))
            }
            LineageFileError::Io { source, .. } => Err(source),
        })?;
        Ok(Self {
            directory: directory.to_owned(),
            hashes: Mutex::new(hashes),
            scan_cache: ScanCache::default(),
            lineages: Mutex::new(lineages),
            session_ids: SessionIds::open(directory)?,
            fully_covered: Mutex::default(),
            last_saved: Mutex::new(Instant::now()),
        })
    }

    pub(super) const fn hashes(&self) -> &Mutex<HashCache> {
        &self.hashes
    }

    pub(super) const fn scan_cache(&self) -> &ScanCache {
        &self.scan_cache
    }

    pub(super) fn session_id(&self, lineage: &LineageId, identity: &TreeIdentity) -> String {
        self.session_ids.derive(&[b"context", &lineage.0, identity.digest.as_bytes(), &identity.times])
    }

    pub(super) fn dockerfile_id(&self, lineage: &LineageId, files: &[(String, Vec<u8>)]) -> String {
        let mut parts: Vec<&[u8]> = vec![b"dockerfile", &lineage.0];
        parts.extend(files.iter().flat_map(|(name, content)| [name.as_bytes(), content.as_slice()]));
        self.session_ids.derive(&parts)
    }

    pub(super) fn retire(&self, session: &str) -> io::Result<()> {
        self.session_ids.retire(session)
    }

    pub(super) fn shared_key<'a>(
        &self,
        lineage: LineageId,
        identity: &TreeIdentity,
        seen: impl Iterator<Item = ScannedFile<'a>>,
    ) -> String {
        let mut version = blake3::Hasher::new();
        version.update(identity.digest.as_bytes()).update(&identity.times);
        lock(&self.lineages).shared_key(lineage, version.finalize().into(), seen)
    }

    pub(super) fn needs_full_coverage(&self, origin: &LineageId) -> bool {
        lock(&self.fully_covered).contains(origin)
    }

    pub(super) fn require_full_coverage(&self, origin: LineageId) {
        let mut whole = lock(&self.fully_covered);
        if whole.len() >= MAX_FULLY_COVERED {
            whole.clear();
        }
        whole.insert(origin);
    }

    /// Saves the hash cache if the last save is old enough. Blocking.
    pub(super) fn save_if_due(&self) {
        let mut saved = lock(&self.last_saved);
        if saved.elapsed() >= SAVE_EVERY {
            *saved = Instant::now();
            drop(saved);
            self.save_hashes();
        }
    }

    fn save_hashes(&self) {
        let mut hashes = lock(&self.hashes);
        if hashes.is_changed() {
            let rounds = if hashes.len() > CROWDED { CROWDED_ROUNDS } else { MAX_UNUSED_SAVES };
            hashes.next_round(rounds);
            if let Err(error) = hashes.save(&self.directory.join("hashes")) {
                tracing::warn!(
                    %error,
                    "failed to save the content hashes; files are hashed again after a restart",
                );
            }
        }
    }

    pub(super) fn save_all(&self) {
        self.save_hashes();
        if let Err(error) = lock(&self.lineages).save(&self.directory.join("lineages")) {
            tracing::warn!(
                %error,
                "failed to save the lineages; changed contexts are sent in full once after a restart",
            );
        }
    }
}
