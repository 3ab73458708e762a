use std::collections::{BTreeMap, BTreeSet};

use hearth_value::{Digest, MountTarget, PortText};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::exact_names::{DocumentError, check_spelling};
use super::{DeclaredPlatform, null_as_default};

/// Field names that determine the content of an image.
const CONFIG_NAMES: &[&str] = &["rootfs", "os", "architecture", "variant", "config"];
const ROOTFS_NAMES: &[&str] = &["type", "diff_ids"];

/// Image config (OCI image spec, "Image Configuration"). Fields without a member here are kept in `other`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(flatten)]
    pub platform: DeclaredPlatform,
    #[serde(default, deserialize_with = "null_as_default")]
    pub config: RunConfig,
    #[serde(default, deserialize_with = "null_as_default")]
    pub rootfs: RootFs,
    #[serde(default, deserialize_with = "null_as_default")]
    pub history: Vec<HistoryEntry>,
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// DiffIDs of the layers, lowest first (the field `rootfs`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub diff_ids: Vec<Digest>,
}

/// One entry of the build history (the field `history`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HistoryEntry {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not", deserialize_with = "null_as_default")]
    pub empty_layer: bool,
}

/// Runtime defaults for containers of the image (the field `config`).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct RunConfig {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Map::is_empty", deserialize_with = "null_as_default")]
    pub exposed_ports: Map<String, Value>,
    #[serde(skip_serializing_if = "Vec::is_empty", deserialize_with = "null_as_default")]
    pub env: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Map::is_empty", deserialize_with = "null_as_default")]
    pub volumes: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "null_as_default")]
    pub labels: BTreeMap<String, String>,
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

impl ImageConfig {
    /// Creates the config of an image without layers.
    pub fn new(platform: DeclaredPlatform) -> Self {
        Self {
            created: None,
            platform,
            config: RunConfig::default(),
            rootfs: RootFs { kind: Some("layers".to_owned()), diff_ids: Vec::new() },
            history: Vec::new(),
            other: BTreeMap::new(),
        }
    }

    pub fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }

    /// Parses a config. Rejects a document that other programs may read differently, see [`check_spelling`].
    pub fn parse_unambiguous(bytes: &[u8]) -> Result<Self, DocumentError> {
        let document: Value = serde_json::from_slice(bytes)?;
        if let Some(top) = document.as_object() {
            check_spelling(top, CONFIG_NAMES)?;
            top.get("rootfs")
                .and_then(Value::as_object)
                .map_or(Ok(()), |rootfs| check_spelling(rootfs, ROOTFS_NAMES))?;
        }
        Ok(Self::parse(bytes)?)
    }

    /// Parses only the platform of a config, and ignores all other fields.
    pub fn parse_platform(bytes: &[u8]) -> serde_json::Result<DeclaredPlatform> {
        serde_json::from_slice(bytes)
    }

    /// Adds a layer on top, with its history entry.
    pub fn add_layer(&mut self, diff_id: Digest, created: &str, created_by: &str) {
        self.created = Some(created.to_owned());
        // A base image may have layers without history entries. Without padding, the new entry would be attributed to one
        // of those layers.
        let recorded = self.history.iter().filter(|entry| !entry.empty_layer).count();
        let missing = self.rootfs.diff_ids.len().saturating_sub(recorded);
        self.history.extend((0..missing).map(|_| HistoryEntry::default()));
        self.rootfs.diff_ids.push(diff_id);
        self.history.push(HistoryEntry {
            created: Some(created.to_owned()),
            created_by: Some(created_by.to_owned()),
            ..HistoryEntry::default()
        });
    }
}

impl RunConfig {
    /// Returns the TCP ports of `ExposedPorts`, ascending. Other protocols and malformed entries are left out.
    pub fn exposed_tcp_ports(&self) -> Vec<u16> {
        let ports: BTreeSet<u16> = self.exposed_ports.keys().filter_map(|port| tcp_port(port)).collect();
        ports.into_iter().collect()
    }

    /// Returns the paths of `Volumes`, sorted. Malformed paths are left out.
    pub fn volume_targets(&self) -> Vec<MountTarget> {
        let mut paths: Vec<&String> = self.volumes.keys().collect();
        paths.sort_unstable();
        paths.into_iter().filter_map(|path| path.parse().ok()).collect()
    }

    /// Returns the `ONBUILD` instructions for builds that start from the image.
    pub fn on_build(&self) -> serde_json::Result<Vec<String>> {
        Ok(self.other_field("OnBuild")?.unwrap_or_default())
    }

    /// Returns the signal that stops a container, as the image spells it.
    pub fn stop_signal(&self) -> serde_json::Result<Option<String>> {
        self.other_field("StopSignal")
    }

    /// Reads a field that has no member of its own in this struct. A new member would change the order in which fields
    /// are written, and with it the digests of packs.
    fn other_field<'c, T: Deserialize<'c>>(&'c self, name: &str) -> serde_json::Result<Option<T>> {
        self.other.get(name).map_or(Ok(None), Option::deserialize)
    }
}

/// Parses `80` or `80/tcp`.
fn tcp_port(text: &str) -> Option<u16> {
    let PortText { number, protocol } = PortText::parse(text)?;
    protocol.is_none_or(|protocol| protocol.eq_ignore_ascii_case("tcp")).then_some(number)
}
