//! An OCI image layout in a tar (`oci-layout`, `index.json`, `blobs/sha256/...`).
//!
//! - [`read`] reads an archive from an untrusted stream and passes on each verified blob.
//! - [`ImageFile`] opens an archive in a file, to take an image out of it; also one of the old `docker save`, and one
//!   that is compressed as a whole.
//! - [`copy_as_oci_archive`] makes an OCI archive of any of these.
//! - [`ArchiveLayout`] writes an archive: the same bytes for the same image, with a length known beforehand.

mod atomic_file;
mod decompress;
mod docker_save;
mod image_file;
pub(crate) mod raw;
mod read;
mod write;

use hearth_value::Digest;

pub use atomic_file::write_atomically;
pub use decompress::{copy_as_oci_archive, is_compressed};
pub(crate) use image_file::FileRange;
pub use image_file::ImageFile;
use read::read_error;
pub use read::{ArchiveSink, ReadArchive, read};
pub use write::{ArchiveLayout, BlobSource, OpenBlob};

/// Maximum size of `index.json`, `oci-layout`, a manifest or a config, in bytes.
const JSON_LIMIT: u64 = hearth_oci::MAX_DOCUMENT_BYTES as u64;

/// Error of reading an archive.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("the archive is truncated")]
    Truncated,
    #[error("not an OCI archive: {what}")]
    NotAnArchive { what: &'static str },
    #[error("not an OCI archive: it has no index.json")]
    NoIndex,
    #[error(
        "this is an archive of the old `docker save`, without index.json; save it with Docker 25 or newer, or with `skopeo copy docker-archive:OLD oci-archive:NEW`"
    )]
    DockerSave,
    #[error("the archive is damaged: bad {what} in a header")]
    Header { what: &'static str },
    #[error("archive member `{name}`: {reason}")]
    Member { name: String, reason: &'static str },
    #[error("archive member `{name}` has {size} bytes, more than the {limit} allowed")]
    TooLarge { name: String, size: u64, limit: u64 },
    #[error("blob {declared} is damaged: its content has digest {actual}")]
    Mismatch { declared: Digest, actual: Digest },
    #[error("`{name}` in the archive is not valid: {source}")]
    Json { name: String, source: serde_json::Error },
    #[error("the archive has no blob {digest}, which its image needs")]
    MissingBlob { digest: Digest },
    #[error("the archive has no image for {wanted}; it has {found}")]
    NoPlatform { wanted: String, found: String },
    #[error("the archive's image uses a {what}, which is not supported")]
    Unsupported { what: String },
    #[error("the archive has {count} images; an archive with one is taken")]
    ImageCount { count: usize },
    #[error("cannot read the archive: {source}")]
    Read { source: std::io::Error },
    #[error("cannot store blob {digest}: {source}")]
    Sink { digest: Digest, source: std::io::Error },
}

#[cfg(test)]
mod tests;
