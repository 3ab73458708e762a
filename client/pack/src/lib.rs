//! Turns a directory into an OCI archive, and reads such archives.
//!
//! The same tree gives the same bytes on any machine, at any time, as any user, with any number of cores. The
//! modules, from the inside out:
//!
//! - [`ignore`]: ignore rules of Docker.
//! - [`FileKind`]: kinds of files, with what belongs to each.
//! - [`walk`]: a directory as a sorted list of entries.
//! - [`identity`]: digests of trees and hashes of content.
//! - [`listing`]: a tree as one list that is sent and stored.
//! - [`pieces`]: the content of a tree in pieces, as it is sent to a room.
//! - [`layer`]: that tree as one tar layer, hashed and compressed as it is read.
//! - [`image`]: settings of an image as the user gives them; its documents are those of the crate `hearth_oci`.
//! - [`archive`]: the OCI image layout in a tar, written and read.
//! - [`base`]: the base image of a pack.
//! - [`pack()`]: all of this in one call.
//! - [`cache`]: results of earlier packs.
//! - [`prefetch`]: lists the directories of a walk in advance.
//!
//! Everything blocks; an async caller runs it on a thread.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start threads where they need them"))]

pub mod archive;
pub mod base;
pub mod cache;
mod file_kind;
pub mod identity;
pub mod ignore;
pub mod image;
pub mod layer;
pub mod link;
pub mod listing;
mod new_file;
mod pack;
pub mod pieces;
pub mod prefetch;
pub mod sorted_map;
mod summary;
pub mod walk;
mod workers;

pub use base::{BaseError, BaseImage, BlobCache};
pub use file_kind::{FileKind, SpecialFile};
pub use pack::{PackError, PackOptions, PackProgress, PackedImage, pack, pack_source};
pub use summary::{PackSummary, RARELY_PACKED, SuspiciousDir};
