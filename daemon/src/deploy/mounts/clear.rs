//! Removal of an instance's mounts, whatever exists of them.

use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::{EMPTY, FILES, InstanceViews, STORAGE, UPPER, VIEWS};
use crate::context::mount_points_below;

/// Maximum number of passes over the mount table: mounts are stacked only if somebody else put them there.
const ATTEMPTS: usize = 16;

/// Removes the mounts and the directory of an instance. It can be called again after a failure, and does nothing if
/// there is nothing. Blocking.
pub(super) fn clear(directory: &Path, views: &mut InstanceViews) -> io::Result<()> {
    unmount_below(directory)?;
    while let Some(view) = views.last() {
        view.wait_for_end()?;
        views.pop();
    }
    // Only after the unmounts, and only empty directories: a mount point that is still in use stays.
    for kind in [STORAGE, VIEWS] {
        missing_is_fine(remove_places(&directory.join(kind)))?;
    }
    for kind in [EMPTY, FILES, UPPER] {
        missing_is_fine(fs::remove_dir_all(directory.join(kind)))?;
    }
    missing_is_fine(fs::remove_dir(directory))
}

/// Unmounts everything below a directory. Processes outside the instance keep the files that they have open.
fn unmount_below(directory: &Path) -> io::Result<()> {
    for _ in 0..ATTEMPTS {
        let points = mount_points_below(directory)?;
        if points.is_empty() {
            return Ok(());
        }
        for point in points.iter().rev() {
            match rustix::mount::unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                // Removed together with the mount below it.
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
        // The file type comes from the directory entry; a mount is not accessed.
        if entry.file_type()?.is_dir() {
            fs::remove_dir(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

/// Counts the entries of a directory; zero if it does not exist.
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
