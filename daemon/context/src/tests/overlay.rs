//! Tests of the overlay against a model in memory, and mounted against the kernel's own overlay.

mod core;
mod directed;
mod disk;
mod interleaved;
mod listings;
mod memory;
mod mounted;
mod operation;
mod random;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hearth_overlay::union::OverlayFs;
use hearth_overlay::union::UpperLayer;

use crate::storage::StorageRoot;
use crate::tree::{ContextTree, DirectoryLayer, MountedLayer};

/// A directory that contains a lower and an upper directory.
struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["lower", "upper"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        Self { directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn lower(&self) -> PathBuf {
        self.path("lower")
    }

    fn tree(&self) -> ContextTree {
        tree_of(&self.lower())
    }

    /// Opens the overlay as a daemon does, also after an earlier daemon used it.
    fn union(&self) -> Arc<OverlayFs> {
        let upper = UpperLayer::open(&self.path("upper")).unwrap();
        Arc::new(OverlayFs::new(self.tree(), b"", Some(upper)).unwrap())
    }

    fn read_only(&self) -> Arc<OverlayFs> {
        Arc::new(OverlayFs::new(self.tree(), b"", None).unwrap())
    }
}

fn tree_of(directory: &Path) -> ContextTree {
    let root = StorageRoot::open(directory).unwrap();
    let layer = DirectoryLayer::open(&root, Path::new("")).unwrap();
    ContextTree::new(vec![MountedLayer::directory("/".parse().unwrap(), layer)]).unwrap()
}
