//! The trail's files on a disk that may be full: they are opened once there is space, and written with patience.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::file::{FileLimits, TrailFiles};
use super::{AuditQuery, AuditRecord};

/// For space to come back: the reserve of the disk is released within that.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct LateFiles {
    directory: PathBuf,
    limits: FileLimits,
    files: Option<TrailFiles>,
}

impl LateFiles {
    /// A full disk is no error: the files are opened when there is something to write.
    pub(super) fn open(directory: &Path, limits: FileLimits) -> io::Result<Self> {
        let files = match TrailFiles::open(directory, limits) {
            Err(error) if is_full(&error) => {
                tracing::error!(%error, "failed to open the audit trail; it is opened once there is space");
                None
            }
            opened => Some(opened?),
        };
        Ok(Self { directory: directory.to_owned(), limits, files })
    }

    pub(super) fn write(&mut self, records: &[AuditRecord]) -> io::Result<()> {
        let end = Instant::now() + PATIENCE;
        loop {
            match self.files().and_then(|files| files.write(records)) {
                Err(error) if is_full(&error) && Instant::now() < end => std::thread::sleep(PAUSE),
                written => return written,
            }
        }
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

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
