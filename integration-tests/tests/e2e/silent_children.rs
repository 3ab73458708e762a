//! Children of the daemon that run and no longer answer: they are replaced, and what depends on them goes on.

use std::time::{Duration, Instant};

use integration_tests::daemon::{Daemon, Options};
use integration_tests::lone_cases;
use integration_tests::process::{self, Process};
use integration_tests::remains::shims;
use integration_tests::runner::{Group, note};
use integration_tests::service::{App, page};
use integration_tests::sources::Tree;
use integration_tests::wait::{self, seconds};
use rustix::process::Signal;

/// Time within which a silent child is replaced, with a margin for a machine that runs other tests.
const REPLACED: Duration = seconds(25);

pub fn group() -> Group {
    let cases = lone_cases![
        a_builder_that_stands_still_is_replaced_and_the_build_that_waits_goes_on,
        a_builder_that_ends_and_waits_for_sessions_is_replaced,
        a_containerd_that_stands_still_is_replaced_and_its_instances_live_on,
    ];
    Group::new("silent_children", cases).in_sequence()
}

fn with_build(name: &str) -> Daemon {
    let daemon = Daemon::start(Options::room(name));
    daemon.put("x", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "x"));
    daemon.build_ok("x:1", "x", &[]);
    daemon
}

fn child(daemon: &Daemon, name: &str) -> Option<Process> {
    process::tree_of(daemon.pid()).into_iter().find(|process| process.name == name)
}

/// Waits until another process of this name runs and the daemon is ready.
fn wait_replaced(daemon: &Daemon, name: &str, before: i32, since: Instant) {
    wait::until(REPLACED, "another process runs", || {
        child(daemon, name).is_some_and(|child| child.pid != before)
    });
    note(&format!("replaced after {:.1} s", since.elapsed().as_secs_f64()));
    wait::until(seconds(20), "ready", || daemon.status_of("/readyz") == Some(200));
}

fn a_builder_that_stands_still_is_replaced_and_the_build_that_waits_goes_on() {
    let daemon = with_build("bk-still");
    let builder = child(&daemon, "buildkitd").expect("buildkitd").pid;
    process::signal(builder, Signal::STOP);
    let since = Instant::now();
    std::thread::scope(|scope| {
        let build = scope.spawn(|| daemon.build("x:2", "x", &["--no-cache"]));
        wait_replaced(&daemon, "buildkitd", builder, since);
        build.join().unwrap().expect_code(0);
    });
}

fn a_builder_that_ends_and_waits_for_sessions_is_replaced() {
    let daemon = with_build("bk-ending");
    let builder = child(&daemon, "buildkitd").expect("buildkitd").pid;
    // The sessions of the build stay open for the next one.
    process::signal(builder, Signal::TERM);
    wait_replaced(&daemon, "buildkitd", builder, Instant::now());
    daemon.build_ok("x:2", "x", &["--no-cache"]);
}

fn a_containerd_that_stands_still_is_replaced_and_its_instances_live_on() {
    let daemon = Daemon::start(Options::room("ct-still"));
    App::page("one\n").pack(&daemon, "web:1");
    daemon.hearth_ok(&["deploy", "--tag", "web:1", "--domain", "web.test", "--public"]);
    let instances = || shims(&daemon).iter().map(|shim| shim.pid).collect::<Vec<_>>();
    let before = instances();
    let containerd = child(&daemon, "containerd").expect("containerd").pid;
    process::signal(containerd, Signal::STOP);
    let since = Instant::now();
    assert_eq!(page(&daemon, "web.test"), "one\n", "the service answers meanwhile");
    wait_replaced(&daemon, "containerd", containerd, since);
    assert_eq!(page(&daemon, "web.test"), "one\n");
    assert_eq!(instances(), before, "the instance is the same");
}
