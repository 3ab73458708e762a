//! Kinds of files.

use rustix::fs::FileType;
use rustix::io::Errno;

/// Kind of a file, with what belongs to the kind: `F` to a regular file, the target `T` to a symbolic link, and to a
/// hard link the file `L` that it is another name of.
///
/// [`Infallible`](std::convert::Infallible) stands for what does not occur: as `S` in a tree without special files, as
/// `L` where all names of a file are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKind<F, T, L, S = SpecialFile> {
    Directory,
    File(F),
    /// Symbolic link with its target as written, which is never followed.
    Symlink(T),
    HardLink(L),
    Special(S),
}

/// A file that is neither a directory nor a regular file nor a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialFile {
    Fifo,
    Socket,
    Device { character: bool, major: u32, minor: u32 },
}

impl SpecialFile {
    /// Returns the special file that `stat` describes; `device` is the number of a device.
    pub const fn from_stat(file_type: FileType, device: (u32, u32)) -> Option<Self> {
        let (major, minor) = device;
        match file_type {
            FileType::Fifo => Some(Self::Fifo),
            FileType::Socket => Some(Self::Socket),
            FileType::CharacterDevice => Some(Self::Device { character: true, major, minor }),
            FileType::BlockDevice => Some(Self::Device { character: false, major, minor }),
            FileType::Directory | FileType::RegularFile | FileType::Symlink | FileType::Unknown => None,
        }
    }
}

impl<F, T, L> FileKind<F, T, L> {
    /// Returns the kind of a file that `stat` describes; `device` is the number of a device. `target` is called for
    /// a symbolic link only.
    pub fn from_stat(
        file_type: FileType,
        device: (u32, u32),
        file: F,
        target: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<Self, Errno> {
        Ok(match file_type {
            FileType::Directory => Self::Directory,
            FileType::RegularFile => Self::File(file),
            FileType::Symlink => Self::Symlink(target()?),
            other => Self::Special(SpecialFile::from_stat(other, device).ok_or(Errno::IO)?),
        })
    }

    /// Returns the file type that `stat` reports for this kind.
    pub const fn file_type(&self) -> FileType {
        match self {
            Self::Directory => FileType::Directory,
            Self::File(_) | Self::HardLink(_) => FileType::RegularFile,
            Self::Symlink(_) => FileType::Symlink,
            Self::Special(SpecialFile::Fifo) => FileType::Fifo,
            Self::Special(SpecialFile::Socket) => FileType::Socket,
            Self::Special(SpecialFile::Device { character: true, .. }) => FileType::CharacterDevice,
            Self::Special(SpecialFile::Device { character: false, .. }) => FileType::BlockDevice,
        }
    }
}

impl<F: Copy, T: AsRef<[u8]>, L: Copy, S: Copy> FileKind<F, T, L, S> {
    /// Returns the kind with a borrowed symbolic link target.
    pub fn borrowed(&self) -> FileKind<F, &[u8], L, S> {
        match self {
            Self::Directory => FileKind::Directory,
            Self::File(file) => FileKind::File(*file),
            Self::Symlink(target) => FileKind::Symlink(target.as_ref()),
            Self::HardLink(first) => FileKind::HardLink(*first),
            Self::Special(special) => FileKind::Special(*special),
        }
    }
}
