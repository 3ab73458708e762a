//! Production implementation of [`InstanceMounter`]: creates the mounts of an instance below a directory of its own.
//!
//! ```text
//! <state>/instances/<id>/storage/N   a directory or file of the room's or the project's storage, bound there
//!                        views/N     an image at `source` of a FUSE mount that this process serves
//!                        upper/N     changes by the instance to a writable image
//!                        empty/N     an empty directory; the runtime copies the image's content at its target into it
//!                        files/N     a file with a given text
//! ```
//!
//! Storage that a service may write to is bind-mounted on itself with `nosuid` and `nodev`, so that files written by
//! the service are harmless to the host (`mounts/shield.rs`).
//!
//! N is the index of the mount in the service's list. The runtime binds these paths into the container; read-only
//! mounts are read-only there already. No other record exists: the directory and the kernel's mount table hold the
//! state. [`close`](InstanceMounter::close) removes whatever it finds, in an order that can be interrupted and
//! restarted: first the mounts, then the mount points, and never a file through a mount.
//!
//! When the daemon ends, its FUSE views die while the containers live on: their files in `views` then return errors.
//! The views stay until the instance is replaced, so that [`reconcile`](InstanceMounter::reconcile) finds them after
//! any number of restarts.

mod attributes;
mod clear;
mod fault;
mod images;
mod make;
mod shield;
mod sources;
mod storage;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::port::{BindMount, InstanceMounter, MountFault};
use crate::context::StorageRoots;
use crate::model::id::InstanceId;
use crate::model::image::PinnedImage;
use crate::model::service::InstanceLabel;
use crate::model::{MountTarget, ServiceMount};
use crate::task;

pub use images::MountedImages;
use shield::StorageShields;
use view::MountedImageView;

// Names of the subdirectories of an instance.
const STORAGE: &str = "storage";
const VIEWS: &str = "views";
const UPPER: &str = "upper";
const EMPTY: &str = "empty";
const FILES: &str = "files";

pub struct Options {
    /// Parent of the instance directories.
    pub directory: PathBuf,
    pub storage: StorageRoots,
}

/// Creates and removes the mounts of instances. Cheap to clone.
#[derive(Clone)]
pub struct InstanceMounts(Arc<MountContext>);

struct MountContext {
    /// Canonical path, in the form in which the mount table has it.
    directory: PathBuf,
    storage: StorageRoots,
    images: MountedImages,
    /// Held while a storage is mounted on itself or such a mount is removed.
    shields: Mutex<StorageShields>,
    /// FUSE views by instance. The inner lock is held while the mounts of the instance are created or removed.
    instances: Mutex<BTreeMap<InstanceId, Arc<Mutex<InstanceViews>>>>,
}

/// The FUSE views that this process serves for an instance.
type InstanceViews = Vec<MountedImageView>;

impl InstanceMounts {
    pub fn open(options: Options, images: MountedImages) -> io::Result<Self> {
        let Options { directory, storage } = options;
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let directory = directory.canonicalize()?;
        let shields = Mutex::new(StorageShields::with_record(directory.with_extension("shields.json")));
        Ok(Self(Arc::new(MountContext { directory, storage, images, shields, instances: Mutex::default() })))
    }

    /// Removes the storage mounts that all services share. Called when no service is left.
    pub async fn release_storage(&self) -> Result<(), MountFault> {
        self.blocking("mounts.end", |shared| {
            let released = shared.shields.lock().release();
            released.map_err(|error| fault::of_io(&"storage", &error))
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(&MountContext) -> Result<T, MountFault> + Send + 'static,
    ) -> Result<T, MountFault> {
        let shared = Arc::clone(&self.0);
        task::blocking(name, move || work(&shared)).await.unwrap_or_else(|_| Err(fault::ending()))
    }
}

#[async_trait]
impl InstanceMounter for InstanceMounts {
    async fn check_sources(&self, mounts: &[ServiceMount]) -> Result<(), MountFault> {
        let mounts = mounts.to_vec();
        self.blocking("mounts.check", move |shared| sources::check(&shared.storage, &mounts)).await
    }

    async fn make_sources(&self, mounts: &[ServiceMount]) -> Result<(), MountFault> {
        let mounts = mounts.to_vec();
        self.blocking("mounts.make", move |shared| sources::make(&shared.storage, &mounts)).await
    }

    async fn open(
        &self,
        instance: &InstanceLabel,
        mounts: &[ServiceMount],
        images: &BTreeMap<MountTarget, PinnedImage>,
    ) -> Result<Vec<BindMount>, MountFault> {
        let mut opened = Vec::with_capacity(mounts.len());
        for mount in mounts {
            let image = images.get(&mount.target);
            opened.push((mount.clone(), self.0.images.open(mount, image).await?));
        }
        // A caller that stops waiting closes the instance next, and no mount may be created after that.
        let given_up = CancellationToken::new();
        let _guard = given_up.clone().drop_guard();
        let instance = instance.instance.clone();
        self.blocking("mounts.open", move |shared| shared.make_mounts(&instance, opened, &given_up)).await
    }

    async fn close(&self, instance: &InstanceId) -> Result<(), MountFault> {
        let instance = instance.clone();
        self.blocking("mounts.close", move |shared| shared.close(&instance)).await
    }

    async fn reconcile(&self, instances: &BTreeSet<InstanceId>) -> Result<BTreeSet<InstanceId>, MountFault> {
        let instances = instances.clone();
        self.blocking("mounts.reconcile", move |shared| {
            shared.reconcile(&instances).map_err(|error| fault::of_io(&shared.directory.display(), &error))
        })
        .await
    }
}

impl MountContext {
    fn directory_of(&self, instance: &InstanceId) -> PathBuf {
        self.directory.join(instance.as_str())
    }

    fn views_of(&self, instance: &InstanceId) -> Arc<Mutex<InstanceViews>> {
        Arc::clone(self.instances.lock().entry(instance.clone()).or_default())
    }

    fn close(&self, instance: &InstanceId) -> Result<(), MountFault> {
        let views = self.views_of(instance);
        let directory = self.directory_of(instance);
        let cleared = clear::clear(&directory, &mut views.lock());
        cleared.map_err(|error| fault::of_io(&directory.display(), &error))?;
        self.instances.lock().remove(instance);
        Ok(())
    }

    fn reconcile(&self, instances: &BTreeSet<InstanceId>) -> io::Result<BTreeSet<InstanceId>> {
        self.shield_storage(instances);
        let mut dead = BTreeSet::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let Some(instance) = name.to_str().and_then(|name| name.parse::<InstanceId>().ok()) else {
                tracing::warn!(path = %name.display(), "skipped a directory that does not belong to an instance");
                continue;
            };
            if instances.contains(&instance) {
                if self.has_dead_views(&instance)? {
                    dead.insert(instance);
                }
            } else if let Err(error) = self.close(&instance) {
                // The mount may be free at the next start; the services need not wait for that.
                tracing::warn!(%error, instance.id = %instance, "failed to remove the mounts of a removed instance");
            }
        }
        Ok(dead)
    }

    /// Mounts the storage on itself for running instances, which may have been started by a version without shields, or
    /// whose shields somebody removed.
    fn shield_storage(&self, instances: &BTreeSet<InstanceId>) {
        if !instances.iter().any(|instance| self.directory_of(instance).join(STORAGE).exists()) {
            return;
        }
        let shields = self.shields.lock();
        for storage in [&self.storage.room, &self.storage.project] {
            if let Err(error) = shields.ensure(storage) {
                let path = storage.path().display();
                tracing::warn!(%path, %error, "failed to mount writable storage with nosuid and nodev");
            }
        }
    }

    /// Reports whether the instance has views that no process serves.
    fn has_dead_views(&self, instance: &InstanceId) -> io::Result<bool> {
        let views = self.views_of(instance);
        let views = views.lock();
        let made = clear::count(&self.directory_of(instance).join(VIEWS))?;
        Ok(views.iter().filter(|view| !view.has_ended()).count() < made)
    }
}

/// Creates a directory with exactly this mode, regardless of the umask.
fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests;
