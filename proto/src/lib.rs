//! The wire of Hearth.
//!

//! - [`value`]: the values that cross the wire as text and are parsed once, at the border:
//!   references, digests, mounts. Below the border a malformed one cannot exist.

pub mod value;

/// Largest gRPC message either side accepts. Streams carry chunks far below it.
pub const MAX_MESSAGE_BYTES: usize = 16 * 1024 * 1024;

/// Size of the chunks in which streams carry file content.
pub const CHUNK_BYTES: usize = 1024 * 1024;
