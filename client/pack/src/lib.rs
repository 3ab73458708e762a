//! Turns a directory into an OCI archive, and reads such archives.
//!
//! The same tree gives the same bytes on any machine, at any time, as any user, with any number
//! of cores. From the inside out:
//!
//! - [`ignore`]: Docker's ignore rules.
//! - [`walk`]: a directory as a sorted list of entries.
//! - [`identity`]: what makes two trees the same, and the hashes of content.
//! - [`listing`]: a tree as one list that is sent and kept.
//! - [`layer`]: that list as one tar layer, hashed and compressed as it is read.
//! - [`image`]: config, manifest and index.
//! - [`archive`]: the OCI image layout in a tar, written and read.
//! - [`base`]: the image that a pack stands on.
//! - [`pack()`]: all of it in one go.
//! - [`remote`]: other registries, asked and pushed to.
//! - [`cache`]: what earlier packs learned.
//! - [`ahead`]: how a walk has directories listed before it comes to them.
//!
//! Everything but [`remote`] blocks; a caller with an event loop gives it a thread.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start threads where they need them"))]

pub mod ahead;
pub mod archive;
pub mod base;
pub mod cache;
pub mod identity;
pub mod ignore;
pub mod image;
pub mod layer;
pub mod listing;
mod new_file;
mod pack;
pub mod pieces;
pub mod remote;
pub mod sorted_map;
mod summary;
pub mod walk;
mod workers;

pub use base::{Base, BaseError, BlobCache};
pub use pack::{PackError, PackOptions, Packed, Progress, pack, pack_source};
pub use summary::{Summary, Suspicious};
