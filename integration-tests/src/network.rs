//! Remains of a daemon's network in the kernel, outside of any directory: links, the nftables table, control groups.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;
use crate::wait::seconds;

/// Removes everything of the network of the daemon with this state directory; returns what was found.
pub fn sweep(state: &Path) -> Vec<String> {
    let mut report = Vec::new();
    if let Some(seed) = seed_of(state) {
        for link in links_of(seed) {
            process::run(Command::new("ip").args(["link", "delete", &link]), seconds(10));
            report.push(format!("link {link}"));
        }
        let name = name_of(seed);
        let table = process::run(Command::new("nft").args(["delete", "table", "inet", &name]), seconds(10));
        if table.code == 0 {
            report.push(format!("nft table {name}"));
        }
    }
    for group in control_groups(state) {
        // A group with processes stays; those are reported as processes.
        let _ = fs::remove_dir(&group);
        report.push(format!("control group {}", group.display()));
    }
    report
}

/// Returns the links of the daemon with this state directory: that of its gateway, and one for each instance.
pub fn links(state: &Path) -> Vec<String> {
    seed_of(state).map(links_of).unwrap_or_default()
}

/// Returns the number that names and link groups derive from; it comes from the identity of the network's directory.
fn seed_of(state: &Path) -> Option<u32> {
    let stat = fs::metadata(state.join("network")).ok()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&stat.dev().to_le_bytes()).update(&stat.ino().to_le_bytes());
    let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
    Some(u32::from_be_bytes([a, b, c, d]))
}

/// Returns the name of the gateway's link and of the table.
fn name_of(seed: u32) -> String {
    format!("hth-{seed:08x}")
}

/// Returns the instances' links in both link groups, followed by the gateway's link.
fn links_of(seed: u32) -> Vec<String> {
    let of = |what: &[&str]| {
        let shown = process::run(Command::new("ip").args(["-o", "link", "show"]).args(what), seconds(10));
        let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
        shown.stdout.lines().filter_map(name).collect::<Vec<_>>()
    };
    let group = (seed & !1).max(2);
    let (open, isolated) = (group.to_string(), (group | 1).to_string());
    [of(&["group", &open]), of(&["group", &isolated]), of(&["dev", &name_of(seed)])].concat()
}

/// Returns containerd's namespace for a state directory.
pub fn namespace_of(state: &Path) -> Option<String> {
    use sha2::Digest as _;
    let path = state.canonicalize().ok()?;
    let hash = sha2::Sha256::digest(path.as_os_str().as_encoded_bytes());
    Some(format!("hearth-{}", hex::encode(&hash[..6])))
}

/// Returns the control groups of the instances, whose names begin with containerd's namespace.
pub fn control_groups(state: &Path) -> Vec<PathBuf> {
    let Some(prefix) = namespace_of(state) else { return Vec::new() };
    let root = PathBuf::from("/sys/fs/cgroup");
    let below = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let hierarchies: Vec<_> = below(&root).chain([root.clone()]).collect();
    let groups = hierarchies.iter().flat_map(|hierarchy| below(hierarchy));
    groups
        .filter(|group| group.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)))
        .collect()
}
