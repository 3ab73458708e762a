//! The files of a build as one tree: layers mounted at targets, where the deeper target wins.
//!
//! ```text
//! ContextTree (mounts) -- scan(context path) --> TreeSnapshot (entries with stat) -- open(index) --> content
//!       '-- resolve(path) --> entry, symbolic links followed inside the tree
//! ```
//!
//! A mount hides what a shallower mount has at its target. If the parent of a target is missing or not a
//! directory, the tree has a synthetic parent directory with mode 0755 and time 0, which contains only the
//! mounts below it. Symbolic links are entries like any other: a scan never follows one.

mod bounds;
mod browse;
mod directory;
mod entries;
mod identify;
mod image;
mod layer;
mod listing;
mod read;
mod resolve;
mod revalidate;
mod scan;
mod snapshot;
mod stored;
mod walk;

use std::os::fd::OwnedFd;
use std::sync::Arc;

use hearth_model::MountTarget;

use super::ContextError;
use super::port::{EntryKind, FileKind, Xattr};

pub use bounds::ScanBounds;
pub use browse::LocatedEntry;
pub use directory::DirectoryLayer;
pub use hearth_overlay::lower::EntryStat;
pub use identify::{CopySelection, CoveredEntries, IdentifiedTree, TreeIdentity};
pub use image::ImageLayer;
pub use resolve::{MAX_LINKS, NamedEntry};
pub use revalidate::ScanBaseline;
pub use snapshot::TreeSnapshot;
pub use stored::PackLayer;
pub use walk::{FileReader, TreeWalk, WalkedEntry};

#[cfg(test)]
use layer::EmptyLayer;
use layer::{TreeLayer, open_content};

pub(super) use hearth_pack::listing::path_order;

/// A layer and its mount target.
pub struct MountedLayer {
    target: MountTarget,
    layer: Arc<dyn TreeLayer>,
}

impl MountedLayer {
    pub(crate) fn directory(target: MountTarget, layer: DirectoryLayer) -> Self {
        Self { target, layer: Arc::new(layer) }
    }

    pub(crate) fn image(target: MountTarget, layer: ImageLayer) -> Self {
        Self { target, layer: Arc::new(layer) }
    }

    pub(crate) fn pack(target: MountTarget, layer: PackLayer) -> Self {
        Self { target, layer: Arc::new(layer) }
    }

    /// Mounts a directory without content.
    #[cfg(test)]
    pub(crate) fn empty(target: MountTarget) -> Self {
        Self { target, layer: Arc::new(EmptyLayer) }
    }
}

/// The union of the mounted layers of a build. Cheap to clone.
#[derive(Clone)]
pub struct ContextTree {
    mounts: Arc<[MountedLayer]>,
}

/// An entry of a layer, without its path.
#[derive(Clone, Debug)]
struct LayerEntry {
    kind: EntryKind,
    mode: u32,
    size: u64,
    mtime: i64,
    /// Number of hard links; 1 where it is unknown.
    links: u32,
    origin: EntryOrigin,
}

/// Source of an entry's content; also identifies the entry within one scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum EntryOrigin {
    /// A synthetic directory, which no layer contains.
    Synthetic,
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
    /// Entry of a pack that was uploaded by content.
    Pack {
        mount: u32,
        entry: u32,
    },
}

struct DirectoryChild {
    name: Box<[u8]>,
    found: LayerEntry,
}

/// The content of one directory.
#[derive(Default)]
struct DirectoryContent {
    children: Vec<DirectoryChild>,
    /// Extended attributes of the directory itself.
    xattrs: Vec<Xattr>,
    /// The open directory, if it is on disk.
    directory: Option<Arc<OwnedFd>>,
}

impl EntryOrigin {
    /// Returns the number of an entry of an image or a pack.
    const fn node(&self) -> Option<u32> {
        match *self {
            Self::Image { node, .. } | Self::Pack { entry: node, .. } => Some(node),
            Self::Synthetic | Self::Disk { .. } => None,
        }
    }

    /// Returns the number of the mount that contains the entry.
    const fn mount(&self) -> Option<u32> {
        match *self {
            Self::Disk { mount, .. } | Self::Image { mount, .. } | Self::Pack { mount, .. } => Some(mount),
            Self::Synthetic => None,
        }
    }
}

impl LayerEntry {
    const fn synthetic_directory() -> Self {
        Self {
            kind: FileKind::Directory,
            mode: 0o755,
            size: 0,
            mtime: 0,
            links: 1,
            origin: EntryOrigin::Synthetic,
        }
    }
}

impl ContextTree {
    /// Builds a tree from layers; the targets must be distinct.
    pub(crate) fn new(mut mounts: Vec<MountedLayer>) -> Result<Self, ContextError> {
        mounts.sort_by(|a, b| a.target.cmp(&b.target));
        if let Some(pair) = mounts.windows(2).find(|pair| pair[0].target == pair[1].target) {
            return Err(ContextError::DuplicateTarget { target: pair[0].target.clone() });
        }
        Ok(Self { mounts: mounts.into() })
    }

    /// Returns the deepest mount at or above `path`, an absolute path without the leading `/`, and the path
    /// relative to that mount.
    fn deepest_mount<'p>(&self, path: &'p [u8]) -> Option<(u32, &'p [u8])> {
        let covers = |(index, mounted): (usize, &MountedLayer)| {
            let below = below(bare(&mounted.target), path)?;
            Some((u32::try_from(index).ok()?, below))
        };
        self.mounts.iter().enumerate().filter_map(covers).min_by_key(|(_, below)| below.len())
    }

    fn layer(&self, mount: u32) -> &Arc<dyn TreeLayer> {
        &self.mounts[mount as usize].layer
    }

    /// Returns the mounts with targets strictly below `path`.
    fn mounts_below(&self, path: &[u8]) -> Vec<u32> {
        let indices = 0u32..;
        let strictly =
            |mounted: &MountedLayer| below(path, bare(&mounted.target)).is_some_and(|rest| !rest.is_empty());
        indices
            .zip(self.mounts.iter())
            .filter(|(_, mounted)| strictly(mounted))
            .map(|(index, _)| index)
            .collect()
    }
}

/// Returns a target without the leading `/`; empty is the root.
fn bare(target: &MountTarget) -> &[u8] {
    &target.as_str().as_bytes()[1..]
}

/// Returns `path` relative to `top`: empty when they are equal, `None` when `path` is not at or below `top`.
fn below<'p>(top: &[u8], path: &'p [u8]) -> Option<&'p [u8]> {
    if top.is_empty() {
        return Some(path);
    }
    let rest = path.strip_prefix(top)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix(b"/") }
}

/// Joins `directory` and `name` with a `/`, which is omitted if one of them is empty.
fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let slash: &[u8] = if directory.is_empty() || name.is_empty() { b"" } else { b"/" };
    [directory, slash, name].concat()
}

#[cfg(test)]
mod tests;
