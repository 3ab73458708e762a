//! Shields: storage that services write to is bind-mounted on itself with `nosuid` and `nodev` on the host, so that a
//! set-id bit, a file capability or a device left there by a service has no effect on the host. (The mounts inside the
//! service have the same attributes.)
//!
//! ```text
//! none --first service that may write to the storage--> mounted, and recorded --last service gone, daemon ends--> none
//! ```
//!
//! A directory that is mounted with these attributes already is left unchanged. A shield outlives the daemon as
//! services do; the record identifies shields by the kernel's mount id and tells the next daemon which are its own.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatVfsMountFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};
use serde::{Deserialize, Serialize};

use super::attributes;
use crate::context::StorageRoot;

/// `STATX_MNT_ID_UNIQUE`: requests a mount id that is never reused. Kernels before 6.8 return one that may be.
const UNIQUE_MOUNT_ID: u32 = 0x4000;
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The shields of this daemon, as stored in the record file.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct ShieldRecord {
    /// Boot id: the shields do not survive a reboot.
    boot: String,
    shields: Vec<StorageShield>,
}

/// A storage directory that is mounted on itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StorageShield {
    path: PathBuf,
    mount: u64,
}

/// Creates and removes shields, and keeps their record file.
pub(super) struct StorageShields {
    record: PathBuf,
}

impl StorageShields {
    pub(super) const fn with_record(record: PathBuf) -> Self {
        Self { record }
    }

    /// Mounts a storage on itself, before a service gets write access to any of it. Callers must serialize calls.
    pub(super) fn ensure(&self, storage: &StorageRoot) -> io::Result<()> {
        let path = storage.path();
        let (held, _) = storage.open_mount_source(Path::new("")).map_err(io::Error::other)?;
        let point = open(path)?;
        let flags = rustix::fs::fstatvfs(&point)?.f_flag;
        if flags.contains(StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV) {
            return Ok(());
        }
        let (stat, named) = (rustix::fs::fstat(&held)?, rustix::fs::fstat(&point)?);
        if (stat.st_dev, stat.st_ino) != (named.st_dev, named.st_ino) {
            let what = format!("{} is not the directory any more that the daemon has open", path.display());
            return Err(io::Error::other(what));
        }
        // Includes the mounts below, which stay as they are: services do not reach them.
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_EMPTY_PATH
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = rustix::mount::open_tree(&point, c"", flags)?;
        attributes::set(&tree, attributes::HARMLESS, None)?;
        let mut record = self.read()?;
        record.shields.push(StorageShield { path: path.to_owned(), mount: mount_id(&tree)? });
        self.write(&record)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&tree, c"", &point, c"", flags)?;
        tracing::info!(path = %path.display(), "mounted storage with nosuid and nodev while services use it");
        Ok(())
    }

    /// Removes all shields when no service is left. One that cannot be removed stays in the record.
    pub(super) fn release(&self) -> io::Result<()> {
        let record = self.read()?;
        if record.shields.is_empty() {
            return Ok(());
        }
        let mut left = ShieldRecord { boot: record.boot, shields: Vec::new() };
        let mut first = Ok(());
        for shield in record.shields {
            if let Err(error) = unmount_shield(&shield) {
                first = first
                    .and(Err(io::Error::new(error.kind(), format!("{}: {error}", shield.path.display()))));
                left.shields.push(shield);
            }
        }
        if left.shields.is_empty() {
            fs::remove_file(&self.record)?;
        } else {
            self.write(&left)?;
        }
        first
    }

    /// Reads the record of this boot.
    fn read(&self) -> io::Result<ShieldRecord> {
        let boot = fs::read_to_string(BOOT_ID)?.trim().to_owned();
        let none = ShieldRecord { boot: boot.clone(), shields: Vec::new() };
        match fs::read(&self.record) {
            Ok(text) => match serde_json::from_slice::<ShieldRecord>(&text) {
                Ok(record) if record.boot == boot => Ok(record),
                Ok(_) => Ok(none),
                Err(error) => {
                    tracing::warn!(path = %self.record.display(), %error, "ignored a damaged record of storage mounts");
                    Ok(none)
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(none),
            Err(error) => Err(error),
        }
    }

    fn write(&self, record: &ShieldRecord) -> io::Result<()> {
        let draft = self.record.with_extension("json.new");
        fs::write(&draft, serde_json::to_vec(record)?)?;
        fs::rename(&draft, &self.record)
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

fn mount_id(mount: &impl AsFd) -> io::Result<u64> {
    let flags = StatxFlags::MNT_ID | StatxFlags::from_bits_retain(UNIQUE_MOUNT_ID);
    Ok(rustix::fs::statx(mount, c"", AtFlags::EMPTY_PATH, flags)?.stx_mnt_id)
}

/// Unmounts a shield. Does nothing if its path has another mount, or none.
fn unmount_shield(shield: &StorageShield) -> io::Result<()> {
    let point = match open(&shield.path) {
        Ok(point) => point,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if mount_id(&point)? != shield.mount {
        return Ok(());
    }
    drop(point);
    match rustix::mount::unmount(&shield.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reports whether the path is mounted with nosuid and nodev.
    fn is_harmless(path: &Path) -> bool {
        let wanted = StatVfsMountFlags::NOSUID | StatVfsMountFlags::NODEV;
        rustix::fs::statvfs(path).unwrap().f_flag.contains(wanted)
    }

    #[test]
    fn storage_is_harmless_from_the_first_service_to_the_last_and_below_mounts_as_before() {
        let dir = tempfile::tempdir().unwrap();
        let storage = dir.path().join("storage");
        fs::create_dir_all(storage.join("below")).unwrap();
        if is_harmless(&storage) {
            // The temporary directory of this machine has these attributes already.
            return;
        }
        fs::write(storage.join("file"), "kept").unwrap();
        rustix::mount::mount_bind(&storage, storage.join("below")).unwrap();
        let root = StorageRoot::open(&storage).unwrap();
        let shields = StorageShields::with_record(dir.path().join("shields.json"));
        for _ in 0..2 {
            shields.ensure(&root).unwrap();
            assert!(is_harmless(&storage) && !is_harmless(&storage.join("below")));
        }
        assert_eq!(shields.read().unwrap().shields.len(), 1);
        assert_eq!(fs::read_to_string(storage.join("below/file")).unwrap(), "kept");
        // The shield of a killed daemon is taken over by the next one.
        let shields = StorageShields::with_record(dir.path().join("shields.json"));
        shields.ensure(&root).unwrap();
        shields.release().unwrap();
        assert!(!is_harmless(&storage) && !shields.record.exists());
        shields.release().unwrap();
        rustix::mount::unmount(storage.join("below"), UnmountFlags::DETACH).unwrap();
    }

    #[test]
    fn a_mount_of_somebody_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let storage = dir.path().join("storage");
        fs::create_dir(&storage).unwrap();
        let flags = rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NODEV;
        rustix::mount::mount(c"tmpfs", &storage, c"tmpfs", flags, c"size=64k").unwrap();
        let shields = StorageShields::with_record(dir.path().join("shields.json"));
        shields.ensure(&StorageRoot::open(&storage).unwrap()).unwrap();
        assert!(!shields.record.exists());
        // The record names a removed mount, and another mount has its path.
        let boot = fs::read_to_string(BOOT_ID).unwrap().trim().to_owned();
        let shield = StorageShield { path: storage.clone(), mount: 1 };
        shields.write(&ShieldRecord { boot, shields: vec![shield] }).unwrap();
        shields.release().unwrap();
        assert!(is_harmless(&storage) && !shields.record.exists());
        rustix::mount::unmount(&storage, UnmountFlags::DETACH).unwrap();
    }
}
