//! Command line and environment of hearthd, as the topmost layer of the configuration.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;
use hearth_registry::RegistryMirror;
use toml::{Table, Value};

use super::LogFormat;
use super::layers::ConfigError;

/// Builds images from a room's files, keeps them in the room's own registry and runs them as services of the room.
///
/// One hearthd serves one room. Without --buildkit and --containerd it runs buildkitds (one for each trust domain in
/// use) and a containerd of its own below the state directory. Every flag is also a key of the TOML file (dashes become
/// underscores) and a variable of the environment; a flag wins over the variable, the variable over the file.
#[derive(Debug, Parser)]
#[command(name = "hearthd", version, after_help = EXAMPLES)]
pub struct DaemonFlags {
    /// TOML file with any of the settings that --dump-config prints
    #[arg(long, env = "HEARTH_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Room to serve [default: default]
    #[arg(long, env = "HEARTH_ROOM", value_name = "NAME")]
    room: Option<String>,
    /// Directory for everything that must survive a restart [default: /var/lib/hearth]
    #[arg(long, env = "HEARTH_STATE_DIR", value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Address of gRPC, /v2/, /healthz, /readyz and /metrics; port 0 is any free port [default: 127.0.0.1:4327]
    #[arg(long, env = "HEARTH_LISTEN", value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Unix socket that serves the same without a token to root and the daemon's own user [default:
    /// /run/hearth/hearth.sock]
    #[arg(long, env = "HEARTH_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Address where services of the room are reached [default: 127.0.0.1:4380]
    #[arg(long, env = "HEARTH_INGRESS", value_name = "ADDR:PORT")]
    ingress: Option<SocketAddr>,
    /// Address where they are reached over TLS, with the certificates of the file or a self-signed one
    #[arg(long, env = "HEARTH_INGRESS_TLS", value_name = "ADDR:PORT")]
    ingress_tls: Option<SocketAddr>,
    /// Directory that is the room's storage [default: <state-dir>/storage/room]
    #[arg(long, env = "HEARTH_ROOM_STORAGE", value_name = "DIR")]
    room_storage: Option<PathBuf>,
    /// Directory that is the project's storage [default: <state-dir>/storage/project]
    #[arg(long, env = "HEARTH_PROJECT_STORAGE", value_name = "DIR")]
    project_storage: Option<PathBuf>,
    /// Use this buildkitd, such as unix:///run/buildkit/buildkitd.sock, instead of running any; may be repeated, and
    /// then each trust domain uses one of them
    #[arg(long, env = "HEARTH_BUILDKIT", value_name = "ADDR", value_delimiter = ',')]
    buildkit: Vec<String>,
    /// Use the containerd at this socket, such as /run/containerd/containerd.sock, instead of running one
    #[arg(long, env = "HEARTH_CONTAINERD", value_name = "SOCKET")]
    containerd: Option<PathBuf>,
    /// Ask this URL before the registry HOST, such as docker.io=https://mirror.example; may be repeated
    #[arg(long, env = "HEARTH_REGISTRY_MIRROR", value_name = "HOST=URL", value_delimiter = ',')]
    registry_mirror: Vec<RegistryMirror>,
    /// TOML file with credentials of other registries; nobody but the daemon's user may be able to read it
    #[arg(long, env = "HEARTH_REGISTRY_CREDENTIALS", value_name = "FILE")]
    registry_credentials: Option<PathBuf>,
    /// Form of the log on stderr [default: text]
    #[arg(long, env = "HEARTH_LOG_FORMAT", value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// Log filter directives, such as `info` or `hearthd=debug,info` [default: info]
    #[arg(long, env = "HEARTH_LOG", value_name = "DIRECTIVES")]
    log: Option<String>,
    /// Print the configuration in force as TOML and exit
    #[arg(long)]
    pub dump_config: bool,
    /// Check the configuration and exit
    #[arg(long)]
    pub check_config: bool,
}

const EXAMPLES: &str = "Examples:
  hearthd
  hearthd --room demo --state-dir /srv/hearth --listen 0.0.0.0:4327
  hearthd --buildkit unix:///run/buildkit/buildkitd.sock
  hearthd --config /etc/hearth/hearthd.toml --dump-config";

impl DaemonFlags {
    /// Returns the settings from the command line and the environment, as a configuration layer in the form of the
    /// file.
    pub(super) fn layer(&self) -> Result<Table, ConfigError> {
        let mut layer = Table::new();
        let mut set = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                layer.insert(key.to_owned(), value);
            }
        };
        set("room", self.room.clone().map(Value::String));
        set("state_dir", path("--state-dir", self.state_dir.as_ref())?);
        set("listen", self.listen.map(|address| Value::String(address.to_string())));
        set("socket", path("--socket", self.socket.as_ref())?);
        set("ingress", self.ingress.map(|address| Value::String(address.to_string())));
        set("ingress_tls", self.ingress_tls.map(|address| Value::String(address.to_string())));
        set("room_storage", path("--room-storage", self.room_storage.as_ref())?);
        set("project_storage", path("--project-storage", self.project_storage.as_ref())?);
        let buildkit: Vec<_> = self.buildkit.iter().cloned().map(Value::String).collect();
        set("buildkit", Some(buildkit).filter(|all| !all.is_empty()).map(Value::Array));
        set("containerd", path("--containerd", self.containerd.as_ref())?);
        set("registry_credentials", path("--registry-credentials", self.registry_credentials.as_ref())?);
        let mut mirrors = Table::new();
        for mirror in &self.registry_mirror {
            let urls = mirrors.entry(mirror.registry.clone()).or_insert_with(|| Value::Array(Vec::new()));
            if let Value::Array(urls) = urls {
                urls.push(Value::String(mirror.url.to_string()));
            }
        }
        set("mirrors", Some(mirrors).filter(|mirrors| !mirrors.is_empty()).map(Value::Table));
        let mut log = Table::new();
        if let Some(format) = self.log_format {
            let word = match format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            };
            log.insert("format".to_owned(), Value::String(word.to_owned()));
        }
        if let Some(filter) = &self.log {
            log.insert("filter".to_owned(), Value::String(filter.clone()));
        }
        if !log.is_empty() {
            layer.insert("log".to_owned(), Value::Table(log));
        }
        Ok(layer)
    }
}

fn path(flag: &'static str, path: Option<&PathBuf>) -> Result<Option<Value>, ConfigError> {
    path.map(|path| match path.to_str() {
        Some(text) => Ok(Value::String(text.to_owned())),
        None => Err(ConfigError::NotUtf8 { flag }),
    })
    .transpose()
}
