//! A directory of this machine, accessed by system calls: a plain one, or a mount.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use hearth_overlay::attr::read_xattr;
use hearth_overlay::attr::stat_at;
use hearth_overlay::beneath;
use hearth_overlay::union::RenameMode;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::operation::{Entry, Operation, Outcome, Path, Target, xattr_name};

pub struct Disk {
    root: PathBuf,
    held: BTreeMap<u8, File>,
    /// Closes and opens the file system again.
    pub reopen: Option<Box<dyn FnMut()>>,
}

impl Disk {
    pub fn new(root: PathBuf) -> Self {
        Self { root, held: BTreeMap::new(), reopen: None }
    }

    fn root(&self) -> OwnedFd {
        rustix::fs::open(&self.root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
    }

    fn directory(&self, names: &[&[u8]]) -> Result<OwnedFd, Errno> {
        let path = if names.is_empty() { b".".to_vec() } else { names.join(&b'/') };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        rustix::fs::openat2(self.root(), path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)
    }

    fn place(&self, path: &Path) -> Result<(OwnedFd, &'static [u8]), Errno> {
        let (above, name) = path.split();
        Ok((self.directory(above)?, name))
    }

    fn kind(&self, path: &Path) -> Result<FileType, Errno> {
        let (directory, name) = self.place(path)?;
        Ok(stat_at(directory, &std::ffi::CString::new(name).unwrap())?.attr.kind)
    }

    fn open(&self, path: &Path, flags: OFlags) -> Result<File, Errno> {
        let (directory, name) = self.place(path)?;
        match self.kind(path)? {
            FileType::Fifo => return Err(Errno::NXIO),
            FileType::RegularFile | FileType::Directory | FileType::Symlink => {}
            other => panic!("a {other:?}"),
        }
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(directory, name, flags, Mode::empty()).map(File::from)
    }
}

fn xattr_path(directory: &OwnedFd, name: &[u8]) -> Vec<u8> {
    [format!("/proc/self/fd/{}/", directory.as_raw_fd()).as_bytes(), name].concat()
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap()
}

impl Target for Disk {
    fn apply(&mut self, operation: &Operation) -> Outcome {
        let done = |()| Vec::new();
        match operation {
            Operation::MakeDirectory(path, mode) => {
                let (directory, name) = self.place(path)?;
                rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o700))?;
                // The umask of this process has no influence; setgid may have been inherited.
                let made = beneath::open_path(&directory, name)?;
                let inherited = stat_at(&made, c"")?.attr.mode & 0o2000;
                rustix::fs::chmodat(
                    &directory,
                    name,
                    Mode::from_raw_mode(*mode | inherited),
                    AtFlags::empty(),
                )
                .map(done)
            }
            Operation::Create(path, mode, content) => {
                let (directory, name) = self.place(path)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let file =
                    File::from(rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o600))?);
                file.write_all_at(content, 0).map_err(|error| errno(&error))?;
                rustix::fs::fchmod(&file, Mode::from_raw_mode(*mode)).map(done)
            }
            Operation::Fifo(path) => {
                let (directory, name) = self.place(path)?;
                rustix::fs::mknodat(&directory, name, FileType::Fifo, Mode::from_raw_mode(0o644), 0)?;
                rustix::fs::chmodat(&directory, name, Mode::from_raw_mode(0o644), AtFlags::empty()).map(done)
            }
            Operation::Symlink(path, target) => {
                let (directory, name) = self.place(path)?;
                rustix::fs::symlinkat(&target[..], directory, name).map(done)
            }
            Operation::Link(from, to) => {
                let (directory, name) = self.place(from)?;
                // Looked up first, as the kernel does.
                self.kind(from)?;
                let (new_directory, new_name) = self.place(to)?;
                rustix::fs::linkat(directory, name, new_directory, new_name, AtFlags::empty()).map(done)
            }
            Operation::Write(path, at, bytes) => {
                let file = self.open(path, OFlags::WRONLY)?;
                file.write_all_at(bytes, *at).map_err(|error| errno(&error)).map(done)
            }
            Operation::Truncate(path, size) => {
                rustix::fs::ftruncate(self.open(path, OFlags::WRONLY)?, *size).map(done)
            }
            Operation::Unlink(path) => {
                let (directory, name) = self.place(path)?;
                rustix::fs::unlinkat(directory, name, AtFlags::empty()).map(done)
            }
            Operation::RemoveDirectory(path) => {
                let (directory, name) = self.place(path)?;
                rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR).map(done)
            }
            Operation::Rename(from, to, mode) => {
                let (directory, name) = self.place(from)?;
                let (new_directory, new_name) = self.place(to)?;
                let flags = match mode {
                    RenameMode::Replace => RenameFlags::empty(),
                    RenameMode::NoReplace => RenameFlags::NOREPLACE,
                    RenameMode::Exchange => RenameFlags::EXCHANGE,
                };
                // The source is checked first, whatever else is wrong.
                self.kind(from)?;
                rustix::fs::renameat_with(directory, name, new_directory, new_name, flags).map(done)
            }
            Operation::Mode(path, mode) => {
                if self.kind(path)? == FileType::Symlink {
                    return Err(Errno::OPNOTSUPP);
                }
                let (directory, name) = self.place(path)?;
                rustix::fs::chmodat(directory, name, Mode::from_raw_mode(*mode), AtFlags::empty()).map(done)
            }
            Operation::Owner(path, uid, gid) => {
                let (directory, name) = self.place(path)?;
                let (uid, gid) = (Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid)));
                rustix::fs::chownat(directory, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW).map(done)
            }
            Operation::SetXattr(path, number, value) => {
                let (directory, name) = self.place(path)?;
                let attribute = xattr_name(*number);
                let path = xattr_path(&directory, name);
                rustix::fs::lsetxattr(path, attribute, value, XattrFlags::empty()).map(done)
            }
            Operation::RemoveXattr(path, number) => {
                let (directory, name) = self.place(path)?;
                rustix::fs::lremovexattr(xattr_path(&directory, name), xattr_name(*number)).map(done)
            }
            Operation::Hold(slot, path) => {
                let file = self.open(path, OFlags::RDWR)?;
                self.held.insert(*slot, file);
                Ok(Vec::new())
            }
            Operation::WriteHeld(slot, at, bytes) => {
                let file = self.held.get(slot).ok_or(Errno::BADF)?;
                file.write_all_at(bytes, *at).map_err(|error| errno(&error)).map(done)
            }
            Operation::ReadHeld(slot) => {
                let file = self.held.get(slot).ok_or(Errno::BADF)?;
                let mut content = vec![0; 4096];
                let count = file.read_at(&mut content, 0).map_err(|error| errno(&error))?;
                content.truncate(count);
                Ok(content)
            }
            Operation::Drop(slot) => {
                self.held.remove(slot);
                Ok(Vec::new())
            }
            Operation::Reopen => {
                self.held.clear();
                if let Some(reopen) = &mut self.reopen {
                    reopen();
                }
                Ok(Vec::new())
            }
        }
    }

    fn tree(&mut self) -> BTreeMap<Vec<u8>, Entry> {
        let mut entries = BTreeMap::new();
        let mut pending = vec![Vec::new()];
        let mut numbers: HashMap<Vec<u8>, u64> = HashMap::new();
        while let Some(path) = pending.pop() {
            let held = self.root();
            let directory = beneath::open_directory(&held, &path).unwrap();
            let mut names: Vec<Vec<u8>> = Vec::new();
            beneath::for_each_name(&directory, |name| {
                names.push(name.to_bytes().to_vec());
                true
            })
            .unwrap();
            for name in names {
                let stat = stat_at(&directory, &std::ffi::CString::new(name.clone()).unwrap())
                    .unwrap_or_else(|errno| panic!("{}: {errno}", name.escape_ascii()));
                let child = if path.is_empty() { name.clone() } else { [&path[..], b"/", &name].concat() };
                let at = xattr_path(&directory, &name);
                let (kind, content) = match stat.attr.kind {
                    FileType::Directory => {
                        pending.push(child.clone());
                        ('d', Vec::new())
                    }
                    FileType::RegularFile => {
                        let file =
                            rustix::fs::openat(&directory, &name[..], OFlags::RDONLY, Mode::empty()).unwrap();
                        let mut content = vec![0; 4096];
                        let count = File::from(file).read_at(&mut content, 0).unwrap();
                        assert_eq!(count as u64, stat.attr.size, "{}", child.escape_ascii());
                        content.truncate(count);
                        ('f', content)
                    }
                    FileType::Symlink => {
                        let target = rustix::fs::readlinkat(&directory, &name[..], Vec::new()).unwrap();
                        ('l', target.into_bytes())
                    }
                    FileType::Fifo => ('p', Vec::new()),
                    other => panic!("{} is a {other:?}", child.escape_ascii()),
                };
                let listed = read_xattr(|buffer| rustix::fs::llistxattr(&at[..], buffer)).unwrap();
                let shown = listed.split(|&byte| byte == 0).filter(|name| name.starts_with(b"user."));
                let value =
                    |name: &[u8]| read_xattr(|buffer| rustix::fs::lgetxattr(&at[..], name, buffer)).unwrap();
                let xattrs = shown.map(|name| (name.to_vec(), value(name))).collect();
                let entry = Entry {
                    kind,
                    mode: stat.attr.mode,
                    owner: (stat.attr.uid, stat.attr.gid),
                    content,
                    xattrs,
                    same_as: Vec::new(),
                    links: stat.attr.links,
                };
                numbers.insert(child.clone(), stat.inode);
                entries.insert(child, entry);
            }
        }
        let mut first: HashMap<u64, Vec<u8>> = HashMap::new();
        for (path, entry) in &mut entries {
            entry.same_as = first.entry(numbers[path]).or_insert_with(|| path.clone()).clone();
        }
        entries
    }
}
