//! One caller fills the disk of the state directory: the others can work again within seconds, the daemon starts, and
//! what fills the disk can be removed.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use integration_tests::daemon::{BASE, Daemon, Options};
use integration_tests::http::Request;
use integration_tests::lone_cases;
use integration_tests::process::{self, Output};
use integration_tests::runner::{self, Group};
use integration_tests::sources::Tree;
use integration_tests::wait::{self, seconds};

pub fn group() -> Group {
    Group::new(
        "walls_disk",
        lone_cases![
            a_step_that_fills_the_disk_is_ended_and_others_build_again,
            the_daemon_starts_on_a_disk_that_files_fill_and_they_can_be_removed,
            the_daemon_starts_on_a_disk_that_an_unfinished_build_fills,
            what_a_service_filled_is_removed_through_the_api,
            output_of_steps_leaves_the_floor_of_free_space,
        ],
    )
    .in_sequence()
}

const MIB: u64 = 1 << 20;
const FLOOR: u64 = 64 * MIB;
/// Time limit for callers who are not to blame to work again.
const AGAIN: Duration = seconds(15);

fn start(room: &str) -> Daemon {
    let floor = format!("min_free_bytes = {FLOOR}");
    let config = format!(
        "[builds]\n{floor}\n[packs]\n{floor}\n[uploads]\n{floor}\n[builder]\n{floor}\nmax_used_bytes = 300000000\n\
         [audit]\nmax_bytes = 1048576\n"
    );
    let daemon = Daemon::start(Options::room(room).config(&config).state_size("600m"));
    daemon.base_image();
    daemon.put("small", &Tree::new().dockerfile(&format!("FROM {BASE}\nRUN echo built\n")));
    daemon
}

/// A caller that has a trust domain of its own.
struct Caller<'d> {
    daemon: &'d Daemon,
    token: String,
}

impl<'d> Caller<'d> {
    fn new(daemon: &'d Daemon, name: &str) -> Self {
        Self { daemon, token: daemon.mint(&["--name", name, "--scope", "full"]) }
    }

    fn hearth(&self, arguments: &[&str]) -> Output {
        let mut client = self.daemon.client();
        process::run(client.env("HEARTH_TOKEN", &self.token).args(arguments), seconds(100))
    }

    fn build(&self, tag: &str, path: &str, more: &[&str]) -> Output {
        let mount = format!("{path}:/context:ro");
        self.hearth(&self.daemon.build_arguments(tag, &mount, more))
    }
}

fn free(daemon: &Daemon) -> u64 {
    rustix::fs::statvfs(daemon.state()).map(|disk| disk.f_bavail * disk.f_frsize).unwrap()
}

fn readyz(daemon: &Daemon) -> (u16, String) {
    let answer = Request::new("GET", "/readyz").send(&daemon.listen());
    (answer.status, answer.text())
}

/// Writes until the disk is full to the last byte.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    for size in [1 << 20, 4 << 10] {
        let zeros = vec![0; size];
        while file.write_all(&zeros).is_ok() {}
    }
}

fn a_step_that_fills_the_disk_is_ended_and_others_build_again() {
    let daemon = &start("disk_step");
    let (alice, mallory) = (Caller::new(daemon, "alice"), Caller::new(daemon, "mallory"));
    alice.build("alice:1", "small", &[]).expect_code(0);
    mallory.build("mallory:1", "small", &[]).expect_code(0);
    let fill = format!("FROM {BASE}\nRUN dd if=/dev/zero of=/x bs=1M count=3000; sleep 60\n");
    daemon.put("fill", &Tree::new().dockerfile(&fill));
    let file = daemon.directory().join("file");
    fs::write(&file, "content").unwrap();
    std::thread::scope(|scope| {
        let filling = scope.spawn(|| mallory.build("mallory:fill", "fill", &[]));
        wait::until(seconds(30), "the disk fills", || free(daemon) < FLOOR);
        let begun = Instant::now();
        wait::until(AGAIN, "the disk has space again", || free(daemon) > FLOOR);
        alice.build("alice:2", "small", &["--no-cache"]).expect_code(0);
        alice.hearth(&["storage", "put", file.to_str().unwrap(), "/alice/file"]).expect_code(0);
        alice.hearth(&["secrets", "set", "one", "--from-file", file.to_str().unwrap()]).expect_code(0);
        let took = begun.elapsed();
        runner::note(&format!("others worked again within {took:?}"));
        assert!(took < AGAIN, "{took:?}");
        let ended = filling.join().unwrap();
        assert_ne!(ended.code, 0, "{ended}");
        ended.says(&["used up the disk"]);
    });
    wait::until(AGAIN, "/readyz follows the disk", || readyz(daemon).0 == 200);
    // The caller who filled the disk can work again, too.
    mallory.build("mallory:2", "small", &["--no-cache"]).expect_code(0);
    alice.hearth(&["builds", "list"]).expect_code(0);
}

fn the_daemon_starts_on_a_disk_that_files_fill_and_they_can_be_removed() {
    let daemon = &start("disk_files");
    daemon.build_ok("kept:1", "small", &[]);
    daemon.kill9();
    fill(&daemon.room_files().join("big"));
    assert_eq!(free(daemon), 0);
    daemon.restart_unready();
    let (status, text) = readyz(daemon);
    assert!(status == 503 && text.contains("disk: not ready"), "{status} {text}");
    let build = daemon.build("kept:2", "small", &[]);
    build.expect_code(1).says(&["free"]);
    daemon.hearth_ok(&["storage", "rm", "/big"]);
    wait::until(AGAIN, "/readyz follows the disk", || readyz(daemon).0 == 200);
    daemon.build_ok("kept:2", "small", &["--no-cache"]);
}

fn the_daemon_starts_on_a_disk_that_an_unfinished_build_fills() {
    let daemon = &start("disk_leftover");
    daemon.build_ok("kept:1", "small", &[]);
    let half = format!("FROM {BASE}\nRUN dd if=/dev/zero of=/x bs=1M count=200; sleep 100\n");
    daemon.put("half", &Tree::new().dockerfile(&half));
    let before = free(daemon);
    daemon.build("half:1", "half", &["--detach"]).expect_code(0);
    wait::until(seconds(30), "the step writes", || free(daemon) + 200 * MIB < before);
    daemon.kill9();
    fill(&daemon.room_files().join("big"));
    assert_eq!(free(daemon), 0);
    daemon.restart();
    wait::until(AGAIN, "the files of the unfinished build are removed", || free(daemon) > FLOOR);
    daemon.hearth_ok(&["storage", "rm", "/big"]);
    daemon.build_ok("kept:2", "small", &["--no-cache"]);
}

fn what_a_service_filled_is_removed_through_the_api() {
    let daemon = &start("disk_service");
    let build = daemon.build_ok("kept:1", "small", &[]);
    assert!(build.starts_with("sha256:"));
    daemon.put("shared", &Tree::new().file("a", "a"));
    let deploy = |name: &str| {
        let mount = ["--room-mount", "shared:/m:rw", "--command", "sleep 3000", "--no-wait"];
        daemon.hearth_ok(&[&["deploy", "--tag", BASE, "--name", name], mount.as_slice()].concat());
    };
    deploy("filler");
    let exec = |command: &str| daemon.hearth(&["services", "exec", "filler", "--", "sh", "-c", command]);
    wait::until(AGAIN, "the service runs", || exec("true").code == 0);
    exec(
        "dd if=/dev/zero of=/m/one bs=1M count=200; cp /m/one /m/two; dd if=/dev/zero of=/m/big bs=1M count=3000",
    );
    wait::until(AGAIN, "/readyz reports the full disk", || readyz(daemon).0 == 503);
    assert!(readyz(daemon).1.contains("disk: not ready"));
    // Each of these commands works on the full disk.
    daemon.hearth_ok(&["builds", "list"]);
    let builds = daemon.hearth_ok(&["builds", "list"]).stdout;
    let build =
        builds.lines().nth(1).and_then(|line| line.split_whitespace().next()).expect("a build").to_owned();
    daemon.hearth_ok(&["builds", "rm", &build]);
    exec("rm /m/one && dd if=/dev/zero of=/m/one bs=1M count=3000");
    wait::until(AGAIN, "the disk is full again", || free(daemon) < FLOOR / 8);
    exec("rm /m/one").expect_code(0);
    daemon.hearth_ok(&["storage", "rm", "/shared/two"]);
    daemon.hearth_ok(&["services", "rm", "--now", "filler"]);
    daemon.hearth_ok(&["storage", "rm", "/shared/big"]);
    wait::until(AGAIN, "/readyz follows the disk", || readyz(daemon).0 == 200);
    daemon.build_ok("kept:2", "small", &["--no-cache"]);
}

fn output_of_steps_leaves_the_floor_of_free_space() {
    let daemon = &start("disk_logs");
    let (alice, mallory) = (Caller::new(daemon, "alice"), Caller::new(daemon, "mallory"));
    // The log has about 900 MB of lines.
    let line = "x".repeat(3000);
    let noisy = format!(
        "FROM {BASE}\nRUN yes {line} | head -c 300000000\nRUN yes {line} | head -c 300000001\n\
         RUN yes {line} | head -c 300000002\n"
    );
    daemon.put("noisy", &Tree::new().dockerfile(&noisy));
    let id = mallory.build("noisy:1", "noisy", &["--detach"]);
    let id = id.expect_code(0).line().to_owned();
    wait::until(seconds(90), "the build ends", || {
        assert!(free(daemon) > FLOOR / 8, "{} bytes are free", free(daemon));
        daemon.hearth_ok(&["builds", "list"]).stdout.contains("noisy") && ended(daemon, &id)
    });
    assert!(free(daemon) > FLOOR / 2, "{} bytes are free", free(daemon));
    let log = mallory.hearth(&["builds", "logs", &id]);
    log.expect_code(0);
    assert!(log.stdout.contains("left out"), "the omitted part of the log is reported");
    mallory.hearth(&["builds", "rm", &id]).expect_code(0);
    alice.build("alice:1", "small", &[]).expect_code(0);
}

fn ended(daemon: &Daemon, id: &str) -> bool {
    let record = daemon.hearth_ok(&["builds", "show", id, "--json"]).json();
    !matches!(record["state"].as_str(), Some("queued" | "running"))
}
