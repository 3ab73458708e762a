//! A disk that is full to the last byte: ends are stored later, nothing that was stored is lost, and a daemon starts.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use hearth_proto::v1::BuildState;
use hearth_proto::v1::build_event::Event;
use integration_tests::daemon::{BASE, Daemon, Options};
use integration_tests::grpc::{Api, block_on, spec};
use integration_tests::lone_cases;
use integration_tests::process;
use integration_tests::runner::Group;
use integration_tests::sources::Tree;
use integration_tests::wait::{self, seconds};

pub fn group() -> Group {
    let cases = lone_cases![
        a_build_that_ends_on_a_full_disk_has_one_end,
        a_daemon_starts_on_a_full_disk_and_recovers_by_itself,
    ];
    Group::new("full_disk", cases).in_sequence()
}

/// Starts a daemon whose disk has no floor below which it counts as full, so that only failed writes tell.
fn start(name: &str) -> Daemon {
    let floors = "[builds]\nmin_free_bytes = 0\n[packs]\nmin_free_bytes = 0\n[uploads]\nmin_free_bytes = 0\n";
    Daemon::start(Options::room(name).state_size("96m").config(floors))
}

/// Fills the disk of the state directory. Removing the returned file frees it.
fn fill(daemon: &Daemon) -> PathBuf {
    let path = daemon.state().join("fill");
    let mut file = File::create(&path).unwrap();
    while file.write_all(&[7; 4096]).is_ok() {}
    path
}

fn a_build_that_ends_on_a_full_disk_has_one_end() {
    let daemon = start("full-end");
    daemon.base_image();
    let dockerfile = format!("FROM {BASE}\nRUN sleep 3.4907\n");
    daemon.put("slow", &Tree::new().dockerfile(&dockerfile));
    let id =
        block_on(seconds(30), async { Api::of(&daemon).await.submit(spec("slow:1", "slow")).await.unwrap() });
    wait::until(seconds(60), "the step runs", || !process::with_command("sleep 3.4907").is_empty());
    let full = fill(&daemon);
    wait::until(seconds(30), "the step has ended", || process::with_command("sleep 3.4907").is_empty());
    let refused = wait::poll(seconds(40), || {
        let cancelled = daemon.hearth(&["builds", "cancel", &id]);
        (cancelled.code != 0).then_some(cancelled)
    });
    refused.expect("the end was stored on a full disk").says(&["cannot be stored", "keeps trying"]);
    daemon.hearth(&["builds", "rm", &id]).expect_code(1).says(&["cannot be stored"]);
    wait::until(seconds(10), "not ready", || daemon.status_of("/readyz") == Some(503));

    fs::remove_file(full).unwrap();
    let state = wait::poll(seconds(40), || {
        let state = block_on(seconds(20), async { Api::of(&daemon).await.state(&id).await });
        (!matches!(state, BuildState::Queued | BuildState::Running)).then_some(state)
    });
    let state = state.expect("the end is stored when there is space");
    let events = block_on(seconds(20), async { Api::of(&daemon).await.watch(&id, 0).await.unwrap() });
    let numbers: Vec<u64> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>(), "{events:?}");
    let ends = events.iter().filter(|event| matches!(event.event, Some(Event::Finished(_)))).count();
    assert_eq!(ends, 1, "{events:?}");
    daemon.kill9();
    daemon.restart();
    let after = block_on(seconds(20), async { Api::of(&daemon).await.state(&id).await });
    assert_eq!(after, state, "it is not run again");
    daemon.hearth_ok(&["builds", "rm", &id]);
}

fn a_daemon_starts_on_a_full_disk_and_recovers_by_itself() {
    let daemon = start("full-start");
    daemon.put("x", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "kept"));
    let before = daemon.build_ok("x:1", "x", &[]);
    // A clean end removes the files that SQLite needs to open a database as usual.
    assert!(daemon.terminate().success());
    let full = fill(&daemon);
    daemon.spawn_again();
    wait::until(seconds(30), "it can be read", || daemon.hearth(&["images", "list"]).code == 0);
    let builds = daemon.hearth_ok(&["builds", "list"]);
    assert!(builds.stdout.contains("x:1"), "{builds}");
    let mut set = daemon.client();
    let set = process::run_with_input(set.args(["secrets", "set", "a"]), b"value", seconds(30));
    set.expect_code(1).says(&["no space is left"]);
    let doctor = daemon.hearth(&["doctor"]);
    assert!(doctor.code != 0 && doctor.stdout.contains("only read"), "{doctor}");

    fs::remove_file(full).unwrap();
    daemon.wait_published(true);
    assert_eq!(daemon.tag_digest("x", "1"), Some(before));
    daemon.build_ok("x:2", "x", &["--no-cache"]);
    assert_eq!(daemon.image("x:2").file("a"), "kept");
}
