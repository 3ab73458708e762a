//! Lists one directory: its names, the metadata of each, and the decision of the ignore rules.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};

use super::WrittenPath;
use crate::identity::FileStamp;
use crate::ignore::{DirectoryMatch, EntryVerdict, TreeFilter};
use crate::new_file;

/// Filter of a walk, and paths that are listed even if it excludes them.
pub(super) struct WalkSelection<'a> {
    pub(super) filter: TreeFilter,
    pub(super) keep: &'a [Vec<u8>],
    /// Paths that are never listed.
    pub(super) written: &'a [WrittenPath],
}

/// Request to list a directory.
pub(super) struct DirectoryRequest {
    /// Parent directory; for the root, the root itself.
    pub(super) above: Arc<OwnedFd>,
    /// Path of the directory, empty for the root.
    pub(super) path: Vec<u8>,
    pub(super) matched: DirectoryMatch,
    /// True if the directory is excluded as a whole, and is only listed to find paths that are kept.
    pub(super) pruned: bool,
    /// Paths relative to this directory that are never listed.
    pub(super) written: Vec<Vec<u8>>,
}

/// A name in a directory.
pub(super) struct DirectoryChild {
    pub(super) path: Vec<u8>,
    pub(super) found: rustix::io::Result<NameMetadata>,
    pub(super) is_shown: bool,
    pub(super) content: ChildListing,
}

/// Listing of a child directory.
pub(super) enum ChildListing {
    /// The child is no directory, or is not to be listed.
    None,
    Unrequested(Box<DirectoryRequest>),
    /// The request was added to the queue and has this slot.
    Requested {
        slot: usize,
        pruned: bool,
    },
}

/// Metadata of a name.
pub(super) struct NameMetadata {
    pub(super) file_type: FileType,
    pub(super) mode: u32,
    pub(super) stamp: FileStamp,
    pub(super) sparse: bool,
    /// True if the file may have other names.
    pub(super) is_linked: bool,
    /// Target of a symbolic link.
    pub(super) target: Option<rustix::io::Result<Vec<u8>>>,
}

impl DirectoryRequest {
    /// Lists the directory, sorted by the bytes of the names.
    pub(super) fn list(&self, selection: &WalkSelection<'_>) -> rustix::io::Result<Vec<DirectoryChild>> {
        let dir = match self.name() {
            b"" => Arc::clone(&self.above),
            name => Arc::new(open_dir(self.above.as_fd(), name)?),
        };
        let mut children = Vec::new();
        let mut buffer = [std::mem::MaybeUninit::uninit(); 32 * 1024];
        let mut listing = RawDir::new(&dir, &mut buffer);
        while let Some(entry) = listing.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                let path = self.below(name.to_bytes());
                children.extend(self.child(&dir, name, path, selection));
            }
        }
        children.sort_unstable_by(|one, other| one.path.cmp(&other.path));
        Ok(children)
    }

    fn name(&self) -> &[u8] {
        let start = self.path.iter().rposition(|&byte| byte == b'/').map_or(0, |at| at + 1);
        &self.path[start..]
    }

    fn below(&self, name: &[u8]) -> Vec<u8> {
        let mut path = Vec::with_capacity(self.path.len() + 1 + name.len());
        path.extend_from_slice(&self.path);
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    /// Returns `None` for a name that packing itself writes.
    fn child(
        &self,
        dir: &Arc<OwnedFd>,
        name: &std::ffi::CStr,
        path: Vec<u8>,
        selection: &WalkSelection<'_>,
    ) -> Option<DirectoryChild> {
        if self.written.iter().any(|path| path == name.to_bytes()) {
            return None;
        }
        let found = match read_metadata(dir.as_fd(), name) {
            Ok(found) => found,
            // The kind of the file is unknown, so the rules cannot be applied. The error is reported.
            Err(errno) => {
                let content = ChildListing::None;
                return Some(DirectoryChild { path, found: Err(errno), is_shown: true, content });
            }
        };
        if found.file_type == FileType::RegularFile && new_file::is_hidden(name.to_bytes()) {
            return None;
        }
        let is_dir = found.file_type == FileType::Directory;
        let (verdict, matched) = match self.pruned {
            true => (EntryVerdict::Prune, DirectoryMatch::default()),
            false => selection.filter.evaluate(&path, is_dir, &self.matched),
        };
        let pruned = verdict == EntryVerdict::Prune;
        let is_shown = verdict == EntryVerdict::Show || selection.keep.contains(&path);
        let enter = is_dir && (!pruned || selection.leads_to_kept(&path));
        let content = match enter {
            true => ChildListing::Unrequested(Box::new(Self {
                above: Arc::clone(dir),
                path: path.clone(),
                matched,
                pruned,
                written: self.written_below(name.to_bytes(), &found.stamp, selection),
            })),
            false => ChildListing::None,
        };
        Some(DirectoryChild { path, found: Ok(found), is_shown, content })
    }

    /// Returns the paths in the child directory `name` that are never listed.
    fn written_below(&self, name: &[u8], stamp: &FileStamp, selection: &WalkSelection<'_>) -> Vec<Vec<u8>> {
        let rest = |path: &Vec<u8>| Some(path.strip_prefix(name)?.strip_prefix(b"/")?.to_vec());
        let id = (stamp.device, stamp.inode);
        let own = selection.written.iter().filter_map(|path| path.in_directory(id));
        self.written.iter().filter_map(rest).chain(own).collect()
    }
}

impl WalkSelection<'_> {
    pub(super) fn leads_to_kept(&self, dir: &[u8]) -> bool {
        self.keep.iter().any(|path| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/")))
    }
}

fn read_metadata(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> rustix::io::Result<NameMetadata> {
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let file_type = FileType::from_raw_mode(stat.st_mode);
    let target = (file_type == FileType::Symlink)
        .then(|| rustix::fs::readlinkat(dir, name, Vec::new()).map(std::ffi::CString::into_bytes));
    Ok(NameMetadata {
        file_type,
        mode: stat.st_mode & 0o7777,
        stamp: FileStamp::of(&stat),
        sparse: stat.st_blocks.cast_unsigned().saturating_mul(512) < stat.st_size.cast_unsigned(),
        is_linked: stat.st_nlink > 1,
        target,
    })
}

pub(super) fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}
