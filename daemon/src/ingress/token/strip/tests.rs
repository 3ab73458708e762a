use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::*;

fn access() -> (tempfile::TempDir, TokenAuthority) {
    let directory = tempfile::tempdir().unwrap();
    let access = TokenAuthority::open("r", &directory.path().join("secret")).unwrap();
    (directory, access)
}

fn token(access: &TokenAuthority) -> String {
    access.mint("ann", "full", Duration::from_secs(60)).unwrap().0
}

fn request(target: &str, headers: &[(&'static str, &str)]) -> Request<()> {
    let mut request = Request::new(());
    *request.uri_mut() = target.parse().unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, HeaderValue::from_str(value).unwrap());
    }
    request
}

#[test]
fn a_token_is_taken_out_wherever_a_client_has_put_it() {
    let (_directory, access) = access();
    let token = token(&access);
    let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
    for (name, value) in [
        ("authorization", format!("Bearer {token}")),
        ("authorization", format!("Token token=\"{token}\"")),
        ("authorization", basic(&format!("anyone:{token}"))),
        ("authorization", basic(&format!("any:{token}"))),
        ("proxy-authorization", basic(&format!(":{token}"))),
        ("x-api-key", token.clone()),
        ("x-api-key", format!("v1.{token}")),
        ("x-api-key", format!("{token}.v1.and-more")),
        ("x-api-key", format!("key-{token}-of-ann")),
        ("x-api-key", format!("a.b.c.{}.{token}.d.{}", "x".repeat(50), "y".repeat(50))),
        ("x-api-key", token.replace('.', "%2E")),
        ("x-forwarded-access-token", token.clone()),
        ("sec-websocket-protocol", format!("bearer.{token}")),
        ("sec-websocket-protocol", format!("base64url.bearer.k8s.io.{}", URL_SAFE_NO_PAD.encode(&token))),
        ("referer", format!("https://a.example/?token={token}&x=1")),
        ("x-json", format!("%7B%22token%22%3A%22{token}%22%7D")),
        ("cookie", format!("session={token}")),
        ("cookie", format!("session=s.{token}.x")),
    ] {
        let mut given = request("/", &[("accept", "*/*"), (name, &value)]);
        strip(&mut given, &access).unwrap();
        assert_eq!(given.headers().len(), 1, "{name}: {value}");
        let mut trailers = request("/", &[(name, &value), ("x-checksum", "1")]).headers().clone();
        strip_trailers(&mut trailers, &access);
        assert_eq!(trailers.len(), 1, "{name}: {value}");
    }
}

#[test]
fn what_stands_beside_a_token_stays() {
    let (_directory, access) = access();
    let token = token(&access);
    let cookie = format!("a=1; session={token}; b=\"2\"; hearth_token=x");
    let protocols = format!("chat, bearer.{token},v2");
    let mut given = request(
        "/",
        &[("cookie", &cookie), ("x-key", &token), ("x-key", "own"), ("sec-websocket-protocol", &protocols)],
    );
    strip(&mut given, &access).unwrap();
    assert_eq!(given.headers()["cookie"], "a=1; b=\"2\"");
    assert_eq!(given.headers()["x-key"], "own");
    assert_eq!(given.headers()["sec-websocket-protocol"], "chat, v2");
}

#[test]
fn parameters_with_a_token_are_taken_out_of_the_query_and_no_path_has_one() {
    let (_directory, access) = access();
    let token = token(&access);
    for (target, left) in [
        (format!("/x?access_token={token}"), "/x"),
        (format!("/x?a=1&token={token}&b=%20"), "/x?a=1&b=%20"),
        (format!("http://a.example/x?{token}&b"), "http://a.example/x?b"),
        (format!("/?to=https%3A%2F%2Fb%2F%3Ftoken%3D{token}&b=1"), "/?b=1"),
        (format!("/?key={}", STANDARD.encode(format!("ann:{token}"))), "/"),
    ] {
        let mut given = request(&target, &[]);
        strip(&mut given, &access).unwrap();
        assert_eq!(given.uri().to_string(), left);
    }
    for target in
        [format!("/x/{token}/y"), format!("/x.{token}"), format!("/a/{}", token.replace('.', "%2e"))]
    {
        assert!(
            matches!(strip(&mut request(&target, &[]), &access), Err(IngressError::Malformed(_))),
            "{target}"
        );
    }
}

#[test]
fn what_is_no_token_of_the_room_stays_as_it_is() {
    let (_directory, access) = access();
    let (_other, elsewhere) = self::access();
    let foreign = token(&elsewhere);
    let long = "x".repeat(300);
    let cookie = format!("a={foreign}; b={long}; c=%7B%22a%22%3A1%7D{long}");
    let basic = format!("Basic {}", STANDARD.encode(format!("ann:{long}")));
    let headers = [
        ("authorization", &*basic),
        ("x-bearer", &foreign),
        ("cookie", &cookie),
        ("x-encoded", &STANDARD.encode(&foreign)),
        (
            "user-agent",
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML) Chrome/120.0.0.0 Safari/537.36 abc",
        ),
    ];
    let target = format!("/a/{long}/{foreign}?token={foreign}&&x={long}%2e");
    let given = request(&target, &headers);
    let mut passed = request(&target, &headers);
    strip(&mut passed, &access).unwrap();
    assert_eq!((passed.headers(), passed.uri()), (given.headers(), given.uri()));
}

#[test]
fn nobody_has_this_daemon_compute_signatures_for_ever() {
    let (_directory, access) = access();
    let (_other, elsewhere) = self::access();
    let foreign = token(&elsewhere);
    let (head, rest) = foreign.split_once('.').unwrap();
    for text in [
        [&*foreign].repeat(100).join(","),
        [&*foreign].repeat(100).join("."),
        // A header that contains many possible starts of a header.
        format!("{}{head}.{rest}", "eyJ".repeat(5_000)),
        format!("{}.{}", [&*head.repeat(2)].repeat(300).join("."), "x".repeat(43)),
    ] {
        let started = std::time::Instant::now();
        assert!(strip(&mut request("/", &[("x", &text)]), &access).is_err());
        let mut trailers = request("/", &[("x", &text)]).headers().clone();
        strip_trailers(&mut trailers, &access);
        assert!(trailers.is_empty());
        // Far above the expected time, and far below that of thousands of signatures in a debug build.
        assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    }
}
