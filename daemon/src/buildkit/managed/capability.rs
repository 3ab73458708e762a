//! What the kernel must grant before buildkitd is started, so that a refusal names what is missing.

use std::fs;

/// Number and name, as in capabilities(7); each is used by buildkitd or runc on every build.
const NEEDED: [(u32, &str, &str); 11] = [
    (0, "CAP_CHOWN", "files of layers have owners"),
    (1, "CAP_DAC_OVERRIDE", "files of layers have modes"),
    (3, "CAP_FOWNER", "files of layers have modes"),
    (5, "CAP_KILL", "steps are ended"),
    (6, "CAP_SETGID", "steps run as users"),
    (7, "CAP_SETUID", "steps run as users"),
    (8, "CAP_SETPCAP", "steps run with fewer capabilities"),
    (18, "CAP_SYS_CHROOT", "steps run in their own root"),
    (21, "CAP_SYS_ADMIN", "layers and steps are mounted"),
    (27, "CAP_MKNOD", "layers have devices and whiteouts"),
    (31, "CAP_SETFCAP", "files of layers have capabilities"),
];

pub(super) fn check() -> Result<(), String> {
    let status =
        fs::read_to_string("/proc/self/status").map_err(|error| format!("/proc/self/status: {error}"))?;
    if !rustix::process::geteuid().is_root() {
        return Err(
            "buildkitd needs root, and hearthd does not run as root; run hearthd as root, or give it a \
                    BuildKit of another user with --buildkit"
                .to_owned(),
        );
    }
    let missing = missing(&status);
    if missing.is_empty() {
        if !has_overlay(&fs::read_to_string("/proc/filesystems").unwrap_or_default()) {
            tracing::warn!(
                "the kernel has no overlayfs loaded; buildkitd copies layers instead (slower) if it cannot load it"
            );
        }
        return Ok(());
    }
    let list: Vec<String> = missing.iter().map(|(name, why)| format!("{name} ({why})")).collect();
    Err(format!(
        "buildkitd cannot run here: missing {}; grant it (in a container: `--privileged`), or use a BuildKit elsewhere \
         with --buildkit",
        list.join(", ")
    ))
}

fn missing(status: &str) -> Vec<(&'static str, &'static str)> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    NEEDED
        .iter()
        .filter(|(bit, ..)| effective & (1 << bit) == 0)
        .map(|(_, name, why)| (*name, *why))
        .collect()
}

fn has_overlay(filesystems: &str) -> bool {
    filesystems.lines().any(|line| line.split_whitespace().last() == Some("overlay"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_named() {
        // What docker gives a container that is not privileged.
        let plain = missing("Name:\tx\nCapEff:\t00000000a80425fb\n");
        assert_eq!(plain, [("CAP_SYS_ADMIN", "layers and steps are mounted")]);
        assert!(missing("CapEff:\t000001ffffffffff\n").is_empty());
        assert_eq!(missing("").len(), NEEDED.len());
    }
}
