//! Copy of an image's content at a path into an instance's directory: Docker does this for volumes, and images rely on
//! finding their own files, owner and mode there.
//!
//! No link of the image leads outside: the directory is resolved with the image as the root, and below it no link is
//! followed. Device files and sockets are skipped.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

/// Maximum size in bytes of an extended attribute, and of the list of their names.
const MOST_XATTR: usize = 64 << 10;

/// Fills an empty directory with the content of `root` at a path. If there is no directory at that path, `empty` stays
/// unchanged, and the result is false.
pub(super) fn fill(root: &OwnedFd, path: &str, empty: &Path) -> io::Result<bool> {
    let path = path.trim_start_matches('/');
    let path = if path.is_empty() { "." } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = directory_flags().difference(OFlags::NOFOLLOW);
    let from = match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(from) => from,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    };
    let to = rustix::fs::open(empty, directory_flags(), Mode::empty())?;
    DirectoryCopy { from, to, links: HashMap::new() }.copy_all()?;
    Ok(true)
}

fn directory_flags() -> OFlags {
    OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// A recursive copy in progress.
struct DirectoryCopy {
    from: OwnedFd,
    to: OwnedFd,
    /// First copied path of each file with several hard links, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
}

impl DirectoryCopy {
    fn copy_all(mut self) -> io::Result<()> {
        let mut waiting = vec![PathBuf::new()];
        let mut directories = Vec::new();
        while let Some(path) = waiting.pop() {
            let (from, to) = (below(&self.from, &path)?, below(&self.to, &path)?);
            let stat = rustix::fs::fstat(&from)?;
            copy_attributes(&from, &to, &stat)?;
            for entry in Dir::read_from(&from)? {
                let entry = entry?;
                let name = entry.file_name();
                if !matches!(name.to_bytes(), b"." | b"..") {
                    let inner = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
                    if self.copy_entry(&from, &to, name, &inner)? {
                        waiting.push(inner);
                    }
                }
            }
            directories.push((path, stat));
        }
        // Set last, since every new entry changes the time of its directory.
        for (path, stat) in directories.iter().rev() {
            rustix::fs::futimens(below(&self.to, path)?, &times(stat))?;
        }
        Ok(())
    }

    /// Copies one entry of a directory. Returns true for a directory, which was created and is empty.
    fn copy_entry(&mut self, from: &OwnedFd, to: &OwnedFd, name: &CStr, path: &Path) -> io::Result<bool> {
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, Mode::RWXU)?;
                return Ok(true);
            }
            FileType::RegularFile => {
                let several = stat.st_nlink > 1;
                let known = self.links.get(&(stat.st_dev, stat.st_ino)).filter(|_| several);
                if let Some(first) = known {
                    let first = CString::new(first.as_os_str().as_bytes())?;
                    rustix::fs::linkat(&self.to, &first, to, name, AtFlags::empty())?;
                    return Ok(false);
                }
                let flags = OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
                let source = rustix::fs::openat(from, name, flags | OFlags::RDONLY, Mode::empty())?;
                let made = flags | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
                let copy = rustix::fs::openat(to, name, made, Mode::RUSR | Mode::WUSR)?;
                let (mut source, mut copy) = (File::from(source), File::from(copy));
                io::copy(&mut source, &mut copy)?;
                copy_attributes(&source, &copy, &stat)?;
                rustix::fs::futimens(&copy, &times(&stat))?;
                if several {
                    self.links.insert((stat.st_dev, stat.st_ino), path.to_owned());
                }
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(&target, to, name)?;
                copy_owner(to, name, &stat)?;
                rustix::fs::utimensat(to, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)?;
            }
            FileType::Fifo => {
                rustix::fs::mknodat(to, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
                copy_owner(to, name, &stat)?;
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                rustix::fs::chmodat(to, name, mode, AtFlags::empty())?;
            }
            _ => {}
        }
        Ok(false)
    }
}

/// Opens a directory below `root` without following links; an empty path is `root` itself.
fn below(root: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(root, path, directory_flags(), Mode::empty(), resolve)
}

fn ids(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

fn copy_owner(directory: &OwnedFd, name: &CStr, stat: &Stat) -> Result<(), Errno> {
    let (uid, gid) = ids(stat);
    rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
}

/// Copies owner, mode and extended attributes to a file or directory.
fn copy_attributes(from: impl AsFd, to: impl AsFd, stat: &Stat) -> io::Result<()> {
    let (uid, gid) = ids(stat);
    rustix::fs::fchown(&to, uid, gid)?;
    // Set after the owner, whose change clears setuid bits and capabilities.
    rustix::fs::fchmod(&to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
    let mut names = vec![0; MOST_XATTR];
    let length = match rustix::fs::flistxattr(&from, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::NOTSUP | Errno::NOSYS) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let kept = |name: &&[u8]| name.starts_with(b"user.") || *name == b"security.capability";
    for name in names[..length].split(|byte| *byte == 0).filter(kept) {
        let mut value = vec![0; MOST_XATTR];
        let length = rustix::fs::fgetxattr(&from, name, &mut value[..])?;
        match rustix::fs::fsetxattr(&to, name, &value[..length], XattrFlags::empty()) {
            // The state directory's file system does not support the attribute: the file without it is better than
            // none.
            Ok(()) | Err(Errno::NOTSUP) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds: i64, nanos: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanos).unwrap_or_default(),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn image(make: impl FnOnce(&Path)) -> (tempfile::TempDir, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        make(directory.path());
        let root = rustix::fs::open(directory.path(), directory_flags(), Mode::empty()).unwrap();
        (directory, root)
    }

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn a_directory_comes_with_its_files_owners_modes_and_times() {
        let (_image, root) = image(|image| {
            let data = image.join("var/data");
            fs::create_dir_all(data.join("inner/deep")).unwrap();
            fs::write(data.join("file"), "content").unwrap();
            fs::hard_link(data.join("file"), data.join("inner/again")).unwrap();
            symlink("/etc/passwd", data.join("link")).unwrap();
            std::os::unix::fs::chown(&data, Some(999), Some(998)).unwrap();
            std::os::unix::fs::chown(data.join("file"), Some(999), None).unwrap();
            fs::set_permissions(data.join("file"), fs::Permissions::from_mode(0o640)).unwrap();
            fs::set_permissions(&data, fs::Permissions::from_mode(0o1750)).unwrap();
            xattr::set(data.join("file"), "user.kind", b"x").unwrap();
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
            File::open(&data).unwrap().set_modified(time).unwrap();
        });
        let empty = tempfile::tempdir().unwrap();
        let empty = empty.path();
        fill(&root, "/var/data", empty).unwrap();
        let own = fs::metadata(empty).unwrap();
        assert_eq!((own.uid(), own.gid(), own.mtime(), mode(empty)), (999, 998, 1_000_000, 0o1750));
        let file = fs::metadata(empty.join("file")).unwrap();
        assert_eq!((file.uid(), file.nlink(), mode(&empty.join("file"))), (999, 2, 0o640));
        assert_eq!(fs::read_to_string(empty.join("inner/again")).unwrap(), "content");
        assert_eq!(fs::read_link(empty.join("link")).unwrap(), Path::new("/etc/passwd"));
        assert_eq!(xattr::get(empty.join("file"), "user.kind").unwrap().unwrap(), b"x");
        assert!(empty.join("inner/deep").is_dir());
    }

    #[test]
    fn a_link_on_the_way_is_followed_inside_the_image_only() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("canary"), "").unwrap();
        let (_image, root) = image(|image| {
            symlink(outside.path(), image.join("out")).unwrap();
            symlink("/real", image.join("in")).unwrap();
            fs::create_dir(image.join("real")).unwrap();
            fs::write(image.join("real/file"), "").unwrap();
            fs::write(image.join("plain"), "").unwrap();
        });
        for (path, expected) in [("/out", 0), ("/in", 1), ("/plain", 0), ("/none/deeper", 0)] {
            let empty = tempfile::tempdir().unwrap();
            fs::set_permissions(empty.path(), fs::Permissions::from_mode(0o777)).unwrap();
            assert_eq!(fill(&root, path, empty.path()).unwrap(), expected > 0, "{path}");
            assert_eq!(fs::read_dir(empty.path()).unwrap().count(), expected, "{path}");
            assert_eq!(mode(empty.path()) == 0o777, expected == 0, "{path}");
        }
    }
}
