//! Lists a directory as sorted entries, filtered by the ignore rules.
//!
//! Everything is opened relative to its parent directory and no link is ever followed, so all listed entries are
//! inside the tree even if the tree changes meanwhile. An entry that cannot be read is an error, and so is a socket,
//! a fifo or a device; only excluded entries are left out.
//!
//! Order of the list: each directory before its content, names in byte order.

mod content;
mod descend;
mod directory;
mod ignore_file;
mod open;
mod prefetch;
mod written;
mod xattr;

use std::convert::Infallible;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::file_kind::FileKind;
use crate::identity::FileStamp;
use crate::ignore::{IgnoreError, IgnorePatterns, TreeFilter};
pub use content::{ContentError, DiskReader};
pub use ignore_file::DOCKERFILE_NAMES;
pub use open::TreeOpener;
pub use written::WrittenPath;
pub use xattr::EntryXattrs;

use directory::WalkSelection;

/// Options of a walk: excluded paths, and exceptions from that.
#[derive(Debug, Clone, Default)]
pub struct WalkOptions {
    pub rules: IgnoreRules,
    /// Relative paths that are listed even if the rules exclude them, besides the Dockerfile and the ignore file that
    /// apply: a build needs them.
    pub keep: Vec<Vec<u8>>,
    /// Paths that are never listed, because packing itself writes them.
    pub written: Vec<WrittenPath>,
}

/// Source of the ignore rules.
#[derive(Debug, Clone)]
pub enum IgnoreRules {
    /// Lists everything, without rules.
    Nothing,
    /// The file `<Dockerfile>.dockerignore`, else `.dockerignore`, at the root of the tree. Without the name of a
    /// Dockerfile, `Containerfile` and then `Dockerfile` are tried.
    IgnoreFile {
        dockerfile: Option<Vec<u8>>,
    },
    Patterns(IgnorePatterns),
}

impl Default for IgnoreRules {
    fn default() -> Self {
        Self::IgnoreFile { dockerfile: None }
    }
}

/// A walked directory.
#[derive(Debug)]
pub struct WalkedTree {
    root: OwnedFd,
    id: (u64, u64),
    pub entries: Vec<WalkEntry>,
    /// Name of the ignore file that applied.
    pub ignore_file: Option<Vec<u8>>,
    /// True if the rules exclude everything but the Dockerfile and the ignore file.
    pub all_excluded: bool,
}

/// Kind of an entry; a hard link has the path of the earlier entry whose file it names.
pub type WalkKind = FileKind<(), Vec<u8>, Vec<u8>, Infallible>;

/// One file, directory or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalkEntry {
    /// Path relative to the root, components joined by `/`.
    pub path: Vec<u8>,
    pub kind: WalkKind,
    /// Permission, setuid, setgid and sticky bits.
    pub mode: u32,
    /// Size of a file in bytes; 0 for anything else.
    pub size: u64,
    /// Identity and state of the file when it was listed, to verify when it is read that it is unchanged. Not used if
    /// the content does not come from the disk.
    pub stamp: FileStamp,
    /// True if the file has less disk space allocated than its size.
    pub sparse: bool,
}

/// Error of listing a directory.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    #[error("{}: no such directory", .path.display())]
    Missing { path: PathBuf },
    #[error("{}: not a directory", .path.display())]
    NotADirectory { path: PathBuf },
    #[error("{path}: {action}: {source}")]
    Read { path: String, action: &'static str, source: std::io::Error },
    #[error("{path}: is a {kind}, which an image cannot hold; exclude it in .dockerignore or remove it")]
    Special { path: String, kind: &'static str },
    #[error("{file}: is a {kind}, not a regular file")]
    IgnoreFileKind { file: String, kind: &'static str },
    #[error("{file}: an ignore file of more than {limit} bytes is not read")]
    IgnoreFileTooLarge { file: String, limit: u64 },
    #[error("{file}: {source}")]
    Ignore { file: String, source: IgnoreError },
}

/// Walks the directory `path`, which may itself be a link to a directory.
pub fn walk(path: &Path, options: &WalkOptions) -> Result<WalkedTree, WalkError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| match errno {
        Errno::NOENT => WalkError::Missing { path: path.to_owned() },
        Errno::NOTDIR => WalkError::NotADirectory { path: path.to_owned() },
        errno => failed("cannot open", path.as_os_str().as_bytes())(errno),
    })?;
    let mut keep = options.keep.clone();
    let (ignore_file, patterns) = match &options.rules {
        IgnoreRules::Nothing => (None, None),
        IgnoreRules::Patterns(patterns) => (None, Some(patterns.clone())),
        IgnoreRules::IgnoreFile { dockerfile } => {
            let applied = ignore_file::find(&root, dockerfile.as_deref())?;
            keep.extend(applied.paths(&root));
            applied.ignore_file.unzip()
        }
    };
    let id = written::id_of(&root).map_err(failed("cannot read its metadata", b"."))?;
    let mut written: Vec<_> = options.written.iter().filter_map(|path| path.in_directory(id)).collect();
    written.extend(written::from_above(path, id, &options.written));
    let filter = TreeFilter::from_patterns(None, patterns.filter(|list| !list.is_empty()));
    let selection = WalkSelection { filter, keep: &keep, written: &options.written };
    let (entries, any_hidden) = descend::list(&root, &selection, written)?;
    let is_kept = |entry: &WalkEntry| {
        keep.contains(&entry.path) || (entry.is_dir() && selection.leads_to_kept(&entry.path))
    };
    let all_excluded = any_hidden && entries.iter().all(is_kept);
    Ok(WalkedTree { root, id, entries, ignore_file, all_excluded })
}

impl WalkedTree {
    /// Returns the device and inode of the directory.
    pub fn id(&self) -> (u64, u64) {
        self.id
    }

    /// Returns an opener for entries of this tree.
    pub fn opener(&self) -> TreeOpener<'_> {
        TreeOpener::new(&self.root)
    }

    /// Returns a reader for entries of this tree; each thread needs its own.
    pub fn reader(&self) -> DiskReader<'_> {
        DiskReader::new(self.opener())
    }

    /// Returns the sum of the sizes of all files.
    pub fn content_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.size).sum()
    }
}

impl WalkEntry {
    pub fn is_dir(&self) -> bool {
        self.kind == FileKind::Directory
    }

    pub fn name(&self) -> &[u8] {
        self.path.rsplit(|&byte| byte == b'/').next().unwrap_or(&self.path)
    }
}

/// Returns a path for messages: bytes that are not UTF-8 are replaced.
pub(crate) fn display_path(path: &[u8]) -> String {
    Path::new(OsStr::from_bytes(path)).display().to_string()
}

fn failed<'a>(action: &'static str, path: &'a [u8]) -> impl FnOnce(Errno) -> WalkError + 'a {
    move |errno| WalkError::Read { path: display_path(path), action, source: errno.into() }
}

#[cfg(test)]
mod tests;
