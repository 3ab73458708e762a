use std::os::unix::fs::PermissionsExt as _;

use super::file::TrailFiles;
use super::*;

const LIMITS: FileLimits = FileLimits { bytes: 64 * 1024, age: Duration::from_secs(90 * 86400) };

fn record(caller: &str, action: &str, outcome: AuditOutcome) -> AuditRecord {
    AuditRecord {
        at: Timestamp::now(),
        caller: caller.to_owned(),
        action: action.to_owned(),
        object: "x".to_owned(),
        outcome,
        detail: String::new(),
        source: "192.0.2.7".to_owned(),
        more: 0,
    }
}

fn open(directory: &tempfile::TempDir) -> AuditTrail {
    AuditTrail::open(&directory.path().join("audit"), LIMITS).unwrap()
}

fn all() -> AuditQuery {
    AuditQuery { limit: MAX_RECORDS, ..AuditQuery::default() }
}

async fn actions(trail: &AuditTrail, query: AuditQuery) -> Vec<String> {
    trail.read(query).await.unwrap().into_iter().map(|record| record.action).collect()
}

#[tokio::test]
async fn what_was_recorded_is_found_by_caller_action_and_time_and_outlives_a_restart() {
    use AuditOutcome::{Denied, Done, Failed};
    let directory = tempfile::tempdir().unwrap();
    let trail = open(&directory);
    trail.record(record("ann", "Builds.Submit", Done)).await;
    trail.record(record("bob", "Images.Remove", Denied)).await;
    trail.record(record("bobby", "Builds.Cancel", Failed)).await;
    trail.flush(Duration::from_secs(20)).await;
    drop(trail);
    let trail = open(&directory);
    assert_eq!(actions(&trail, all()).await, ["Builds.Submit", "Images.Remove", "Builds.Cancel"]);
    let by = |caller: &str| AuditQuery { caller: caller.to_owned(), ..all() };
    assert_eq!(actions(&trail, by("bob")).await, ["Images.Remove"]);
    assert_eq!(actions(&trail, by("bob*")).await, ["Images.Remove", "Builds.Cancel"]);
    let action = AuditQuery { action: "builds".to_owned(), ..all() };
    assert_eq!(actions(&trail, action).await, ["Builds.Submit", "Builds.Cancel"]);
    assert_eq!(actions(&trail, AuditQuery { denied_only: true, ..all() }).await, ["Images.Remove"]);
    assert_eq!(actions(&trail, AuditQuery { limit: 1, ..all() }).await, ["Builds.Cancel"]);
    let later = Timestamp::now().checked_add(Duration::from_secs(60)).unwrap();
    assert!(actions(&trail, AuditQuery { since: Some(later), ..all() }).await.is_empty());
    for entry in std::fs::read_dir(directory.path().join("audit")).unwrap() {
        assert_eq!(entry.unwrap().metadata().unwrap().permissions().mode() & 0o777, 0o600);
    }
}

#[tokio::test]
async fn the_trail_keeps_the_newest_within_its_size() {
    let directory = tempfile::tempdir().unwrap();
    let trail = open(&directory);
    for number in 0..2000 {
        trail.record(record("ann", &format!("n{number}"), AuditOutcome::Done)).await;
    }
    let kept = actions(&trail, all()).await;
    assert_eq!(kept.last().unwrap(), "n1999");
    assert!(kept.len() > 100 && kept.len() < 1000, "{}", kept.len());
    let size: u64 = std::fs::read_dir(directory.path().join("audit"))
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(size <= LIMITS.bytes * 5 / 4, "{size}");
    let long = AuditRecord { object: "ü".repeat(10_000), ..record("ann", "long", AuditOutcome::Done) };
    trail.record(long).await;
    let last = trail.read(all()).await.unwrap().pop().unwrap();
    assert!(last.action == "long" && last.object.len() < 400);
}

#[tokio::test]
async fn a_flood_of_denials_takes_no_room_from_changes_and_is_counted() {
    let directory = tempfile::tempdir().unwrap();
    let trail = open(&directory);
    trail.record(record("ann", "Secrets.Set", AuditOutcome::Done)).await;
    for _ in 0..50_000 {
        trail.try_record(record("eve", "Secrets.List", AuditOutcome::Denied));
    }
    trail.try_record(record("bob", "Secrets.List", AuditOutcome::Denied));
    let found = trail.read(all()).await.unwrap();
    assert_eq!(found[0].action, "Secrets.Set");
    let of = |caller: &str| found.iter().filter(|record| record.caller == caller).count();
    assert_eq!((of("eve"), of("bob")), (10, 1));
    // The count is written at the end of the window, or when the daemon stops.
    drop(trail);
    let trail = open(&directory);
    let counted: u64 = trail.read(all()).await.unwrap().iter().map(|record| record.more).sum();
    assert!(counted == 0 || counted == 50_000 - 10 - 1, "{counted}");
}

#[test]
fn each_address_has_its_share_and_all_together_have_a_bound() {
    let mut flood = FloodLimit::default();
    let from = |source: String| AuditRecord { source, ..record("", "v2", AuditOutcome::Denied) };
    let written = (0..3000u32).filter(|n| {
        let [_, _, a, b] = n.to_be_bytes();
        flood.admits(&from(format!("198.51.{a}.{b}")))
    });
    assert_eq!(written.count(), 300);
    let summaries = flood.summaries(Timestamp::now(), true);
    assert!(summaries.len() <= 41, "{}", summaries.len());
    assert_eq!(summaries.iter().map(|record| record.more + 1).sum::<u64>(), 2700);
    // An IPv6 /64 network counts as one address.
    let mut flood = FloodLimit::default();
    let written = (0..100).filter(|n| flood.admits(&from(format!("2001:db8:1:2::{n:x}")))).count();
    assert_eq!(written, 10);
}

#[test]
fn a_line_that_a_crash_cut_off_costs_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let mut files = TrailFiles::open(directory.path(), LIMITS).unwrap();
    files.write(&[record("ann", "first", AuditOutcome::Done)]).unwrap();
    drop(files);
    let path = directory.path().join("changes-1.jsonl");
    let mut text = std::fs::read(&path).unwrap();
    text.extend_from_slice(br#"{"at": "2026-"#);
    std::fs::write(&path, text).unwrap();
    let mut files = TrailFiles::open(directory.path(), LIMITS).unwrap();
    files.write(&[record("ann", "second", AuditOutcome::Done)]).unwrap();
    let found = files.read(&all()).unwrap();
    let found: Vec<_> = found.iter().map(|record| record.action.as_str()).collect();
    assert_eq!(found, ["first", "second"]);
}

#[test]
fn damage_is_a_record_with_its_size_and_the_rest_follows() {
    let directory = tempfile::tempdir().unwrap();
    let mut files = TrailFiles::open(directory.path(), LIMITS).unwrap();
    let written = ["first", "second", "third", "fourth"];
    files.write(&written.map(|action| record("ann", action, AuditOutcome::Done))).unwrap();
    drop(files);
    let path = directory.path().join("changes-1.jsonl");
    let mut bytes = std::fs::read(&path).unwrap();
    let ends: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] == b'\n').collect();
    // The second record and the newline after it.
    bytes[ends[0] + 1..=ends[1]].fill(0);
    std::fs::write(&path, bytes).unwrap();
    let files = TrailFiles::open(directory.path(), LIMITS).unwrap();
    let found = files.read(&AuditQuery { caller: "ann".to_owned(), ..all() }).unwrap();
    let actions: Vec<_> = found.iter().map(|record| record.action.as_str()).collect();
    assert_eq!(actions, ["first", "(damaged records)", "fourth"]);
    let size = ends[2] - ends[0];
    assert_eq!(found[1].detail, format!("{size} bytes of the audit trail are damaged on the disk"));
}

#[tokio::test]
async fn one_caller_who_fails_or_succeeds_without_end_pushes_out_no_record_of_others() {
    for outcome in [AuditOutcome::Failed, AuditOutcome::Done] {
        let directory = tempfile::tempdir().unwrap();
        let trail = open(&directory);
        for number in 0..20 {
            trail.record(record("ann", &format!("Secrets.Set {number}"), AuditOutcome::Done)).await;
        }
        for _ in 0..6000 {
            trail.record(record("eve", "DELETE /v2/<repository>/manifests/<tag>", outcome)).await;
        }
        let found = trail.read(all()).await.unwrap();
        let of = |caller: &str| found.iter().filter(|record| record.caller == caller).count();
        assert_eq!(of("ann"), 20, "{outcome:?}");
        match outcome {
            AuditOutcome::Failed => assert_eq!(of("eve"), 10),
            _ => assert!(of("eve") > 100, "{}", of("eve")),
        }
        trail.flush(Duration::from_secs(20)).await;
        let files = std::fs::read_dir(directory.path().join("audit")).unwrap();
        let size: u64 = files.map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
        assert!(size <= LIMITS.bytes * 5 / 4, "{size}");
    }
}
