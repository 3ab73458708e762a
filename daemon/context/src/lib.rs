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
//! decides what a transfer may reuse of an earlier one; [`mounts`] are the contexts mounted on this machine.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start threads where they need them"))]

pub mod compare;
pub mod error;
pub mod layers;
pub mod lineage;
pub mod mounts;
pub mod pack;
pub mod port;
pub mod prepare;
mod session_ids;
pub mod storage;
pub mod tree;

pub use error::ContextError;
pub use prepare::{
    ContextMount, ContextOptions, ContextPreparer, ContextRequest, MAX_DOCKERFILE, MemoryTree, OpenedImage,
    OpenedPack, ScannedContext,
};

#[cfg(test)]
mod tests;
