//! Existence of the storage sources of mounts, which a deploy ensures before its first instance starts.

use std::path::Path;

use super::fault;
use crate::context::{StorageError, StorageRoot, StorageRoots};
use crate::deploy::port::MountFault;
use crate::model::{ServiceMount, ServiceMountSource};

/// Checks that every source exists or asks to be made.
pub(super) fn check(storage: &StorageRoots, mounts: &[ServiceMount]) -> Result<(), MountFault> {
    missing(storage, mounts, |_, _| Ok(()))
}

/// Creates the missing sources that ask to be made.
pub(super) fn make(storage: &StorageRoots, mounts: &[ServiceMount]) -> Result<(), MountFault> {
    missing(storage, mounts, StorageRoot::make_mount_source)
}

/// Calls `make` for the missing sources that ask to be made. Every other source must exist.
fn missing(
    storage: &StorageRoots,
    mounts: &[ServiceMount],
    make: impl Fn(&StorageRoot, &Path) -> Result<(), StorageError>,
) -> Result<(), MountFault> {
    for mount in mounts {
        let (root, name, path) = match &mount.source {
            ServiceMountSource::Room(path) => (&storage.room, "room", Path::new(path)),
            ServiceMountSource::Project(path) => (&storage.project, "project", Path::new(path)),
            ServiceMountSource::Image { .. } | ServiceMountSource::EmptyDir | ServiceMountSource::File(_) => {
                continue;
            }
        };
        let found = match root.open_mount_source(path) {
            Err(StorageError::NotFound { .. }) if mount.create => make(root, path),
            other => other.map(drop),
        };
        found.map_err(|error| fault::of_storage(&mount.target, name, &error))?;
    }
    Ok(())
}
