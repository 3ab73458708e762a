//! JSON documents of images by the OCI image spec 1.1: config, manifest, index, descriptor and platform. Docker's
//! schema 2 has the same documents under other media types.
//!
//! A type has the fields that a pack writes or that the room's decisions depend on. Documents are stored and served as
//! the bytes that arrived; only a pack writes new ones, and their field order is fixed, so that equal values give equal
//! bytes. `null` and a missing field are equal, because Go writes `null` for an empty list or map.
//!
//! The crate `oci-spec` is not used: it drops the fields of a config that it does not know (`Healthcheck`, `OnBuild`,
//! `Shell`), so that a base image would lose them; it keeps annotations and labels in hash maps, so that equal images
//! would get different digests; and it rejects `null` lists, which Docker writes.

mod config;
mod exact_names;
mod manifest;
mod platform;

use hearth_value::Digest;
use serde::{Deserialize, Deserializer};

pub use config::{HistoryEntry, ImageConfig, RootFs, RunConfig};
pub use exact_names::{DocumentError, check_spelling};
pub use manifest::{Descriptor, DocumentHeader, Manifest, OciIndex, is_index_type, is_manifest_type};
pub use platform::{DeclaredPlatform, PlatformError, is_known_architecture};

pub const OCI_MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
pub const DOCKER_MANIFEST_TYPE: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_INDEX_TYPE: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_CONFIG_TYPE: &str = "application/vnd.docker.container.image.v1+json";

/// Annotation for the tag or the whole reference of a descriptor in an index.
pub const REF_NAME_ANNOTATION: &str = "org.opencontainers.image.ref.name";
/// Annotation for the whole reference, as read by containerd and buildctl.
pub const IMAGE_NAME_ANNOTATION: &str = "io.containerd.image.name";

/// Maximum size of a manifest, index or config in bytes, here and in most registries.
pub const MAX_DOCUMENT_BYTES: usize = 4 * 1024 * 1024;

/// Maximum number of manifests in one index.
pub const MAX_INDEX_ENTRIES: usize = 256;

/// Returns the digest of a whole document or blob.
pub fn sha256(bytes: &[u8]) -> Digest {
    Digest::from_sha256(<sha2::Sha256 as sha2::Digest>::digest(bytes).into())
}

/// Deserializes `null` as the default value.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
