//! Contexts that are mounted on this machine.
//!
//! ```text
//! <state>/context/mounts/<id>/record.json   sources and directory of a mount; written before it, updated after its end
//!                             upper/        the changes, if the mount is writable
//! ```
//!
//! The id is a hash of the directory and the sources, so the same mount finds its upper directory again. A
//! killed daemon leaves dead mounts in the mount table; the next one removes them at start
//! ([`MountedContexts::clear_stale`]) and keeps the upper directories. Nothing is mounted again
//! automatically.

mod error;
mod mount_point;
mod record;
mod table;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hearth_model::{BuildMount, Digest, MountTarget};
use hearth_overlay::fuse::{self, FuseSession};
use hearth_overlay::union::OverlayFs;
use hearth_overlay::union::UpperLayer;
use hearth_task as task;
use jiff::Timestamp;
use parking_lot::{Mutex, MutexGuard};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::tree::ContextTree;

pub use error::MountError;
pub use record::MountRecord;
use record::MountRecordStore;
pub use table::mount_points_below;

/// Time limit for the end of a file system after its unmount.
const UNMOUNT_TIMEOUT: Duration = Duration::from_secs(5);

/// The mounted contexts of this daemon. Cheap to clone.
#[derive(Clone)]
pub struct MountedContexts(Arc<MountedContextsState>);

struct MountedContextsState {
    records: MountRecordStore,
    /// Directories in which nothing may be mounted: the state, and storage that would then contain itself.
    reserved: Vec<PathBuf>,
    active: Mutex<BTreeMap<PathBuf, ActiveMount>>,
}

struct ActiveMount {
    record: MountRecord,
    session: FuseSession,
    union: Arc<OverlayFs>,
}

/// The sources and directory of a new mount. `tree` is the opened tree of `mounts`.
pub struct MountRequest {
    pub directory: PathBuf,
    pub mounts: Vec<BuildMount>,
    /// Manifest digests of the images among the mounts, in their order.
    pub manifests: Vec<Digest>,
    pub context_path: MountTarget,
    pub writable: bool,
    pub caller: String,
    pub tree: ContextTree,
}

/// A mount that is active, or whose changes are kept.
#[derive(Debug)]
pub struct MountState {
    pub record: MountRecord,
    pub mounted: bool,
    /// True if it contains changes of an earlier mount.
    pub resumed: bool,
}

impl MountedContexts {
    /// Opens the records. Nothing may be mounted in the `reserved` directories.
    pub fn open(state_dir: &Path, reserved: &[&Path]) -> io::Result<Self> {
        let records = MountRecordStore::open(&state_dir.join("context/mounts"))?;
        let reserved =
            reserved.iter().chain(&[state_dir]).map(|path| path.canonicalize()).collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(MountedContextsState { records, reserved, active: Mutex::default() })))
    }

    /// Removes mounts that a killed daemon with this state directory left behind.
    pub async fn clear_stale(&self) {
        self.blocking(|shared| {
            shared.clear_stale();
            Ok(())
        })
        .await
        .unwrap_or_else(|error| tracing::warn!(%error, "failed to look for stale mounts"));
    }

    #[tracing::instrument(name = "context", skip_all, fields(operation = "mount", directory = %request.directory.display()))]
    pub async fn mount(&self, request: MountRequest) -> Result<MountState, MountError> {
        self.blocking(move |shared| shared.mount(request)).await
    }

    /// Unmounts a directory, and returns whether its changes are kept.
    #[tracing::instrument(name = "context", skip_all, fields(operation = "unmount", directory = %directory.display()))]
    pub async fn unmount(&self, directory: PathBuf, lazy: bool, discard: bool) -> Result<bool, MountError> {
        self.blocking(move |shared| shared.unmount(&directory, lazy, discard)).await
    }

    /// Lists everything that is mounted or has kept changes, by directory.
    pub async fn list(&self) -> Result<Vec<MountState>, MountError> {
        self.blocking(|shared| shared.list()).await
    }

    /// Returns the callers that mounted a context on a directory, or have kept changes of it.
    pub async fn owners(&self, directory: PathBuf) -> Result<Vec<String>, MountError> {
        self.blocking(move |shared| {
            let canonical = directory.canonicalize().unwrap_or_else(|_| directory.clone());
            let here = |record: &MountRecord| record.directory == directory || record.directory == canonical;
            Ok(shared.records.all()?.into_iter().filter(here).map(|record| record.caller).collect())
        })
        .await
    }

    /// Returns the overlay that is mounted on a directory.
    pub async fn overlay(&self, directory: PathBuf) -> Result<Arc<OverlayFs>, MountError> {
        self.blocking(move |shared| match shared.active().get(&directory) {
            Some(active) if !active.session.has_ended() => Ok(Arc::clone(&active.union)),
            _ => Err(MountError::NotMounted { directory, kept: false }),
        })
        .await
    }

    /// Unmounts everything when the daemon stops. Open files in the mounts become unusable.
    pub async fn unmount_all(&self) {
        self.blocking(|shared| {
            shared.unmount_all();
            Ok(())
        })
        .await
        .unwrap_or_else(|error| tracing::warn!(%error, "failed to unmount contexts before the shutdown"));
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&MountedContextsState) -> Result<T, MountError> + Send + 'static,
    ) -> Result<T, MountError> {
        let shared = Arc::clone(&self.0);
        task::blocking("context.mounts", move || work(&shared)).await.unwrap_or(Err(MountError::ShuttingDown))
    }
}

impl MountedContextsState {
    fn active(&self) -> MutexGuard<'_, BTreeMap<PathBuf, ActiveMount>> {
        self.active.lock()
    }

    fn mount(&self, request: MountRequest) -> Result<MountState, MountError> {
        let (handle, directory) = mount_point::open_mount_point(&request.directory, &self.reserved)?;
        // Held to the end: two mounts on one directory, or of one upper directory, would conflict.
        let mut active = self.active();
        if let Some(other) = active.get(&directory) {
            if !other.session.has_ended() {
                return Err(MountError::AlreadyMounted { directory });
            }
            active.remove(&directory);
        }
        let MountRequest { mounts, manifests, context_path, writable, caller, tree, .. } = request;
        let top = tree.directory_at(&context_path).map_err(MountError::Context)?;
        let record = MountRecord {
            directory: directory.clone(),
            mounts,
            manifests,
            context_path,
            writable,
            mounted: true,
            since: Timestamp::now(),
            caller,
        };
        let id = record.id();
        let earlier = self.records.read(&id)?;
        let resumed = writable && earlier.is_some();
        if let Some(earlier) = earlier.filter(|earlier| writable && earlier.manifests != record.manifests) {
            return Err(MountError::OtherImages { directory: earlier.directory });
        }
        let failed = |what, source| MountError::Io { what, source };
        let upper = if writable {
            let upper = UpperLayer::open(&self.records.upper(&id)?);
            Some(upper.map_err(|source| failed("the directory for changes cannot be used", source))?)
        } else {
            None
        };
        let union = OverlayFs::new(tree, &top, upper)
            .map_err(|errno| failed("the directory for changes cannot be used", errno.into()))?;
        let union = Arc::new(union);
        self.records.write(&id, &record)?;
        match fuse::mount(Arc::clone(&union), &handle, &record.source()) {
            Ok(session) => {
                tracing::info!(mount.id = id, writable, "context mounted");
                active.insert(directory, ActiveMount { record: record.clone(), session, union });
                Ok(MountState { record, mounted: true, resumed })
            }
            Err(source) => {
                self.record_end(&record);
                Err(failed("it cannot be mounted", source))
            }
        }
    }

    /// Updates the record of a mount that has ended: kept for a writable mount, otherwise removed.
    fn record_end(&self, record: &MountRecord) {
        let id = record.id();
        let settled = if record.writable {
            self.records.write(&id, &MountRecord { mounted: false, ..record.clone() })
        } else {
            self.records.remove(&id)
        };
        if let Err(error) = settled {
            tracing::warn!(
                %error,
                mount.id = id,
                "failed to update the record of a mount; it is outdated until the next start",
            );
        }
    }

    fn unmount(&self, directory: &Path, lazy: bool, discard: bool) -> Result<bool, MountError> {
        let mut active = self.active();
        let named = active.keys().find(|mounted| *mounted == directory).cloned();
        // The path may contain symbolic links: the mount table has the canonical path.
        let directory =
            named.or_else(|| directory.canonicalize().ok()).unwrap_or_else(|| directory.to_owned());
        if let Some(mounted) = active.get(&directory) {
            if !mounted.session.has_ended() {
                let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
                match rustix::mount::unmount(&directory, flags | UnmountFlags::NOFOLLOW) {
                    Err(Errno::BUSY) => return Err(MountError::Busy { directory }),
                    // Another process has unmounted it.
                    Ok(()) | Err(Errno::INVAL) => {}
                    Err(errno) => {
                        return Err(MountError::Io { what: "it cannot be unmounted", source: errno.into() });
                    }
                }
                if !lazy && !mounted.session.wait(UNMOUNT_TIMEOUT) {
                    tracing::warn!("context unmounted, but still in use");
                }
            }
            let Some(mounted) = active.remove(&directory) else { return Ok(false) };
            self.record_end(&mounted.record);
            tracing::info!("context unmounted");
            if discard {
                if !mounted.session.has_ended() && !mounted.session.wait(UNMOUNT_TIMEOUT) {
                    return Err(MountError::StillUsed { directory });
                }
                self.records.remove(&mounted.record.id())?;
            }
            return Ok(mounted.record.writable && !discard);
        }
        let kept: Vec<MountRecord> =
            self.records.all()?.into_iter().filter(|record| record.directory == directory).collect();
        if kept.is_empty() || !discard {
            return Err(MountError::NotMounted { directory, kept: !kept.is_empty() });
        }
        kept.iter().try_for_each(|record| self.records.remove(&record.id()))?;
        Ok(false)
    }

    fn list(&self) -> Result<Vec<MountState>, MountError> {
        let mut active = self.active();
        let ended: Vec<PathBuf> = active
            .iter()
            .filter(|(_, active)| active.session.has_ended())
            .map(|(path, _)| path.clone())
            .collect();
        for directory in ended {
            if let Some(ended) = active.remove(&directory) {
                self.record_end(&ended.record);
            }
        }
        let state = |record: MountRecord| {
            let mounted =
                active.get(&record.directory).is_some_and(|active| active.record.id() == record.id());
            MountState { record, mounted, resumed: false }
        };
        let mut states: Vec<MountState> = self.records.all()?.into_iter().map(state).collect();
        states.sort_by(|a, b| a.record.directory.cmp(&b.record.directory));
        Ok(states)
    }

    fn clear_stale(&self) {
        let records = match self.records.all() {
            Ok(records) => records,
            Err(error) => return tracing::warn!(%error, "failed to look for stale mounts"),
        };
        for record in records.into_iter().filter(|record| record.mounted) {
            if table::is_context_mounted(&record.directory, &record.source()) {
                // No process answers its requests any more, so it can only be detached.
                match rustix::mount::unmount(&record.directory, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
                {
                    Ok(()) => {
                        tracing::info!(directory = %record.directory.display(), "stale mount removed");
                    }
                    Err(error) => {
                        tracing::warn!(
                            %error,
                            directory = %record.directory.display(),
                            "failed to remove a stale mount",
                        );
                        continue;
                    }
                }
            }
            self.record_end(&record);
        }
    }

    fn unmount_all(&self) {
        let active = std::mem::take(&mut *self.active());
        for (directory, mounted) in active {
            if !mounted.session.has_ended() {
                let flags = UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
                if let Err(error) = rustix::mount::unmount(&directory, flags) {
                    tracing::warn!(
                        %error,
                        directory = %directory.display(),
                        "failed to unmount a context; it remains until the next start",
                    );
                    continue;
                }
            }
            self.record_end(&mounted.record);
        }
    }
}
