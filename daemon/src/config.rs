//! Configuration: defaults < file < environment < flags. Strict: an unknown key fails. Printable:
//! `--dump-config` shows what is in force.

mod flags;
mod layers;

pub use flags::Flags;
pub use layers::{ConfigError, load};

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::Duration;

use hearth_pack::remote::{Mirror, MirrorError, Mirrors};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::model::confinement::AddedCapability;
use crate::model::egress::{EgressPolicy, EgressRule};
use crate::model::trust::Trust;
use crate::model::{AddressBlock, CertificateFiles, LayerLimits, Registry, RoomRegistries, TokenKeyFile};

/// Everything that can be set, as in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The room that this daemon serves.
    pub room: String,
    /// Where everything is kept that must survive a restart.
    pub state_dir: PathBuf,
    /// TCP address of gRPC, `/v2/`, `/healthz`, `/readyz` and `/metrics`. Port 0 is any free port.
    pub listen: SocketAddr,
    /// Unix socket that serves the same.
    pub socket: PathBuf,
    /// TCP address where services of the room are reached.
    pub ingress: SocketAddr,
    /// TCP address where they are reached over TLS; none where it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_tls: Option<SocketAddr>,
    /// Room storage; `<state_dir>/storage/room` where it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub room_storage: Option<PathBuf>,
    /// Project storage; `<state_dir>/storage/project` where it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project_storage: Option<PathBuf>,
    /// Addresses of buildkitds to use, such as `unix:///run/buildkit/buildkitd.sock`; one may be given without a list.
    /// Each trust domain uses one of them. Where there is none, the daemon runs its own.
    #[serde(skip_serializing_if = "Vec::is_empty", default, deserialize_with = "one_or_several")]
    pub buildkit: Vec<String>,
    /// Socket of a containerd to use, such as `/run/containerd/containerd.sock`. Where it is not set, the daemon runs
    /// its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub containerd: Option<PathBuf>,
    /// File with credentials of other registries, which only the daemon's user may read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registry_credentials: Option<PathBuf>,
    /// Public keys whose owners may make participant tokens of this room, beside the daemon itself.
    pub token_keys: Vec<TokenKeyFile>,
    /// Registry names that mean this room's registry.
    pub room_registries: Vec<Registry>,
    /// By registry: URLs that are asked before it.
    pub mirrors: BTreeMap<String, Vec<String>>,
    pub connections: Connections,
    pub builds: Builds,
    pub builder: Builder,
    pub packs: Packs,
    pub layers: Layers,
    pub trust: Trust,
    pub images: Images,
    pub uploads: Uploads,
    pub services: Services,
    pub audit: Audit,
    pub log: Log,
}

/// What peers and callers may take of the daemon's attention. A peer is an address, of IPv6 the 64 bits before it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Connections {
    /// Connections to `listen`: of all peers, and of one.
    pub api: usize,
    pub api_per_peer: usize,
    /// Connections to the unix socket: of all users, and of one.
    pub socket: usize,
    pub socket_per_user: usize,
    /// Connections to the ingress: of all peers, and of one. Trusted proxies have no share of their own.
    pub ingress: usize,
    pub ingress_per_peer: usize,
    /// A connection without a request is closed after this many seconds.
    pub idle_seconds: u64,
    /// Requests of one caller that may be under way.
    pub requests_per_caller: usize,
    /// Memory for what is being received and not yet handled. One caller has as much as is free at most.
    pub receive_bytes: u64,
    /// An upload of which nothing comes is ended after this many seconds.
    pub stall_seconds: u64,
}

/// The trail of who changed what, and who was denied what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Audit {
    /// Bytes of records of changes; those of denials take a quarter of that more.
    pub max_bytes: u64,
    pub keep_days: u64,
}

/// Limits of builds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Builds {
    /// Builds that run at once. The last of two slots or more is for callers that run nothing, so that no build waits
    /// for those of a single other caller: one caller has `concurrency - 1` builds running at most.
    pub concurrency: usize,
    /// Builds that may wait; one more is refused.
    pub queue_length: usize,
    /// Builds of one caller that may be queued or running.
    pub per_caller: usize,
    /// Log bytes kept of one build; what is over is counted and marked.
    pub log_quota_bytes: u64,
    /// Log bytes that the ended builds of one owner keep together; beyond this, the logs of the oldest go.
    pub logs_per_owner_bytes: u64,
    /// Time limit of a build that asks for none, in seconds.
    pub default_timeout_seconds: u64,
    /// Longest time limit that may be asked for, in seconds.
    pub max_timeout_seconds: u64,
    /// How long a build waits for a BuildKit that is away, in seconds; then it fails, and says so.
    pub builder_wait_seconds: u64,
    /// Ended builds that are remembered.
    pub keep: usize,
    /// Builds are refused when the state directory's file system has less free space than this, and running builds whose
    /// builder has used the space up are ended.
    pub min_free_bytes: u64,
    pub egress: Egress,
}

/// Where steps of builds may connect to, and the builder itself for `ADD https://...`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// Hosts, suffixes and blocks of addresses; empty means the world. Private networks are closed unless a block
    /// within them is listed.
    pub allow: Vec<EgressRule>,
    /// Where steps' names are asked; the machine's own resolvers where it is empty.
    pub resolvers: Vec<SocketAddr>,
}

/// The buildkitds that the daemon runs when no `buildkit` address is set: one for each trust domain in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Builder {
    /// Program; looked up on the path when it has no `/`.
    pub program: PathBuf,
    /// Cache of all builders together; beyond this, that of the trust domain that was used least is freed first.
    pub max_used_bytes: u64,
    /// Cache is freed until this much of the disk is free.
    pub min_free_bytes: u64,
    /// Use a BuildKit that is not ours although its steps have the network of its machine.
    pub allow_host_network: bool,
    /// Builders that run at once; as many as builds where it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<usize>,
    /// Trust domains whose cache is kept.
    pub max_kept: usize,
    /// A builder without builds is stopped after this; the one that was used last runs on.
    pub idle_seconds: u64,
    /// Memory of all steps that run in one builder; three quarters of the machine's where it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_memory_bytes: Option<u64>,
    /// Processes and threads of all steps that run in one builder.
    pub step_processes: u64,
}

/// Packs that clients send by content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packs {
    /// Bytes that the content of all packs may take on disk, and that of one caller.
    pub max_bytes: u64,
    pub max_bytes_per_caller: u64,
    /// A pack's files are kept this long after the last build from it, for the next one from the same directory.
    pub keep_seconds: u64,
    /// Uploads are refused when the state directory's file system has less free space than this.
    pub min_free_bytes: u64,
}

/// Images of other registries that builds use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// Bytes that they may take together; beyond that, the least recently used ones are forgotten.
    pub cache_max_bytes: u64,
    /// Bytes that files may take together that `ADD` fetched by URL; beyond that, the least recently used go.
    pub downloads_max_bytes: u64,
}

/// Images and files that callers bring: pushes, loads, writes to storage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uploads {
    /// Bytes that one caller may hold: what it uploads, what its builds make, and what is fetched for it.
    pub max_bytes_per_caller: u64,
    /// Bytes that one image may have, compressed, whichever way it comes.
    pub max_bytes_per_image: u64,
    /// Uploads are refused when they would leave less free space than this on the file system they go to.
    pub min_free_bytes: u64,
    /// A push of which nothing comes is ended after this many seconds.
    pub idle_seconds: u64,
}

/// How large the layers of an image may be. What is over is refused wherever the image would be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layers {
    /// Bytes of one layer, decompressed and with the holes of sparse files written out.
    pub max_bytes: u64,
    /// How many times larger than its compressed bytes a layer, or all of an image, may be.
    pub max_ratio: NonZeroU64,
    /// Decompressed bytes up to which any ratio is taken.
    pub any_ratio_bytes: u64,
    /// Files, directories and links of one image.
    pub max_entries: usize,
}

/// Services of the room, and how they are reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Services {
    /// Programs of the containerd that the daemon runs when no `containerd` socket is set; looked up on the path when
    /// they have no `/`. A containerd with one uses the shim that lies beside it.
    pub containerd_program: PathBuf,
    pub runc_program: PathBuf,
    /// Of their addresses. Where it is not set, one that this machine reaches nothing else by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<Ipv4Net>,
    /// Proxies in front of the ingress whose `X-Forwarded-*` is believed.
    pub trusted_proxies: Vec<AddressBlock>,
    /// What the ingress shows over TLS: the first one to clients that ask for no name that another has. Without one,
    /// a self-signed certificate for `localhost`.
    pub certificates: Vec<CertificateFiles>,
    /// Services of one caller, with those that its services deploy.
    pub max_per_caller: usize,
    /// Memory of an instance whose deploy sets no limit; where it is not set, half of the machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_memory_bytes: Option<u64>,
    /// Capabilities beside the default ones that a deploy may ask for.
    pub allow_capabilities: Vec<AddedCapability>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    pub format: LogFormat,
    /// Directives as `tracing` takes them, such as `info` or `hearthd=debug,info`.
    pub filter: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

/// A list, or the only member of one.
fn one_or_several<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        One(String),
        Several(Vec<String>),
    }
    Ok(match Form::deserialize(from)? {
        Form::One(one) => vec![one],
        Form::Several(several) => several,
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
            connections: Connections {
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
            builds: Builds {
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
                egress: Egress::default(),
            },
            builder: Builder {
                program: "buildkitd".into(),
                max_used_bytes: 50 * GIB,
                min_free_bytes: 2 * GIB,
                allow_host_network: false,
                max_running: None,
                max_kept: 64,
                idle_seconds: 300,
                step_memory_bytes: None,
                step_processes: 4096,
            },
            packs: Packs {
                max_bytes: 50 * GIB,
                max_bytes_per_caller: 20 * GIB,
                keep_seconds: 24 * 3600,
                min_free_bytes: GIB,
            },
            trust: Trust::default(),
            images: Images { cache_max_bytes: 20 * GIB, downloads_max_bytes: 4 * GIB },
            uploads: Uploads {
                max_bytes_per_caller: 100 * GIB,
                max_bytes_per_image: 64 * GIB,
                min_free_bytes: GIB,
                idle_seconds: 900,
            },
            layers: Layers {
                max_bytes: layer_limits.layer_bytes,
                max_ratio: NonZeroU64::new(layer_limits.ratio).unwrap_or(NonZeroU64::MIN),
                any_ratio_bytes: layer_limits.ratio_floor,
                max_entries: layer_limits.entries,
            },
            services: Services {
                containerd_program: "containerd".into(),
                runc_program: "runc".into(),
                subnet: None,
                trusted_proxies: Vec::new(),
                certificates: Vec::new(),
                max_per_caller: 64,
                default_memory_bytes: None,
                allow_capabilities: Vec::new(),
            },
            audit: Audit { max_bytes: 64 << 20, keep_days: 90 },
            log: Log { format: LogFormat::Text, filter: "info".to_owned() },
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

    pub fn mirrors(&self) -> Result<Mirrors, MirrorError> {
        let all = self.mirrors.iter().flat_map(|(host, urls)| urls.iter().map(move |url| (host, url)));
        Ok(Mirrors::new(all.map(|(host, url)| Mirror::new(host, url)).collect::<Result<_, _>>()?))
    }

    pub fn egress(&self) -> EgressPolicy {
        EgressPolicy::new(self.builds.egress.allow.clone())
    }

    pub fn layer_limits(&self) -> LayerLimits {
        let Layers { max_bytes, max_ratio, any_ratio_bytes, max_entries } = self.layers;
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

    /// The configuration as the TOML that would set it.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(self).map_err(|source| ConfigError::Print { source })
    }
}
