//! Configuration, merged from defaults < file < environment < flags. It is strict: an unknown key is an error.
//! `--dump-config` prints the effective configuration.

mod flags;
mod layers;

pub use flags::DaemonFlags;
pub use layers::{ConfigError, load};

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use hearth_registry::{MirrorError, MirrorList, RegistryMirror};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::model::confinement::AddedCapability;
use crate::model::egress::{EgressPolicy, EgressRule};
use crate::model::trust::TrustPolicy;
use crate::model::{AddressBlock, CertificateFiles, LayerLimits, Registry, RoomRegistries, TokenKeyFile};

/// Effective configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Name of the room that this daemon serves.
    pub room: String,
    /// Directory for everything that must survive a restart.
    pub state_dir: PathBuf,
    /// TCP address of gRPC, `/v2/`, `/healthz`, `/readyz` and `/metrics`. Port 0 selects a free port.
    pub listen: SocketAddr,
    /// Unix socket that serves the same endpoints.
    pub socket: PathBuf,
    /// TCP address of the ingress, which routes to services of the room.
    pub ingress: SocketAddr,
    /// TCP address of the ingress over TLS. Default: no TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_tls: Option<SocketAddr>,
    /// Directory of the room storage. Default: `<state_dir>/storage/room`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_storage: Option<PathBuf>,
    /// Directory of the project storage. Default: `<state_dir>/storage/project`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project_storage: Option<PathBuf>,
    /// Addresses of external buildkitds, such as `unix:///run/buildkit/buildkitd.sock`; a single one may be given
    /// without a list. Each trust domain uses one of them. Default: the daemon runs its own.
    #[serde(skip_serializing_if = "Vec::is_empty", default, deserialize_with = "one_or_several")]
    pub buildkit: Vec<String>,
    /// Socket of an external containerd, such as `/run/containerd/containerd.sock`. Default: the daemon runs its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub containerd: Option<PathBuf>,
    /// File with credentials of other registries, readable only by the daemon's user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_credentials: Option<PathBuf>,
    /// Public keys whose owners may issue participant tokens of this room, in addition to the daemon itself.
    pub token_keys: Vec<TokenKeyFile>,
    /// Registry names that refer to this room's registry.
    pub room_registries: Vec<Registry>,
    /// URLs of mirrors by registry, which are tried before the registry.
    pub mirrors: BTreeMap<String, Vec<String>>,
    pub connections: ConnectionsConfig,
    pub builds: BuildsConfig,
    pub builder: BuilderConfig,
    pub packs: PacksConfig,
    pub layers: LayersConfig,
    pub trust: TrustPolicy,
    pub images: ImagesConfig,
    pub registry: RegistryConfig,
    pub uploads: UploadsConfig,
    pub services: ServicesConfig,
    pub audit: AuditConfig,
    pub log: LogConfig,
}

/// Limits for connections and requests of peers and callers. A peer is an IPv4 address, or the first 64 bits of an IPv6
/// address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionsConfig {
    /// Maximum number of connections to `listen`: of all peers, and of one.
    pub api: usize,
    pub api_per_peer: usize,
    /// Maximum number of connections to the unix socket: of all users, and of one.
    pub socket: usize,
    pub socket_per_user: usize,
    /// Maximum number of connections to the ingress: of all peers, and of one. Trusted proxies are exempt from the
    /// limit of one peer.
    pub ingress: usize,
    pub ingress_per_peer: usize,
    /// Seconds after which a connection without a request is closed.
    pub idle_seconds: u64,
    /// Maximum number of concurrent requests of one caller.
    pub requests_per_caller: usize,
    /// Memory in bytes for data that is received and not yet handled. One caller may use at most as much as is still
    /// free.
    pub receive_bytes: u64,
    /// Seconds without data after which an upload is aborted.
    pub stall_seconds: u64,
}

/// Audit trail of changes and denials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditConfig {
    /// Maximum size of the records of changes in bytes; records of denials may take a quarter of that in addition.
    pub max_bytes: u64,
    pub keep_days: u64,
}

/// Limits of builds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildsConfig {
    /// Maximum number of concurrent builds. If it is at least two, one slot is reserved for callers that have no
    /// running build, so that a single caller cannot delay the builds of all others: one caller has at most
    /// `concurrency - 1` running builds.
    pub concurrency: usize,
    /// Maximum number of queued builds; further ones are refused.
    pub queue_length: usize,
    /// Maximum number of queued or running builds of one caller.
    pub per_caller: usize,
    /// Log bytes that are kept of one build; the excess is counted and marked.
    pub log_quota_bytes: u64,
    /// Log bytes that the ended builds of one owner keep together; beyond this, the oldest logs are removed.
    pub logs_per_owner_bytes: u64,
    /// Default time limit of a build, in seconds.
    pub default_timeout_seconds: u64,
    /// Maximum time limit that a build may request, in seconds.
    pub max_timeout_seconds: u64,
    /// Seconds that a build waits for an unavailable BuildKit before it fails with that reason.
    pub builder_wait_seconds: u64,
    /// Number of ended builds that are kept.
    pub keep: usize,
    /// Minimum free space in bytes on the state directory's file system. Below it, builds are refused, and running
    /// builds whose builder has used up the space are stopped.
    pub min_free_bytes: u64,
    pub egress: EgressConfig,
}

/// Permitted destinations of build steps, and of the builder itself for `ADD https://...`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EgressConfig {
    /// Hosts, suffixes and blocks of addresses; empty allows all public addresses. Private networks are closed unless a
    /// block within them is listed.
    pub allow: Vec<EgressRule>,
    /// Name servers for steps; empty uses the machine's own resolvers.
    pub resolvers: Vec<SocketAddr>,
}

/// Managed builders: the buildkitds that the daemon runs if no `buildkit` address is set, one for each trust domain in
/// use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuilderConfig {
    /// Program of buildkitd; looked up in `PATH` if it has no `/`.
    pub program: PathBuf,
    /// Maximum cache size of all builders together in bytes; beyond this, the cache of the least recently used trust
    /// domain is pruned first.
    pub max_used_bytes: u64,
    /// Minimum free disk space in bytes; caches are pruned until it is reached.
    pub min_free_bytes: u64,
    /// True to use an external BuildKit although its steps share the network of its machine.
    pub allow_host_network: bool,
    /// Maximum number of builders that run at once. Default: the number of concurrent builds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<usize>,
    /// Number of trust domains whose cache is kept.
    pub max_kept: usize,
    /// Seconds after which a builder without builds is stopped; the most recently used one keeps running.
    pub idle_seconds: u64,
    /// Resident memory in bytes above which a buildkitd is restarted when no build has used it for 30 seconds; 0 for
    /// never.
    pub idle_memory_bytes: u64,
    /// Seconds without builds after which the cache of a trust domain is removed.
    pub keep_seconds: u64,
    /// Memory in bytes of all steps that run in one builder. Default: three quarters of the machine's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_memory_bytes: Option<u64>,
    /// Maximum number of processes and threads of all steps that run in one builder.
    pub step_processes: u64,
}

/// Packs that clients upload by content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PacksConfig {
    /// Maximum size on disk in bytes: of the content of all packs, and of that of one caller.
    pub max_bytes: u64,
    pub max_bytes_per_caller: u64,
    /// Seconds that the files of a pack are kept after the last build from it, for the next one from the same
    /// directory.
    pub keep_seconds: u64,
    /// Minimum free space in bytes on the state directory's file system; uploads are refused below it.
    pub min_free_bytes: u64,
}

/// Content of the registry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    /// Bytes that the daily verification of stored blobs reads in a second; 0 turns it off.
    pub scrub_bytes_per_second: u64,
}

/// Cached images of other registries, which builds use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImagesConfig {
    /// Maximum size of these images in bytes; beyond it, the least recently used ones are removed.
    pub cache_max_bytes: u64,
    /// Maximum size in bytes of the files that `ADD` downloaded from URLs; beyond it, the least recently used ones are
    /// removed.
    pub downloads_max_bytes: u64,
}

/// Images and files that callers upload: pushes, loads, writes to storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UploadsConfig {
    /// Maximum number of bytes that one caller may hold: uploads, results of its builds, and content fetched for it.
    pub max_bytes_per_caller: u64,
    /// Maximum compressed size of one image in bytes, however it arrives.
    pub max_bytes_per_image: u64,
    /// Minimum free space in bytes that uploads must leave on their file system.
    pub min_free_bytes: u64,
    /// Seconds without data after which a push is aborted.
    pub idle_seconds: u64,
}

/// Limits for the layers of an image. An image that exceeds them is refused wherever it would be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayersConfig {
    /// Maximum decompressed size of one layer in bytes, including the holes of sparse files.
    pub max_bytes: u64,
    /// Maximum ratio of decompressed to compressed bytes, of one layer and of a whole image.
    pub max_ratio: NonZeroU64,
    /// Decompressed bytes up to which any ratio is accepted.
    pub any_ratio_bytes: u64,
    /// Maximum number of files, directories and links of one image.
    pub max_entries: usize,
}

/// Services of the room, and the ingress that routes to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServicesConfig {
    /// Programs of the containerd that the daemon runs if no `containerd` socket is set; looked up in `PATH` if they
    /// have no `/`. If the path of containerd has one, the shim from the same directory is used.
    pub containerd_program: PathBuf,
    pub runc_program: PathBuf,
    /// Subnet for service instances. Default: an unused private subnet chosen at first start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Ipv4Net>,
    /// Proxies in front of the ingress whose `X-Forwarded-*` headers are trusted.
    pub trusted_proxies: Vec<AddressBlock>,
    /// TLS certificates of the ingress. Clients that request a name without a certificate get the first one. Default: a
    /// self-signed certificate for `localhost`.
    pub certificates: Vec<CertificateFiles>,
    /// Maximum number of services of one caller, including those that its services deploy.
    pub max_per_caller: usize,
    /// Memory limit in bytes of an instance whose deploy sets none. Default: half of the machine's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_memory_bytes: Option<u64>,
    /// Capabilities beyond the default set that a deploy may request.
    pub allow_capabilities: Vec<AddedCapability>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    pub format: LogFormat,
    /// Log filter directives in the syntax of `tracing`, such as `info` or `hearthd=debug,info`.
    pub filter: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

/// Deserializes a list, or a single value as a list of one.
fn one_or_several<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrSeveral {
        One(String),
        Several(Vec<String>),
    }
    Ok(match OneOrSeveral::deserialize(from)? {
        OneOrSeveral::One(one) => vec![one],
        OneOrSeveral::Several(several) => several,
    })
}

const GIB: u64 = 1 << 30;

impl Default for Config {
    fn default() -> Self {
        let layer_limits = LayerLimits::default();
        Self {
            room: "default".to_owned(),
            state_dir: "/var/lib/hearth".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 4327)),
            socket: "/run/hearth/hearth.sock".into(),
            ingress: SocketAddr::from(([127, 0, 0, 1], 4380)),
            ingress_tls: None,
            room_storage: None,
            project_storage: None,
            buildkit: Vec::new(),
            containerd: None,
            registry_credentials: None,
            token_keys: Vec::new(),
            room_registries: RoomRegistries::default().names().to_vec(),
            mirrors: BTreeMap::new(),
            connections: ConnectionsConfig {
                api: 4096,
                api_per_peer: 1024,
                socket: 1024,
                socket_per_user: 512,
                ingress: 10_000,
                ingress_per_peer: 2500,
                idle_seconds: 300,
                requests_per_caller: 256,
                receive_bytes: GIB / 4,
                stall_seconds: 60,
            },
            builds: BuildsConfig {
                concurrency: 5,
                queue_length: 100,
                per_caller: 50,
                log_quota_bytes: GIB,
                logs_per_owner_bytes: 2 * GIB,
                default_timeout_seconds: 3600,
                max_timeout_seconds: 6 * 3600,
                builder_wait_seconds: 60,
                keep: 1000,
                min_free_bytes: GIB,
                egress: EgressConfig::default(),
            },
            builder: BuilderConfig {
                program: "buildkitd".into(),
                max_used_bytes: 50 * GIB,
                min_free_bytes: 2 * GIB,
                allow_host_network: false,
                max_running: None,
                max_kept: 64,
                idle_seconds: 300,
                idle_memory_bytes: 160 << 20,
                keep_seconds: 14 * 24 * 3600,
                step_memory_bytes: None,
                step_processes: 4096,
            },
            packs: PacksConfig {
                max_bytes: 50 * GIB,
                max_bytes_per_caller: 20 * GIB,
                keep_seconds: 24 * 3600,
                min_free_bytes: GIB,
            },
            trust: TrustPolicy::default(),
            registry: RegistryConfig { scrub_bytes_per_second: 16 << 20 },
            images: ImagesConfig { cache_max_bytes: 20 * GIB, downloads_max_bytes: 4 * GIB },
            uploads: UploadsConfig {
                max_bytes_per_caller: 100 * GIB,
                max_bytes_per_image: 64 * GIB,
                min_free_bytes: GIB,
                idle_seconds: 900,
            },
            layers: LayersConfig {
                max_bytes: layer_limits.layer_bytes,
                max_ratio: NonZeroU64::new(layer_limits.ratio).unwrap_or(NonZeroU64::MIN),
                any_ratio_bytes: layer_limits.ratio_floor,
                max_entries: layer_limits.entries,
            },
            services: ServicesConfig {
                containerd_program: "containerd".into(),
                runc_program: "runc".into(),
                subnet: None,
                trusted_proxies: Vec::new(),
                certificates: Vec::new(),
                max_per_caller: 64,
                default_memory_bytes: None,
                allow_capabilities: Vec::new(),
            },
            audit: AuditConfig { max_bytes: 64 << 20, keep_days: 90 },
            log: LogConfig { format: LogFormat::Text, filter: "info".to_owned() },
        }
    }
}

impl Config {
    pub fn room_storage(&self) -> PathBuf {
        self.room_storage.clone().unwrap_or_else(|| self.state_dir.join("storage/room"))
    }

    pub fn project_storage(&self) -> PathBuf {
        self.project_storage.clone().unwrap_or_else(|| self.state_dir.join("storage/project"))
    }

    pub fn room_registries(&self) -> RoomRegistries {
        RoomRegistries::new(self.room_registries.clone())
    }

    pub fn mirrors(&self) -> Result<MirrorList, MirrorError> {
        let all = self.mirrors.iter().flat_map(|(host, urls)| urls.iter().map(move |url| (host, url)));
        Ok(MirrorList::new(all.map(|(host, url)| RegistryMirror::new(host, url)).collect::<Result<_, _>>()?))
    }

    pub fn egress(&self) -> EgressPolicy {
        EgressPolicy::new(self.builds.egress.allow.clone())
    }

    pub fn layer_limits(&self) -> LayerLimits {
        let LayersConfig { max_bytes, max_ratio, any_ratio_bytes, max_entries } = self.layers;
        LayerLimits {
            layer_bytes: max_bytes,
            ratio: max_ratio.get(),
            ratio_floor: any_ratio_bytes,
            entries: max_entries,
            ..LayerLimits::default()
        }
    }

    pub const fn audit_keep(&self) -> Duration {
        Duration::from_secs(self.audit.keep_days * 24 * 3600)
    }

    pub const fn default_timeout(&self) -> Duration {
        Duration::from_secs(self.builds.default_timeout_seconds)
    }

    pub const fn max_timeout(&self) -> Duration {
        Duration::from_secs(self.builds.max_timeout_seconds)
    }

    pub const fn builder_wait(&self) -> Duration {
        Duration::from_secs(self.builds.builder_wait_seconds)
    }

    /// Returns the configuration as the TOML file that would produce it.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(self).map_err(|source| ConfigError::Print { source })
    }
}
