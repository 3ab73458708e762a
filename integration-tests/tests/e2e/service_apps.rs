//! Services whose apps behave in unusual ways: they listen on loopback only, redirect, exit early, ignore their stop
//! signal or crash repeatedly. Also the interfaces between an app and its users: TLS, HTTP/2, large bodies, logs.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use integration_tests::containerd::Containerd;
use integration_tests::daemon::{Daemon, Options};
use integration_tests::http::Request;
use integration_tests::process;
use integration_tests::runner::{Case, Group};
use integration_tests::service::{App, PORT, get, page};
use integration_tests::sources::Tree;
use integration_tests::wait::{self, seconds};
use integration_tests::{lone_cases, shared_cases};
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

pub fn group() -> Group {
    let shared: Vec<Case> = shared_cases![
        the_error_reports_an_app_that_listens_on_loopback_only,
        a_login_at_the_health_path_is_shown_and_a_redirect_is_healthy,
        an_app_that_is_healthy_and_then_dies_does_not_take_over,
        an_app_that_ignores_its_stop_signal_is_killed,
        requests_wait_while_an_app_comes_back,
        a_crash_loop_backs_off_and_reports_the_exit,
        a_followed_log_continues_across_an_update_and_ends_with_the_service,
        http2_and_large_bodies_pass_both_ways,
        a_grpc_server_is_deployed_probed_and_reached_over_http2,
        the_error_names_the_unreachable_registry_of_an_image,
    ];
    let alone = lone_cases![
        the_ingress_serves_tls_with_the_configured_certificate,
        a_daemon_uses_the_configured_external_containerd,
    ];
    Group::new("service_apps", [shared, alone].concat())
}

#[track_caller]
fn deploy(daemon: &Daemon, arguments: &[&str]) {
    daemon.hearth_ok(&[&["deploy"], arguments].concat());
}

#[track_caller]
fn fails(daemon: &Daemon, arguments: &[&str], says: &[&str]) {
    let output = daemon.hearth(&[&["deploy"], arguments].concat());
    output.expect_code(1).says(says);
}

fn the_error_reports_an_app_that_listens_on_loopback_only(daemon: &Daemon) {
    let app = App::script("exec httpd -f -p 127.0.0.1:8000 -h /site").with(&["--expose", PORT]);
    app.pack(daemon, "selfish:1");
    fails(daemon, &["--tag", "selfish:1", "--timeout", "2s"], &["127.0.0.1"]);
}

fn a_login_at_the_health_path_is_shown_and_a_redirect_is_healthy(daemon: &Daemon) {
    let answer = |head: &str| {
        format!(
            "#!/bin/sh\nprintf 'Status: {head}\\r\\nContent-type: text/plain\\r\\n\\r\\nthe body says more\\n'\n"
        )
    };
    let app = |head: &str| {
        let script = "mkdir -p /site/cgi-bin; cp /health /site/cgi-bin/health; chmod 755 /site/cgi-bin/health; exec httpd -f -p 8000 -h /site";
        App::script(script).file("health", &answer(head)).with(&["--expose", PORT])
    };
    app("401 Unauthorized").pack(daemon, "login:1");
    let flags = ["--liveness", "/cgi-bin/health", "--timeout", "2s"];
    fails(daemon, &[&["--tag", "login:1"], &flags[..]].concat(), &["401", "the body says more"]);
    app("301 Moved Permanently\\r\\nLocation: https://elsewhere.test/").pack(daemon, "moved:1");
    // Status codes from 200 to 399 are healthy.
    deploy(daemon, &[&["--tag", "moved:1"], &flags[..]].concat());
    let shown = daemon.hearth_ok(&["services", "show", "moved"]).stdout;
    assert!(shown.contains("answered 301"), "{shown}");
}

fn an_app_that_is_healthy_and_then_dies_does_not_take_over(daemon: &Daemon) {
    App::page("old\n").pack(daemon, "young:1");
    deploy(daemon, &["--tag", "young:1", "--domain", "young.test", "--public"]);
    let dies = "httpd -f -p 8000 -h /site & sleep 1; echo I give up; exit 4";
    App::script(dies).with(&["--expose", PORT]).pack(daemon, "young:2");
    fails(daemon, &["--tag", "young:2"], &["4", "I give up", "revision 1 of young keeps serving"]);
    assert_eq!(page(daemon, "young.test"), "old\n");
}

fn an_app_that_ignores_its_stop_signal_is_killed(daemon: &Daemon) {
    let deaf = "trap '' TERM; httpd -f -p 8000 -h /site & while :; do sleep 1; done";
    App::script(deaf).with(&["--expose", PORT]).pack(daemon, "deaf:1");
    deploy(daemon, &["--tag", "deaf:1"]);
    let begun = Instant::now();
    daemon.hearth_ok(&["services", "rm", "deaf", "--grace", "1s"]);
    assert!(begun.elapsed() < seconds(8), "{:?}", begun.elapsed());
    assert!(
        begun.elapsed() >= Duration::from_millis(900),
        "the app had its second to stop: {:?}",
        begun.elapsed()
    );
}

fn requests_wait_while_an_app_comes_back(daemon: &Daemon) {
    // Exits when this page is requested, and is started again.
    let end = "#!/bin/sh\nkill -9 $(cat /tmp/pid)\n";
    let script = "mkdir -p /site/cgi-bin; cp /end /site/cgi-bin/end; chmod 755 /site/cgi-bin/end; \
                  httpd -f -p 8000 -h /site & echo $! > /tmp/pid; wait";
    App::script(script)
        .file("end", end)
        .file("tmp/x", "")
        .with(&["--expose", PORT])
        .pack(daemon, "phoenix:1");
    deploy(daemon, &["--tag", "phoenix:1", "--domain", "phoenix.test", "--public"]);
    get(daemon, "phoenix.test", "/cgi-bin/end");
    for _ in 0..10 {
        assert_eq!(
            page(daemon, "phoenix.test"),
            "script\n",
            "the ingress holds the request until another instance serves"
        );
    }
}

fn a_crash_loop_backs_off_and_reports_the_exit(daemon: &Daemon) {
    // The app runs long enough to become live, and then fails repeatedly.
    let script =
        "httpd -f -p 8000 -h /site & if [ -e /data/sick ]; then sleep 0.2; echo sick; exit 6; fi; wait";
    App::script(script).with(&["--expose", PORT]).pack(daemon, "loop:1");
    daemon.put("loop", &Tree::new().file("well", ""));
    deploy(daemon, &["--tag", "loop:1", "--room-mount", "loop:/data"]);
    daemon.put("loop", &Tree::new().file("sick", ""));
    daemon.hearth(&["services", "exec", "loop", "--", "sh", "-c", "kill -9 $(pidof httpd)"]);
    wait::until(seconds(30), "the crash loop is reported, with the app's exit", || {
        let shown = daemon.hearth_ok(&["services", "show", "loop"]).stdout;
        shown.contains("restarting (exit 6, ") && shown.contains("exit code 6")
    });
    let listed = daemon.hearth_ok(&["services", "list"]);
    assert!(listed.stdout.contains("(exit 6, ") || listed.stdout.contains("after exit 6, "), "{listed}");
    // The last words of the instances that ended, each with its instance.
    wait::until(seconds(30), "two instances have left their last words", || {
        let logs = daemon.hearth_ok(&["services", "logs", "loop", "--since", "5m", "--json"]).json();
        let words = logs.as_array().unwrap().iter().filter(|line| line["text"] == "sick");
        words.map(|line| line["instance"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>().len() >= 2
    });
    let logs = daemon.hearth_ok(&["services", "logs", "loop", "--revision", "1", "--tail", "2"]);
    assert_eq!(logs.stdout, "sick\nsick\n", "{logs}");
}

fn a_followed_log_continues_across_an_update_and_ends_with_the_service(daemon: &Daemon) {
    let talker = |word: &str| {
        let script = format!("trap 'exit 0' TERM; echo {word}; httpd -f -p 8000 -h /site & wait");
        App::script(&script).with(&["--expose", PORT])
    };
    talker("hello-one").pack(daemon, "follow:1");
    talker("hello-two").pack(daemon, "follow:2");
    deploy(daemon, &["--tag", "follow:1"]);
    let mut follow = daemon.client();
    let follow = process::start(follow.args(["services", "logs", "follow", "--follow"]));
    deploy(daemon, &["--tag", "follow:2"]);
    std::thread::sleep(seconds(1));
    daemon.hearth_ok(&["services", "rm", "follow"]);
    let output = follow.finish(seconds(20)).expect("the app ends with the service");
    assert!(output.stdout.contains("hello-one") && output.stdout.contains("hello-two"), "{output}");
}

fn http2_and_large_bodies_pass_both_ways(daemon: &Daemon) {
    let count = "#!/bin/sh\necho 'content-type: text/plain'\necho\nwc -c\n";
    let zeros =
        "#!/bin/sh\necho 'content-type: application/octet-stream'\necho\nhead -c 30000000 /dev/zero\n";
    let script = "mkdir -p /site/cgi-bin; cp /count /zeros /site/cgi-bin/; chmod 755 /site/cgi-bin/*; exec httpd -f -p 8000 -h /site";
    let app = App::script(script).file("count", count).file("zeros", zeros).with(&["--expose", PORT]);
    app.pack(daemon, "large:1");
    deploy(daemon, &["--tag", "large:1", "--domain", "large.test", "--public"]);
    let body = vec![b'x'; 20_000_000];
    let answer = Request::new("POST", "/cgi-bin/count").host("large.test").body(body).send(&daemon.ingress());
    assert_eq!(answer.expect(200).text().trim(), "20000000");
    let url = format!("http://{}/cgi-bin/zeros", daemon.ingress());
    let mut curl = Command::new("curl");
    let format = "%{http_version} %{http_code} %{size_download}";
    curl.args([
        "-sS",
        "--http2-prior-knowledge",
        "-H",
        "Host: large.test",
        "-o",
        "/dev/null",
        "-w",
        format,
        &url,
    ]);
    let output = process::run(&mut curl, seconds(60));
    assert_eq!(output.stdout, "2 200 30000000", "{output}");
}

fn a_grpc_server_is_deployed_probed_and_reached_over_http2(daemon: &Daemon) {
    let program = Path::new(env!("CARGO_BIN_EXE_grpc-app"));
    let mut app = App::script("").command(&["/app/server"]).program("app/server", fs::read(program).unwrap());
    // The base image has no C library.
    let linked = process::run(Command::new("ldd").arg(program), seconds(10));
    for word in linked.stdout.split_whitespace().filter(|word| word.starts_with('/')) {
        app = app.program(word.trim_start_matches('/'), fs::read(word).unwrap());
    }
    app.pack(daemon, "grpc:1");
    let check = "/grpc.health.v1.Health/Check";
    deploy(
        daemon,
        &[
            "--tag",
            "grpc:1",
            "--port",
            "50051/h2c",
            "--liveness",
            check,
            "--domain",
            "*.grpc.test",
            "--public",
        ],
    );
    let manifest = daemon.hearth_ok(&["services", "show", "grpc", "-o", "yaml"]);
    assert!(manifest.stdout.contains("type: h2c"), "{manifest}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |host: &str| {
        let endpoint = Endpoint::from_shared(format!("http://{}", daemon.ingress())).unwrap();
        let endpoint = endpoint.origin(format!("http://{host}").parse().unwrap());
        runtime.block_on(async {
            let mut client = HealthClient::new(endpoint.connect().await.unwrap());
            let answer = client.check(HealthCheckRequest { service: "app".to_owned() }).await?;
            let mut watch =
                client.watch(HealthCheckRequest { service: "app".to_owned() }).await?.into_inner();
            let streamed = watch.message().await?.map(|message| message.status);
            Ok::<_, tonic::Status>((answer.into_inner().status, streamed))
        })
    };
    let serving = i32::from(ServingStatus::Serving);
    assert_eq!(ask("a.grpc.test").unwrap(), (serving, Some(serving)));
    assert!(ask("a.b.grpc.test").is_err(), "the star is one label");
}

fn the_error_names_the_unreachable_registry_of_an_image(daemon: &Daemon) {
    let output = daemon.hearth(&["deploy", "--tag", "127.0.0.1:1/none/such:1"]);
    assert_ne!(output.code, 0);
    output.says(&["127.0.0.1:1"]);
}

fn the_ingress_serves_tls_with_the_configured_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    let mut openssl = Command::new("openssl");
    openssl.args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]);
    openssl.args(["-subj", "/CN=tls.test", "-addext", "subjectAltName=DNS:tls.test", "-keyout"]).arg(&key);
    openssl.arg("-out").arg(&certificate);
    process::run(&mut openssl, seconds(30)).expect_code(0);
    let config = format!(
        "[services]\ncertificates = [{{ certificate = '{}', key = '{}' }}]\n",
        certificate.display(),
        key.display()
    );
    let daemon =
        Daemon::start(Options::room("tls").arguments(&["--ingress-tls", "127.0.0.1:0"]).config(&config));
    App::page("sealed\n").pack(&daemon, "sealed:1");
    let output = daemon.hearth_ok(&["deploy", "--tag", "sealed:1", "--domain", "tls.test", "--public"]);
    let url =
        output.stdout.lines().find(|line| line.starts_with("https://tls.test:")).expect("its URL").to_owned();
    let port = url.trim_end_matches('/').rsplit(':').next().unwrap().to_owned();
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--resolve", &format!("tls.test:{port}:127.0.0.1"), "--cacert"]).arg(&certificate);
    curl.args(["-w", " %{http_version}", &url]);
    let output = process::run(&mut curl, seconds(30));
    assert_eq!(output.stdout, "sealed\n 2", "{output}");
}

fn a_daemon_uses_the_configured_external_containerd() {
    runs_a_service_on_external_containerd("containerd", "guest");
}

/// Asserts that a daemon of this room runs a service on a containerd that it did not start.
pub fn runs_a_service_on_external_containerd(program: &str, room: &str) {
    let directory = tempfile::tempdir().unwrap();
    let containerd = Containerd::start_program(program, directory.path());
    let socket = directory.path().join("socket");
    let daemon = Daemon::start(Options::room(room).arguments(&["--containerd", socket.to_str().unwrap()]));
    let own = process::tree_of(daemon.pid()).into_iter().any(|process| process.name == "containerd");
    assert!(!own, "the daemon starts no containerd of its own");
    App::page("guest\n").pack(&daemon, "guest:1");
    daemon.hearth_ok(&["deploy", "--tag", "guest:1", "--domain", "guest.test", "--public"]);
    assert_eq!(page(&daemon, "guest.test"), "guest\n");
    daemon.hearth_ok(&["services", "rm", "guest"]);
    assert_eq!(daemon.retire(), Vec::<String>::new());
    drop(containerd);
}
