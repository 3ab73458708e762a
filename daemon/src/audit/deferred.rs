//! Trail files on a disk that may be full: they are opened once there is space, and writes are retried.

use std::io;
use std::path::{Path, PathBuf};

use super::file::{FileLimits, TrailFiles};
use super::{AuditQuery, AuditRecord};
use crate::disk::{is_disk_full, write_with_retry};

pub(super) struct DeferredTrailFiles {
    directory: PathBuf,
    limits: FileLimits,
    files: Option<TrailFiles>,
}

impl DeferredTrailFiles {
    /// Opens the files. If the disk is full, this succeeds and the files are opened at the next write or read.
    pub(super) fn open(directory: &Path, limits: FileLimits) -> io::Result<Self> {
        let files = match TrailFiles::open(directory, limits) {
            Err(error) if is_disk_full(&error) => {
                tracing::error!(%error, "failed to open the audit trail; it is opened once there is space");
                None
            }
            opened => Some(opened?),
        };
        Ok(Self { directory: directory.to_owned(), limits, files })
    }

    pub(super) fn write(&mut self, records: &[AuditRecord]) -> io::Result<()> {
        write_with_retry(|| self.files()?.write(records))
    }

    pub(super) fn read(&mut self, query: &AuditQuery) -> io::Result<Vec<AuditRecord>> {
        self.files()?.read(query)
    }

    fn files(&mut self) -> io::Result<&mut TrailFiles> {
        let files = match self.files.take() {
            Some(files) => files,
            None => TrailFiles::open(&self.directory, self.limits)?,
        };
        Ok(self.files.insert(files))
    }
}
