//! What a daemon's network leaves in the kernel, which no directory holds: links, the table, control groups.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process;
use crate::wait::seconds;

/// Everything of the network of the daemon with this state directory; taken away as it is found.
pub fn sweep(state: &Path) -> Vec<String> {
    let mut report = Vec::new();
    if let Some(bridge) = bridge_of(state) {
        for link in links_of(&bridge) {
            process::run(Command::new("ip").args(["link", "delete", &link]), seconds(10));
            report.push(format!("link {link}"));
        }
        let table = process::run(Command::new("nft").args(["delete", "table", "inet", &bridge]), seconds(10));
        if table.code == 0 {
            report.push(format!("nft table {bridge}"));
        }
    }
    for group in control_groups(state) {
        // One with processes stays; those are told as processes.
        let _ = fs::remove_dir(&group);
        report.push(format!("control group {}", group.display()));
    }
    report
}

/// The links of the daemon with this state directory: its bridge, and an end for each instance.
pub fn links(state: &Path) -> Vec<String> {
    bridge_of(state).map(|bridge| links_of(&bridge)).unwrap_or_default()
}

/// The name comes from the network's directory, and is the table's too.
fn bridge_of(state: &Path) -> Option<String> {
    let stat = fs::metadata(state.join("network")).ok()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&stat.dev().to_le_bytes()).update(&stat.ino().to_le_bytes());
    Some(format!("hth-{}", &hasher.finalize().to_hex()[..8]))
}

/// The bridge, where there is one, and the instances' ends of it before it.
fn links_of(bridge: &str) -> Vec<String> {
    let of = |what: &[&str]| {
        let shown = process::run(Command::new("ip").args(["-o", "link", "show"]).args(what), seconds(10));
        let name = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
        shown.stdout.lines().filter_map(name).collect::<Vec<_>>()
    };
    [of(&["master", bridge]), of(&["dev", bridge])].concat()
}

/// containerd's namespace of a state directory.
pub fn namespace_of(state: &Path) -> Option<String> {
    use sha2::Digest as _;
    let path = state.canonicalize().ok()?;
    let hash = sha2::Sha256::digest(path.as_os_str().as_encoded_bytes());
    Some(format!("hearth-{}", hex::encode(&hash[..6])))
}

/// That namespace begins the names of its instances' groups.
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
