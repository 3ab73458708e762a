//! The real one behind [`MountSource`]: what an instance mounts, made below a directory of its own.
//!
//! ```text
//! <state>/instances/<id>/storage/N   a directory or file of the room's or the project's storage, bound there
//!                        views/N     an image, as a FUSE mount that has it at `source`; served by this process
//!                        upper/N     what the instance changed in it, where it may
//!                        empty/N     an empty directory; the runtime fills it with what the image has at its target
//!                        files/N     a file with a given text
//! ```
//!
//! Storage that a service may write to is mounted on itself, so that what it leaves there is harmless to the host
//! (`mounts/shield.rs`).
//!
//! N is the place among the service's mounts. The runtime binds these into the container, and what is read-only is so
//! there. Nothing else is written down: what lies in the directory and in the kernel's table of mounts is the truth.
//! [`close`](MountSource::close) takes away whatever it finds, in an order in which it can be cut short and begun
//! again: first the mounts, then the places, and never a file through a mount.
//!
//! A daemon that ends takes its views with it, while the containers live on: their files in `views` then answer
//! nothing. They stay until the instance is replaced, and so are found by [`reconcile`](MountSource::reconcile) however
//! often the daemon is started.

mod attributes;
mod clear;
mod fault;
mod images;
mod make;
mod shield;
mod storage;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use super::port::{BindMount, MountFault, MountSource};
use crate::context::storage::Storage;
use crate::model::id::InstanceId;
use crate::model::image::PinnedImage;
use crate::model::service::InstanceLabel;
use crate::model::{MountSpec, MountTarget};
use crate::task;

pub use images::MountedImages;
use shield::Shields;
use view::View;

const STORAGE: &str = "storage";
const VIEWS: &str = "views";
const UPPER: &str = "upper";
const EMPTY: &str = "empty";
const FILES: &str = "files";

pub struct Options {
    /// One directory for each instance is made in it.
    pub directory: PathBuf,
    pub storage: Storage,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct InstanceMounts(Arc<Shared>);

struct Shared {
    /// Without links in it, as the table of mounts has it.
    directory: PathBuf,
    storage: Storage,
    images: MountedImages,
    /// Held while a storage is mounted on itself, or such a mount taken away.
    shields: Mutex<Shields>,
    /// Held while the mounts of one instance are made or taken away.
    instances: Mutex<BTreeMap<InstanceId, Arc<Mutex<Views>>>>,
}

/// Those that this process serves for an instance.
type Views = Vec<View>;

impl InstanceMounts {
    pub fn open(options: Options, images: MountedImages) -> io::Result<Self> {
        let Options { directory, storage } = options;
        DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let directory = directory.canonicalize()?;
        let shields = Mutex::new(Shields::recorded_in(directory.with_extension("shields.json")));
        Ok(Self(Arc::new(Shared { directory, storage, images, shields, instances: Mutex::default() })))
    }

    /// Takes away what was mounted for all services together. To be called when none is left.
    pub async fn end(&self) -> Result<(), MountFault> {
        self.blocking("mounts.end", |shared| {
            let released = unpoisoned(&shared.shields).release();
            released.map_err(|error| fault::of_io(&"storage", &error))
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(&Shared) -> Result<T, MountFault> + Send + 'static,
    ) -> Result<T, MountFault> {
        let shared = Arc::clone(&self.0);
        task::blocking(name, move || work(&shared)).await.unwrap_or_else(|_| Err(fault::ending()))
    }
}

#[async_trait]
impl MountSource for InstanceMounts {
    async fn open(
        &self,
        instance: &InstanceLabel,
        mounts: &[MountSpec],
        images: &BTreeMap<MountTarget, PinnedImage>,
    ) -> Result<Vec<BindMount>, MountFault> {
        let mut opened = Vec::with_capacity(mounts.len());
        for mount in mounts {
            let image = images.get(&mount.target);
            opened.push((mount.clone(), self.0.images.open(mount, image).await?));
        }
        // Whoever gives up waiting closes the instance next: nothing may be made after that.
        let given_up = CancellationToken::new();
        let _guard = given_up.clone().drop_guard();
        let instance = instance.instance.clone();
        self.blocking("mounts.open", move |shared| shared.make(&instance, opened, &given_up)).await
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

impl Shared {
    fn directory_of(&self, instance: &InstanceId) -> PathBuf {
        self.directory.join(instance.as_str())
    }

    fn views_of(&self, instance: &InstanceId) -> Arc<Mutex<Views>> {
        Arc::clone(unpoisoned(&self.instances).entry(instance.clone()).or_default())
    }

    fn close(&self, instance: &InstanceId) -> Result<(), MountFault> {
        let views = self.views_of(instance);
        let directory = self.directory_of(instance);
        let cleared = clear::clear(&directory, &mut unpoisoned(&views));
        cleared.map_err(|error| fault::of_io(&directory.display(), &error))?;
        unpoisoned(&self.instances).remove(instance);
        Ok(())
    }

    fn reconcile(&self, instances: &BTreeSet<InstanceId>) -> io::Result<BTreeSet<InstanceId>> {
        self.shield(instances);
        let mut dead = BTreeSet::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let Some(instance) = name.to_str().and_then(|name| name.parse::<InstanceId>().ok()) else {
                tracing::warn!(name = %name.display(), "not a directory of an instance, and left alone");
                continue;
            };
            if instances.contains(&instance) {
                if self.is_dead(&instance)? {
                    dead.insert(instance);
                }
            } else if let Err(error) = self.close(&instance) {
                // What holds it may be gone by the next start; the services need not wait for that.
                tracing::warn!(%error, instance.id = %instance, "mounts of an instance that is gone stay");
            }
        }
        Ok(dead)
    }

    /// Instances of a version without shields run on, and so do those whose shields somebody took away.
    fn shield(&self, instances: &BTreeSet<InstanceId>) {
        if !instances.iter().any(|instance| self.directory_of(instance).join(STORAGE).exists()) {
            return;
        }
        let shields = unpoisoned(&self.shields);
        for storage in [&self.storage.room, &self.storage.project] {
            if let Err(error) = shields.ensure(storage) {
                let path = storage.path().display();
                tracing::warn!(%path, %error, "storage that services write to is not mounted with nosuid and nodev");
            }
        }
    }

    /// Whether it has views that nobody serves.
    fn is_dead(&self, instance: &InstanceId) -> io::Result<bool> {
        let views = self.views_of(instance);
        let views = unpoisoned(&views);
        let made = clear::count(&self.directory_of(instance).join(VIEWS))?;
        Ok(views.iter().filter(|view| !view.has_ended()).count() < made)
    }
}

/// A panic while it was held leaves at worst what [`clear`] takes away.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

/// Makes a directory whose mode no umask changes.
fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

#[cfg(test)]
mod tests;
