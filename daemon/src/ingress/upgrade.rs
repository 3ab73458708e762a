//! Protocols that a client may switch to, and the origins that may do so.

use http::header::{self, HeaderMap, HeaderValue};

/// Protocols that two neighbours negotiate and that are not forwarded: after a switch to them, requests would
/// pass without being checked.
const HOP_PROTOCOLS: [&[u8]; 4] = [b"h2c", b"h2", b"http", b"tls"];

/// Protocols that a client asks to switch to, without those that are not forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UpgradeProtocols(HeaderValue);

impl UpgradeProtocols {
    /// Parses the `Upgrade` headers. The header is a list and may occur several times (RFC 9110, section 7.8).
    pub(super) fn requested(headers: &HeaderMap) -> Option<Self> {
        let members = headers.get_all(header::UPGRADE).iter().flat_map(|value| members(value.as_bytes()));
        let led: Vec<&[u8]> = members.filter(|member| !is_hop_protocol(member)).collect();
        if led.is_empty() {
            return None;
        }
        HeaderValue::from_bytes(&led.join(&b", "[..])).ok().map(Self)
    }

    pub(super) const fn value(&self) -> &HeaderValue {
        &self.0
    }

    pub(super) fn has(&self, protocol: &[u8]) -> bool {
        members(self.0.as_bytes()).any(|member| member.eq_ignore_ascii_case(protocol))
    }

    /// Returns the protocol that an instance switched to, if the client asked for it.
    pub(super) fn chosen<'a>(&self, answer: &'a HeaderMap) -> Option<&'a HeaderValue> {
        let mut values = answer.get_all(header::UPGRADE).iter();
        let chosen = values.next().filter(|value| self.has(value.as_bytes().trim_ascii()))?;
        values.next().is_none().then_some(chosen)
    }
}

fn members(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|b| *b == b',').map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// Reports whether a protocol is not forwarded, regardless of its version.
fn is_hop_protocol(member: &[u8]) -> bool {
    let name = member.split(|b| *b == b'/').next().unwrap_or_default().trim_ascii();
    HOP_PROTOCOLS.iter().any(|neighbour| name.eq_ignore_ascii_case(neighbour))
}

/// Reports whether the request comes from a page of another origin than `host`. Browsers state the origin of a
/// WebSocket and send their cookies along, whichever page opens it; other programs state none. Behind a proxy,
/// the port may differ.
pub(super) fn is_foreign_origin(headers: &HeaderMap, host: &HeaderValue, proxied: bool) -> bool {
    let host = host.to_str().unwrap_or_default();
    headers
        .get_all(header::ORIGIN)
        .iter()
        .any(|origin| origin.to_str().map_or(true, |origin| !is_of_host(origin, host, proxied)))
}

fn is_of_host(origin: &str, host: &str, proxied: bool) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let usual = match scheme {
        "http" => "80",
        "https" => "443",
        _ => return false,
    };
    let (name, port) = name_and_port(authority);
    let (host, host_port) = name_and_port(host);
    let same_port = || match host_port {
        Some(host_port) => port.unwrap_or(usual) == host_port,
        None => port.is_none_or(|port| port == usual),
    };
    name.eq_ignore_ascii_case(host) && (proxied || same_port())
}

/// Splits an authority. The colons of an IPv6 address are within brackets.
fn name_and_port(authority: &str) -> (&str, Option<&str>) {
    let (name, port) = match authority.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port).filter(|port| !port.is_empty())),
        _ => (authority, None),
    };
    (name.strip_suffix('.').unwrap_or(name), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upgrade(values: &[&str]) -> HeaderMap {
        values.iter().map(|value| (header::UPGRADE, value.parse().unwrap())).collect()
    }

    #[test]
    fn a_list_is_read_member_by_member_and_what_neighbours_settle_is_left_out() {
        let asked = |values: &[&str]| {
            UpgradeProtocols::requested(&upgrade(values))
                .map(|asked| asked.value().to_str().unwrap().to_owned())
        };
        assert_eq!(asked(&["websocket"]).unwrap(), "websocket");
        assert_eq!(asked(&["h2c, websocket"]).unwrap(), "websocket");
        assert_eq!(asked(&["websocket", "H2C"]).unwrap(), "websocket");
        assert_eq!(asked(&["custom/1 ,, TLS/1.2,HTTP/2.0"]).unwrap(), "custom/1");
        for values in [&["h2c"][..], &[" h2c ,"], &["h2c/1"], &["H2c", "h2"], &["h2c,\th2c"], &[""], &[]] {
            assert_eq!(asked(values), None, "{values:?}");
        }
    }

    #[test]
    fn an_instance_switches_to_what_was_asked_for_or_not_at_all() {
        let asked = UpgradeProtocols::requested(&upgrade(&["websocket, custom"])).unwrap();
        assert!(asked.chosen(&upgrade(&["WebSocket"])).is_some());
        for answer in [&["h2c"][..], &["websocket, h2c"], &["websocket", "h2c"], &[""], &[]] {
            assert_eq!(asked.chosen(&upgrade(answer)), None, "{answer:?}");
        }
    }

    #[test]
    fn a_page_is_foreign_unless_its_host_and_port_are_those_of_the_request() {
        let foreign = |origin: &str, host: &str, proxied| {
            let headers = HeaderMap::from_iter([(header::ORIGIN, origin.parse().unwrap())]);
            is_foreign_origin(&headers, &host.parse().unwrap(), proxied)
        };
        assert!(!is_foreign_origin(&HeaderMap::new(), &HeaderValue::from_static("a.example"), false));
        for (origin, host) in [
            ("http://a.example", "a.example"),
            ("https://A.example", "a.EXAMPLE."),
            ("http://a.example:4380", "a.example:4380"),
            ("http://a.example", "a.example:80"),
            ("https://a.example", "a.example:443"),
            ("http://[::1]:81", "[::1]:81"),
        ] {
            assert!(!foreign(origin, host, false), "{origin} {host}");
        }
        for (origin, host) in [
            ("http://evil.example", "a.example"),
            ("http://b.a.example", "a.example"),
            ("http://a.example.evil", "a.example"),
            ("http://a.example:81", "a.example"),
            ("http://a.example", "a.example:4380"),
            ("null", "a.example"),
            ("file://", "a.example"),
            ("chrome-extension://a.example", "a.example"),
            ("", "a.example"),
        ] {
            assert!(foreign(origin, host, false), "{origin} {host}");
        }
        assert!(!foreign("https://a.example", "a.example:4380", true));
        assert!(foreign("https://evil.example", "a.example:4380", true));
    }
}
