//! Builders by trust domain: nothing that a build leaves behind reaches another domain, and no build harms the builder
//! of another one.

use std::fs;

use integration_tests::daemon::{BASE, Daemon, Options};
use integration_tests::process::{self, Output, Process, Running};
use integration_tests::runner::Group;
use integration_tests::sources::Tree;
use integration_tests::wait::{self, seconds};
use integration_tests::{http, lone_cases, shared_cases};
use rustix::process::Signal;
use serde_json::Value;

pub fn groups() -> Vec<Group> {
    let shared = shared_cases![
        cache_mounts_of_one_caller_are_not_seen_by_another,
        a_step_that_mounted_a_secret_is_not_answered_to_a_caller_without_it,
        cached_steps_are_shared_within_a_domain_and_not_beyond,
        a_domain_is_chosen_by_who_mints_and_never_by_who_builds,
        doctor_shows_all_builders_to_an_admin_and_their_own_to_others,
    ];
    let alone = lone_cases![
        an_idle_builder_is_stopped_and_its_cache_is_warm_when_it_starts_again,
        the_end_of_one_builder_harms_no_build_of_another,
        the_cache_that_was_used_least_pays_for_the_others,
        steps_that_use_up_memory_or_processes_end_and_harm_nobody,
        endless_output_is_cut_and_leaves_no_memory_behind,
        a_build_waits_in_turn_where_all_builders_are_busy,
        the_cache_of_an_earlier_version_is_taken_over,
        one_domain_for_the_room_has_one_builder,
        domains_on_a_builder_of_somebody_else_have_cache_mounts_of_their_own,
    ];
    vec![Group::new("walls_builders", shared), Group::new("walls_builders_alone", alone).in_sequence()]
}

/// A participant who calls with a token of their own.
struct Caller<'a> {
    daemon: &'a Daemon,
    token: String,
}

impl<'a> Caller<'a> {
    #[track_caller]
    fn new(daemon: &'a Daemon, name: &str) -> Self {
        Self { daemon, token: daemon.mint(&["--name", name, "--scope", "agentDefault"]) }
    }

    #[track_caller]
    fn in_domain(daemon: &'a Daemon, name: &str, domain: &str) -> Self {
        let token = daemon.mint(&["--name", name, "--scope", "agentDefault", "--domain", domain]);
        Self { daemon, token }
    }

    fn hearth(&self, arguments: &[impl AsRef<std::ffi::OsStr>]) -> Output {
        process::run(self.daemon.client().env("HEARTH_TOKEN", &self.token).args(arguments), seconds(150))
    }

    /// Builds a Dockerfile on the base image.
    fn build(&self, tag: &str, lines: &str, more: &[&str]) -> Output {
        self.hearth(&self.prepare(tag, lines, more))
    }

    #[track_caller]
    fn build_ok(&self, tag: &str, lines: &str, more: &[&str]) -> String {
        self.build(tag, lines, more).expect_code(0).line().to_owned()
    }

    /// Starts the build without waiting for its end.
    fn start(&self, tag: &str, lines: &str) -> Running {
        let arguments = self.prepare(tag, lines, &[]);
        process::start(self.daemon.client().env("HEARTH_TOKEN", &self.token).args(arguments))
    }

    fn prepare(&self, tag: &str, lines: &str, more: &[&str]) -> Vec<String> {
        self.daemon.base_image();
        let path = tag.replace(':', "-");
        self.daemon.put(&path, &Tree::new().dockerfile(&format!("FROM {BASE}\n{lines}\n")));
        let mount = format!("{path}:/context:ro");
        let arguments = self.daemon.build_arguments(tag, &mount, more);
        arguments.into_iter().map(str::to_owned).collect()
    }
}

/// Returns the builders that `hearth doctor` shows to the holder of the token.
#[track_caller]
fn builders(daemon: &Daemon, token: Option<&str>) -> Vec<Value> {
    let mut command = daemon.client();
    if let Some(token) = token {
        command.env("HEARTH_TOKEN", token);
    }
    let output = process::run(command.args(["doctor", "--json"]), seconds(30));
    output.json()["builders"].as_array().expect("builders").clone()
}

fn builder(daemon: &Daemon, domain: &str) -> Option<Value> {
    builders(daemon, None).into_iter().find(|builder| builder["domain"] == domain)
}

/// Returns the buildkitd of a domain.
fn buildkitd(daemon: &Daemon, domain: &str) -> Option<Process> {
    let directory = daemon.builder_directory(domain)?;
    let mut all = daemon.buildkitds();
    all.retain(|process| process.command.contains(directory.to_str().unwrap()));
    all.into_iter().next()
}

fn is_running(argument: &str) -> bool {
    process::with_command(&format!("sleep {argument}")).iter().any(|found| !found.command.contains("sh -c"))
}

fn cache_mounts_of_one_caller_are_not_seen_by_another(daemon: &Daemon) {
    let (ann, bob) = (Caller::new(daemon, "ann"), Caller::new(daemon, "bob"));
    let mount = "--mount=type=cache,id=npm,target=/cache";
    ann.build_ok("cache-ann:1", &format!("RUN {mount} echo planted > /cache/module"), &[]);
    let look = format!("RUN {mount} ls -A /cache > /seen && wc -l < /seen > /count");
    bob.build_ok("cache-bob:1", &look, &[]);
    assert_eq!(daemon.image("cache-bob:1").file("count").trim(), "0", "the other caller's file is there");
    ann.build_ok("cache-ann:2", &look, &[]);
    assert_eq!(daemon.image("cache-ann:2").file("seen").trim(), "module", "the caller's own file is kept");
}

fn a_step_that_mounted_a_secret_is_not_answered_to_a_caller_without_it(daemon: &Daemon) {
    let (ann, bob) = (Caller::new(daemon, "ann"), Caller::new(daemon, "bob"));
    let step =
        "RUN --mount=type=secret,id=key cat /run/secrets/key > /stolen 2> /dev/null || echo none > /stolen";
    let file = daemon.directory().join("key");
    fs::write(&file, "only-for-ann").unwrap();
    let secret = format!("id=key,src={}", file.display());
    ann.build_ok("secret-ann:1", step, &["--secret", &secret]);
    assert_eq!(daemon.image("secret-ann:1").file("stolen").trim(), "only-for-ann");
    bob.build_ok("secret-bob:1", step, &[]);
    assert_eq!(daemon.image("secret-bob:1").file("stolen").trim(), "none");
}

fn cached_steps_are_shared_within_a_domain_and_not_beyond(daemon: &Daemon) {
    let step = "RUN head -c 16 /dev/urandom | md5sum > /made";
    let made = |caller: &Caller<'_>, tag: &str| {
        caller.build_ok(tag, step, &[]);
        daemon.image(tag).file("made")
    };
    let ann = made(&Caller::new(daemon, "ann"), "step-ann:1");
    let bob = made(&Caller::new(daemon, "bob"), "step-bob:1");
    assert_ne!(ann, bob, "a cached step of another caller was used");
    let (one, two) = (Caller::in_domain(daemon, "ci-1", "team"), Caller::in_domain(daemon, "ci-2", "team"));
    let (one, two) = (made(&one, "step-one:1"), made(&two, "step-two:1"));
    assert_eq!(one, two, "callers of one domain share its cache");
    assert!(one != ann && one != bob);
}

fn a_domain_is_chosen_by_who_mints_and_never_by_who_builds(daemon: &Daemon) {
    let ann = Caller::new(daemon, "ann");
    let refused = ann.hearth(&["token", "mint", "--name", "ann", "--domain", "local"]);
    assert_ne!(refused.code, 0, "{refused}");
    let scope = "{\"containers\": {\"use_containers\": true, \"logs\": true, \"registry\": {\"write\": [\"*\"], \"pull\": [\"*\"]}}, \
                 \"storage\": {\"paths\": [{\"path\": \"/\"}]}, \"domain\": \"local\"}";
    let eve = Caller { daemon, token: daemon.mint(&["--name", "eve", "--scope", scope]) };
    let output = eve.build("chosen-eve:1", "RUN echo eve > /eve", &[]);
    assert_eq!(output.code, 0, "{output}");
    assert!(builder(daemon, "caller:eve").is_some(), "the scope of a token names no domain");
    let odd = daemon.hearth(&["token", "mint", "--name", "x", "--domain", "a b"]);
    assert_ne!(odd.code, 0, "{odd}");
    odd.says(&["trust domain"]);
}

fn doctor_shows_all_builders_to_an_admin_and_their_own_to_others(daemon: &Daemon) {
    let (ann, bob) = (Caller::new(daemon, "ann"), Caller::new(daemon, "bob"));
    ann.build_ok("doctor-ann:1", "RUN true", &[]);
    bob.build_ok("doctor-bob:1", "RUN true", &[]);
    for domain in ["caller:ann", "caller:bob"] {
        let shown = builder(daemon, domain).unwrap_or_else(|| panic!("{domain} is not shown"));
        assert!(shown["detail"].as_str().unwrap().contains("0.3"), "its version: {shown}");
        assert!(shown["last_used_at"].is_string(), "{shown}");
    }
    let own: Vec<Value> = builders(daemon, Some(&ann.token));
    assert!(own.len() == 1 && own[0]["domain"] == "caller:ann", "{own:?}");
    let metrics = http::Request::new("GET", "/metrics").send(&daemon.listen());
    let metrics = metrics.text();
    assert!(metrics.contains("hearth_builders{state=\"ready\"}"), "{metrics}");
    assert!(!metrics.contains("caller:ann"), "metrics name no caller");
}

fn an_idle_builder_is_stopped_and_its_cache_is_warm_when_it_starts_again() {
    let daemon = Daemon::start(Options::room("idle").config("[builder]\nidle_seconds = 1\n"));
    let (ann, bob) = (Caller::new(&daemon, "ann"), Caller::new(&daemon, "bob"));
    let step = "RUN head -c 16 /dev/urandom | md5sum > /made";
    let first = ann.build_ok("x:1", step, &[]);
    bob.build_ok("y:1", "RUN true", &[]);
    wait::until(seconds(30), "idle builders are stopped", || daemon.buildkitds().len() == 1);
    assert!(buildkitd(&daemon, "caller:bob").is_some(), "the builder that was used last keeps running");
    wait::until(seconds(20), "the builder is shown as stopped, with its cache size", || {
        builder(&daemon, "caller:ann")
            .is_some_and(|one| one["state"] == "stopped" && one["disk_bytes"].as_u64() > Some(0))
    });
    assert_eq!(daemon.status_of("/readyz"), Some(200));
    assert_eq!(ann.build_ok("x:2", step, &[]), first, "the cache is warm");
    // The same holds after a restart of the daemon, which starts the builder that was used last.
    wait::until(seconds(30), "idle builders are stopped", || daemon.buildkitds().len() == 1);
    daemon.terminate();
    daemon.restart();
    assert!(buildkitd(&daemon, "caller:ann").is_some() && daemon.buildkitds().len() == 1);
    assert_eq!(ann.build_ok("x:3", step, &[]), first);
}

fn the_end_of_one_builder_harms_no_build_of_another() {
    let daemon = Daemon::start(Options::room("kill-one"));
    let (ann, bob) = (Caller::new(&daemon, "ann"), Caller::new(&daemon, "bob"));
    let one = ann.start("killed:1", "RUN sleep 8.5101; echo done > /done");
    let two = bob.start("lives:1", "RUN sleep 8.5102; echo done > /done");
    wait::until(seconds(60), "both steps run", || is_running("8.5101") && is_running("8.5102"));
    let survivor = buildkitd(&daemon, "caller:bob").expect("bob's builder").pid;
    process::signal(buildkitd(&daemon, "caller:ann").expect("ann's builder").pid, Signal::KILL);
    let two = two.finish(seconds(60)).expect("bob's build ends");
    two.expect_code(0);
    assert!(!two.stderr.contains("went away"), "{two}");
    assert_eq!(buildkitd(&daemon, "caller:bob").map(|process| process.pid), Some(survivor));
    let one = one.finish(seconds(90)).expect("ann's build ends");
    one.expect_code(0).says(&["went away"]);
    assert!(!daemon.log().contains("panicked"));
}

fn the_cache_that_was_used_least_pays_for_the_others() {
    let quota = "[builder]\nmax_used_bytes = 60000000\n";
    let daemon = Daemon::start(Options::room("quota").config(quota));
    let (ann, bob) = (Caller::new(&daemon, "ann"), Caller::new(&daemon, "bob"));
    // The content is kept twice: as a snapshot, and as a blob that does not compress.
    let step = "RUN head -c 20000000 /dev/urandom > /large";
    let first = ann.build_ok("x:1", step, &[]);
    let size =
        |domain: &str| builder(&daemon, domain).map_or(0, |builder| builder["disk_bytes"].as_u64().unwrap());
    wait::until(seconds(30), "the first cache is measured", || size("caller:ann") > 39_000_000);
    let second = bob.build_ok("y:1", step, &[]);
    wait::until(seconds(30), "the second cache is measured", || size("caller:bob") > 39_000_000);
    wait::until(seconds(60), "both fit into the quota", || {
        size("caller:ann") + size("caller:bob") <= 60_000_000
    });
    let ann_now = size("caller:ann");
    assert!(ann_now < 20_000_000, "the least recently used cache is pruned: {ann_now}");
    assert_eq!(bob.build_ok("y:2", step, &[]), second, "the most recently used cache is kept");
    assert_ne!(ann.build_ok("x:2", step, &[]), first);
}

fn steps_that_use_up_memory_or_processes_end_and_harm_nobody() {
    let bounds = "[builder]\nstep_memory_bytes = 134217728\nstep_processes = 100\n";
    let daemon = Daemon::start(Options::room("bounds").config(bounds));
    let (ann, bob) = (Caller::new(&daemon, "ann"), Caller::new(&daemon, "bob"));
    let other = bob.start("calm:1", "RUN sleep 12.5103; echo done > /done");
    wait::until(seconds(60), "the other step runs", || is_running("12.5103"));

    let hog = ann.build("hog:1", "RUN awk 'BEGIN { s = \"0123456789\"; while (1) s = s s }'", &[]);
    assert_ne!(hog.code, 0, "{hog}");
    // The output contains the hint of the fault `out_of_memory`, and the step.
    hog.says(&["step_memory_bytes", "/2] RUN awk"]);
    let builder_of_ann = buildkitd(&daemon, "caller:ann").expect("ann's builder").pid;

    let bomb = "RUN i=0; while [ $i -lt 400 ]; do sleep 30.5104 & i=$((i + 1)); done; wait";
    let bomb = ann.build("bomb:1", bomb, &[]);
    assert_ne!(bomb.code, 0, "{bomb}");
    bomb.says(&["exit code: 2", "can't fork", "step_processes"]);
    wait::until(seconds(20), "its processes are gone", || !is_running("30.5104"));
    assert_eq!(
        buildkitd(&daemon, "caller:ann").map(|process| process.pid),
        Some(builder_of_ann),
        "the builder itself is not killed"
    );
    ann.build_ok("after:1", "RUN echo fine > /fine", &[]);

    other.finish(seconds(60)).expect("the other build ends").expect_code(0);
    daemon.terminate();
    let groups = || fs::read_dir("/sys/fs/cgroup/pids").or_else(|_| fs::read_dir("/sys/fs/cgroup"));
    let namespace = fs::canonicalize(daemon.state()).unwrap();
    let hash = integration_tests::sources::sha256(namespace.to_str().unwrap().as_bytes());
    let own = format!("hearth-{}-builders", &hash.trim_start_matches("sha256:")[..12]);
    let left = groups().unwrap().flatten().any(|group| group.file_name().to_str() == Some(own.as_str()));
    assert!(!left, "control group {own} is left");
    daemon.restart();
}

/// Returns the resident memory of a process, in bytes.
fn resident(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

fn endless_output_is_cut_and_leaves_no_memory_behind() {
    let quota = "[builds]\nlog_quota_bytes = 4000000\n";
    let daemon = Daemon::start(Options::room("output").config(quota));
    let ann = Caller::new(&daemon, "ann");
    ann.build_ok("quiet:1", "RUN true", &[]);
    let pid = buildkitd(&daemon, "caller:ann").expect("ann's builder").pid;
    let before = resident(pid);
    let loud = ann.build("loud:1", "RUN yes 0123456789abcdef0123456789abcdef | head -c 400000000", &[]);
    loud.expect_code(0).says(&["reached its quota at step", "not kept"]);
    let after = resident(pid);
    assert!(after < before + 100_000_000, "400 MB of output left {before} -> {after} bytes");
    let kept: u64 = fs::read_dir(daemon.state().join("builds"))
        .unwrap()
        .flatten()
        .map(|entry| entry.metadata().unwrap().len())
        .sum();
    assert!(kept < 8_000_000, "{kept} bytes of log are kept");
}

fn a_build_waits_in_turn_where_all_builders_are_busy() {
    let daemon = Daemon::start(Options::room("busy").config("[builder]\nmax_running = 1\n"));
    let (ann, bob) = (Caller::new(&daemon, "ann"), Caller::new(&daemon, "bob"));
    let long = ann.start("long:1", "RUN sleep 6.5105");
    wait::until(seconds(60), "the step runs", || is_running("6.5105"));
    let waits = bob.build("waits:1", "RUN true", &[]);
    waits.expect_code(0).says(&["waits for one"]);
    long.finish(seconds(60)).expect("the long build ends").expect_code(0);
    assert_eq!(daemon.buildkitds().len(), 1);
    assert!(buildkitd(&daemon, "caller:bob").is_some());
}

fn the_cache_of_an_earlier_version_is_taken_over() {
    let daemon = Daemon::start(Options::room("taken-over"));
    daemon.base_image();
    let step = format!("FROM {BASE}\nRUN head -c 16 /dev/urandom | md5sum > /made\n");
    daemon.put("x", &Tree::new().dockerfile(&step));
    let first = daemon.build_ok("x:1", "x", &[]);
    assert_eq!(daemon.buildkitds().len(), 1, "root alone has one builder");
    daemon.terminate();
    // Restores the layout of versions before trust domains.
    let directory = daemon.builder_directory("local").expect("the builder of root");
    fs::remove_file(directory.join("builder.json")).unwrap();
    fs::rename(directory, daemon.state().join("buildkit")).unwrap();
    daemon.restart();
    assert_eq!(daemon.build_ok("x:2", "x", &[]), first, "the cache is there");
    assert!(!daemon.state().join("buildkit").exists());
}

fn one_domain_for_the_room_has_one_builder() {
    let daemon = Daemon::start(Options::room("single").config("[trust]\nsingle = true\n"));
    let (ann, bob) = (Caller::new(&daemon, "ann"), Caller::new(&daemon, "bob"));
    let step = "RUN head -c 16 /dev/urandom | md5sum > /made";
    let (one, two) = (ann.build_ok("x:1", step, &[]), bob.build_ok("x:2", step, &[]));
    assert_eq!(one, two);
    assert_eq!(daemon.buildkitds().len(), 1);
}

fn domains_on_a_builder_of_somebody_else_have_cache_mounts_of_their_own() {
    let owner = Daemon::start(Options::room("lender"));
    let address = format!("unix://{}", owner.buildkit_socket().expect("a socket").display());
    let daemon = Daemon::start(Options::room("lent").arguments(&["--buildkit", &address]));
    let (ann, bob) = (Caller::new(&daemon, "ann"), Caller::new(&daemon, "bob"));
    let mount = "--mount=type=cache,id=npm,target=/cache";
    ann.build_ok("cache-ann:1", &format!("RUN {mount} echo planted > /cache/module"), &[]);
    bob.build_ok("cache-bob:1", &format!("RUN {mount} ls -A /cache | wc -l > /count"), &[]);
    assert_eq!(daemon.image("cache-bob:1").file("count").trim(), "0");
    let reserved =
        bob.build("cache-bob:2", "RUN true", &["--build-arg", "BUILDKIT_CACHE_MOUNT_NS=caller:ann"]);
    assert_ne!(reserved.code, 0, "{reserved}");
}
