use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

fn policy(rules: &[&str]) -> EgressPolicy {
    EgressPolicy::new(rules.iter().map(|rule| rule.parse().unwrap()).collect())
}

/// Starts the proxy as on a machine without an operator's proxy.
async fn start(rules: &[&str]) -> GitProxy {
    GitProxy::start(policy(rules), Matcher::builder().build()).await.unwrap()
}

/// Sends one request, and returns the status and the body of the response.
async fn ask(proxy: &GitProxy, authorization: Option<&str>, line: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(proxy.0.address).await.unwrap();
    let authorization = authorization.map(|value| format!("Proxy-Authorization: {value}\r\n"));
    let request = format!(
        "{line} HTTP/1.1\r\nHost: x\r\n{}Connection: close\r\n\r\n",
        authorization.unwrap_or_default()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

#[tokio::test]
async fn nobody_without_a_password_of_a_builder_is_served() {
    let proxy = start(&[]).await;
    let access = proxy.grant_access();
    let other = proxy.grant_access();
    assert_ne!(access.url(), other.url());
    let known = access.0.authorization.clone();
    let wrong = format!("Basic {}", STANDARD.encode("builder:guess"));
    for given in [None, Some(wrong.as_str()), Some("Basic"), Some("")] {
        for line in ["CONNECT 192.0.2.1:443", "GET http://127.0.0.1/", "GET /"] {
            assert_eq!(ask(&proxy, given, line).await.0, 407, "{given:?} {line}");
        }
    }
    assert_eq!(ask(&proxy, Some(&known), "CONNECT 127.0.0.1:443").await.0, 403);
    drop(access);
    assert_eq!(ask(&proxy, Some(&known), "CONNECT 127.0.0.1:443").await.0, 407, "its builder is gone");
}

#[tokio::test]
async fn what_builds_may_not_reach_is_refused_and_remembered_for_its_builder() {
    let begun = Instant::now();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let proxy = start(&["0.0.0.0/0", "10.1.0.0/16"]).await;
    let (access, other) = (proxy.grant_access(), proxy.grant_access());
    for host in [
        "127.0.0.1",
        "localhost",
        "0x7f.1",
        "2130706433",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "10.2.0.1",
    ] {
        for line in [format!("CONNECT {host}:{port}"), format!("GET http://{host}:{port}/repo.git")] {
            let (status, body) = ask(&proxy, Some(&access.0.authorization), &line).await;
            assert_eq!(status, 403, "{line}: {body}");
            assert!(body.contains("builds may not reach"), "{body}");
        }
    }
    assert_eq!(ask(&proxy, Some(&access.0.authorization), "GET http://169.254.169.254/").await.0, 403);
    let refused = access.refused_since(begun);
    assert_eq!(refused.len(), 17);
    assert_eq!((refused[2].host.as_str(), refused[2].port), ("localhost", port));
    assert!(refused[2].address.is_some_and(|address| address.is_loopback()), "{refused:?}");
    assert!(other.refused_since(begun).is_empty() && access.refused_since(Instant::now()).is_empty());
    // The listener received no connection.
    let accepted = tokio::time::timeout(std::time::Duration::from_millis(50), listener.accept()).await;
    assert!(accepted.is_err());

    let narrow = start(&["git.example"]).await;
    let access = narrow.grant_access();
    assert_eq!(ask(&narrow, Some(&access.0.authorization), "CONNECT other.example:443").await.0, 403);
    assert_eq!(access.refused_since(begun)[0].address, None, "the name was not resolved");
}

#[tokio::test]
async fn what_is_no_request_to_a_proxy_is_refused() {
    let proxy = start(&[]).await;
    let access = proxy.grant_access();
    for line in ["GET /", "GET https://192.0.2.1/", "GET ftp://192.0.2.1/", "CONNECT 192.0.2.1"] {
        assert_eq!(ask(&proxy, Some(&access.0.authorization), line).await.0, 400, "{line}");
    }
}

/// Answers one request as a proxy, and returns its head.
async fn operator_proxy(listener: TcpListener, answer: &'static str) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    // The far end of a tunnel sends nothing before the client does, so the response head has arrived by then.
    let (begin, rest) = answer.split_at(answer.find("hello").unwrap());
    stream.write_all(begin.as_bytes()).await.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    stream.write_all(rest.as_bytes()).await.unwrap();
    String::from_utf8(head).unwrap()
}

#[tokio::test]
async fn git_goes_on_through_the_proxy_that_the_operator_has_set_up() {
    for (line, answer, asked) in [
        ("CONNECT git.example:443", "HTTP/1.1 200 OK\r\n\r\nhello", "CONNECT git.example:443 HTTP/1.1\r\n"),
        (
            "GET http://me@git.example/a.git?b",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            "GET http://git.example/a.git?b HTTP/1.1\r\n",
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://user:password@{}", listener.local_addr().unwrap());
        let proxies = Matcher::builder().all(url).no("direct.example").build();
        let proxy = GitProxy::start(policy(&["git.example"]), proxies).await.unwrap();
        let access = proxy.grant_access();
        let served = crate::task::spawn("operator's proxy", operator_proxy(listener, answer));
        let refused = ask(&proxy, Some(&access.0.authorization), "CONNECT other.example:443").await;
        assert_eq!(refused.0, 403, "the policy of builds is asked first");
        let (status, body) = ask(&proxy, Some(&access.0.authorization), line).await;
        assert_eq!((status, body.as_str()), (200, "hello"), "{line}");
        let head = served.await.unwrap();
        let authorization = format!("Basic {}", STANDARD.encode("user:password"));
        assert!(head.starts_with(asked) && head.contains(&authorization), "{head}");
        assert!(!head.contains(&access.0.authorization), "a builder's password stays here: {head}");
    }
}
