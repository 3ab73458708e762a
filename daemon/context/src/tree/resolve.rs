//! Path resolution: symbolic links are followed inside the tree and never out of it.

use std::collections::VecDeque;
use std::io::Read as _;
use std::sync::Arc;

use hearth_model::MountTarget;

use super::entries::ScannedEntries;
use super::scan::absolute;
use super::snapshot::kind_name;
use super::{ContextTree, EntryOrigin, LayerEntry, TreeSnapshot, bare, joined};
use crate::ContextError;
use crate::error::text;
use crate::port::{EntryKind, FileKind, FileTree as _};

/// Maximum number of symbolic links on one path.
pub const MAX_LINKS: usize = 40;

/// A tree that [`resolve`] can walk. Paths are relative to its root, which is also the root for symbolic
/// links.
pub(super) trait PathLookup {
    type Node: Clone;
    fn root(&self) -> Result<Self::Node, ContextError>;
    fn child(
        &self,
        directory: &[u8],
        node: &Self::Node,
        name: &[u8],
    ) -> Result<Option<Self::Node>, ContextError>;
    fn kind<'n>(&'n self, node: &'n Self::Node) -> EntryKind<&'n [u8]>;
    /// Reports whether a missing path is at least below a mount.
    fn is_inside(&self, path: &[u8]) -> bool;
    /// Returns a path in the form that users write.
    fn shown(&self, path: &[u8]) -> String;
}

/// Result of [`ContextTree::entry_of`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedEntry {
    Absent,
    File(Vec<u8>),
    /// A symbolic link, a directory, a file that is never opened (FIFO, socket, device), or a file above the
    /// limit.
    Other,
}

/// A path without symbolic links, and its node.
pub(super) type ResolvedPath<N> = (Vec<u8>, N);

/// Resolves `path`. `None` when nothing is there and no symbolic link was on the path.
pub(super) fn resolve<N: PathLookup>(
    names: &N,
    path: &[u8],
) -> Result<Option<ResolvedPath<N::Node>>, ContextError> {
    let split = |path: &[u8]| -> Vec<Box<[u8]>> { path.split(|&byte| byte == b'/').map(Box::from).collect() };
    let mut pending: VecDeque<Box<[u8]>> = split(path).into();
    let mut nodes = vec![names.root()?];
    let mut lengths = Vec::new();
    let mut current: Vec<u8> = Vec::new();
    let mut first_link: Option<(String, String)> = None;
    let mut links = 0;
    while let Some(name) = pending.pop_front() {
        let out = |first_link: Option<(String, String)>| match first_link {
            Some((path, link)) => ContextError::LinkOutOfTree { path, link },
            None => ContextError::LinkOutOfTree { path: names.shown(path), link: "..".to_owned() },
        };
        match name.as_ref() {
            b"" | b"." => continue,
            b".." => {
                let Some(length) = lengths.pop() else { return Err(out(first_link)) };
                nodes.pop();
                current.truncate(length);
                continue;
            }
            _ => {}
        }
        let Some(node) = nodes.last() else { return Ok(None) };
        let child = match names.kind(node) {
            FileKind::Directory => names.child(&current, node, &name)?,
            _ => None,
        };
        let below = joined(&current, &name);
        let Some(child) = child else {
            return match first_link {
                None => Ok(None),
                Some((path, _)) if names.is_inside(&below) => Err(ContextError::DanglingLink { path }),
                link => Err(out(link)),
            };
        };
        if let FileKind::Symlink(target) = names.kind(&child) {
            links += 1;
            if links > MAX_LINKS {
                return Err(ContextError::LinkLoop { path: names.shown(path) });
            }
            first_link.get_or_insert_with(|| (names.shown(&below), text(target)));
            if target.starts_with(b"/") {
                nodes.truncate(1);
                lengths.clear();
                current.clear();
            }
            for part in split(target).into_iter().rev() {
                pending.push_front(part);
            }
            continue;
        }
        lengths.push(current.len());
        current = below;
        nodes.push(child);
    }
    Ok(nodes.pop().map(|node| (current, node)))
}

impl PathLookup for ContextTree {
    type Node = LayerEntry;

    fn root(&self) -> Result<LayerEntry, ContextError> {
        match self.mounts.iter().position(|mounted| bare(&mounted.target).is_empty()) {
            Some(mount) => self.mount_root(u32::try_from(mount).unwrap_or(u32::MAX)),
            None => Ok(LayerEntry::synthetic_directory()),
        }
    }

    fn child(
        &self,
        directory: &[u8],
        node: &LayerEntry,
        name: &[u8],
    ) -> Result<Option<LayerEntry>, ContextError> {
        let path = joined(directory, name);
        let exact = self.mounts.iter().position(|mounted| bare(&mounted.target) == path);
        if let Some(mount) = exact {
            return self.mount_root(u32::try_from(mount).unwrap_or(u32::MAX)).map(Some);
        }
        let found = match self.deepest_mount(&path) {
            Some((mount, inside)) if node.origin != EntryOrigin::Synthetic => {
                self.lookup_in(mount, inside).map_err(|errno| ContextError::at(&absolute(&path), errno))?
            }
            _ => None,
        };
        let is_directory = found.as_ref().is_some_and(|found| found.kind == FileKind::Directory);
        if !is_directory && !self.mounts_below(&path).is_empty() {
            return Ok(Some(LayerEntry::synthetic_directory()));
        }
        Ok(found)
    }

    fn kind<'n>(&'n self, node: &'n LayerEntry) -> EntryKind<&'n [u8]> {
        node.kind.borrowed()
    }

    fn is_inside(&self, path: &[u8]) -> bool {
        self.deepest_mount(path).is_some()
    }

    fn shown(&self, path: &[u8]) -> String {
        text(&absolute(path))
    }
}

/// The node is the index of an entry; `None` is the root.
impl PathLookup for TreeSnapshot {
    type Node = Option<usize>;

    fn root(&self) -> Result<Option<usize>, ContextError> {
        Ok(None)
    }

    fn child(
        &self,
        directory: &[u8],
        _: &Option<usize>,
        name: &[u8],
    ) -> Result<Option<Option<usize>>, ContextError> {
        Ok(self.find(&joined(directory, name)).map(Some))
    }

    fn kind<'n>(&'n self, node: &'n Option<usize>) -> EntryKind<&'n [u8]> {
        node.map_or(FileKind::Directory, |index| self.entry(index).kind)
    }

    fn is_inside(&self, _: &[u8]) -> bool {
        true
    }

    fn shown(&self, path: &[u8]) -> String {
        text(path)
    }
}

impl ContextTree {
    /// Returns the directory that a context path names, and whether a layer contains it.
    pub(super) fn context_directory(&self, path: &MountTarget) -> Result<(Vec<u8>, bool), ContextError> {
        let Some((canonical, found)) = resolve(self, bare(path))? else {
            return Err(ContextError::ContextPathNotFound { path: path.clone() });
        };
        if found.kind != FileKind::Directory {
            return Err(ContextError::ContextNotADirectory { path: path.clone() });
        }
        let backed = found.origin != EntryOrigin::Synthetic
            || self.mounts.iter().any(|m| bare(&m.target) == canonical);
        // `/` above all mounts is synthetic; without a mount below it, it does not exist. A tree without mounts is empty.
        if !backed && !self.mounts.is_empty() && self.mounts_below(&canonical).is_empty() {
            return Err(ContextError::ContextPathNotFound { path: path.clone() });
        }
        Ok((canonical, backed))
    }

    /// Reads a whole regular file, following symbolic links inside the tree. `None` when nothing is at
    /// `path`. A FIFO, socket or device is never opened.
    pub(crate) fn read_small(&self, path: &MountTarget, limit: u64) -> Result<Option<Vec<u8>>, ContextError> {
        let Some((canonical, found)) = resolve(self, bare(path))? else { return Ok(None) };
        let path_text = path.to_string();
        if found.kind != FileKind::File(()) {
            return Err(ContextError::NotAFile { path: path_text, what: kind_name(&found.kind) });
        }
        if found.size > limit {
            return Err(ContextError::TooLarge { path: path_text, size: found.size, limit });
        }
        let size = found.size;
        let content = self.open_found(&canonical, &found)?;
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        content.take(limit).read_to_end(&mut bytes).map_err(|error| read_error(error, path_text))?;
        Ok(Some(bytes))
    }

    /// Reads the entry of a directory with a given name, without following symbolic links: the content of a
    /// regular file up to a limit, or the fact that it is another kind.
    pub(crate) fn entry_of(
        &self,
        directory: &MountTarget,
        name: &[u8],
        limit: u64,
    ) -> Result<NamedEntry, ContextError> {
        let (top, _) = self.context_directory(directory)?;
        let path = joined(&top, name);
        let found = match resolve(self, &top)? {
            Some((_, node)) => self.child(&top, &node, name)?,
            None => None,
        };
        let Some(found) = found else { return Ok(NamedEntry::Absent) };
        if found.kind != FileKind::File(()) || found.size > limit {
            return Ok(NamedEntry::Other);
        }
        let mut bytes = Vec::new();
        let content = self.open_found(&path, &found)?;
        content
            .take(limit)
            .read_to_end(&mut bytes)
            .map_err(|error| read_error(error, text(&absolute(&path))))?;
        Ok(NamedEntry::File(bytes))
    }

    /// Reports whether `path` is a directory, following symbolic links inside the tree.
    pub(crate) fn is_directory(&self, path: &MountTarget) -> Result<bool, ContextError> {
        Ok(resolve(self, bare(path))?.is_some_and(|(_, found)| found.kind == FileKind::Directory))
    }

    fn open_found(
        &self,
        path: &[u8],
        found: &LayerEntry,
    ) -> Result<Box<dyn std::io::Read + Send>, ContextError> {
        let (top, name) = match path.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (&[][..], path),
        };
        let mut single = ScannedEntries::default();
        single.push(name, found);
        let single = TreeSnapshot::new(self.clone(), top.to_vec(), Arc::new(single));
        single.open(0).map_err(|error| read_error(error, text(&absolute(path))))
    }
}

/// Unwraps the error that a reader of a [`TreeSnapshot`] wrapped.
fn read_error(error: std::io::Error, path: String) -> ContextError {
    match error.downcast::<ContextError>() {
        Ok(error) => error,
        Err(source) => ContextError::Io { path, source },
    }
}

impl TreeSnapshot {
    /// Fails if reading `path` is harmful for a reader that follows symbolic links inside this tree: a link
    /// that leads out, a FIFO, a device. A directory and a missing file are accepted: both count as absent.
    pub(crate) fn check_readable(&self, path: &[u8], limit: u64) -> Result<(), ContextError> {
        let Some((_, Some(index))) = resolve(self, path)? else { return Ok(()) };
        let entry = self.entry(index);
        match &entry.kind {
            FileKind::File(()) | FileKind::HardLink(_) if entry.size > limit => {
                Err(ContextError::TooLarge { path: text(path), size: entry.size, limit })
            }
            FileKind::File(()) | FileKind::HardLink(_) | FileKind::Directory => Ok(()),
            kind => Err(ContextError::NotAFile { path: text(path), what: kind_name(kind) }),
        }
    }
}
