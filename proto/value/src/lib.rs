//! Values that cross the wire as text: references, digests, mounts, error codes. They are parsed once, where they
//! enter, so that all other code has only valid values. This crate depends on no protocol, so that packing an image
//! needs no network stack.

mod annotation;
mod assignment;
mod build_cache;
mod build_compression;
mod build_secret;
mod characters;
mod digest;
pub mod error_code;
mod fields;
mod line_pattern;
mod mount;
mod port;
mod provenance_mode;
mod reference;

pub use annotation::{AnnotationError, AnnotationFlag, AnnotationScope};
pub use assignment::{Assignment, AssignmentError, parse_env_file};
pub use build_cache::{CacheExport, CacheFormat, CacheImport, CacheLocation, CacheOptionError};
pub use build_compression::{BuildCompression, BuildCompressionError};
pub use build_secret::{SecretFlag, SecretFlagError, SecretFlagSource};
pub use characters::whole_characters;
pub use digest::{Digest, DigestError};
pub use fields::{FieldsError, split_fields};
pub use line_pattern::{LinePattern, LinePatternError};
pub use mount::{
    BuildMount, BuildMountKind, BuildMountSource, DEFAULT_TARGET, MountAccess, MountError, MountKind,
    MountOrigin, MountSource, MountSpec, MountTarget, ServiceMount, ServiceMountKind, ServiceMountSource,
    check_distinct, storage_path,
};
pub use port::PortText;
pub use provenance_mode::{ProvenanceMode, ProvenanceModeError};
pub use reference::{Reference, ReferenceError, Registry, Repository, RoomRegistries, Tag};

/// Implements serde by text: these values are strings in JSON, TOML and the database.
macro_rules! serde_as_text {
    ($type:ty) => {
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
use serde_as_text;
