//! Control groups of instances, in either version of the kernel's interface.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// Path of an instance's group, below the root of each hierarchy. Not nested: no group is left when the last is gone.
pub(super) fn path(namespace: &str, instance: &str) -> String {
    format!("/{namespace}-{instance}")
}

fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Whether swap is counted, so that a limit on it can be set.
pub(super) fn swap_accounting() -> bool {
    if !unified() {
        return Path::new(ROOT).join("memory/memory.memsw.limit_in_bytes").exists();
    }
    // The root itself has no limits: any group below it tells.
    let Ok(groups) = fs::read_dir(ROOT) else { return false };
    groups.flatten().any(|group| group.path().join("memory.swap.max").exists())
}

/// Whether the kernel ended a process of the group for want of memory; none when the group is gone.
pub(super) fn out_of_memory(path: &str) -> Option<bool> {
    let path = path.trim_start_matches('/');
    let files = [
        Path::new(ROOT).join(path).join("memory.events"),
        Path::new(ROOT).join("memory").join(path).join("memory.oom_control"),
    ];
    let text = files.iter().find_map(|file| fs::read_to_string(file).ok())?;
    let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
    Some(kills.trim() != "0")
}

/// Removes what a killed shim left of a group. Its processes are gone by then.
pub(super) fn remove(path: &str) {
    let path = path.trim_start_matches('/');
    let hierarchies = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    let groups = hierarchies.chain([PathBuf::from(ROOT)]).map(|hierarchy| hierarchy.join(path));
    for group in groups.filter(|group| group.is_dir()) {
        if let Err(error) = fs::remove_dir(&group) {
            tracing::warn!(group = %group.display(), %error, "control group cannot be removed");
        }
    }
}
