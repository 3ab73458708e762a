//! Participant tokens on private routes.
//!
//! Any valid token of the room grants access: its `room` grant names this room, and no `api` grant is needed.
//! It is sent as `Authorization: Bearer TOKEN` or as the cookie `hearth_token`. No service ever receives a
//! token of the room, on public routes neither: the cookie is removed, and so is every header, cookie, query
//! parameter and trailer that contains a token, wherever the client has put it ([`strip`]). A service cannot
//! set that cookie either. Bodies are passed unchanged.

mod search;
mod strip;

use http::header::{self, HeaderMap, HeaderValue};

use crate::access::{AccessError, TokenAuthority};

pub(super) use strip::{strip, strip_trailers};

/// Name of the cookie that holds a token.
const COOKIE: &[u8] = b"hearth_token";

/// Verifies the token of a request, and returns it. Removes the `Authorization` header that contains it.
pub(super) fn admit(headers: &mut HeaderMap, access: &TokenAuthority) -> Result<String, AccessError> {
    let mut outcome = Err(AccessError::Missing);
    let mut bearers = headers.get_all(header::AUTHORIZATION).iter().filter_map(bearer);
    if bearers.any(|token| try_token(access, token, &mut outcome)) {
        headers.remove(header::AUTHORIZATION);
    }
    if outcome.is_err() {
        let cookies = headers.get_all(header::COOKIE).iter().flat_map(|value| pairs(value.as_bytes()));
        for value in cookies.filter_map(token_of) {
            if let Ok(token) = std::str::from_utf8(value)
                && try_token(access, token, &mut outcome)
            {
                break;
            }
        }
    }
    outcome
}

fn try_token(access: &TokenAuthority, token: &str, outcome: &mut Result<String, AccessError>) -> bool {
    *outcome = access.verify(token).map(|_| token.to_owned());
    outcome.is_ok()
}

/// Removes the token cookie, and leaves all others unchanged.
fn strip_cookie(headers: &mut HeaderMap) {
    let held = |value: &HeaderValue| pairs(value.as_bytes()).any(|pair| token_of(pair).is_some());
    if !headers.get_all(header::COOKIE).iter().any(held) {
        return;
    }
    let left: Vec<HeaderValue> = headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| {
            let kept: Vec<&[u8]> = pairs(value.as_bytes()).filter(|pair| token_of(pair).is_none()).collect();
            let kept = kept.join(&b"; "[..]);
            if kept.is_empty() { None } else { HeaderValue::from_bytes(&kept).ok() }
        })
        .collect();
    headers.remove(header::COOKIE);
    for value in left {
        headers.append(header::COOKIE, value);
    }
}

/// Removes `Set-Cookie` headers that would set the token cookie, or another one that browsers send under its name.
pub(super) fn strip_set_cookie(headers: &mut HeaderMap) {
    let sets = |value: &HeaderValue| sets_token(value.as_bytes());
    if !headers.get_all(header::SET_COOKIE).iter().any(sets) {
        return;
    }
    let kept: Vec<_> =
        headers.get_all(header::SET_COOKIE).iter().filter(|value| !sets(value)).cloned().collect();
    headers.remove(header::SET_COOKIE);
    for value in kept {
        headers.append(header::SET_COOKIE, value);
    }
}

/// Reports whether a `Set-Cookie` value sets the token cookie. Browsers send a cookie without a name, such as
/// `=a=b`, as `a=b`.
fn sets_token(cookie: &[u8]) -> bool {
    let named = cookie.trim_ascii_start();
    let named = named.strip_prefix(b"=").unwrap_or(named).trim_ascii_start();
    let Some((name, rest)) = named.split_at_checked(COOKIE.len()) else { return false };
    name.eq_ignore_ascii_case(COOKIE) && rest.trim_ascii_start().starts_with(b"=")
}

fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, token) = value.to_str().ok()?.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn pairs(cookies: &[u8]) -> impl Iterator<Item = &[u8]> {
    cookies.split(|b| *b == b';').map(<[u8]>::trim_ascii).filter(|pair| !pair.is_empty())
}

fn token_of(pair: &[u8]) -> Option<&[u8]> {
    let rest = pair.strip_prefix(COOKIE)?.trim_ascii_start().strip_prefix(b"=")?.trim_ascii_start();
    Some(rest.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn access() -> (tempfile::TempDir, TokenAuthority) {
        let directory = tempfile::tempdir().unwrap();
        let access = TokenAuthority::open("r", &directory.path().join("secret")).unwrap();
        (directory, access)
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn a_token_of_the_room_opens_by_header_or_by_cookie_whatever_its_scope() {
        let (_directory, access) = access();
        let (token, _) = access.mint("ann", "{}", Duration::from_secs(60)).unwrap();
        for (name, value) in [
            ("authorization", format!("Bearer {token}")),
            ("authorization", format!("bearer  {token} ")),
            ("cookie", format!("a=1; hearth_token={token}; b=2")),
            ("cookie", format!("hearth_token=\"{token}\"")),
            ("cookie", format!("hearth_token=x;hearth_token={token}")),
        ] {
            assert_eq!(admit(&mut headers(&[(name, &value)]), &access), Ok(token.clone()), "{value}");
        }
    }

    #[test]
    fn without_one_or_with_a_wrong_one_nothing_opens() {
        let (_directory, access) = access();
        let (_other, elsewhere) = self::access();
        let (foreign, _) = elsewhere.mint("ann", "full", Duration::from_secs(60)).unwrap();
        let outcome = |name, value: &str| admit(&mut headers(&[(name, value)]), &access);
        assert_eq!(outcome("accept", "x"), Err(AccessError::Missing));
        assert_eq!(outcome("authorization", "Basic eDp5"), Err(AccessError::Missing));
        assert_eq!(outcome("cookie", "xhearth_token=a; hearth_tokenx=b"), Err(AccessError::Missing));
        assert!(matches!(
            outcome("authorization", &format!("Bearer {foreign}")),
            Err(AccessError::Invalid(_))
        ));
        assert!(matches!(outcome("cookie", "hearth_token="), Err(AccessError::Invalid(_))));
    }

    #[test]
    fn the_service_sees_its_own_credentials_and_cookies_and_never_the_token() {
        let (_directory, access) = access();
        let (token, _) = access.mint("ann", "full", Duration::from_secs(60)).unwrap();
        let cookie = format!("a=1; hearth_token={token}; b=\"2\"");
        let mut own = headers(&[("authorization", "Basic eDp5"), ("cookie", &cookie)]);
        admit(&mut own, &access).unwrap();
        strip_cookie(&mut own);
        assert_eq!(own["authorization"], "Basic eDp5");
        assert_eq!(own["cookie"], "a=1; b=\"2\"");

        let bearer = format!("Bearer {token}");
        let only = format!("hearth_token={token}");
        let mut ours = headers(&[("authorization", &bearer), ("cookie", &only)]);
        admit(&mut ours, &access).unwrap();
        strip_cookie(&mut ours);
        assert!(ours.is_empty());
    }

    #[test]
    fn a_service_does_not_set_the_cookie_of_the_room() {
        for cookie in [
            "hearth_token=x",
            " hearth_token = x; Path=/",
            "HEARTH_TOKEN=x",
            "=hearth_token=x",
            "= hearth_token=x; Domain=example.com",
        ] {
            let mut given = headers(&[("set-cookie", "a=1"), ("set-cookie", cookie), ("set-cookie", "b=2")]);
            strip_set_cookie(&mut given);
            let kept: Vec<_> = given.get_all("set-cookie").iter().collect();
            assert_eq!(kept, ["a=1", "b=2"], "{cookie}");
        }
        for cookie in ["hearth_tokens=x", "a=hearth_token=x", "hearth", "xhearth_token=1"] {
            let mut given = headers(&[("set-cookie", cookie)]);
            strip_set_cookie(&mut given);
            assert_eq!(given.len(), 1, "{cookie}");
        }
    }
}
