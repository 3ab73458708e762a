//! Directories of the tree, listed by other threads ahead of the walk that needs them, see
//! [`hearth_pack::ahead`].

use std::os::fd::OwnedFd;
use std::sync::Arc;

use hearth_pack::ahead::{Ahead, Work};

use super::bounds::Bounds;
use super::directory::child_path;
use super::{Child, Children, Found, Origin, Tree, bare, below};
use crate::context::ContextError;
use crate::context::port::{EntryKind, Xattr};

/// Maximum weight of the listings that wait for the walk, counted in entries.
pub(super) const AHEAD: usize = 8_000;
/// Weight of a waiting directory in addition to its entries.
const DIRECTORY: usize = 8;
/// Depth down to which a directory stays open for listing its subdirectories. About as many directories are
/// open at once as the tree is deep.
const HELD_DEPTH: usize = 64;

/// A directory to list.
pub(super) struct Wish {
    /// Absolute path without the leading `/`.
    pub path: Vec<u8>,
    /// True if a layer contains the directory.
    pub backed: bool,
    /// Mounts with targets strictly below it.
    pub mounts: Vec<u32>,
    /// The open parent directory, and its mount.
    pub above: Option<(u32, Arc<OwnedFd>)>,
}

/// A listed directory, sorted by name.
pub(super) struct Listed {
    pub children: Vec<Child>,
    /// Ticket for the listing of each directory among the children, in order. `None` for a directory that is
    /// not scanned, or whose path is too long.
    pub directories: Vec<Option<usize>>,
    /// Extended attributes of the directory itself.
    pub xattrs: Vec<Xattr>,
}

/// Lists directories for one scan.
pub(super) struct Listings<'t> {
    pub tree: &'t Tree,
    /// Absolute path of the context, without the leading `/`.
    pub top: &'t [u8],
    pub bounds: &'t Bounds<'t>,
}

impl Work for Listings<'_> {
    type Wish = Wish;
    type Done = Result<Listed, ContextError>;

    fn work(&self, wish: &Wish, ahead: &Ahead<'_, Self>) -> Self::Done {
        let Children { children, xattrs, directory } = self.tree.list(wish)?;
        let wishes = self.wishes(wish, &children, directory.as_ref());
        let asked: Vec<bool> = wishes.iter().map(Option::is_some).collect();
        let mut slots = ahead.ask_all(wishes.into_iter().flatten().collect()).into_iter();
        let directories = asked.into_iter().map(|asked| if asked { slots.next() } else { None }).collect();
        Ok(Listed { children, directories, xattrs })
    }

    fn weight(listed: &Self::Done) -> usize {
        DIRECTORY + listed.as_ref().map_or(0, |listed| listed.children.len())
    }

    fn lost() -> Self::Done {
        Err(ContextError::Ending)
    }
}

impl Listings<'_> {
    /// Returns one request for each directory among the children; `None` for a directory that is not scanned.
    fn wishes(&self, wish: &Wish, children: &[Child], directory: Option<&Arc<OwnedFd>>) -> Vec<Option<Wish>> {
        let is_deep = wish.path.iter().filter(|&&byte| byte == b'/').count() >= HELD_DEPTH;
        let directory = directory.filter(|_| !is_deep);
        let directories = children.iter().filter(|child| child.found.kind == EntryKind::Directory);
        directories
            .map(|child| {
                let path = child_path(&wish.path, &child.name).ok()?;
                if below(self.top, &path).is_some_and(|inside| !self.bounds.hold(inside)) {
                    return None;
                }
                let mounts = if wish.mounts.is_empty() { Vec::new() } else { self.tree.mounts_below(&path) };
                let backed = child.found.origin != Origin::Made || self.tree.is_mounted(&path);
                let above = match child.found.origin {
                    Origin::Disk { mount, .. } => directory.map(|directory| (mount, Arc::clone(directory))),
                    _ => None,
                };
                Some(Wish { path, backed, mounts, above })
            })
            .collect()
    }
}

impl Tree {
    /// Lists a directory of the tree, in order.
    fn list(&self, wish: &Wish) -> Result<Children, ContextError> {
        let mut listed = match self.covering(&wish.path) {
            Some((mount, inside)) if wish.backed => {
                // The parent directory helps only if it is of the same mount: the root of a mount has no name
                // in it.
                let above = wish.above.as_ref().filter(|(of, _)| *of == mount);
                self.children(mount, inside, above.map(|(_, directory)| &**directory), &wish.path)?
            }
            _ => Children::default(),
        };
        let children = &mut listed.children;
        children.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for &mount in &wish.mounts {
            let target = bare(&self.mounts[mount as usize].target);
            let rest = below(&wish.path, target).unwrap_or_default();
            let name = rest.split(|&byte| byte == b'/').next().unwrap_or_default();
            let place = children.binary_search_by(|child| child.name.as_ref().cmp(name));
            let found = if name.len() == rest.len() {
                self.mount_root(mount)?
            } else {
                match place {
                    // Parent of a mount target: a directory stays as it is; any other kind is replaced by a
                    // synthetic directory.
                    Ok(index) if children[index].found.kind == EntryKind::Directory => continue,
                    _ => Found::made_directory(),
                }
            };
            match place {
                Ok(index) => children[index].found = found,
                Err(index) => children.insert(index, Child { name: name.into(), found }),
            }
        }
        Ok(listed)
    }
}
