use std::collections::BTreeMap;

use hearth_value::Digest;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Platform, null_as_default};

/// An image config. Other fields of a base image's config are kept in `other`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(flatten)]
    pub platform: Platform,
    #[serde(default, deserialize_with = "null_as_default")]
    pub config: RunConfig,
    pub rootfs: RootFs,
    #[serde(default, deserialize_with = "null_as_default")]
    pub history: Vec<HistoryEntry>,
    #[serde(flatten)]
    pub other: BTreeMap<String, Value>,
}

/// DiffIDs of the layers, lowest first (the field `rootfs`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
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
    #[serde(skip_serializing_if = "std::ops::Not::not")]
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

/// Config values from the user's flags. Lists hold the text that the user wrote; [`ConfigFlags::apply`] checks it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ConfigFlags {
    /// Words of the entrypoint, see [`super::parse_command`].
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    /// Environment variables, `NAME=value`.
    pub env: Vec<String>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    /// Labels, `key=value`, or `key` for an empty value.
    pub labels: Vec<String>,
    /// Exposed ports, `port[/tcp|udp|sctp]`.
    pub expose: Vec<String>,
    /// Volumes as absolute paths.
    pub volumes: Vec<String>,
}

/// Error: the value of a flag is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{flag} `{given}`: {reason}")]
pub struct ConfigError {
    pub flag: &'static str,
    pub given: String,
    pub reason: &'static str,
}

impl ImageConfig {
    /// Creates the config of an image without layers.
    pub fn new(platform: Platform) -> Self {
        Self {
            created: None,
            platform,
            config: RunConfig::default(),
            rootfs: RootFs { kind: "layers".to_owned(), diff_ids: Vec::new() },
            history: Vec::new(),
            other: BTreeMap::new(),
        }
    }

    /// Adds a layer on top.
    pub fn add_layer(&mut self, diff_id: Digest, created: &str, created_by: &str) {
        self.created = Some(created.to_owned());
        // A base may have no history. Without padding, the new entry would be attributed to the wrong layer.
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

impl ConfigFlags {
    /// Applies the flags to `config`. As in a Dockerfile, a new entrypoint drops the base's command, and environment
    /// variables and labels are replaced by name.
    pub fn apply(&self, config: &mut RunConfig) -> Result<(), ConfigError> {
        let wrong = |flag, given: &str, reason| Err(ConfigError { flag, given: given.to_owned(), reason });
        if let Some(entrypoint) = &self.entrypoint {
            config.entrypoint = Some(entrypoint.clone()).filter(|words| !words.is_empty());
            config.cmd = None;
        }
        if let Some(cmd) = &self.cmd {
            config.cmd = Some(cmd.clone()).filter(|words| !words.is_empty());
        }
        for variable in &self.env {
            let Some((name, _)) = variable.split_once('=').filter(|(name, _)| !name.is_empty()) else {
                return wrong("--env", variable, "write NAME=value");
            };
            let same = |old: &String| old.split_once('=').map_or(old.as_str(), |(old, _)| old) == name;
            match config.env.iter_mut().find(|old| same(old)) {
                Some(old) => old.clone_from(variable),
                None => config.env.push(variable.clone()),
            }
        }
        if let Some(workdir) = &self.workdir {
            if !workdir.starts_with('/') {
                return wrong("--workdir", workdir, "write an absolute path");
            }
            config.working_dir = Some(crate::ignore::clean(workdir));
        }
        if let Some(user) = &self.user {
            config.user = Some(user.clone());
        }
        for label in &self.labels {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            if key.is_empty() {
                return wrong("--label", label, "write key=value");
            }
            config.labels.insert(key.to_owned(), value.to_owned());
        }
        for port in &self.expose {
            let Some(port) = port_key(port) else {
                return wrong(
                    "--expose",
                    port,
                    "write a port from 1 to 65535, with /tcp, /udp or /sctp if needed",
                );
            };
            config.exposed_ports.insert(port, Value::Object(Map::new()));
        }
        for volume in &self.volumes {
            if !volume.starts_with('/') {
                return wrong("--volume", volume, "write an absolute path");
            }
            config.volumes.insert(crate::ignore::clean(volume), Value::Object(Map::new()));
        }
        // `serde_json::Map` keeps insertion order only with a feature, so the keys are sorted explicitly.
        config.exposed_ports.sort_keys();
        config.volumes.sort_keys();
        Ok(())
    }
}

fn port_key(text: &str) -> Option<String> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let number: u16 = number.parse().ok().filter(|&number| number != 0)?;
    matches!(protocol, "tcp" | "udp" | "sctp").then(|| format!("{number}/{protocol}"))
}
