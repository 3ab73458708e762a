//! Faults while services run: the daemon, containerd, a shim, the app, or all of them are killed, or the disk is full.
//! Afterwards the expected revision serves, and nothing of another revision is left.

use std::time::Duration;

use integration_tests::daemon::{Daemon, Options};
use integration_tests::http::Request;
use integration_tests::lone_cases;
use integration_tests::process::{self, Process};
use integration_tests::remains::shims;
use integration_tests::runner::Group;
use integration_tests::service::{App, PORT, get, page};
use integration_tests::traffic;
use integration_tests::wait::{self, seconds};
use rustix::process::Signal;

pub fn group() -> Group {
    let cases = lone_cases![
        a_service_keeps_running_when_its_daemon_is_killed,
        an_update_completes_after_the_daemon_is_killed_at_any_step,
        a_service_keeps_running_when_containerd_is_killed,
        a_killed_app_shim_or_instance_is_replaced,
        services_come_back_after_a_reboot,
        no_request_fails_while_a_service_is_updated_again_and_again,
        a_deploy_on_a_full_disk_fails_and_the_old_revision_keeps_serving,
        services_keep_running_across_a_graceful_restart,
    ];
    Group::new("service_faults", cases).in_sequence()
}

/// Starts a daemon with the service `web` at `web.test`, whose page is `one`.
fn with_web(name: &str) -> Daemon {
    let daemon = Daemon::start(Options::room(name));
    App::page("one\n").pack(&daemon, "web:1");
    App::page("two\n").pack(&daemon, "web:2");
    daemon.hearth_ok(&["deploy", "--tag", "web:1", "--domain", "web.test", "--public"]);
    assert_eq!(page(&daemon, "web.test"), "one\n");
    daemon
}

/// Returns the `httpd` processes of this daemon's services, which are descendants of its shims. The processes that
/// `httpd` forks for single requests are not included.
fn apps(daemon: &Daemon) -> Vec<Process> {
    let tree: Vec<Process> = shims(daemon).iter().flat_map(|shim| process::tree_of(shim.pid)).collect();
    let is_httpd = |process: &&Process| process.command.starts_with("httpd");
    let servers: Vec<i32> = tree.iter().filter(is_httpd).map(|process| process.pid).collect();
    tree.iter().filter(is_httpd).filter(|process| !servers.contains(&process.parent)).cloned().collect()
}

/// Waits until exactly one instance runs and the page has this text.
#[track_caller]
fn wait_for_page(daemon: &Daemon, text: &str) {
    let shown = || {
        let answer = Request::new("GET", "/").host("web.test").try_send(&daemon.ingress());
        answer.is_ok_and(|answer| answer.status == 200 && answer.text() == text)
    };
    wait::until(seconds(40), &format!("the page is {text:?}"), shown);
    wait::until(seconds(40), "one instance runs", || apps(daemon).len() == 1 && shims(daemon).len() == 1);
    assert!(shown());
}

fn a_service_keeps_running_when_its_daemon_is_killed() {
    let daemon = with_web("orphaned");
    let before = apps(&daemon);
    assert_eq!(before.len(), 1, "{before:?}");
    daemon.kill9();
    std::thread::sleep(seconds(1));
    daemon.restart();
    assert_eq!(page(&daemon, "web.test"), "one\n", "a ready daemon routes to the service");
    let after = apps(&daemon);
    assert_eq!(after.iter().map(|app| app.pid).collect::<Vec<_>>(), [before[0].pid], "the same process");
    // The service can be changed as before.
    daemon.hearth_ok(&["deploy", "--tag", "web:2"]);
    wait_for_page(&daemon, "two\n");
}

fn services_keep_running_across_a_graceful_restart() {
    let daemon = with_web("paused");
    let before = apps(&daemon);
    assert!(daemon.terminate().success());
    assert_eq!(apps(&daemon).len(), 1, "the app keeps running");
    daemon.restart();
    assert_eq!(page(&daemon, "web.test"), "one\n");
    assert_eq!(apps(&daemon)[0].pid, before[0].pid);
}

fn an_update_completes_after_the_daemon_is_killed_at_any_step() {
    let daemon = with_web("stepwise");
    let mut next = 2;
    // An update takes about two and a half seconds: start, health check, switch of the traffic, stop of the old instance.
    for after in [0, 30, 80, 150, 400, 1200, 2150, 2300, 2500] {
        let tag = format!("web:{next}");
        let output = daemon.hearth_ok(&["deploy", "--tag", &tag, "--no-wait"]);
        std::thread::sleep(Duration::from_millis(after));
        daemon.kill9();
        daemon.restart();
        wait_for_page(&daemon, if next == 2 { "two\n" } else { "one\n" });
        assert!(!output.stdout.is_empty());
        next = 3 - next;
    }
}

fn a_service_keeps_running_when_containerd_is_killed() {
    let daemon = with_web("headless");
    let before = apps(&daemon);
    let containerd = process::tree_of(daemon.pid()).into_iter().find(|process| process.name == "containerd");
    process::signal(containerd.expect("a containerd").pid, Signal::KILL);
    for _ in 0..20 {
        assert_eq!(page(&daemon, "web.test"), "one\n", "the service answers meanwhile");
        std::thread::sleep(Duration::from_millis(20));
    }
    wait::until(seconds(20), "containerd is back", || daemon.status_of("/readyz") == Some(200));
    assert_eq!(apps(&daemon)[0].pid, before[0].pid);
    daemon.hearth_ok(&["deploy", "--tag", "web:2"]);
    wait_for_page(&daemon, "two\n");
}

fn a_killed_app_shim_or_instance_is_replaced() {
    let daemon = with_web("mortal");
    let before = apps(&daemon)[0].pid;
    process::signal(before, Signal::KILL);
    wait::until(seconds(20), "another process serves", || {
        apps(&daemon).first().is_some_and(|app| app.pid != before)
    });
    wait_for_page(&daemon, "one\n");
    process::signal(shims(&daemon)[0].pid, Signal::KILL);
    wait_for_page(&daemon, "one\n");
    // Kills both at once, while the daemon is down.
    daemon.kill9();
    for process in apps(&daemon).iter().chain(&shims(&daemon)) {
        process::signal(process.pid, Signal::KILL);
    }
    daemon.restart();
    wait_for_page(&daemon, "one\n");
    // An app that exits repeatedly waits longer each time, and the service reports why.
    App::script("echo it hurts; sleep 0.3; exit 5").pack(&daemon, "sick:1");
    // Without a port, the app counts as live as soon as it runs, unless it has failed by then.
    daemon.hearth(&["deploy", "--tag", "sick:1"]);
    wait::until(seconds(30), "the exit of the app is reported", || {
        daemon.hearth_ok(&["services", "show", "sick"]).stdout.contains("exit code 5")
    });
}

fn services_come_back_after_a_reboot() {
    let daemon = with_web("reborn");
    daemon.kill9();
    // Simulates a power cut: all processes, mounts and network links are gone, and only the state directory is left.
    for process in apps(&daemon).iter().chain(&shims(&daemon)) {
        process::signal(process.pid, Signal::KILL);
    }
    wait::until(seconds(10), "nothing runs", || {
        integration_tests::leftovers::processes(daemon.directory()).is_empty()
    });
    for point in integration_tests::leftovers::mounts(&daemon.state()).into_iter().rev() {
        rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
    integration_tests::network::sweep(&daemon.state());
    daemon.restart();
    wait_for_page(&daemon, "one\n");
}

fn no_request_fails_while_a_service_is_updated_again_and_again() {
    let daemon = with_web("busy");
    let seen = traffic::during(&daemon.ingress(), "web.test", &["one\n", "two\n"], || {
        for tag in ["web:2", "web:1", "web:2", "web:1", "web:2"] {
            daemon.hearth_ok(&["deploy", "--tag", tag]);
        }
        std::thread::sleep(seconds(1));
    });
    assert!(seen.answers > 1000, "{} answers", seen.answers);
    assert_eq!(seen.failures, 0, "of {} answers: {:?}", seen.answers, seen.failed);
    wait_for_page(&daemon, "two\n");
}

fn a_deploy_on_a_full_disk_fails_and_the_old_revision_keeps_serving() {
    let daemon = Daemon::start(
        Options::room("cramped")
            .state_size("160m")
            .config("[builds]\nmin_free_bytes = 1048576\n[packs]\nmin_free_bytes = 1048576\n")
            .config("[uploads]\nmin_free_bytes = 1048576\n"),
    );
    App::page("one\n").pack(&daemon, "web:1");
    daemon.hearth_ok(&["deploy", "--tag", "web:1", "--domain", "web.test", "--public"]);
    // The layer is small when compressed, and too large for the disk when unpacked.
    let zeros = "0".repeat(200 << 20);
    App::page("large\n").file("zeros", &zeros).pack(&daemon, "web:large");
    let output = daemon.hearth(&["deploy", "--tag", "web:large"]);
    assert_ne!(output.code, 0, "{output}");
    output.says(&["space"]);
    assert_eq!(get(&daemon, "web.test", "/").expect(200).text(), "one\n");
    App::page("small\n").pack(&daemon, "web:3");
    daemon.hearth_ok(&["deploy", "--tag", "web:3", "--env", &format!("PORT={PORT}")]);
    assert_eq!(page(&daemon, "web.test"), "small\n");
}
