//! Remains of the network of a daemon's build steps in the kernel: links and an nftables table.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use crate::process;
use crate::wait::seconds;

/// Removes everything of the step network; returns what was found.
pub fn sweep(state: &Path) -> Vec<String> {
    let mut report = Vec::new();
    for link in links(state) {
        process::run(Command::new("ip").args(["link", "delete", &link]), seconds(10));
        report.push(format!("link {link}"));
    }
    if let Some(table) = name_of(state)
        && process::run(Command::new("nft").args(["delete", "table", "inet", &table]), seconds(10)).code == 0
    {
        report.push(format!("nft table {table}"));
    }
    report
}

/// Returns the host's ends of the link pairs of steps and of the builders' namespace.
pub fn links(state: &Path) -> Vec<String> {
    let Some(name) = name_of(state) else { return Vec::new() };
    let shown = process::run(Command::new("ip").args(["-o", "link", "show"]), seconds(10));
    let link = |line: &str| Some(line.split(": ").nth(1)?.split('@').next()?.to_owned());
    shown.stdout.lines().filter_map(link).filter(|link| link.starts_with(&name)).collect()
}

/// Returns the name of the table, which is also the prefix of the links' names. It derives from the identity of the
/// state directory.
pub fn name_of(state: &Path) -> Option<String> {
    let stat = fs::metadata(state).ok()?;
    let mut hasher = blake3::Hasher::new();
    hasher.update(&stat.dev().to_le_bytes()).update(&stat.ino().to_le_bytes());
    Some(format!("hst{}", &hasher.finalize().to_hex()[..6]))
}
