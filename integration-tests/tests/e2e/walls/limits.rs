//! Resource limits: a caller without a token costs at most a connection, and a caller with one at most their share.

#[path = "limits/connections.rs"]
mod connections;
#[path = "limits/floods.rs"]
mod floods;
#[path = "limits/memory.rs"]
mod memory;
#[path = "limits/queue.rs"]
mod queue;
#[path = "limits/slots.rs"]
mod slots;
#[path = "limits/uploads.rs"]
mod uploads;

use std::fs;
use std::time::{Duration, Instant};

use integration_tests::daemon::{Daemon, Options};
use integration_tests::http::Request;
use integration_tests::runner::{self, Case, Group};
use integration_tests::wait::seconds;

/// Configuration with limits that an attack in a test can reach.
const SMALL: &str = "[connections]
api = 300
api_per_peer = 100
socket = 60
socket_per_user = 40
ingress = 300
ingress_per_peer = 100
idle_seconds = 4
requests_per_caller = 40
stall_seconds = 4
";

/// Configuration with a quota that a test can reach, and a short limit for idle uploads. Tests hold streams that stall
/// for less than `stall_seconds`.
const SMALL_QUOTA: &str = "[connections]
stall_seconds = 20
[uploads]
max_bytes_per_caller = 8000000
max_bytes_per_image = 7000000
idle_seconds = 8
";

pub fn groups() -> Vec<Group> {
    let group = |name, cases: Vec<Case>, config: &str| {
        Group::new(name, cases).options(Options::room(name).config(config)).in_sequence()
    };
    vec![
        group("walls_memory", memory::cases(), ""),
        group("walls_floods", floods::cases(), ""),
        group("walls_connections", connections::cases(), SMALL),
        group("walls_uploads", uploads::cases(), SMALL_QUOTA),
        group("walls_queue", queue::cases(), queue::CONFIG),
        group("walls_slots", slots::cases(), ""),
    ]
}

const MIB: u64 = 1 << 20;

/// Returns the resident memory of hearthd without its children, in bytes.
fn memory(daemon: &Daemon) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

#[track_caller]
fn grew_less_than(limit: u64, daemon: &Daemon, before: u64) {
    let grown = memory(daemon).saturating_sub(before);
    runner::note(&format!("grown by {} MiB of {} MiB", grown / MIB, limit / MIB));
    assert!(grown < limit, "hearthd grew by {} MiB; at most {} MiB", grown / MIB, limit / MIB);
}

/// Asserts that requests of other callers are answered: on the API, on the ingress and on the unix socket.
#[track_caller]
fn others_are_answered(daemon: &Daemon) {
    let begun = Instant::now();
    let ready = Request::new("GET", "/readyz").send(&daemon.listen());
    assert_eq!(ready.status, 200, "{}", String::from_utf8_lossy(&ready.body));
    let page = Request::new("GET", "/").host("nobody.example").send(&daemon.ingress());
    assert_eq!(page.status, 404, "the ingress has no such host, and says so");
    daemon.hearth_ok(&["builds", "list"]);
    let took = begun.elapsed();
    runner::note(&format!("others were answered within {took:?}"));
    assert!(took < seconds(15), "{took:?}");
}

/// Polls until `ask` returns `true`, for at most `limit`; reports whether it did.
fn soon(limit: Duration, ask: impl FnMut() -> bool) -> bool {
    let mut ask = ask;
    integration_tests::wait::poll(limit, || ask().then_some(())).is_some()
}
