//! Confinement of every instance, regardless of its image: Docker's defaults, without two capabilities.

use std::collections::{BTreeMap, BTreeSet};

use super::types::{CapabilitySets, MountEntry};
use crate::model::confinement::AddedCapability;

/// Docker's default capabilities without NET_RAW and MKNOD: services must not be able to forge packets or create
/// devices.
const CAPABILITIES: [&str; 12] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

pub fn capabilities(added: &BTreeSet<AddedCapability>) -> CapabilitySets {
    let added = added.iter().map(|capability| match capability {
        AddedCapability::NetRaw => "CAP_NET_RAW",
        AddedCapability::Mknod => "CAP_MKNOD",
    });
    CapabilitySets::same(&CAPABILITIES.into_iter().chain(added).collect::<Vec<_>>())
}

pub const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

pub const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

const MOUNTS: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
    ),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    // Programs read their memory limit here.
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
];

pub fn mounts() -> Vec<MountEntry> {
    let mount = |(destination, kind, source, options): (&str, &str, &str, &[&str])| MountEntry {
        destination: destination.to_owned(),
        kind: kind.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    };
    MOUNTS.map(mount).to_vec()
}

/// Returns the sysctls of the instance's network namespace: any user may listen on any port, and ping.
pub fn sysctl() -> BTreeMap<String, String> {
    [("net.ipv4.ip_unprivileged_port_start", "0"), ("net.ipv4.ping_group_range", "0 2147483647")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into()
}
