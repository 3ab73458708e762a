use hearth_oci::RunConfig;
use hearth_value::{Assignment, PortText};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Config values from the user's flags, as the user wrote them. [`ConfigFlags::apply`] checks them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ConfigFlags {
    /// Words of the entrypoint, see [`super::parse_command`].
    pub entrypoint: Option<Vec<String>>,
    pub cmd: Option<Vec<String>>,
    /// Environment variables, `NAME=value`.
    pub env: Vec<String>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    /// Labels, `key=value`.
    pub labels: Vec<String>,
    /// Exposed ports, `port[/tcp|udp|sctp]`.
    pub expose: Vec<String>,
    /// Volumes as absolute paths.
    pub volumes: Vec<String>,
}

/// Error in the value of a flag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{flag} `{given}`: {reason}")]
pub struct ConfigError {
    pub flag: &'static str,
    pub given: String,
    pub reason: &'static str,
}

impl ConfigFlags {
    /// Checks the flags without a config.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.apply(&mut RunConfig::default())
    }

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
            let Ok(Assignment { name, value: Some(_) }) = Assignment::parse_variable(variable) else {
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
            let Ok((key, value)) = Assignment::parse_label(label) else {
                return wrong("--label", label, "write key=value");
            };
            config.labels.insert(key, value);
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
    let PortText { number, protocol } = PortText::parse(text)?;
    let protocol = protocol.unwrap_or("tcp");
    matches!(protocol, "tcp" | "udp" | "sctp").then(|| format!("{number}/{protocol}"))
}
