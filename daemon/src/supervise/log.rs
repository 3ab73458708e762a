//! Log of a child: one file to which the child appends directly, truncated when it exceeds a size limit.
//!
//! The child writes to the file and not into a pipe of the daemon: a pipe whose reader died would kill the child before
//! it has stopped its own work. Truncation copies the file to `.1` and then cuts it in place; since the child appends,
//! it continues at the new end. Lines written between the copy and the truncation are lost, which happens once per
//! `limit` bytes.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Maximum number of bytes returned by [`tail`].
const MAX_TAIL: u64 = 16 << 10;

pub(super) fn open(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    File::options().create(true).append(true).mode(0o600).open(path)
}

pub(super) fn truncate(path: &Path, limit: u64) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(stat) if stat.len() > limit => {
            fs::copy(path, older(path))?;
            File::options().write(true).open(path)?.set_len(0)
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

pub(super) fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |stat| stat.len())
}

/// Returns the end of the text written after offset `start`, at most 16 KiB.
pub fn tail(path: &Path, start: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let start = if start > length { 0 } else { start };
    file.seek(SeekFrom::Start(start.max(length.saturating_sub(MAX_TAIL))))?;
    let mut bytes = Vec::new();
    file.take(MAX_TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
