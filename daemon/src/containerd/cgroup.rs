//! Control groups of instances, in both versions of the kernel's interface.

use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = "/sys/fs/cgroup";

/// Returns the path of an instance's group, below the root of each hierarchy. The path is not nested, so that no parent
/// group is left behind.
pub(super) fn path(namespace: &str, instance: &str) -> String {
    format!("/{namespace}-{instance}")
}

fn unified() -> bool {
    Path::new(ROOT).join("cgroup.controllers").exists()
}

/// Reports whether the kernel accounts swap, so that it can be limited.
pub(super) fn swap_accounting() -> bool {
    if !unified() {
        return Path::new(ROOT).join("memory/memory.memsw.limit_in_bytes").exists();
    }
    // The root group has no limit files, so any group below it is checked.
    let Ok(groups) = fs::read_dir(ROOT) else { return false };
    groups.flatten().any(|group| group.path().join("memory.swap.max").exists())
}

/// Reports whether the kernel killed a process of the group for lack of memory; `None` if the group is gone.
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

/// Removes the leftovers of a group after its shim was killed. Its processes have exited by then.
pub(super) fn remove(path: &str) {
    let path = path.trim_start_matches('/');
    let hierarchies = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    let groups = hierarchies.chain([PathBuf::from(ROOT)]).map(|hierarchy| hierarchy.join(path));
    for group in groups.filter(|group| group.is_dir()) {
        if let Err(error) = fs::remove_dir(&group) {
            tracing::warn!(path = %group.display(), %error, "failed to remove a control group");
        }
    }
}
