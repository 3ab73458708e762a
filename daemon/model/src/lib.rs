//! Domain values: no I/O, no async, no generated types.

pub mod access;
mod address_block;
pub mod attestation;
pub mod build;
pub mod build_inputs;
pub mod builder;
mod certificate_files;
pub mod component;
pub mod confinement;
pub mod deploy;
pub mod egress;
pub mod fault;
pub mod id;
pub mod image;
mod layer_limits;
pub mod manifest;
mod public_address;
pub mod secret;
pub mod service;
pub mod share_owner;
mod token_key_file;
pub mod trust;

pub use address_block::{AddressBlock, AddressBlockError};
pub use certificate_files::CertificateFiles;
pub use hearth_value::{
    AnnotationError, AnnotationScope, Assignment, BuildCompression, BuildCompressionError, BuildMount,
    BuildMountSource, CacheExport, CacheFormat, CacheImport, CacheLocation, Digest, LinePattern, MountAccess,
    MountOrigin, MountSource, MountTarget, ProvenanceMode, ProvenanceModeError, Reference, Registry,
    Repository, RoomRegistries, ServiceMount, ServiceMountSource, Tag, whole_characters,
};
pub use layer_limits::LayerLimits;
pub use public_address::{embedded_ipv4, is_link_local, is_public};
pub use token_key_file::{IssuerRights, TokenAlgorithm, TokenKeyFile};
