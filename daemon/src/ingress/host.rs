//! Determines the host of a request.
//!
//! The authority of the request target (`:authority` in HTTP/2, the absolute form in HTTP/1.1) takes precedence
//! over the `Host` header (RFC 9112, section 3.2.2). Names are compared in lower case, without the port and the
//! trailing dot.

use std::borrow::Cow;

use http::{HeaderValue, Request, header};

use super::page::IngressError;

/// Returns the host as the client wrote it, port included.
pub(super) fn request_host<B>(request: &Request<B>) -> Result<HeaderValue, IngressError> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(IngressError::Malformed("the request has more than one Host header"));
    }
    if let Some(authority) = request.uri().authority() {
        if authority.as_str().contains('@') {
            return Err(IngressError::Malformed("the request's target names a user"));
        }
        return HeaderValue::from_str(authority.as_str())
            .map_err(|_| IngressError::Malformed("the request's target names no host"));
    }
    match header {
        Some(host) if !host.is_empty() => Ok(host.clone()),
        _ => Err(IngressError::Malformed("the request names no host")),
    }
}

/// Returns the name by which routes are found.
pub(super) fn route_name(written: &HeaderValue) -> Result<Cow<'_, str>, IngressError> {
    let text = written.to_str().map_err(|_| IngressError::Malformed("the Host header is not a host name"))?;
    let host = match text.rsplit_once(':') {
        // The colons of an IPv6 address without brackets do not separate a port.
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
            if !port.bytes().all(|b| b.is_ascii_digit()) {
                return Err(IngressError::Malformed("the Host header has a port that is no number"));
            }
            host
        }
        _ => text,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    if host.bytes().any(|b| b.is_ascii_uppercase()) {
        Ok(Cow::Owned(host.to_ascii_lowercase()))
    } else {
        Ok(Cow::Borrowed(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_case_and_the_dot_of_the_root_make_no_difference() {
        let name = |text: &str| route_name(&HeaderValue::from_str(text).unwrap()).map(Cow::into_owned);
        for text in ["a.example", "A.Example", "a.example.", "a.example:80", "A.EXAMPLE.:443", "a.example:"] {
            assert_eq!(name(text).unwrap(), "a.example", "{text}");
        }
        assert_eq!(name("[::1]:80").unwrap(), "[::1]");
        assert_eq!(name("[::1]").unwrap(), "[::1]");
        assert!(name("a:b").is_err());
    }

    #[test]
    fn the_target_wins_over_the_host_header_and_two_hosts_are_refused() {
        let request = |uri: &str, hosts: &[&str]| {
            let mut builder = Request::builder().uri(uri);
            for host in hosts {
                builder = builder.header(header::HOST, *host);
            }
            request_host(&builder.body(()).unwrap())
        };
        assert_eq!(request("http://a.example:1/x", &["b.example"]).unwrap(), "a.example:1");
        assert_eq!(request("/x", &["b.example"]).unwrap(), "b.example");
        assert!(request("/x", &[]).is_err());
        assert!(request("/x", &[""]).is_err());
        assert!(request("/x", &["a", "b"]).is_err());
        assert!(request("http://u@a.example/", &["b"]).is_err());
    }
}
