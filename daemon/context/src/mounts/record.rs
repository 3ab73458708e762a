//! Persistent records of mounts, one directory each.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use hearth_model::{BuildMount, Digest, MountTarget};
use hearth_pack::identity::ContentHash;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::MountError;

/// The persistent record of one mount; stored as `record.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRecord {
    /// Canonical path, without symbolic links.
    pub directory: PathBuf,
    pub mounts: Vec<BuildMount>,
    pub manifests: Vec<Digest>,
    pub context_path: MountTarget,
    pub writable: bool,
    pub mounted: bool,
    pub since: Timestamp,
    pub caller: String,
}

impl MountRecord {
    /// Returns the id, a hash of the directory and of what is mounted there.
    pub fn id(&self) -> String {
        let mut text = self.directory.as_os_str().as_bytes().to_vec();
        for mount in &self.mounts {
            text.extend_from_slice(format!("\0{:?} {}", mount.source, mount.target).as_bytes());
        }
        text.extend_from_slice(format!("\0{} {}", self.context_path, self.writable).as_bytes());
        hex::encode(&ContentHash::of(&text).as_bytes()[..8])
    }

    /// Returns the source in the mount table.
    pub fn source(&self) -> String {
        format!("hearth:{}", self.id())
    }
}

pub(super) struct MountRecordStore {
    directory: PathBuf,
}

const RECORD: &str = "record.json";
const UPPER: &str = "upper";

impl MountRecordStore {
    pub fn open(directory: &Path) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        Ok(Self { directory: directory.to_owned() })
    }

    pub fn upper(&self, id: &str) -> Result<PathBuf, MountError> {
        let path = self.directory.join(id).join(UPPER);
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(unusable)?;
        Ok(path)
    }

    pub fn read(&self, id: &str) -> Result<Option<MountRecord>, MountError> {
        let bytes = match fs::read(self.directory.join(id).join(RECORD)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(unusable)?,
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| unusable(error.into()))
    }

    /// Writes a record atomically.
    pub fn write(&self, id: &str, record: &MountRecord) -> Result<(), MountError> {
        let directory = self.directory.join(id);
        let write = || {
            DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
            let mut file = tempfile::NamedTempFile::new_in(&directory)?;
            file.write_all(&serde_json::to_vec(record)?)?;
            file.as_file().sync_all()?;
            file.persist(directory.join(RECORD)).map_err(|error| error.error)?;
            File::open(&directory)?.sync_all()
        };
        write().map_err(unusable)
    }

    /// Removes a record together with the changes of its mount.
    pub fn remove(&self, id: &str) -> Result<(), MountError> {
        match fs::remove_dir_all(self.directory.join(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unusable(error)),
            _ => Ok(()),
        }
    }

    /// Returns all records. An unreadable record is logged and skipped.
    pub fn all(&self) -> Result<Vec<MountRecord>, MountError> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(unusable)? {
            let name = entry.map_err(unusable)?.file_name();
            let Some(id) = name.to_str() else { continue };
            match self.read(id) {
                Ok(record) => records.extend(record),
                Err(error) => tracing::warn!(%error, mount.id = id, "failed to read the record of a mount"),
            }
        }
        Ok(records)
    }
}

fn unusable(source: io::Error) -> MountError {
    MountError::Io { what: "the records of mounts cannot be used", source }
}
