//! Taking an instance's mounts away, whatever there is of them.

use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::{EMPTY, FILES, STORAGE, UPPER, VIEWS, Views};
use crate::context::mounts::points_below;

/// Of looks at the table: mounts lie on each other only where somebody else put them there.
const ATTEMPTS: usize = 16;

/// Blocking. To be called again where it fails; nothing to do where there is nothing.
pub(super) fn clear(directory: &Path, views: &mut Views) -> io::Result<()> {
    unmount_below(directory)?;
    while let Some(view) = views.last() {
        view.end()?;
        views.pop();
    }
    // Only now, and only what is empty: whatever is still mounted on a place keeps it.
    for kind in [STORAGE, VIEWS] {
        missing_is_fine(remove_places(&directory.join(kind)))?;
    }
    for kind in [EMPTY, FILES, UPPER] {
        missing_is_fine(fs::remove_dir_all(directory.join(kind)))?;
    }
    missing_is_fine(fs::remove_dir(directory))
}

/// Nothing in them is open by now but to processes outside the instance, and those keep what they have open.
fn unmount_below(directory: &Path) -> io::Result<()> {
    for _ in 0..ATTEMPTS {
        let points = points_below(directory)?;
        if points.is_empty() {
            return Ok(());
        }
        for point in points.iter().rev() {
            match rustix::mount::unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                // Gone with the one that it was mounted on.
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }
    Err(io::ErrorKind::ResourceBusy.into())
}

fn remove_places(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        // From the directory itself: a mount is not asked.
        if entry.file_type()?.is_dir() {
            fs::remove_dir(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

/// Entries of a directory; none where there is no directory.
pub(super) fn count(directory: &Path) -> io::Result<usize> {
    match fs::read_dir(directory) {
        Ok(entries) => Ok(entries.count()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn missing_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
