//! Small writes of the daemon itself on a disk that may be full for a moment.

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Builds that use up the disk are ended, and its reserve is released, within this.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);

/// Whether there was no space for what was to be written.
pub fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Writes, and tries again for two seconds where the disk is full. Blocking.
pub fn write_patiently(mut write: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        match write() {
            Err(error) if is_disk_full(&error) && Instant::now() < end => sleep(PAUSE),
            written => return written,
        }
    }
}
