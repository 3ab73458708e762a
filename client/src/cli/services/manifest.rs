//! Text form of a service: the `version: v1, kind: Service` manifest.
//!
//! `services show -o yaml` prints a manifest and `services apply` reads one; whatever the first prints,
//! the second accepts. An unknown field is an error that names its line. Besides the fields that other
//! tools for such rooms know, there are `container.memory`, `container.cpus`, `container.capabilities`,
//! `isolated`, `domains`, `strategy` and `start_limit`.

mod convert;
mod text;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(super) use convert::without_digest;
use text::{ManifestCommand, TokenScope};
pub(super) use text::{read, write};

/// The root of a manifest.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ServiceManifest {
    version: ManifestVersion,
    kind: ManifestKind,
    metadata: ManifestMetadata,
    container: ManifestContainer,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ports: Vec<ManifestPort>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    domains: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    strategy: Option<ManifestStrategy>,
    /// Time limit for the first healthy answer, such as `90s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_limit: Option<String>,
    /// True when connections between this service and other services of the room are blocked. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    isolated: Option<bool>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ManifestVersion {
    V1,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum ManifestKind {
    Service,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestMetadata {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestContainer {
    image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command: Option<ManifestCommand>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    environment: Vec<EnvironmentVariable>,
    #[serde(default, skip_serializing_if = "ManifestStorage::is_empty")]
    storage: ManifestStorage,
    /// Memory limit in the notation of `--memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory: Option<String>,
    /// Processor limit in the notation of `--cpus`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cpus: Option<String>,
    /// Capabilities besides those that every service has: `NET_RAW`, `MKNOD`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    capabilities: Vec<String>,
}

/// An environment variable. Exactly one of `value`, `token` and `secret` is present.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EnvironmentVariable {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<ManifestToken>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<SecretReference>,
}

/// A participant token, made when an instance starts.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestToken {
    /// Participant name in the token; the same for all tokens of a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    /// Scope of the token. Default: the scope of the role.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    api: Option<TokenScope>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    role: Option<TokenRole>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TokenRole {
    User,
    Agent,
    Tool,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SecretReference {
    /// Name of a secret of the room.
    id: String,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestStorage {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    room: Vec<RoomMount>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    project: Vec<StorageMount>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    images: Vec<ImageMount>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    files: Vec<InlineFile>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    empty_dirs: Vec<EmptyDirMount>,
}

impl ManifestStorage {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RoomMount {
    /// Mount target.
    path: String,
    /// Path below room storage that is mounted. Default: the whole storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subpath: Option<String>,
    /// True when the mount is read-only. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read_only: Option<bool>,
    /// True when a missing directory is made. Default: false; the path must exist.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    create: bool,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StorageMount {
    /// Mount target.
    path: String,
    /// Path below project storage that is mounted. Default: the whole storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subpath: Option<String>,
    /// True when the mount is read-only. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read_only: Option<bool>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ImageMount {
    image: String,
    path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subpath: Option<String>,
    /// True when the mount is read-only. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read_only: Option<bool>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InlineFile {
    path: String,
    /// Content of the file.
    text: String,
    /// True when the mount is read-only. Default: true. Changes to a writable file end with the instance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read_only: Option<bool>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EmptyDirMount {
    path: String,
    /// True when the mount is read-only. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read_only: Option<bool>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ManifestPort {
    num: u32,
    #[serde(default, rename = "type")]
    kind: PortType,
    /// Path that answers with a status from 200 to 399 when the service is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    liveness: Option<String>,
    /// True when the ingress may route to the port. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    published: Option<bool>,
    /// True when traffic needs no participant token. Default: false. All published ports must have the same
    /// value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PortType {
    #[default]
    Http,
    Tcp,
    H2c,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ManifestStrategy {
    Rolling,
    Recreate,
}

#[cfg(test)]
mod tests;
