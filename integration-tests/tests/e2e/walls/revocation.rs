//! A revocation ends what is running: calls in progress, and the access of the services of the revoked participant.

use integration_tests::daemon::Daemon;
use integration_tests::http::Request;
use integration_tests::process;
use integration_tests::runner::Group;
use integration_tests::service::App;
use integration_tests::shared_cases;
use integration_tests::wait::seconds;

use super::identity::as_bearer;

pub fn group() -> Group {
    Group::new(
        "walls_revocation",
        shared_cases![
            a_revocation_ends_processes_and_followed_logs_of_the_caller,
            a_service_of_a_revoked_participant_has_no_rights_until_it_is_deployed_again,
        ],
    )
}

fn inside(daemon: &Daemon, service: &str, command: &str) -> String {
    daemon.hearth_ok(&["services", "exec", service, "--", "sh", "-c", command]).stdout
}

fn a_revocation_ends_processes_and_followed_logs_of_the_caller(daemon: &Daemon) {
    App::page("x\n").pack(daemon, "revocation:1");
    daemon.hearth_ok(&["deploy", "--tag", "revocation:1", "--name", "held"]);
    let [eve, ann] = ["eve", "ann"].map(|name| daemon.mint(&["--name", name, "--scope", "full"]));
    let start = |token: &str, arguments: &[&str]| {
        let mut command = daemon.client();
        command.env("HEARTH_ADDR", format!("http://{}", daemon.listen())).env("HEARTH_TOKEN", token);
        process::start(command.args(arguments))
    };
    let beat = |file: &str| format!("while sleep 0.1; do echo x >> {file}; done");
    let exec =
        |token: &str, file: &str| start(token, &["services", "exec", "held", "--", "sh", "-c", &beat(file)]);
    let (shell, other) = (exec(&eve, "/tmp/eve"), exec(&ann, "/tmp/ann"));
    let logs = start(&eve, &["services", "logs", "held", "--follow"]);
    std::thread::sleep(seconds(2));
    let count = |file: &str| -> usize {
        inside(daemon, "held", &format!("wc -l < {file}")).trim().parse().expect("a number of lines")
    };
    assert!(count("/tmp/eve") > 0 && count("/tmp/ann") > 0);
    daemon.hearth_ok(&["token", "revoke", "eve"]);
    for running in [shell, logs] {
        let ended = running.finish(seconds(10)).expect("a call of the revoked caller ends");
        assert_ne!(ended.code, 0, "{ended}");
        ended.says(&["revoked"]);
    }
    let (of_eve, of_ann) = (count("/tmp/eve"), count("/tmp/ann"));
    std::thread::sleep(seconds(1));
    assert_eq!(count("/tmp/eve"), of_eve, "its process is gone");
    assert!(count("/tmp/ann") > of_ann, "the process of another caller keeps running");
    drop(other);
    let refused = daemon.hearth(&["token", "revoke", "service:"]);
    assert_ne!(refused.code, 0, "{refused}");
}

fn a_service_of_a_revoked_participant_has_no_rights_until_it_is_deployed_again(daemon: &Daemon) {
    App::page("x\n").pack(daemon, "revocation-bot:1");
    let mint = || daemon.mint(&["--name", "mallory", "--scope", "full"]);
    let deploy = ["deploy", "--tag", "revocation-bot:1", "--name", "bot", "--env-token", "full"];
    as_bearer(daemon, &mint(), &deploy).expect_code(0);
    let status = || {
        let token = inside(daemon, "bot", "echo $MESHAGENT_TOKEN");
        Request::new("GET", "/v2/").bearer(token.trim()).send(&daemon.listen()).status
    };
    assert_eq!(status(), 200);
    daemon.hearth_ok(&["token", "revoke", "mallory"]);
    assert_eq!(status(), 401);
    daemon.hearth_ok(&["services", "restart", "bot"]);
    assert_eq!(status(), 401, "a restarted instance does not regain access");
    std::thread::sleep(seconds(2));
    as_bearer(daemon, &mint(), &[&deploy[..], &["--env", "NEW=1"]].concat()).expect_code(0);
    assert_eq!(status(), 200);
}
