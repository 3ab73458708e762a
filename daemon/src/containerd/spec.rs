//! Builder of an instance's OCI runtime specification, from the image config, the service's settings that override it,
//! and the confinement that every instance gets. It accesses no files.
//!
//! The format is runtime-spec 1.0.2. Capabilities, masked paths and the rules for entrypoint, command, environment and
//! user are those of Docker, for which images are written.

use crate::deploy::port::{BindMount, InstanceSpec};

pub mod confinement;
pub mod image;
mod seccomp;
pub mod types;
pub mod user;

use image::ProcessDefaults;
use types::{
    CpuLimits, DeviceAccess, LinuxSpec, MemoryLimits, MountEntry, NamespaceSpec, PidsLimit, ProcessRlimit,
    ProcessSpec, ProcessUser, ResourceSpec, RootfsSpec, RuntimeSpec,
};
use user::ResolvedUser;

/// Maximum number of processes and threads of one instance.
const MOST_PROCESSES: i64 = 4096;
const MOST_FILES: u64 = 65_536;
/// Period of the CPU quota in microseconds.
const CPU_PERIOD: u64 = 100_000;
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Capabilities of the host that affect the specification.
#[derive(Clone, Copy, Debug)]
pub struct HostFeatures {
    pub seccomp: bool,
    /// Set if the kernel accounts swap: then an instance with a memory limit gets no swap.
    pub swap_accounting: bool,
    /// Maximum number of open files per process; raising it needs a capability.
    pub open_files: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecFault {
    #[error("the image has neither entrypoint nor command, and the service gives none")]
    NoCommand,
    #[error("the working directory `{0}` of the image is not an absolute path")]
    Workdir(String),
}

/// Builds the specification of an instance.
pub fn build(
    spec: &InstanceSpec,
    image: &ProcessDefaults,
    user: &ResolvedUser,
    machine: HostFeatures,
    cgroup: &str,
) -> Result<RuntimeSpec, SpecFault> {
    let files = machine.open_files.min(MOST_FILES);
    let process = ProcessSpec {
        terminal: false,
        console_size: None,
        user: ProcessUser { uid: user.uid, gid: user.gid, additional_gids: groups(user) },
        args: command(spec, image)?,
        env: environment(spec, image, user),
        cwd: workdir(spec, image)?,
        capabilities: Some(confinement::capabilities(&spec.capabilities)),
        rlimits: vec![ProcessRlimit { kind: "RLIMIT_NOFILE".to_owned(), hard: files, soft: files }],
        no_new_privileges: true,
    };
    Ok(RuntimeSpec {
        oci_version: "1.0.2".to_owned(),
        process,
        root: RootfsSpec { path: "rootfs".to_owned(), readonly: false },
        hostname: spec.network.hostname.clone(),
        mounts: mounts(spec),
        linux: linux(spec, machine, cgroup),
    })
}

/// Returns the supplementary groups, including the primary one: otherwise a process could drop it and escape a denial
/// for that group.
fn groups(user: &ResolvedUser) -> Vec<u32> {
    let further = user.groups.iter().copied().filter(|group| *group != user.gid);
    [user.gid].into_iter().chain(further).collect()
}

fn command(spec: &InstanceSpec, image: &ProcessDefaults) -> Result<Vec<String>, SpecFault> {
    let args = match &spec.command {
        Some(command) => command.clone(),
        None => [image.entrypoint.as_slice(), image.cmd.as_slice()].concat(),
    };
    if args.is_empty() { Err(SpecFault::NoCommand) } else { Ok(args) }
}

fn workdir(spec: &InstanceSpec, image: &ProcessDefaults) -> Result<String, SpecFault> {
    match &spec.workdir {
        Some(workdir) => Ok(workdir.to_string()),
        None if image.workdir.is_empty() => Ok("/".to_owned()),
        None if image.workdir.starts_with('/') => Ok(image.workdir.clone()),
        None => Err(SpecFault::Workdir(image.workdir.chars().take(200).collect())),
    }
}

/// Merges the environment: defaults, then the image's variables in its order, then the service's; later values win.
fn environment(spec: &InstanceSpec, image: &ProcessDefaults, user: &ResolvedUser) -> Vec<String> {
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut env: Vec<String> = Vec::new();
    let mut set = |entry: String| match env.iter_mut().find(|own| name(own) == name(&entry)) {
        Some(own) => *own = entry,
        None => env.push(entry),
    };
    set(PATH.to_owned());
    set(format!("HOSTNAME={}", spec.network.hostname));
    if let Some(home) = &user.home {
        set(format!("HOME={home}"));
    }
    image.env.iter().filter(|entry| entry.contains('=')).cloned().for_each(&mut set);
    spec.env.iter().map(|(name, value)| format!("{name}={}", value.reveal())).for_each(&mut set);
    env
}

fn mounts(spec: &InstanceSpec) -> Vec<MountEntry> {
    let mut mounts: Vec<MountEntry> = confinement::mounts();
    let network = &spec.network;
    let files = [
        (&network.hosts, "/etc/hosts"),
        (&network.resolv_conf, "/etc/resolv.conf"),
        (&network.hostname_file, "/etc/hostname"),
    ];
    for (source, target) in files {
        if spec.mounts.iter().all(|mount| mount.target.as_str() != target) {
            mounts.push(bind(source, target, true));
        }
    }
    let mut own: Vec<&BindMount> = spec.mounts.iter().collect();
    // Deeper targets are mounted after those above them.
    own.sort_by_key(|mount| mount.target.components().count());
    mounts.extend(own.iter().map(|mount| bind(&mount.source, mount.target.as_str(), mount.read_only)));
    mounts
}

/// Returns a bind mount. A read-only bind is not recursive: mounts below its source would stay writable.
fn bind(source: &std::path::Path, target: &str, read_only: bool) -> MountEntry {
    let options: &[&str] = if read_only {
        &["bind", "rprivate", "nosuid", "nodev", "ro"]
    } else {
        &["rbind", "rprivate", "nosuid", "nodev"]
    };
    MountEntry {
        destination: target.to_owned(),
        kind: "bind".to_owned(),
        source: source.to_string_lossy().into_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

fn linux(spec: &InstanceSpec, machine: HostFeatures, cgroup: &str) -> LinuxSpec {
    let plain = |kind: &str| NamespaceSpec { kind: kind.to_owned(), path: None };
    let network = Some(spec.network.namespace.to_string_lossy().into_owned());
    let mut namespaces: Vec<NamespaceSpec> = ["pid", "ipc", "uts", "mount", "cgroup"].map(plain).to_vec();
    namespaces.push(NamespaceSpec { kind: "network".to_owned(), path: network });
    let limit = spec.limits.memory_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    let memory = limit.map(|limit| MemoryLimits { limit, swap: machine.swap_accounting.then_some(limit) });
    let cpu = spec.limits.cpu_millis.map(|millis| {
        // The kernel's minimum quota is one millisecond per period.
        let quota = (i64::from(millis) * 100).max(1000);
        CpuLimits { quota, period: CPU_PERIOD }
    });
    LinuxSpec {
        namespaces,
        cgroups_path: cgroup.to_owned(),
        resources: ResourceSpec {
            devices: vec![DeviceAccess { allow: false, access: "rwm".to_owned() }],
            memory,
            cpu,
            pids: PidsLimit { limit: MOST_PROCESSES },
        },
        sysctl: confinement::sysctl(),
        masked_paths: confinement::MASKED.map(str::to_owned).to_vec(),
        readonly_paths: confinement::READ_ONLY.map(str::to_owned).to_vec(),
        seccomp: machine.seccomp.then(seccomp::profile),
    }
}

#[cfg(test)]
mod tests;
