//! Requests through the ingress: no token of the room reaches a service, and nothing that a service could turn against
//! its visitors.

use integration_tests::daemon::Daemon;
use integration_tests::http::{Answer, Request};
use integration_tests::runner::Group;
use integration_tests::service::App;
use integration_tests::shared_cases;

pub fn group() -> Group {
    Group::new(
        "walls_ingress",
        shared_cases![
            no_service_sees_a_token_of_the_room_wherever_a_client_puts_it,
            no_service_sets_the_cookie_of_the_room,
            a_page_of_another_origin_opens_no_websocket_with_the_cookies_of_its_visitors,
            no_switch_to_http_2_is_passed_on_in_whatever_list_it_stands,
            denials_of_the_ingress_are_in_the_audit_trail,
        ],
    )
}

const COOKIES: &str = "#!/bin/sh\nprintf 'content-type: text/plain\\r\\nset-cookie: a=1\\r\\n'\n\
    printf 'set-cookie: hearth_token=planted; path=/\\r\\nset-cookie: =hearth_token=planted\\r\\n\\r\\n'\n";

/// Deploys a service that returns the request as it received it.
fn mirror(daemon: &Daemon, name: &str, public: bool) -> String {
    let (tag, domain) = (format!("{name}:1"), format!("{name}.test"));
    let mut app = App::page("page\n");
    app = app.program("site/cgi-bin/cookies", COOKIES.as_bytes().to_vec());
    app.pack(daemon, &tag);
    let open = if public { "--public" } else { "--private" };
    daemon.hearth_ok(&["deploy", "--tag", &tag, "--name", name, "--domain", &domain, open]);
    domain
}

fn ask(daemon: &Daemon, domain: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut request = Request::new("GET", path).host(domain);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    request.send(&daemon.ingress())
}

fn no_service_sees_a_token_of_the_room_wherever_a_client_puts_it(daemon: &Daemon) {
    let public = mirror(daemon, "mirror-public", true);
    let private = mirror(daemon, "mirror-private", false);
    let token = daemon.mint(&["--name", "admin", "--scope", "full"]);
    let bearer = format!("Bearer {token}");
    let basic = Request::basic(Request::new("GET", "/"), "anyone", &token);
    let basic = format!("{basic:?}");
    let basic = basic.split('"').find(|text| text.starts_with("Basic ")).unwrap();
    let quoted = format!("token=\"{token}\"");
    let session = format!("kept=1; session={token}; hearth_token={token}; also=2");
    let protocols = format!("chat, {token}");
    let referer = format!("https://somewhere.test/?token={token}");
    let (dotted, escaped) = (format!("v1.{token}.x"), token.replace('.', "%2E"));
    let spoken = format!("chat, bearer.{token}");
    let places = [
        ("authorization", bearer.as_str()),
        ("authorization", basic),
        ("authorization", quoted.as_str()),
        ("proxy-authorization", bearer.as_str()),
        ("x-api-key", token.as_str()),
        ("x-forwarded-access-token", token.as_str()),
        ("sec-websocket-protocol", protocols.as_str()),
        ("sec-websocket-protocol", spoken.as_str()),
        ("referer", referer.as_str()),
        ("x-api-key", dotted.as_str()),
        ("x-api-key", escaped.as_str()),
        ("cookie", session.as_str()),
    ];
    for (name, value) in places {
        let seen = ask(daemon, &public, "/cgi-bin/headers", &[(name, value)]).expect(200).text();
        assert!(!seen.contains(&token) && !seen.contains(&basic[6..]), "public, {name}: {seen}");
        // A second header beside the one that granted access.
        let seen = ask(daemon, &private, "/cgi-bin/headers", &[("authorization", &bearer), (name, value)]);
        let seen = seen.expect(200).text();
        assert!(!seen.contains(&token) && !seen.contains(&basic[6..]), "private, {name}: {seen}");
    }
    // A token is removed from the query as well; a path with a token is refused, because no part of it can be removed.
    let path = format!("/cgi-bin/headers?a=1&access_token={token}&b=2");
    let seen = ask(daemon, &public, &path, &[]).expect(200).text();
    assert!(seen.contains("a=1&b=2") && !seen.contains(&token), "{seen}");
    let refused = ask(daemon, &public, &format!("/cgi-bin/headers/{token}"), &[]).expect(400).text();
    assert!(refused.contains("participant token") && !refused.contains(&token), "{refused}");
    // Tokens and cookies of others stay, also cookies beside the token.
    let seen = ask(daemon, &public, "/cgi-bin/headers", &[("cookie", &session)]).text();
    assert!(seen.contains("kept=1") && seen.contains("also=2") && !seen.contains("session="), "{seen}");
    let foreign = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzb21lYm9keSBlbHNlJ3MgdG9rZW4ifQ.\
        c2lnbmF0dXJlc2lnbmF0dXJlc2lnbmF0dXJlc2lnbmF0dXI";
    let cookie = format!("theirs={foreign}");
    let seen = ask(daemon, &public, "/cgi-bin/headers", &[("cookie", &cookie)]).text();
    assert!(seen.contains(foreign), "{seen}");
}

fn no_service_sets_the_cookie_of_the_room(daemon: &Daemon) {
    let domain = mirror(daemon, "planter", true);
    let answer = ask(daemon, &domain, "/cgi-bin/cookies", &[]);
    assert_eq!(answer.status, 200);
    let cookies: Vec<&str> = answer
        .headers
        .iter()
        .filter(|(name, _)| name == "set-cookie")
        .map(|(_, value)| value.as_str())
        .collect();
    assert_eq!(cookies, ["a=1"]);
}

fn a_page_of_another_origin_opens_no_websocket_with_the_cookies_of_its_visitors(daemon: &Daemon) {
    let domain = mirror(daemon, "sockets", false);
    let token = daemon.mint(&["--name", "visitor", "--scope", "{}"]);
    let (cookie, bearer) = (format!("hearth_token={token}"), format!("Bearer {token}"));
    let socket = |more: &[(&str, &str)]| {
        let upgrade = [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")];
        ask(daemon, &domain, "/", &[&upgrade[..], more].concat()).status
    };
    let own = format!("http://{domain}");
    for origin in ["http://evil.test", "null", "http://sockets.test.evil.test", "https://sockets.test:444"] {
        assert_eq!(socket(&[("origin", origin), ("cookie", &cookie)]), 403, "{origin}");
    }
    // The service answers all other requests, even if only with its page.
    assert_eq!(socket(&[("origin", &own), ("cookie", &cookie)]), 200);
    assert_eq!(socket(&[("cookie", &cookie)]), 200);
    assert_eq!(socket(&[("origin", "http://evil.test"), ("authorization", &bearer)]), 200);
}

fn no_switch_to_http_2_is_passed_on_in_whatever_list_it_stands(daemon: &Daemon) {
    let domain = mirror(daemon, "switches", true);
    for list in ["h2c", "h2c, websocket", "websocket, H2C", "custom, h2c/1"] {
        let headers = [
            ("connection", "Upgrade, HTTP2-Settings"),
            ("upgrade", list),
            ("http2-settings", "AAMAAABkAAQCAAAAAAIAAAAA"),
        ];
        let seen = ask(daemon, &domain, "/cgi-bin/headers", &headers).expect(200).text().to_lowercase();
        assert!(!seen.contains("h2c") && !seen.contains("http2_settings"), "{list}: {seen}");
    }
}

fn denials_of_the_ingress_are_in_the_audit_trail(daemon: &Daemon) {
    let domain = mirror(daemon, "closed", false);
    assert_eq!(ask(daemon, &domain, "/", &[]).status, 401);
    let records = daemon.hearth_ok(&["audit", "--json", "--denied", "--action", "ingress"]).json();
    let found = records.as_array().unwrap().iter().any(|record| record["object"] == domain.as_str());
    assert!(found, "{records}");
}
