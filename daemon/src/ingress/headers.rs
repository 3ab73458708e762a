//! Rewrites the heads of requests and answers that pass through the proxy.
//!
//! Removed: headers for a single connection (RFC 9110, section 7.6.1), and headers that identify the client,
//! unless a trusted proxy sets them. Added: `X-Forwarded-For`, `-Proto` and `-Host`. Header names with `_`
//! instead of `-` are treated alike, because many frameworks do not distinguish them.

use std::net::IpAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Version};

use super::page::IngressError;
use super::token;
use super::upgrade::UpgradeProtocols;

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// Client side of a connection.
pub(super) struct ClientPeer {
    pub(super) address: IpAddr,
    /// `address` as a header value.
    forwarded_for: HeaderValue,
    proto: HeaderValue,
    /// True for a trusted proxy: its headers about earlier clients are kept.
    pub(super) trusted: bool,
}

impl ClientPeer {
    pub(super) fn new(address: IpAddr, secure: bool, trusted: bool) -> Self {
        let address = address.to_canonical();
        Self {
            address,
            // The text of an address is always a valid header value.
            forwarded_for: HeaderValue::from_str(&address.to_string())
                .unwrap_or(HeaderValue::from_static("unknown")),
            proto: HeaderValue::from_static(if secure { "https" } else { "http" }),
            trusted,
        }
    }
}

/// Returns the size of header fields in bytes, as HTTP/1.1 writes them. The limits of heads count these bytes whatever
/// the protocol is.
pub(super) fn size(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum()
}

/// Returns the number of fields that a head of this size can have: the shortest has four bytes. A map of headers cannot
/// hold more than `MAX_FIELDS`, which would be fields of six bytes in the largest head.
pub(super) fn most_fields(bytes: usize) -> usize {
    const MAX_FIELDS: usize = 24_000;
    (bytes / 4).min(MAX_FIELDS)
}

/// Returns the limit of HTTP/2 that allows every head of this size: HTTP/2 counts 32 bytes for each field.
pub(super) fn http2_list_size(bytes: usize) -> u32 {
    u32::try_from(bytes.saturating_mul(8)).unwrap_or(u32::MAX)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum HeaderKind {
    /// Hop-by-hop header.
    Hop,
    Connection,
    TransferEncoding,
    /// Identifies the client.
    Origin,
    Other,
}

fn kind(name: &str) -> HeaderKind {
    match name {
        "connection" => HeaderKind::Connection,
        "transfer-encoding" => HeaderKind::TransferEncoding,
        "keep-alive"
        | "proxy-connection"
        | "proxy-authenticate"
        | "proxy-authorization"
        | "te"
        | "upgrade"
        | "expect"
        | "http2-settings" => HeaderKind::Hop,
        _ if tells_origin(name) => HeaderKind::Origin,
        _ => HeaderKind::Other,
    }
}

fn tells_origin(name: &str) -> bool {
    const PREFIX: &[u8] = b"x-forwarded-";
    let same = |a: &[u8], b: &[u8]| {
        a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b || (*a == b'_' && *b == b'-'))
    };
    let name = name.as_bytes();
    match name.first() {
        Some(b'f') => name == b"forwarded",
        Some(b'x') => {
            name.get(..PREFIX.len()).is_some_and(|start| same(start, PREFIX)) || same(name, b"x-real-ip")
        }
        _ => false,
    }
}

/// Rewrites the head of a client's request for an instance. Returns the protocols that the client asks to switch to.
pub(super) fn to_instance<B>(
    request: &mut Request<B>,
    client: &ClientPeer,
    host: HeaderValue,
    has_body: bool,
) -> Result<Option<UpgradeProtocols>, IngressError> {
    let (http11, get) = (request.version() == Version::HTTP_11, request.method() == Method::GET);
    let headers = request.headers_mut();
    let mut out: Vec<HeaderName> = Vec::new();
    let mut upgrade = None;
    let mut trailers = false;
    for name in headers.keys() {
        match kind(name.as_str()) {
            HeaderKind::Other => continue,
            HeaderKind::Origin if client.trusted && !name.as_str().contains('_') => continue,
            HeaderKind::Origin => {}
            HeaderKind::TransferEncoding => only_chunked(headers)?,
            HeaderKind::Connection => {
                for named in connection_names(headers) {
                    if named == header::UPGRADE {
                        upgrade = if http11 && get { UpgradeProtocols::requested(headers) } else { None };
                    } else if !matches!(named, header::HOST | header::CONTENT_LENGTH) {
                        out.push(named);
                    }
                }
            }
            HeaderKind::Hop if *name == header::TE => trailers = names(headers, &header::TE, "trailers"),
            HeaderKind::Hop => {}
        }
        out.push(name.clone());
    }
    for name in out {
        headers.remove(name);
    }
    if let Some(protocols) = &upgrade {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, protocols.value().clone());
    }
    if trailers {
        headers.insert(header::TE, TRAILERS);
    }
    if has_body && !headers.contains_key(header::CONTENT_LENGTH) {
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    set_forwarded_headers(headers, client, &host);
    headers.insert(header::HOST, host);
    join_cookies(headers);
    Ok(upgrade)
}

fn set_forwarded_headers(headers: &mut HeaderMap, client: &ClientPeer, host: &HeaderValue) {
    if client.trusted {
        let mut chain = Vec::new();
        for before in headers.get_all(&FORWARDED_FOR) {
            chain.extend_from_slice(before.as_bytes());
            chain.extend_from_slice(b", ");
        }
        chain.extend_from_slice(client.forwarded_for.as_bytes());
        headers.insert(
            FORWARDED_FOR,
            HeaderValue::from_bytes(&chain).unwrap_or_else(|_| client.forwarded_for.clone()),
        );
        headers.entry(FORWARDED_PROTO).or_insert_with(|| client.proto.clone());
        headers.entry(FORWARDED_HOST).or_insert_with(|| host.clone());
    } else {
        headers.insert(FORWARDED_FOR, client.forwarded_for.clone());
        headers.insert(FORWARDED_PROTO, client.proto.clone());
        headers.insert(FORWARDED_HOST, host.clone());
    }
}

/// Joins several cookie headers into one. HTTP/2 may split them, HTTP/1.1 may not (RFC 9113, section 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut parts = headers.get_all(header::COOKIE).iter();
    if parts.next().is_none() || parts.next().is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(header::COOKIE, joined);
    }
}

/// Rewrites the head of an instance's answer for the client.
pub(super) fn to_client(headers: &mut HeaderMap, switched: bool) {
    let mut out: Vec<HeaderName> = Vec::new();
    for name in headers.keys() {
        match kind(name.as_str()) {
            HeaderKind::Connection if switched => continue,
            HeaderKind::Hop if switched && *name == header::UPGRADE => continue,
            HeaderKind::Connection => out.extend(
                connection_names(headers)
                    .filter(|named| !matches!(*named, header::CONTENT_LENGTH | header::SET_COOKIE)),
            ),
            HeaderKind::Hop | HeaderKind::TransferEncoding => {}
            HeaderKind::Origin | HeaderKind::Other => continue,
        }
        out.push(name.clone());
    }
    for name in out {
        headers.remove(name);
    }
    token::strip_set_cookie(headers);
}

/// Rejects codings other than `chunked`, which would be lost with the header.
fn only_chunked(headers: &HeaderMap) -> Result<(), IngressError> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (Some(coding), None) if coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(IngressError::TransferCoding),
    }
}

fn connection_names(headers: &HeaderMap) -> impl Iterator<Item = HeaderName> + '_ {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
}

fn names(headers: &HeaderMap, header: &HeaderName, word: &str) -> bool {
    headers
        .get_all(header)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .any(|part| part.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
}

#[cfg(test)]
mod tests;
