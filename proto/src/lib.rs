//! The wire format of Hearth.
//!
//! - [`v1`]: the generated `hearth.v1` messages, clients and servers.
//! - [`error_code`]: the catalogue of error codes.
//! - [`status`]: encoding of an API error in a gRPC status.
//! - [`value`]: values that cross the wire as text (references, digests, mounts), from their own crate.

mod mount;
pub mod status;

pub use hearth_value::{self as value, error_code};

/// Generated from `hearth/v1/*.proto`; see `tests/generated.rs` for the command that refreshes it.
#[allow(clippy::all, clippy::allow_attributes_without_reason, rust_2018_idioms, reason = "generated code")]
pub mod v1 {
    include!("gen/hearth.v1.rs");
}

/// Descriptors of `hearth.v1`, which gRPC reflection serves.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/hearth.v1.bin");

/// Maximum size in bytes of a gRPC message on either side. Streams use far smaller chunks.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// Size in bytes of the chunks in which streams carry file content.
pub const CHUNK_BYTES: usize = 1024 * 1024;
