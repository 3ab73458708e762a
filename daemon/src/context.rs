//! The build context: the files of a build as one tree, whatever they come from.
//!
//! ```text
//! room storage, project storage --.                 .-- files of the context   (port::FileTree)
//!                                 |--> Tree -- scan -|
//! packs, images: layers --> index-'                 '-- Dockerfile and its ignore file, read once
//! ```
//!
//! [`storage`] opens the room's directories and never leaves them; [`layers`] makes image layers
//! readable; [`tree`] unites both under their mount targets; [`prepare`] does all of it for one
//! build; [`lineage`] decides what a transfer may reuse of an earlier one.

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
