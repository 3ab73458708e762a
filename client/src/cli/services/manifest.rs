//! A service written down: the `version: v1, kind: Service` manifest.
//!
//! `services show -o yaml` prints one, `services apply` takes one, and what the first prints the second takes. A field
//! that is not known is an error that names its line. Beside the fields that other tools of such rooms know there are
//! `container.memory`, `container.cpus`, `container.capabilities`, `isolated`, `domains`, `strategy` and `start_limit`.

mod convert;
mod text;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub(super) use convert::without_digest;
use text::{Command, Scope};
pub(super) use text::{read, write};

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    version: Version,
    kind: Kind,
    metadata: Metadata,
    container: Container,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ports: Vec<Port>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    domains: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    strategy: Option<Strategy>,
    /// For the first healthy answer, such as `90s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    start_limit: Option<String>,
    /// Whether it reaches no other service of the room, and none reaches it; by default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    isolated: Option<bool>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Version {
    V1,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
enum Kind {
    Service,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    description: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Container {
    image: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    command: Option<Command>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    working_dir: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    environment: Vec<Variable>,
    #[serde(default, skip_serializing_if = "Storage::is_empty")]
    storage: Storage,
    /// As `--memory` takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory: Option<String>,
    /// As `--cpus` takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cpus: Option<String>,
    /// Beside those that every service has: `NET_RAW`, `MKNOD`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    capabilities: Vec<String>,
}

/// Exactly one of `value`, `token` and `secret` is there.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    token: Option<Token>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    secret: Option<Secret>,
}

/// A participant token, made when an instance starts.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Token {
    /// Name in the token; one for all tokens of a service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    /// What it may do; without it the role says that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    api: Option<Scope>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    role: Option<Role>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Role {
    User,
    Agent,
    Tool,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Secret {
    /// Name of a secret of the room.
    id: String,
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Storage {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    room: Vec<StorageMount>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    project: Vec<StorageMount>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    images: Vec<ImageMount>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    files: Vec<File>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    empty_dirs: Vec<EmptyDir>,
}

impl Storage {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StorageMount {
    /// Where it appears.
    path: String,
    /// Only this part of the storage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subpath: Option<String>,
    /// By default false for room storage and true for project storage.
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
    /// By default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read_only: Option<bool>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    path: String,
    /// What it holds.
    text: String,
    /// By default true. What an instance writes into one of its own ends with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read_only: Option<bool>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EmptyDir {
    path: String,
    /// By default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    read_only: Option<bool>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Port {
    num: u32,
    #[serde(default, rename = "type")]
    kind: PortType,
    /// Path that answers 200 to 399 when the service is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    liveness: Option<String>,
    /// Whether the ingress may lead to it; by default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    published: Option<bool>,
    /// Whether traffic needs no participant token; by default false, and the same for all published ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    public: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PortType {
    #[default]
    Http,
    Tcp,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Strategy {
    Rolling,
    Recreate,
}

#[cfg(test)]
mod tests;
