//! Version check of containerd.

use containerd_client::services::v1::GetRequest;

use super::channel::{ContainerdConnection, call, limit};
use super::failure::{ContainerdFault, unless_missing};
use crate::supervise::port::ProbeError;

/// Minimum version: older ones lack features that are used here, and are no longer maintained.
const MINIMUM: (u64, u64) = (1, 6);

/// Queries containerd for its version, and refuses one that is too old.
pub(super) async fn query_version(connection: &ContainerdConnection) -> Result<String, ProbeError> {
    let answer = call(limit::RECORD, connection.version().version(())).await;
    let version = answer.map_err(|fault| match fault {
        ContainerdFault::Unavailable(text) => ProbeError::NoAnswer(text),
        other => ProbeError::Refused(other.to_string()),
    })?;
    let version = version.version;
    match numbers(&version) {
        Some(found) if found >= MINIMUM => Ok(version),
        Some(_) => {
            Err(ProbeError::Refused(format!("containerd {version} is refused: 1.6 or newer is needed")))
        }
        None => Err(ProbeError::Refused(format!("containerd's version `{version}` cannot be read"))),
    }
}

/// Checks that containerd runs its tasks. One that starts on a full disk runs without the services that it could not
/// load, and never loads them later.
pub(super) async fn check_tasks(connection: &ContainerdConnection) -> Result<(), ProbeError> {
    // No instance has this name.
    let request = GetRequest { container_id: "probe".to_owned(), exec_id: String::new() };
    match unless_missing(call(limit::RECORD, connection.tasks().get(request)).await) {
        Ok(_) => Ok(()),
        Err(ContainerdFault::Unavailable(text)) => Err(ProbeError::NoAnswer(text)),
        Err(other) => {
            Err(ProbeError::Refused(format!("containerd did not load all of its services: {other}")))
        }
    }
}

/// Parses the major and minor number of versions such as `1.6.20~ds1` and `v2.0.0-rc.1`.
fn numbers(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.trim_start_matches('v').split('.').map(|part| {
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        part[..digits].parse::<u64>().ok()
    });
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_with_whatever_follows() {
        for (text, expected) in [
            ("1.6.20~ds1", Some((1, 6))),
            ("v2.0.0-rc.1", Some((2, 0))),
            ("1.7", Some((1, 7))),
            ("main", None),
            ("", None),
        ] {
            assert_eq!(numbers(text), expected, "{text}");
        }
    }
}
