//! Parsers for ports, names and domains. They need no room, so mistakes are reported before anything is
//! built.

use std::collections::BTreeSet;

use hearth_proto::v1::{PortKind, ServicePort};
use hearth_proto::value::PortText;

/// Port that the platform reserves; a service cannot publish it.
const RESERVED_PORT: u32 = 8078;
/// Longest label of a host name (RFC 1035).
const MAX_LABEL: usize = 63;

/// Parses a port: `N`, `N/http`, `N/h2c` or `N/tcp`.
pub(in crate::cli) fn port(text: &str) -> Result<ServicePort, String> {
    let wrong = || format!("port `{text}`: expected `N`, `N/h2c` or `N/tcp`, with N from 1 to 65535");
    let PortText { number, protocol } = PortText::parse(text).ok_or_else(wrong)?;
    let kind = match protocol {
        None | Some("http") => PortKind::Http,
        Some("h2c") => PortKind::H2c,
        Some("tcp") => PortKind::Tcp,
        Some("udp") => {
            return Err(format!("port `{text}`: udp reaches no service; expected `N`, `N/h2c` or `N/tcp`"));
        }
        Some(_) => return Err(wrong()),
    };
    let number = u32::from(number);
    if number == RESERVED_PORT {
        return Err(format!("port {RESERVED_PORT} is reserved; let the app listen on another"));
    }
    Ok(ServicePort { number, kind: kind.into(), published: None })
}

/// Returns the word for a kind of port, as [`port`] parses it.
pub(in crate::cli) const fn kind_name(kind: PortKind) -> &'static str {
    match kind {
        PortKind::Unspecified | PortKind::Http => "http",
        PortKind::Tcp => "tcp",
        PortKind::H2c => "h2c",
    }
}

/// Refuses two ports with one number.
pub(in crate::cli) fn check_ports(ports: &[ServicePort]) -> Result<(), String> {
    let mut seen = BTreeSet::new();
    match ports.iter().find(|port| !seen.insert(port.number)) {
        Some(port) => Err(format!("port {} is given twice", port.number)),
        None => Ok(()),
    }
}

/// Parses a service name. It is the host name of the service for the other services of the room: one
/// DNS label.
pub(in crate::cli) fn name(text: &str) -> Result<String, String> {
    if text.len() <= MAX_LABEL && is_label(text) && !text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "service name `{text}`: expected at most {MAX_LABEL} lower-case letters, digits and dashes, with a letter or digit at both ends"
    ))
}

/// Parses a domain: a host name, or `*.` and a host name.
pub(in crate::cli) fn domain(text: &str) -> Result<String, String> {
    let trimmed = text.trim().trim_end_matches('.');
    let host = trimmed.strip_prefix("*.").unwrap_or(trimmed);
    if host.split('.').all(|label| is_label(&label.replace('_', "a"))) {
        return Ok(text.trim().to_owned());
    }
    Err(format!("domain `{text}`: expected a host name such as `www.example.com` or `*.example.com`"))
}

fn is_label(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

/// Parses the path of a health check.
pub(in crate::cli) fn liveness(text: &str) -> Result<String, String> {
    if text.starts_with('/') && !text.bytes().any(|byte| byte <= b' ' || byte == 0x7f) {
        return Ok(text.to_owned());
    }
    Err(format!("path `{text}` of the health check: expected one that begins with `/` and has no blanks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_http_unless_it_names_another_protocol() {
        let shown = |text: &str| port(text).map(|port| (port.number, port.kind()));
        assert_eq!(shown("80"), Ok((80, PortKind::Http)));
        assert_eq!(shown("65535/http"), Ok((65535, PortKind::Http)));
        assert_eq!(shown("50051/h2c"), Ok((50051, PortKind::H2c)));
        assert_eq!(shown("5432/tcp"), Ok((5432, PortKind::Tcp)));
        for (text, says) in [
            ("", "expected `N`, `N/h2c` or `N/tcp`"),
            ("0", "from 1 to 65535"),
            ("65536", "from 1 to 65535"),
            ("+80", "expected"),
            ("http", "expected"),
            ("80/", "expected"),
            ("80/sctp", "expected"),
            ("80:80", "expected"),
            ("53/udp", "udp"),
            ("8078", "reserved"),
            ("8078/tcp", "reserved"),
        ] {
            assert!(port(text).unwrap_err().contains(says), "{text}: {:?}", port(text));
        }
        let twice = [port("80").unwrap(), port("80/tcp").unwrap()];
        assert_eq!(check_ports(&twice).unwrap_err(), "port 80 is given twice");
        assert_eq!(check_ports(&twice[..1]), Ok(()));
    }

    #[test]
    fn a_name_is_one_label_and_a_domain_is_several() {
        for good in ["web", "repo-web", "a", "1a", &"a".repeat(63)] {
            assert!(name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "a b", &"a".repeat(64)] {
            assert!(name(bad).unwrap_err().contains(&format!("service name `{bad}`")), "{bad}");
        }
        for good in ["example.com", "WWW.example.com.", "*.apps.example.com", "localhost", "a_b.example.com"]
        {
            assert!(domain(good).is_ok(), "{good}");
        }
        for bad in ["", "*", "*.", "http://a.example", "a:80", "a/b", "a..b", "a b", "-a.example"] {
            assert!(domain(bad).unwrap_err().contains(&format!("domain `{bad}`")), "{bad}");
        }
    }

    #[test]
    fn a_health_check_is_a_path() {
        assert_eq!(liveness("/healthz?x=1"), Ok("/healthz?x=1".to_owned()));
        for bad in ["", "healthz", "/a b", "http://a/"] {
            assert!(liveness(bad).unwrap_err().contains(&format!("path `{bad}`")), "{bad}");
        }
    }
}
