//! The same services on containerd 2.x, which forgets tasks that ended while it was down, and has a different settings
//! format. deploy/setup.sh --tests builds it, since Debian's is 1.6.

use std::process::Command;

use integration_tests::containerd::CONTAINERD_2;
use integration_tests::daemon::{Daemon, Options};
use integration_tests::lone_cases;
use integration_tests::process;
use integration_tests::remains::{Remains, shims};
use integration_tests::runner::Group;
use integration_tests::service::{App, page};
use integration_tests::wait::{self, seconds};
use rustix::process::Signal;

use crate::service_apps::runs_a_service_on_external_containerd;
use crate::service_kills::{Victim, at_each_step};

pub fn group() -> Group {
    let cases = lone_cases![
        a_service_is_deployed_updated_and_removed,
        an_exit_that_containerd_does_not_see_is_recovered_from,
        services_are_adopted_by_the_next_daemon_and_the_next_containerd,
        a_daemon_uses_a_configured_external_containerd_2,
        an_update_whose_app_is_killed_at_any_step_comes_to_its_end,
        an_update_whose_shim_is_killed_at_any_step_comes_to_its_end,
        an_update_whose_containerd_is_killed_at_any_step_comes_to_its_end,
    ];
    Group::new("containerd_2", cases).in_sequence()
}

/// Returns the options of a daemon that supervises a containerd 2.x.
fn options(room: &str) -> Options {
    Options::room(room).config(&format!("[services]\ncontainerd_program = {CONTAINERD_2:?}\n"))
}

fn with_web(room: &str) -> Daemon {
    let daemon = Daemon::start(options(room));
    let mut version = Command::new("ctr");
    version.arg("--address").arg(daemon.state().join("containerd/containerd.sock")).arg("version");
    let version = process::run(&mut version, seconds(30)).stdout;
    let server = version.split("Server:").nth(1).unwrap_or_default();
    assert!(server.contains("Version:  2."), "{version}");
    App::page("one\n").pack(&daemon, "web:1");
    App::page("two\n").pack(&daemon, "web:2");
    daemon.hearth_ok(&["deploy", "--tag", "web:1", "--domain", "web.test", "--public"]);
    assert_eq!(page(&daemon, "web.test"), "one\n");
    daemon
}

fn a_service_is_deployed_updated_and_removed() {
    let daemon = with_web("two");
    let shim = std::fs::read_link(format!("/proc/{}/exe", shims(&daemon)[0].pid)).unwrap();
    assert!(
        shim.starts_with("/usr/local/lib/hearth-tests"),
        "the shim is of the same release: {}",
        shim.display()
    );
    daemon.hearth_ok(&["deploy", "--tag", "web:2"]);
    assert_eq!(page(&daemon, "web.test"), "two\n");
    let inside = daemon.hearth(&["services", "exec", "web", "--", "sh", "-c", "cat /etc/hostname; exit 7"]);
    assert_eq!((inside.code, inside.stdout.as_str()), (7, "web\n"), "{inside}");
    let missing = daemon.hearth(&["services", "exec", "web", "--", "/no/such/program"]);
    missing.expect_code(127).says(&["/no/such/program"]);
    // The exit of an app, and the reason why one cannot be started, are reported as well.
    App::script("echo the reason; exit 3").pack(&daemon, "web:sick");
    daemon.hearth(&["deploy", "--tag", "web:sick"]).expect_code(1).says(&["exit code 3", "the reason"]);
    App::script("").command(&["/no/such/app"]).pack(&daemon, "web:missing");
    daemon.hearth(&["deploy", "--tag", "web:missing"]).expect_code(1).says(&["/no/such/app"]);
    App::script("tail -n 1 /dev/zero").pack(&daemon, "web:hungry");
    let hungry = daemon.hearth(&["deploy", "--tag", "web:hungry", "--memory", "32m"]);
    hungry.expect_code(1).says(&["needs more memory than its limit"]);
    assert_eq!(page(&daemon, "web.test"), "two\n");
    daemon.hearth_ok(&["services", "rollback", "web", "1"]);
    assert_eq!(page(&daemon, "web.test"), "one\n");
    daemon.hearth_ok(&["services", "rm", "web"]);
    assert_eq!(shims(&daemon).len(), 0);
}

fn an_exit_that_containerd_does_not_see_is_recovered_from() {
    let daemon = with_web("unseen");
    let still = Remains::of(&daemon);
    let tree = process::tree_of(daemon.pid());
    let containerd = tree.iter().find(|process| process.name == "containerd").expect("a containerd");
    // The stopped containerd receives no events until it is killed.
    process::signal(containerd.pid, Signal::STOP);
    let shim = shims(&daemon).pop().expect("a shim");
    for process in process::tree_of(shim.pid) {
        process::signal(process.pid, Signal::KILL);
    }
    process::signal(containerd.pid, Signal::KILL);
    wait::until(seconds(40), "another instance serves", || {
        shims(&daemon).iter().any(|other| other.pid != shim.pid) && daemon.status_of("/readyz") == Some(200)
    });
    assert_eq!(page(&daemon, "web.test"), "one\n");
    still.come_back(&daemon);
}

fn services_are_adopted_by_the_next_daemon_and_the_next_containerd() {
    let daemon = with_web("adopted");
    let still = Remains::of(&daemon);
    let before = shims(&daemon)[0].pid;
    daemon.kill9();
    daemon.restart();
    assert_eq!(page(&daemon, "web.test"), "one\n");
    assert!(daemon.terminate().success());
    daemon.restart();
    assert_eq!(page(&daemon, "web.test"), "one\n");
    assert_eq!(shims(&daemon).iter().map(|shim| shim.pid).collect::<Vec<_>>(), [before]);
    still.come_back(&daemon);
    daemon.hearth_ok(&["deploy", "--tag", "web:2"]);
    assert_eq!(page(&daemon, "web.test"), "two\n");
}

fn a_daemon_uses_a_configured_external_containerd_2() {
    runs_a_service_on_external_containerd(CONTAINERD_2, "guest-2");
}

fn an_update_whose_app_is_killed_at_any_step_comes_to_its_end() {
    at_each_step(options("two-app"), Victim::App);
}

fn an_update_whose_shim_is_killed_at_any_step_comes_to_its_end() {
    at_each_step(options("two-shim"), Victim::Shim);
}

fn an_update_whose_containerd_is_killed_at_any_step_comes_to_its_end() {
    at_each_step(options("two-ctd"), Victim::Containerd);
}
