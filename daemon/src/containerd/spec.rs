//! The OCI runtime specification of an instance: what its image says, what the service says over it, and the
//! confinement that every instance gets. Pure: no file is looked at here.
//!
//! Shape and words are those of the runtime-spec 1.0.2; capabilities, masked paths and the rules for entrypoint,
//! command, environment and user are Docker's, since images are written for those.

use crate::deploy::port::{BindMount, InstanceSpec};

pub mod confinement;
pub mod image;
mod seccomp;
pub mod types;
pub mod user;

use image::RunConfig;
use types::{
    Cpu, DeviceAccess, Linux, Memory, Mount, Namespace, Pids, Process, Resources, Rlimit, Root, Spec, User,
};
use user::Resolved;

/// Processes and threads of one instance.
const MOST_PROCESSES: i64 = 4096;
const MOST_FILES: u64 = 65_536;
/// Period of the processor's share, in microseconds.
const CPU_PERIOD: u64 = 100_000;
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the machine can do.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub seccomp: bool,
    /// Whether swap is counted: then an instance with a memory limit gets none.
    pub swap_accounting: bool,
    /// Files that a process may have open at most; raising that needs a capability.
    pub open_files: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecFault {
    #[error("the image has neither entrypoint nor command, and the service gives none")]
    NoCommand,
    #[error("the working directory `{0}` of the image is not an absolute path")]
    Workdir(String),
}

/// What an instance is run with.
pub fn build(
    spec: &InstanceSpec,
    image: &RunConfig,
    user: &Resolved,
    machine: Machine,
    cgroup: &str,
) -> Result<Spec, SpecFault> {
    let files = machine.open_files.min(MOST_FILES);
    let process = Process {
        terminal: false,
        console_size: None,
        user: User { uid: user.uid, gid: user.gid, additional_gids: groups(user) },
        args: command(spec, image)?,
        env: environment(spec, image, user),
        cwd: workdir(spec, image)?,
        capabilities: Some(confinement::capabilities(&spec.capabilities)),
        rlimits: vec![Rlimit { kind: "RLIMIT_NOFILE".to_owned(), hard: files, soft: files }],
        no_new_privileges: true,
    };
    Ok(Spec {
        oci_version: "1.0.2".to_owned(),
        process,
        root: Root { path: "rootfs".to_owned(), readonly: false },
        hostname: spec.network.hostname.clone(),
        mounts: mounts(spec),
        linux: linux(spec, machine, cgroup),
    })
}

/// With the first group among the further ones, or a process could give it up and escape what is refused to it.
fn groups(user: &Resolved) -> Vec<u32> {
    let further = user.groups.iter().copied().filter(|group| *group != user.gid);
    [user.gid].into_iter().chain(further).collect()
}

fn command(spec: &InstanceSpec, image: &RunConfig) -> Result<Vec<String>, SpecFault> {
    let args = match &spec.command {
        Some(command) => command.clone(),
        None => [image.entrypoint.as_slice(), image.cmd.as_slice()].concat(),
    };
    if args.is_empty() { Err(SpecFault::NoCommand) } else { Ok(args) }
}

fn workdir(spec: &InstanceSpec, image: &RunConfig) -> Result<String, SpecFault> {
    match &spec.workdir {
        Some(workdir) => Ok(workdir.to_string()),
        None if image.workdir.is_empty() => Ok("/".to_owned()),
        None if image.workdir.starts_with('/') => Ok(image.workdir.clone()),
        None => Err(SpecFault::Workdir(image.workdir.chars().take(200).collect())),
    }
}

/// The image's variables in its order, then what it does not name; the service's value wins.
fn environment(spec: &InstanceSpec, image: &RunConfig, user: &Resolved) -> Vec<String> {
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

fn mounts(spec: &InstanceSpec) -> Vec<Mount> {
    let mut mounts: Vec<Mount> = confinement::mounts();
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
    // The deeper one is mounted on the one above it.
    own.sort_by_key(|mount| mount.target.components().count());
    mounts.extend(own.iter().map(|mount| bind(&mount.source, mount.target.as_str(), mount.read_only)));
    mounts
}

/// What is mounted below a source is not seen through a read-only bind: it would stay writable.
fn bind(source: &std::path::Path, target: &str, read_only: bool) -> Mount {
    let options: &[&str] = if read_only {
        &["bind", "rprivate", "nosuid", "nodev", "ro"]
    } else {
        &["rbind", "rprivate", "nosuid", "nodev"]
    };
    Mount {
        destination: target.to_owned(),
        kind: "bind".to_owned(),
        source: source.to_string_lossy().into_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    }
}

fn linux(spec: &InstanceSpec, machine: Machine, cgroup: &str) -> Linux {
    let plain = |kind: &str| Namespace { kind: kind.to_owned(), path: None };
    let network = Some(spec.network.namespace.to_string_lossy().into_owned());
    let mut namespaces: Vec<Namespace> = ["pid", "ipc", "uts", "mount", "cgroup"].map(plain).to_vec();
    namespaces.push(Namespace { kind: "network".to_owned(), path: network });
    let limit = spec.limits.memory_bytes.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX));
    let memory = limit.map(|limit| Memory { limit, swap: machine.swap_accounting.then_some(limit) });
    let cpu = spec.limits.cpu_millis.map(|millis| {
        // The kernel takes no less than a millisecond in a period.
        let quota = (i64::from(millis) * 100).max(1000);
        Cpu { quota, period: CPU_PERIOD }
    });
    Linux {
        namespaces,
        cgroups_path: cgroup.to_owned(),
        resources: Resources {
            devices: vec![DeviceAccess { allow: false, access: "rwm".to_owned() }],
            memory,
            cpu,
            pids: Pids { limit: MOST_PROCESSES },
        },
        sysctl: confinement::sysctl(),
        masked_paths: confinement::MASKED.map(str::to_owned).to_vec(),
        readonly_paths: confinement::READ_ONLY.map(str::to_owned).to_vec(),
        seccomp: machine.seccomp.then(seccomp::profile),
    }
}

#[cfg(test)]
mod tests;
