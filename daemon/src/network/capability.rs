//! What the kernel must grant for networks of instances, so that a refusal names what is missing.

use std::fs;

/// Number and name, as in capabilities(7).
const NEEDED: [(u32, &str, &str); 2] = [
    (12, "CAP_NET_ADMIN", "links, addresses and rules are made"),
    (21, "CAP_SYS_ADMIN", "network namespaces are made and mounted"),
];

pub(super) fn check() -> Result<(), String> {
    let status =
        fs::read_to_string("/proc/self/status").map_err(|error| format!("/proc/self/status: {error}"))?;
    let missing = missing(&status);
    if missing.is_empty() {
        return Ok(());
    }
    let list: Vec<String> = missing.iter().map(|(name, why)| format!("{name} ({why})")).collect();
    Err(format!(
        "services cannot have a network here: missing {}; run hearthd as root, and in a container with `--privileged`",
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_capability_is_named() {
        // What docker gives a container that is not privileged, and with `--cap-add NET_ADMIN`.
        assert_eq!(missing("Name:\tx\nCapEff:\t00000000a80425fb\n").len(), 2);
        assert_eq!(missing("CapEff:\t00000000a80435fb\n")[0].0, "CAP_SYS_ADMIN");
        assert!(missing("CapEff:\t000001ffffffffff\n").is_empty());
        assert_eq!(missing("").len(), NEEDED.len());
    }
}
