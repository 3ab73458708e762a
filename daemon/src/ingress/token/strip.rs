//! Removal of the room's participant tokens from requests that the ingress forwards to services.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Request, Uri};

use super::search::TokenSearch;
use super::{pairs, strip_cookie};
use crate::access::TokenAuthority;
use crate::ingress::page::IngressError;

/// Removes every header, cookie and query parameter that contains a token of the room, and the token cookie. Refuses a
/// request whose path contains a token, because no part of a path can be removed.
pub(in crate::ingress) fn strip<B>(
    request: &mut Request<B>,
    access: &TokenAuthority,
) -> Result<(), IngressError> {
    let mut search = TokenSearch::new(access);
    strip_headers(request.headers_mut(), &mut search)?;
    if let Some(target) = target_without_tokens(request.uri(), &mut search)? {
        *request.uri_mut() = target;
    }
    Ok(())
}

/// Removes tokens from the trailers of a request. If the search exceeds its limit, all trailers are removed: the
/// request cannot be refused any more, because its head was already forwarded.
pub(in crate::ingress) fn strip_trailers(trailers: &mut HeaderMap, access: &TokenAuthority) {
    if strip_headers(trailers, &mut TokenSearch::new(access)).is_err() {
        trailers.clear();
    }
}

fn strip_headers(headers: &mut HeaderMap, search: &mut TokenSearch<'_>) -> Result<(), IngressError> {
    strip_cookie(headers);
    let mut changed: Vec<(HeaderName, Vec<HeaderValue>)> = Vec::new();
    for name in headers.keys() {
        // One element for each value: `None` if the value has no token, otherwise the remaining value, if any.
        let mut remaining = Vec::new();
        for value in headers.get_all(name) {
            remaining.push(if search.finds(value.as_bytes())? {
                Some(remaining_members(name, value, search)?)
            } else {
                None
            });
        }
        if remaining.iter().any(Option::is_some) {
            let values = headers.get_all(name).iter().zip(remaining);
            let kept =
                values.filter_map(|(value, remaining)| remaining.unwrap_or_else(|| Some(value.clone())));
            changed.push((name.clone(), kept.collect()));
        }
    }
    for (name, values) in changed {
        headers.remove(&name);
        for value in values {
            headers.append(name.clone(), value);
        }
    }
    Ok(())
}

/// Returns a header value without the cookies or WebSocket protocols that contain a token; `None` if nothing remains.
fn remaining_members(
    name: &HeaderName,
    value: &HeaderValue,
    search: &mut TokenSearch<'_>,
) -> Result<Option<HeaderValue>, IngressError> {
    let (members, between): (Vec<&[u8]>, &[u8]) = match *name {
        header::COOKIE => (pairs(value.as_bytes()).collect(), b"; "),
        header::SEC_WEBSOCKET_PROTOCOL => {
            (value.as_bytes().split(|b| *b == b',').map(<[u8]>::trim_ascii).collect(), b", ")
        }
        _ => return Ok(None),
    };
    let kept = members_without_tokens(&members, search)?.join(between);
    // A token that spans several members is still in the joined rest. The whole value is removed then.
    if kept.is_empty() || search.finds(&kept)? {
        return Ok(None);
    }
    Ok(HeaderValue::from_bytes(&kept).ok())
}

/// Returns the request target without the query parameters that contain a token; `None` if no parameter does.
fn target_without_tokens(target: &Uri, search: &mut TokenSearch<'_>) -> Result<Option<Uri>, IngressError> {
    if search.finds(target.path().as_bytes())? {
        return Err(IngressError::Malformed(
            "the path has a participant token, which no service is given: send it as a Bearer token",
        ));
    }
    let Some(query) = target.query() else { return Ok(None) };
    if !search.finds(query.as_bytes())? {
        return Ok(None);
    }
    let parameters: Vec<&[u8]> = query.as_bytes().split(|b| *b == b'&').collect();
    let kept = members_without_tokens(&parameters, search)?.join(&b"&"[..]);
    let kept = if search.finds(&kept)? { Vec::new() } else { kept };
    let mut text = target.path().as_bytes().to_vec();
    if !kept.is_empty() {
        text.push(b'?');
        text.extend_from_slice(&kept);
    }
    let malformed = || IngressError::Malformed("the request's target cannot be read");
    let mut parts = target.clone().into_parts();
    parts.path_and_query = Some(PathAndQuery::try_from(text).map_err(|_| malformed())?);
    Uri::from_parts(parts).map(Some).map_err(|_| malformed())
}

fn members_without_tokens<'a>(
    members: &[&'a [u8]],
    search: &mut TokenSearch<'_>,
) -> Result<Vec<&'a [u8]>, IngressError> {
    let mut kept = Vec::new();
    for member in members {
        if !search.finds(member)? {
            kept.push(*member);
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests;
