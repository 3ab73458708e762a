//! Retries of small writes of the daemon itself while the disk is full for a moment.

use std::error::Error;
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

/// Reports whether an error, or one that caused it, means that there was no space.
pub fn is_caused_by_full_disk(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(is_disk_full) {
            return true;
        }
        next = error.source();
    }
    false
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
