//! The build context: the files of a build as one tree, whatever their sources.
//!
//! ```text
//! room storage, project storage --.                         .-- files of the context   (port::FileTree)
//!                                 |--> ContextTree -- scan -|
//! packs, images: layers --> index-'                         '-- Dockerfile and its ignore file, read once
//! ```
//!
//! [`storage`] opens the room's directories and never leaves them; [`layers`] makes image layers readable;
//! [`tree`] combines both under their mount targets; [`prepare`] does all of it for one build; [`lineage`]
//! decides what a transfer may reuse of an earlier one; [`union`] is the union file system over such a tree,
//! [`fuse`] its kernel interface, and [`mounts`] the contexts mounted on this machine.

pub mod attr;
mod beneath;
pub mod compare;
pub mod error;
pub mod fuse;
pub mod layers;
pub mod lineage;
pub mod mounts;
pub mod port;
pub mod prepare;
pub mod storage;
pub mod tree;
pub mod union;
mod versions;

pub use error::ContextError;
pub use prepare::{
    ContextMount, ContextOptions, ContextRequest, Contexts, MAX_DOCKERFILE, MemoryTree, OpenedImage,
    OpenedPack, Prepared,
};
