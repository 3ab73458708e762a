//! Checks the kernel privileges that buildkitd needs before it is started, so that a refusal names the missing one.

use std::fs;

use crate::capability::{self, NeededCapability};

/// Capabilities that buildkitd or runc uses on every build: bit, name, reason.
const NEEDED: [NeededCapability; 11] = [
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
    if !rustix::process::geteuid().is_root() {
        return Err(
            "buildkitd needs root, and hearthd does not run as root; run hearthd as root, or give it a \
                    BuildKit of another user with --buildkit"
                .to_owned(),
        );
    }
    if let Some(missing) = capability::missing_capabilities(&NEEDED)? {
        return Err(format!(
            "buildkitd cannot run here: missing {missing}; grant it (in a container: `--privileged`), or use a BuildKit \
             elsewhere with --buildkit"
        ));
    }
    if !has_overlay(&fs::read_to_string("/proc/filesystems").unwrap_or_default()) {
        tracing::warn!(
            "found no overlayfs in the kernel; buildkitd copies layers instead (slower) if it cannot load it"
        );
    }
    Ok(())
}

fn has_overlay(filesystems: &str) -> bool {
    filesystems.lines().any(|line| line.split_whitespace().last() == Some("overlay"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_named() {
        // Capabilities of an unprivileged docker container.
        let missing =
            |status| capability::missing_capabilities_in(status, &NEEDED).copied().collect::<Vec<_>>();
        let plain = missing("Name:\tx\nCapEff:\t00000000a80425fb\n");
        assert_eq!(plain, [(21, "CAP_SYS_ADMIN", "layers and steps are mounted")]);
        assert!(missing("CapEff:\t000001ffffffffff\n").is_empty());
        assert_eq!(missing("").len(), NEEDED.len());
    }
}
