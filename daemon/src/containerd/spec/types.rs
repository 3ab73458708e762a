//! The used part of the OCI runtime specification (`config.json`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Type URLs of a [`RuntimeSpec`] and of a [`ProcessSpec`] in containerd's calls; both are JSON.
pub const SPEC_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
pub const PROCESS_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuntimeSpec {
    pub oci_version: String,
    pub process: ProcessSpec,
    pub root: RootfsSpec,
    pub hostname: String,
    pub mounts: Vec<MountEntry>,
    pub linux: LinuxSpec,
}

/// A process; read back for additional processes of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessSpec {
    #[serde(default)]
    pub terminal: bool,
    /// Initial size of the terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console_size: Option<ConsoleSize>,
    pub user: ProcessUser,
    pub args: Vec<String>,
    #[serde(default)]
    pub env: Vec<String>,
    pub cwd: String,
    pub capabilities: Option<CapabilitySets>,
    #[serde(default)]
    pub rlimits: Vec<ProcessRlimit>,
    #[serde(default)]
    pub no_new_privileges: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleSize {
    pub height: u16,
    pub width: u16,
}

/// The part of a container's stored specification that is read back.
#[derive(Clone, Debug, Deserialize)]
pub struct StoredSpec {
    pub process: ProcessSpec,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessUser {
    pub uid: u32,
    pub gid: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub additional_gids: Vec<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySets {
    pub bounding: Vec<String>,
    pub effective: Vec<String>,
    pub permitted: Vec<String>,
}

impl CapabilitySets {
    pub fn same(names: &[&str]) -> Self {
        let list = || names.iter().map(|name| (*name).to_owned()).collect();
        Self { bounding: list(), effective: list(), permitted: list() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRlimit {
    #[serde(rename = "type")]
    pub kind: String,
    pub hard: u64,
    pub soft: u64,
}

impl RuntimeSpec {
    /// Returns a copy without these variables.
    pub fn without_variables(&self, variables: &BTreeSet<String>) -> Self {
        let mut spec = self.clone();
        spec.process.env.retain(|entry| entry.split('=').next().is_none_or(|name| !variables.contains(name)));
        spec
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RootfsSpec {
    pub path: String,
    pub readonly: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MountEntry {
    pub destination: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub source: String,
    pub options: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinuxSpec {
    pub namespaces: Vec<NamespaceSpec>,
    pub cgroups_path: String,
    pub resources: ResourceSpec,
    pub sysctl: BTreeMap<String, String>,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp: Option<SeccompProfile>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NamespaceSpec {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ResourceSpec {
    pub devices: Vec<DeviceAccess>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryLimits>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuLimits>,
    pub pids: PidsLimit,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DeviceAccess {
    pub allow: bool,
    pub access: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryLimits {
    pub limit: i64,
    /// Limit on memory and swap together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CpuLimits {
    pub quota: i64,
    pub period: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PidsLimit {
    pub limit: i64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SeccompProfile {
    pub default_action: &'static str,
    pub architectures: Vec<&'static str>,
    pub syscalls: Vec<SyscallRule>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SyscallRule {
    pub names: Vec<&'static str>,
    pub action: &'static str,
    pub errno_ret: i32,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<SyscallArgument>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SyscallArgument {
    pub index: u32,
    pub value: u64,
    pub value_two: u64,
    pub op: &'static str,
}
