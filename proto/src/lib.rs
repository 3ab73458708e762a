//! The wire of Hearth.
//!
//! - [`v1`]: the generated `hearth.v1` messages, clients and servers.
//! - [`status`]: how an error of the API travels in a gRPC status.
//! - [`value`]: the values that cross the wire as text and are parsed once, at the border:
//!   references, digests, mounts. Below the border a malformed one cannot exist.

pub mod status;
pub mod value;

/// Generated from `hearth/v1/*.proto`; see `tests/generated.rs` for the command that refreshes it.
#[allow(clippy::all, clippy::allow_attributes_without_reason, rust_2018_idioms, reason = "generated code")]
pub mod v1 {
    include!("gen/hearth.v1.rs");
}

/// The descriptors of `hearth.v1`, served by gRPC reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/hearth.v1.bin");

/// Largest gRPC message either side accepts. Streams carry chunks far below it.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// Size of the chunks in which streams carry file content.
pub const CHUNK_BYTES: usize = 1024 * 1024;
