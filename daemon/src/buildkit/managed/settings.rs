//! Settings file `buildkitd.toml` of a managed buildkitd.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::supervise::settings_file;

/// Number of network namespaces that BuildKit keeps ready: a step that finds none waits about 50 ms for one.
const READY_NAMESPACES: u32 = 4;
const GB: u64 = 1_000_000_000;

/// Size limits of the build cache, in bytes. BuildKit enforces them after builds, not during.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheQuota {
    /// Maximum size; above it the least recently used entries are removed first.
    pub max_used: u64,
    /// Free space to keep on the disk, as far as `reserved` allows.
    pub min_free: u64,
    /// Size below which the cache is never pruned.
    pub reserved: u64,
}

impl Default for CacheQuota {
    fn default() -> Self {
        Self { max_used: 50 * GB, min_free: 5 * GB, reserved: 2 * GB }
    }
}

#[derive(Serialize)]
struct BuildkitdSettings<'a> {
    root: &'a Path,
    #[serde(rename = "insecure-entitlements")]
    insecure_entitlements: [&'static str; 0],
    #[serde(rename = "provenanceEnvDir")]
    provenance_env_dir: &'a Path,
    grpc: GrpcSettings,
    otel: OtelSettings<'a>,
    dns: DnsSettings,
    cdi: CdiSettings,
    history: HistorySettings,
    worker: WorkerSettings<'a>,
    frontend: FrontendSettings,
}

#[derive(Serialize)]
struct GrpcSettings {
    address: [String; 1],
}

#[derive(Serialize)]
struct OtelSettings<'a> {
    #[serde(rename = "socketPath")]
    socket_path: &'a Path,
}

#[derive(Serialize)]
struct DnsSettings {
    nameservers: [Ipv4Addr; 1],
}

#[derive(Serialize)]
struct CdiSettings {
    disabled: bool,
}

#[derive(Serialize)]
struct HistorySettings {
    #[serde(rename = "maxAge")]
    max_age: u64,
    #[serde(rename = "maxEntries")]
    max_entries: u64,
}

#[derive(Serialize)]
struct WorkerSettings<'a> {
    oci: OciWorkerSettings<'a>,
    containerd: EnabledFlag,
}

#[derive(Serialize)]
struct EnabledFlag {
    enabled: bool,
}

#[derive(Serialize)]
struct OciWorkerSettings<'a> {
    enabled: bool,
    snapshotter: &'static str,
    binary: &'a Path,
    #[serde(rename = "networkMode")]
    network_mode: &'static str,
    #[serde(rename = "cniConfigPath")]
    cni_config_path: PathBuf,
    #[serde(rename = "cniBinaryPath")]
    cni_binary_path: PathBuf,
    #[serde(rename = "cniPoolSize")]
    cni_pool_size: u32,
    /// Parent control group of all steps.
    #[serde(rename = "defaultCgroupParent", skip_serializing_if = "Option::is_none")]
    control_group: Option<&'a str>,
    gc: bool,
    gcpolicy: [GcPolicy; 3],
}

#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct GcPolicy {
    all: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    filters: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_duration: Option<&'static str>,
    reserved_space: u64,
    max_used_space: u64,
    min_free_space: u64,
}

#[derive(Serialize)]
struct FrontendSettings {
    #[serde(rename = "gateway.v0")]
    gateway: EnabledFlag,
}

/// Network settings of steps, in place of the host network.
pub(super) struct StepNetworkSettings {
    pub(super) config: PathBuf,
    pub(super) plugins: PathBuf,
    pub(super) resolver: Ipv4Addr,
}

fn text(
    dir: &Path,
    runc: &Path,
    quota: &CacheQuota,
    wiring: &StepNetworkSettings,
    control_group: Option<&str>,
) -> io::Result<String> {
    let policy = |all, filters, keep_duration| GcPolicy {
        all,
        filters,
        keep_duration,
        reserved_space: quota.reserved,
        max_used_space: quota.max_used,
        min_free_space: quota.min_free,
    };
    let socket = dir.join("buildkitd.sock");
    let settings = BuildkitdSettings {
        root: &dir.join("data"),
        insecure_entitlements: [],
        provenance_env_dir: &dir.join("provenance.d"),
        grpc: GrpcSettings { address: [format!("unix://{}", socket.display())] },
        otel: OtelSettings { socket_path: &otel_socket(dir) },
        dns: DnsSettings { nameservers: [wiring.resolver] },
        cdi: CdiSettings { disabled: true },
        // BuildKit does not record these builds (`internal`); this limits any other record.
        history: HistorySettings { max_age: 3600, max_entries: 1 },
        worker: WorkerSettings {
            oci: OciWorkerSettings {
                enabled: true,
                snapshotter: "auto",
                binary: runc,
                network_mode: "cni",
                cni_config_path: wiring.config.clone(),
                cni_binary_path: wiring.plugins.clone(),
                cni_pool_size: READY_NAMESPACES,
                control_group,
                gc: true,
                gcpolicy: [
                    // By default BuildKit drops contexts that were unused for 48 hours once they exceed 512 MB; a
                    // dropped context is sent again completely.
                    policy(false, vec!["type==source.local", "type==source.git.checkout"], Some("1440h")),
                    policy(false, Vec::new(), None),
                    policy(true, Vec::new(), None),
                ],
            },
            containerd: EnabledFlag { enabled: false },
        },
        // External frontends are arbitrary images; the built-in frontend handles every Dockerfile.
        frontend: FrontendSettings { gateway: EnabledFlag { enabled: false } },
    };
    toml::to_string(&settings).map_err(io::Error::other)
}

pub(super) fn otel_socket(dir: &Path) -> PathBuf {
    dir.join("otel.sock")
}

pub(super) fn write(
    dir: &Path,
    runc: &Path,
    quota: &CacheQuota,
    wiring: &StepNetworkSettings,
    control_group: Option<&str>,
) -> io::Result<()> {
    settings_file::store(&dir.join("buildkitd.toml"), &text(dir, runc, quota, wiring, control_group)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> toml::Table {
        let (dir, runc) = (Path::new("/s/bk"), Path::new("/usr/sbin/runc"));
        let wiring = StepNetworkSettings {
            config: "/s/bk/cni/steps.conflist".into(),
            plugins: "/s/bk/cni/plugins".into(),
            resolver: Ipv4Addr::new(10, 1, 0, 2),
        };
        text(dir, runc, &CacheQuota::default(), &wiring, Some("/hearth/b/steps")).unwrap().parse().unwrap()
    }

    #[test]
    fn everything_of_ours_lies_below_its_directory_and_contexts_are_kept_long() {
        let table = table();
        assert_eq!(table["root"].as_str(), Some("/s/bk/data"));
        assert_eq!(table["grpc"]["address"][0].as_str(), Some("unix:///s/bk/buildkitd.sock"));
        assert_eq!(table["otel"]["socketPath"].as_str(), Some("/s/bk/otel.sock"));
        assert_eq!(table["worker"]["containerd"]["enabled"].as_bool(), Some(false));
        let oci = &table["worker"]["oci"];
        assert_eq!(oci["binary"].as_str(), Some("/usr/sbin/runc"));
        assert_eq!(oci["networkMode"].as_str(), Some("cni"));
        assert_eq!(oci["cniConfigPath"].as_str(), Some("/s/bk/cni/steps.conflist"));
        assert_eq!(table["dns"]["nameservers"][0].as_str(), Some("10.1.0.2"));
        assert_eq!(oci["defaultCgroupParent"].as_str(), Some("/hearth/b/steps"));
        assert_eq!(oci["gcpolicy"][0]["keepDuration"].as_str(), Some("1440h"));
        assert_eq!(oci["gcpolicy"][0]["filters"][0].as_str(), Some("type==source.local"));
        assert_eq!(oci["gcpolicy"][2]["all"].as_bool(), Some(true));
        assert!(table["insecure-entitlements"].as_array().unwrap().is_empty());
    }
}
