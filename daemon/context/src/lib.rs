//! The build context: the files of a build as one tree, whatever their sources.
//!
//! ```text
//! room storage, project storage --.                         .-- files of the context   (FileTree)
//!                                 |--> ContextTree -- scan -|
//! packs, images: layers --> index-'                         '-- Dockerfile and its ignore file, read once
//! ```
//!
//! `storage` opens the room's directories and never leaves them; `layers` makes image layers readable; `tree` combines
//! both under their mount targets; `prepare` does all of it for one build; `lineage` decides what a transfer may reuse
//! of an earlier one; `mounts` are the contexts mounted on this machine. The modules are private: what follows is all
//! that other crates use.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start threads where they need them"))]

mod compare;
mod error;
mod layers;
mod lineage;
mod mounts;
mod pack;
mod port;
mod prepare;
mod session_ids;
mod storage;
mod tree;

// Preparation: scans, hashes and names all files of one build.
pub use error::ContextError;
pub use prepare::{
    ContextMount, ContextOptions, ContextPreparer, ContextRequest, DockerfileParser, MAX_DOCKERFILE,
    OpenedImage, OpenedPack, ScannedContext,
};
pub use tree::{CopySelection, TreeIdentity};

// Files of a build, as the build backend reads them.
pub use port::{
    ContextFiles, EntryKind, FileKind, FileTree, NoTransferWatch, SessionName, SpecialFile, TransferWatch,
    TreeEntry, Xattr,
};
pub use prepare::MemoryTree;

// Trees: lists, reads and compares single files without a scan.
pub use compare::compare_trees;
pub use hearth_overlay::union::TreeDifference;
pub use hearth_pack::identity::ContentHash;
pub use hearth_pack::listing::path_order;
pub use tree::{ContextTree, EntryStat, FileReader, LocatedEntry, TreeSnapshot, TreeWalk, WalkedEntry};

// Room storage and project storage: reads, lists, writes and removes files, and never leaves the storage.
pub use storage::{
    StorageEntry, StorageError, StorageListing, StorageRoot, StorageRoots, StorageWriter, WriteOptions,
};

// Layers of images: checks them, and makes them readable.
pub use layers::{
    ImageNodeStat, ImageTree, LayerBlob, LayerCache, LayerCompression, LayerError, LayerFacts, LayerFault,
    LayerInspection, LayerInspector, LayerLimits, LayerRefusal, LayerVerdict,
};

// Packs that were uploaded by content.
pub use pack::{ContentPiece, PackContentReader, PackContentSource, PackTree};

// Contexts that are mounted on this machine.
pub use mounts::{MountError, MountRecord, MountRequest, MountState, MountedContexts, mount_points_below};

#[cfg(test)]
mod tests;
