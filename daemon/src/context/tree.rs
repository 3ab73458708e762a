//! The files of a build as one tree: layers under their mount targets, the deeper target wins.
//!
//! ```text
//! Tree (mounts) -- scan(context path) --> Snapshot (entries with stat) -- open(index) --> content
//!       '-- resolve(path) --> what is there, links followed inside the tree
//! ```
//!
//! A mount hides what a shallower one has at its target. A target under a missing parent, or under
//! something that is no directory, gets parents of mode 0755 and time 0 that hold only what is
//! mounted below them. Links are entries like any other: a scan never follows one.

mod again;
mod bounds;
mod browse;
mod directory;
mod entries;
mod identify;
mod image;
mod listing;
mod read;
mod resolve;
mod scan;
mod show;
mod snapshot;
mod stored;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::ContextError;
use super::port::{EntryKind, Xattr};
use crate::model::MountTarget;

pub use again::Known;
pub use bounds::Bounds;
pub use browse::{Content, LayerFile, Located, MAX_NAMES, Seen, Source, read_xattr};
pub use directory::DirectoryLayer;
pub use identify::{Covered, Identified, Selection, TreeIdentity};
pub use image::ImageLayer;
pub use resolve::{MAX_LINKS, NamedEntry};
pub use show::{Reader, Shown, Walk};
pub use snapshot::Snapshot;
pub use stored::StoredLayer;

pub(super) use entries::path_order;

/// A layer and where it appears.
pub struct Mounted {
    pub target: MountTarget,
    pub layer: Layer,
}

/// One source of files.
pub enum Layer {
    Directory(DirectoryLayer),
    Image(ImageLayer),
    Stored(StoredLayer),
    Empty,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Tree {
    mounts: Arc<[Mounted]>,
}

/// What a layer has at a path.
#[derive(Clone, Debug)]
struct Found {
    kind: EntryKind,
    mode: u32,
    size: u64,
    mtime: i64,
    /// Names of the same file; 1 where nobody knows.
    links: u32,
    origin: Origin,
}

/// Where content comes from, and by what it is known again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Made by the union itself.
    Made,
    Disk {
        mount: u32,
        device: u64,
        inode: u64,
        changed: i64,
    },
    Image {
        mount: u32,
        node: u32,
    },
    /// Entry of a tree that was sent as a pack.
    Stored {
        mount: u32,
        entry: u32,
    },
}

struct Child {
    name: Box<[u8]>,
    found: Found,
}

/// What a directory holds.
#[derive(Default)]
struct Children {
    children: Vec<Child>,
    /// Of the directory itself.
    xattrs: Vec<Xattr>,
    /// Itself, where it is one on disk.
    directory: Option<Arc<OwnedFd>>,
}

impl Found {
    const fn made_directory() -> Self {
        Self { kind: EntryKind::Directory, mode: 0o755, size: 0, mtime: 0, links: 1, origin: Origin::Made }
    }
}

impl Tree {
    /// Unites layers; targets must be distinct.
    pub fn new(mut mounts: Vec<Mounted>) -> Result<Self, ContextError> {
        mounts.sort_by(|a, b| a.target.cmp(&b.target));
        if let Some(pair) = mounts.windows(2).find(|pair| pair[0].target == pair[1].target) {
            return Err(ContextError::DuplicateTarget { target: pair[0].target.clone() });
        }
        Ok(Self { mounts: mounts.into() })
    }

    /// The deepest mount at or above `path`, an absolute path without `/` at its start, and the
    /// path as that layer sees it.
    fn covering<'p>(&self, path: &'p [u8]) -> Option<(u32, &'p [u8])> {
        let covers = |(index, mounted): (usize, &Mounted)| {
            let below = below(bare(&mounted.target), path)?;
            Some((u32::try_from(index).ok()?, below))
        };
        self.mounts.iter().enumerate().filter_map(covers).min_by_key(|(_, below)| below.len())
    }

    fn layer(&self, mount: u32) -> &Layer {
        &self.mounts[mount as usize].layer
    }

    /// The targets strictly below `path`.
    fn mounts_below(&self, path: &[u8]) -> Vec<u32> {
        let indices = 0u32..;
        let strictly =
            |mounted: &Mounted| below(path, bare(&mounted.target)).is_some_and(|rest| !rest.is_empty());
        indices
            .zip(self.mounts.iter())
            .filter(|(_, mounted)| strictly(mounted))
            .map(|(index, _)| index)
            .collect()
    }
}

/// A target without the `/` at its start; empty is the root.
fn bare(target: &MountTarget) -> &[u8] {
    &target.as_str().as_bytes()[1..]
}

/// `path` seen from `top`: empty when they are the same, none when it is not at or below.
fn below<'p>(top: &[u8], path: &'p [u8]) -> Option<&'p [u8]> {
    if top.is_empty() {
        return Some(path);
    }
    let rest = path.strip_prefix(top)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"/") }
}

/// `directory` and `name` with a `/` between, which an empty side makes needless.
fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if directory.is_empty() || name.is_empty() { b"" } else { b"/" };
    [directory, slash, name].concat()
}

#[cfg(test)]
mod tests;
