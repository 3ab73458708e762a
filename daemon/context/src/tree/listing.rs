//! Directories of the tree, listed by other threads ahead of the walk that needs them, see
//! [`hearth_pack::ahead`].

use std::os::fd::OwnedFd;
use std::sync::Arc;

use hearth_overlay::lower::child_path;
use hearth_pack::prefetch::{PrefetchQueue, PrefetchWork};

use super::bounds::ScanBounds;
use super::{ContextTree, DirectoryChild, DirectoryContent, EntryOrigin, LayerEntry, bare, below};
use crate::ContextError;
use crate::port::{FileKind, Xattr};

/// Maximum weight of the listings that wait for the walk, counted in entries.
pub(super) const MAX_QUEUED_ENTRIES: usize = 8_000;
/// Weight of a waiting directory in addition to its entries.
const DIRECTORY_WEIGHT: usize = 8;
/// Depth down to which a directory stays open for listing its subdirectories. About as many directories are
/// open at once as the tree is deep.
const MAX_OPEN_DEPTH: usize = 64;

/// A directory to list.
pub(super) struct ListingRequest {
    /// Absolute path without the leading `/`.
    pub path: Vec<u8>,
    /// True if a layer contains the directory.
    pub backed: bool,
    /// Mounts with targets strictly below it.
    pub mounts: Vec<u32>,
    /// The open parent directory, and its mount.
    pub parent: Option<(u32, Arc<OwnedFd>)>,
}

/// A listed directory, sorted by name.
pub(super) struct ListedDirectory {
    pub children: Vec<DirectoryChild>,
    /// Ticket for the listing of each directory among the children, in order. `None` for a directory that is
    /// not scanned, or whose path is too long.
    pub directories: Vec<Option<usize>>,
    /// Extended attributes of the directory itself.
    pub xattrs: Vec<Xattr>,
}

/// Lists directories for one scan.
pub(super) struct DirectoryLister<'t> {
    pub tree: &'t ContextTree,
    /// Absolute path of the context, without the leading `/`.
    pub top: &'t [u8],
    pub bounds: &'t ScanBounds<'t>,
}

impl PrefetchWork for DirectoryLister<'_> {
    type Request = ListingRequest;
    type Output = Result<ListedDirectory, ContextError>;

    fn run_request(&self, wish: &ListingRequest, ahead: &PrefetchQueue<'_, Self>) -> Self::Output {
        let DirectoryContent { children, xattrs, directory } = self.tree.list_for_scan(wish)?;
        let wishes = self.child_requests(wish, &children, directory.as_ref());
        let asked: Vec<bool> = wishes.iter().map(Option::is_some).collect();
        let mut slots = ahead.request_all(wishes.into_iter().flatten().collect()).into_iter();
        let directories = asked.into_iter().map(|asked| if asked { slots.next() } else { None }).collect();
        Ok(ListedDirectory { children, directories, xattrs })
    }

    fn weight(listed: &Self::Output) -> usize {
        DIRECTORY_WEIGHT + listed.as_ref().map_or(0, |listed| listed.children.len())
    }

    fn after_panic() -> Self::Output {
        Err(ContextError::ShuttingDown)
    }
}

impl DirectoryLister<'_> {
    /// Returns one request for each directory among the children; `None` for a directory that is not scanned.
    fn child_requests(
        &self,
        wish: &ListingRequest,
        children: &[DirectoryChild],
        directory: Option<&Arc<OwnedFd>>,
    ) -> Vec<Option<ListingRequest>> {
        let is_deep = wish.path.iter().filter(|&&byte| byte == b'/').count() >= MAX_OPEN_DEPTH;
        let directory = directory.filter(|_| !is_deep);
        let directories = children.iter().filter(|child| child.found.kind == FileKind::Directory);
        directories
            .map(|child| {
                let path = child_path(&wish.path, &child.name).ok()?.into_vec();
                if below(self.top, &path).is_some_and(|inside| !self.bounds.includes(inside)) {
                    return None;
                }
                let mounts = if wish.mounts.is_empty() { Vec::new() } else { self.tree.mounts_below(&path) };
                let backed = child.found.origin != EntryOrigin::Synthetic || self.tree.is_mounted(&path);
                let parent = match child.found.origin {
                    EntryOrigin::Disk { mount, .. } => {
                        directory.map(|directory| (mount, Arc::clone(directory)))
                    }
                    _ => None,
                };
                Some(ListingRequest { path, backed, mounts, parent })
            })
            .collect()
    }
}

impl ContextTree {
    /// Lists a directory of the tree, in order.
    fn list_for_scan(&self, wish: &ListingRequest) -> Result<DirectoryContent, ContextError> {
        let mut listed = match self.deepest_mount(&wish.path) {
            Some((mount, inside)) if wish.backed => {
                // The parent directory helps only if it is of the same mount: the root of a mount has no name
                // in it.
                let parent = wish.parent.as_ref().filter(|(of, _)| *of == mount);
                self.children(mount, inside, parent.map(|(_, directory)| &**directory), &wish.path)?
            }
            _ => DirectoryContent::default(),
        };
        let children = &mut listed.children;
        children.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for &mount in &wish.mounts {
            let target = bare(&self.mounts[mount as usize].target);
            let rest = below(&wish.path, target).unwrap_or_default();
            let name = rest.split(|&byte| byte == b'/').next().unwrap_or_default();
            let position = children.binary_search_by(|child| child.name.as_ref().cmp(name));
            let found = if name.len() == rest.len() {
                self.mount_root(mount)?
            } else {
                match position {
                    // Parent of a mount target: a directory stays as it is; any other kind is replaced by a
                    // synthetic directory.
                    Ok(index) if children[index].found.kind == FileKind::Directory => continue,
                    _ => LayerEntry::synthetic_directory(),
                }
            };
            match position {
                Ok(index) => children[index].found = found,
                Err(index) => children.insert(index, DirectoryChild { name: name.into(), found }),
            }
        }
        Ok(listed)
    }
}
