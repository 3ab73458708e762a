//! A client in another language, with no code of Hearth: gRPC and reflection are enough to build.

use std::path::Path;
use std::process::Command;

use integration_tests::binaries::repository;
use integration_tests::daemon::{BASE, Daemon};
use integration_tests::process::{self, Output};
use integration_tests::runner::Group;
use integration_tests::service::{App, PORT};
use integration_tests::shared_cases;
use integration_tests::sources::Tree;
use integration_tests::wait::seconds;

/// Interpreter that `deploy/setup.sh --tests` installs.
const PYTHON: &str = "/var/cache/hearth-tests/venv/bin/python";

pub fn group() -> Group {
    Group::new(
        "python",
        shared_cases![
            a_python_client_submits_a_build_and_reads_its_log,
            a_python_client_sees_the_typed_error_of_a_failed_build,
            a_python_client_without_a_token_is_refused,
            a_python_client_runs_a_service_and_follows_its_start,
        ],
    )
}

fn client(daemon: &Daemon, token: &str, tag: &str, path: &str) -> Output {
    script("client.py", token, &[&daemon.listen(), tag, path])
}

fn script(name: &str, token: &str, arguments: &[&str]) -> Output {
    assert!(Path::new(PYTHON).exists(), "{PYTHON} is missing; run deploy/setup.sh --tests");
    let mut command = Command::new(PYTHON);
    command.arg(repository().join("integration-tests/python").join(name));
    command.args(arguments).env("HEARTH_TOKEN", token).env("PYTHONDONTWRITEBYTECODE", "1");
    process::run(&mut command, seconds(120))
}

fn a_python_client_submits_a_build_and_reads_its_log(daemon: &Daemon) {
    daemon.base_image();
    daemon.put(
        "snake",
        &Tree::new().dockerfile(&format!("FROM {BASE}\nRUN echo seen-by-python; echo made > /by\n")),
    );
    let output = client(daemon, daemon.token(), "room.meshagent.com/snake:1", "snake");
    output.expect_code(0).says(&["seen-by-python"]);
    assert_eq!(Some(output.line()), daemon.tag_digest("snake", "1").as_deref());
    assert_eq!(daemon.image("snake:1").file("by"), "made\n");
}

fn a_python_client_sees_the_typed_error_of_a_failed_build(daemon: &Daemon) {
    daemon.base_image();
    daemon.put("snake-fails", &Tree::new().dockerfile(&format!("FROM {BASE}\nRUN echo hiss; exit 23\n")));
    let output = client(daemon, daemon.token(), "snake-fails:1", "snake-fails");
    output.expect_code(23).says(&["step_failed", "hiss"]);
}

fn a_python_client_without_a_token_is_refused(daemon: &Daemon) {
    client(daemon, "", "snake:1", "snake").expect_code(3).says(&["UNAUTHENTICATED"]);
}

fn a_python_client_runs_a_service_and_follows_its_start(daemon: &Daemon) {
    // The start ends when the app answers: output from that very moment may not have been reported by then.
    let script = "trap 'exit 0' TERM; echo started by $BY; sleep 1; httpd -f -p 8000 -h /site & wait";
    App::script(script).with(&["--expose", PORT]).pack(daemon, "snakes/nest:1");
    let output = self::script("deploy.py", daemon.token(), &[&daemon.listen(), "snakes/nest:1"]);
    output.expect_code(0).says(&["started by python"]);
    for told in ["action_started", "probed", "live", "SERVICE_STATUS_LIVE"] {
        assert!(output.stdout.lines().any(|line| line == told), "{told}: {output}");
    }
    daemon.hearth(&["services", "show", "snakes-nest"]).expect_code(1);
}
