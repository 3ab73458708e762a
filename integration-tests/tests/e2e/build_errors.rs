//! Errors of failed builds say what failed, where, and what to do next.

use integration_tests::daemon::{BASE, Daemon};
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::sources::Tree;

pub fn group() -> Group {
    Group::new("build_errors", shared_cases![a_failed_step_has_a_hint_from_its_log])
}

fn a_failed_step_has_a_hint_from_its_log(daemon: &Daemon) {
    daemon.base_image();
    for (name, run, exit, words) in [
        ("apt", "echo 'E: Unable to locate package curl' >&2; exit 100", 100, "apt-get update"),
        ("disk", "mkdir /d && dd if=/dev/zero of=/dev/full bs=1 count=1", 1, "hearth system df"),
        ("name", "echo \"Temporary failure resolving 'deb.debian.org'\"; exit 7", 7, "builds.egress"),
    ] {
        let dockerfile = format!("FROM {BASE}\nRUN true\nRUN {run}\n");
        daemon.put(name, &Tree::new().dockerfile(&dockerfile));
        let output = daemon.build(&format!("{name}:1"), name, &["--json"]);
        let error = &output.expect_code(exit).json()["error"];
        assert_eq!(error["code"], "step_failed", "{output}");
        assert_eq!(error["exit_code"], exit, "{output}");
        assert_eq!(error["dockerfile"]["start_line"], 3, "{output}");
        assert!(error["hint"].as_str().is_some_and(|hint| hint.contains(words)), "{output}");
        assert!(error["log_tail"].as_array().is_some_and(|lines| !lines.is_empty()), "{output}");
    }
}
