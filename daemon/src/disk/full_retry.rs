//! Retries of small writes of the daemon itself while the disk is full for a moment.

use std::io;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// Time limit of the retries. Builds that use up the disk are stopped, and the reserve is released, within it.
const RETRY_LIMIT: Duration = Duration::from_secs(2);
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Reports whether the error means that there was no space.
pub fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Writes, and retries for two seconds while the disk is full. Blocking.
pub fn write_with_retry(mut write: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    let end = Instant::now() + RETRY_LIMIT;
    loop {
        match write() {
            Err(error) if is_disk_full(&error) && Instant::now() < end => sleep(RETRY_PAUSE),
            written => return written,
        }
    }
}
