use super::*;

fn client(trusted: bool) -> ClientPeer {
    ClientPeer::new("192.0.2.7".parse().unwrap(), false, trusted)
}

fn request(headers: &[(&str, &str)]) -> Request<()> {
    let mut builder = Request::builder().uri("/");
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(()).unwrap()
}

fn passed(headers: &[(&str, &str)], trusted: bool) -> HeaderMap {
    let mut request = request(headers);
    to_instance(&mut request, &client(trusted), HeaderValue::from_static("a.example:81"), false).unwrap();
    request.headers().clone()
}

#[test]
fn what_is_for_one_connection_stays_behind() {
    let headers = passed(
        &[
            ("connection", "close, x-mine , host, Content-Length"),
            ("x-mine", "1"),
            ("keep-alive", "timeout=5"),
            ("proxy-connection", "keep-alive"),
            ("proxy-authorization", "Basic x"),
            ("te", "gzip"),
            ("expect", "100-continue"),
            ("upgrade", "websocket"),
            ("content-length", "3"),
            ("accept", "*/*"),
        ],
        false,
    );
    let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["accept", "content-length", "host", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"]
    );
    assert_eq!(headers["host"], "a.example:81");
}

#[test]
fn what_a_client_says_of_its_origin_is_replaced() {
    let headers = passed(
        &[
            ("x-forwarded-for", "1.1.1.1"),
            ("x-forwarded-for", "2.2.2.2"),
            ("x_forwarded_for", "3.3.3.3"),
            ("x-forwarded-proto", "https"),
            ("x-forwarded-host", "bank.example"),
            ("x-forwarded-prefix", "/admin"),
            ("x-real-ip", "1.1.1.1"),
            ("forwarded", "for=1.1.1.1"),
        ],
        false,
    );
    assert_eq!(headers.len(), 4);
    assert_eq!(headers["x-forwarded-for"], "192.0.2.7");
    assert_eq!(headers["x-forwarded-proto"], "http");
    assert_eq!(headers["x-forwarded-host"], "a.example:81");
}

#[test]
fn a_trusted_proxy_is_believed_and_added_to_the_chain() {
    let headers = passed(
        &[("x-forwarded-for", "1.1.1.1"), ("x-forwarded-proto", "https"), ("x_forwarded_for", "3.3.3.3")],
        true,
    );
    assert_eq!(headers["x-forwarded-for"], "1.1.1.1, 192.0.2.7");
    assert_eq!(headers["x-forwarded-proto"], "https");
    assert_eq!(headers["x-forwarded-host"], "a.example:81");
    assert!(!headers.contains_key("x_forwarded_for"));
}

#[test]
fn a_switch_of_protocols_is_passed_on_and_one_to_http_2_is_not() {
    let asked = |protocol: &str| {
        let mut request = request(&[("connection", "keep-alive, Upgrade"), ("upgrade", protocol)]);
        let host = HeaderValue::from_static("a");
        let upgrade = to_instance(&mut request, &client(false), host, false).unwrap();
        let sent = request.headers().get("upgrade").map(|value| value.to_str().unwrap().to_owned());
        assert_eq!(upgrade.is_some(), sent.is_some());
        assert_eq!(request.headers().contains_key("connection"), sent.is_some());
        sent
    };
    assert_eq!(asked("websocket").unwrap(), "websocket");
    assert_eq!(asked("h2c"), None);
    assert_eq!(asked("h2c, websocket").unwrap(), "websocket");
}

#[test]
fn a_coding_other_than_chunked_is_refused_and_a_body_without_length_is_chunked() {
    let coded = |coding: &str| {
        let mut request = request(&[("transfer-encoding", coding)]);
        to_instance(&mut request, &client(false), HeaderValue::from_static("a"), true)
            .map(|_| request.headers()["transfer-encoding"].clone())
    };
    assert_eq!(coded("Chunked").unwrap(), "chunked");
    assert!(matches!(coded("gzip, chunked"), Err(IngressError::TransferCoding)));
    let mut bare = request(&[]);
    to_instance(&mut bare, &client(false), HeaderValue::from_static("a"), true).unwrap();
    assert_eq!(bare.headers()["transfer-encoding"], "chunked");
}

#[test]
fn cookies_that_http_2_parted_are_one_header() {
    let headers = passed(&[("cookie", "a=1"), ("cookie", "b=2")], false);
    assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
}

#[test]
fn an_answer_loses_what_is_for_one_connection() {
    let mut headers = request(&[
        ("connection", "close, x-hop, set-cookie"),
        ("x-hop", "1"),
        ("set-cookie", "a=1"),
        ("keep-alive", "timeout=5"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "h2c"),
        ("forwarded", "kept: it is the service's own"),
    ])
    .headers()
    .clone();
    to_client(&mut headers, false);
    assert_eq!(headers.len(), 2);
    assert!(headers.contains_key("set-cookie") && headers.contains_key("forwarded"));
}
