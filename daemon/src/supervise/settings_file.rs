//! Settings file of a child program.

use std::path::Path;
use std::{fs, io};

/// Writes a settings file as a whole. Unchanged settings are not written, so that the child starts on a full disk, too.
pub fn store(path: &Path, text: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|current| current == text.as_bytes()) {
        return Ok(());
    }
    let new = path.with_added_extension("new");
    fs::write(&new, text)?;
    fs::rename(new, path)
}
