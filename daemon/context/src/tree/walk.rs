//! Streaming access to the tree for users: walks without a scan in memory, and reads of single files.

use std::collections::btree_map;
use std::io::Read as _;

use hearth_overlay::lower::{EntryStat, LowerFile, LowerTree as _, ReadAt, child_path};
use hearth_pack::identity::ContentHash;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::read::{VerifiedFile, file_stamp};
use super::scan::absolute;
use super::{ContextTree, below};
use crate::ContextError;
use crate::error::text;

/// Iterator over a tree in the order of its digest: depth first, a directory before its content, names sorted
/// by their bytes. One directory of each level is in memory. Symbolic links are returned, never followed.
pub struct TreeWalk<'t> {
    tree: &'t ContextTree,
    top: Vec<u8>,
    recursive: bool,
    levels: Vec<WalkLevel>,
    failed: bool,
}

/// A directory and its remaining entries.
type WalkLevel = (Vec<u8>, btree_map::IntoIter<Box<[u8]>, EntryStat>);

/// One entry of a walk.
pub struct WalkedEntry {
    /// Path relative to the top of the walk.
    pub path: Vec<u8>,
    /// Path from the root of the tree.
    pub tree_path: Box<[u8]>,
    pub stat: EntryStat,
    pub target: Option<Box<[u8]>>,
}

/// Sequential reader of one file.
pub struct FileReader {
    path: String,
    content: ReaderSource,
}

enum ReaderSource {
    /// Fails if the file changes before its end.
    File(VerifiedFile),
    Archived(Box<dyn ReadAt>, u64),
}

fn failed_at(path: &[u8]) -> impl Fn(Errno) -> ContextError + '_ {
    |errno| ContextError::at(&absolute(path), errno)
}

impl ContextTree {
    /// Walks everything below the directory `path`, or only its direct children.
    pub fn walk_below(&self, path: &[u8], recursive: bool) -> Result<TreeWalk<'_>, ContextError> {
        let first = self.list_directory(path).map_err(failed_at(path))?;
        let levels = vec![(path.to_vec(), first.into_iter())];
        Ok(TreeWalk { tree: self, top: path.to_vec(), recursive, levels, failed: false })
    }

    /// Describes the entry at `whole` as a walk does. `None` if it vanished meanwhile.
    pub fn walked_entry(
        &self,
        top: &[u8],
        whole: Box<[u8]>,
        seen: EntryStat,
    ) -> Result<Option<WalkedEntry>, ContextError> {
        let target = match seen.attr.kind {
            FileType::Symlink => match self.link_target(&whole) {
                Ok(target) => Some(target),
                // Removed or replaced by another kind since the directory was read.
                Err(Errno::NOENT | Errno::INVAL) => return Ok(None),
                Err(errno) => return Err(failed_at(&whole)(errno)),
            },
            _ => None,
        };
        let path = below(top, &whole).unwrap_or(&whole).to_vec();
        Ok(Some(WalkedEntry { path, tree_path: whole, stat: seen, target }))
    }

    /// Opens the regular file at `path`; no other kind of file is ever opened.
    pub fn reader(&self, path: &[u8]) -> Result<FileReader, ContextError> {
        let path_text = text(&absolute(path));
        let failed = |errno| ContextError::at(&absolute(path), errno);
        let kind = self.stat(path).map_err(failed)?.map(|seen| seen.attr.kind);
        if let Some(what) = kind.and_then(name_of_no_file) {
            return Err(ContextError::NotAFile { path: path_text, what });
        }
        let (mount, inside) = self.deepest_mount(path).ok_or_else(|| failed(Errno::NOENT))?;
        let content = match self.layer(mount).as_directory() {
            Some(layer) => {
                let (file, stat) = layer.open_file(inside).map_err(failed)?;
                ReaderSource::File(VerifiedFile::new(file, file_stamp(&stat), path_text.clone()))
            }
            None => match self.open_content(path).map_err(failed)? {
                LowerFile::Archived(file) => ReaderSource::Archived(file, 0),
                LowerFile::Disk(_) => return Err(failed(Errno::ISDIR)),
            },
        };
        Ok(FileReader { path: path_text, content })
    }

    /// Returns the hash of a file's content if it is known without reading the file.
    pub(crate) fn known_hash(&self, path: &[u8]) -> Option<ContentHash> {
        let (mount, inside) = self.deepest_mount(path)?;
        let layer = self.layer(mount);
        let found = layer.lookup(mount, inside).ok()??;
        found.origin.node().and_then(|node| layer.hashed_content(node)).map(|(hash, _)| hash)
    }
}

impl TreeWalk<'_> {
    fn step(&mut self) -> Result<Option<WalkedEntry>, ContextError> {
        while let Some((directory, entries)) = self.levels.last_mut() {
            let Some((name, seen)) = entries.next() else {
                self.levels.pop();
                continue;
            };
            let child = child_path(directory, &name).map_err(failed_at(directory))?;
            if self.recursive && seen.attr.kind == FileType::Directory {
                let entries = self.tree.list_directory(&child).map_err(failed_at(&child))?;
                self.levels.push((child.to_vec(), entries.into_iter()));
            }
            if let Some(entry) = self.tree.walked_entry(&self.top, child, seen)? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }
}

/// The iterator ends after an error.
impl Iterator for TreeWalk<'_> {
    type Item = Result<WalkedEntry, ContextError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let step = self.step().transpose();
        self.failed = matches!(step, Some(Err(_)));
        step
    }
}

impl FileReader {
    /// Fills the buffer completely, except at the end of the file. Returns the number of bytes.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ContextError> {
        let mut done = 0;
        while done < buffer.len() {
            let read = match &mut self.content {
                ReaderSource::File(file) => file.read(&mut buffer[done..]),
                ReaderSource::Archived(file, at) => {
                    file.read_at(&mut buffer[done..], *at).inspect(|count| *at += *count as u64)
                }
            };
            match read {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(match error.downcast::<ContextError>() {
                        Ok(error) => error,
                        Err(source) => ContextError::Io { path: self.path.clone(), source },
                    });
                }
            }
        }
        Ok(done)
    }
}
/// Names a kind of file that has no content.
const fn name_of_no_file(kind: FileType) -> Option<&'static str> {
    match kind {
        FileType::RegularFile => None,
        FileType::Directory => Some("a directory"),
        FileType::Symlink => Some("a link"),
        FileType::Fifo => Some("a fifo"),
        FileType::Socket => Some("a socket"),
        FileType::CharacterDevice | FileType::BlockDevice => Some("a device"),
        FileType::Unknown => Some("a special file"),
    }
}
