//! Capabilities of this process (capabilities(7)), so that an error can name the missing ones.

use std::fs;

/// Number, name and purpose of a needed capability.
pub type NeededCapability = (u32, &'static str, &'static str);

/// Returns the capabilities among `needed` that this process lacks, as `CAP_X (purpose), CAP_Y (..)`; `None` if it has
/// all.
pub fn missing_capabilities(needed: &[NeededCapability]) -> Result<Option<String>, String> {
    let status =
        fs::read_to_string("/proc/self/status").map_err(|error| format!("/proc/self/status: {error}"))?;
    let list: Vec<String> =
        missing_capabilities_in(&status, needed).map(|(_, name, why)| format!("{name} ({why})")).collect();
    Ok(if list.is_empty() { None } else { Some(list.join(", ")) })
}

/// Returns the capabilities among `needed` that are missing in the text of `/proc/PID/status`.
pub fn missing_capabilities_in<'n>(
    status: &str,
    needed: &'n [NeededCapability],
) -> impl Iterator<Item = &'n NeededCapability> {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    needed.iter().filter(move |(bit, ..)| effective & (1 << bit) == 0)
}
