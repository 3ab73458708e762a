//! Soak: several callers build at random for a while, cancel and walk away, while the daemon and its builders are killed.
//! Afterwards every build that was accepted has an end, every tag is a whole image that one of its builds made, and
//! nothing is left behind.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use hearth_proto::v1::{
    Build, BuildEvent, BuildSpec, BuildState, CancelBuildRequest, GetBuildRequest, SubmitBuildRequest,
};
use parking_lot::{Mutex, RwLock};
use rustix::process::Signal;
use tonic::Status;

use crate::daemon::{BASE, Daemon, Options};
use crate::grpc::{Api, block_on, spec};
use crate::http;
use crate::process;
use crate::sources::{Tree, noise};
use crate::wait::{self, seconds};

const CALLERS: [&str; 4] = ["ann", "bob", "cyd", "dan"];
/// Time limit for a request. One that a kill interrupts fails at once, so only a daemon that hangs reaches it.
const REQUEST_LIMIT: Duration = seconds(60);
/// Time limit for every build to end after the last fault.
const END_LIMIT: Duration = seconds(180);

/// Dockerfiles of the builds, by the directory of their context. `BASE` stands for the base image.
const CONTEXTS: [(&str, &str); 5] = [
    ("quick", "FROM scratch\nCOPY a /\n"),
    ("steps", "FROM BASE\nARG N\nRUN echo $N > /n\nRUN sleep 0.3 && echo second > /second\nCOPY a /\n"),
    ("slow", "FROM BASE\nARG N\nCOPY a /\nRUN echo soak $N; sleep 2\n"),
    ("failing", "FROM BASE\nARG N\nRUN sleep 0.2; echo $N; exit 3\n"),
    (
        "parallel",
        "FROM BASE AS one\nRUN sleep 0.4; echo 1 > /one\nFROM BASE AS two\nCOPY large /\n\
         FROM scratch\nCOPY --from=one /one /\nCOPY --from=two /large /\n",
    ),
];

/// What a soak did.
#[derive(Debug, Default)]
pub struct SoakSummary {
    pub submitted: usize,
    pub refused: usize,
    pub cancels: usize,
    pub daemon_kills: usize,
    pub builder_kills: usize,
    /// Number of builds by their final state.
    pub ends: BTreeMap<&'static str, usize>,
}

/// A build that the daemon has accepted.
struct AcceptedBuild {
    caller: usize,
    build_id: String,
    tag: String,
}

struct Soak {
    daemon: Daemon,
    tokens: Vec<String>,
    accepted: Mutex<Vec<AcceptedBuild>>,
    summary: Mutex<SoakSummary>,
    /// Held for writing while the daemon is down.
    running: RwLock<()>,
    deadline: Instant,
}

/// Pseudo-random numbers, so that a seed repeats the choices of a run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[usize::try_from(self.below(items.len() as u64)).expect("a small number")]
    }
}

/// Runs a soak and checks its end; panics on the first wrong thing.
pub fn run(duration: Duration, seed: u64) -> SoakSummary {
    let daemon = Daemon::start(Options::room("soak").config("[builds]\nkeep = 1000000\n"));
    daemon.base_image();
    for (name, dockerfile) in CONTEXTS {
        let tree = Tree::new()
            .dockerfile(&dockerfile.replace("BASE", BASE))
            .file("a", name)
            .file("large", noise(seed, 3_000_000));
        daemon.put(name, &tree);
    }
    let tokens = CALLERS.map(|name| daemon.mint(&["--name", name, "--scope", "agentDefault"])).to_vec();
    let soak = Soak {
        daemon,
        tokens,
        accepted: Mutex::default(),
        summary: Mutex::default(),
        running: RwLock::new(()),
        deadline: Instant::now() + duration,
    };
    std::thread::scope(|scope| {
        for caller in 0..CALLERS.len() {
            let soak = &soak;
            scope.spawn(move || soak.call(caller, &mut Dice(seed.wrapping_add(caller as u64 + 1))));
        }
        soak.break_things(&mut Dice(seed));
    });
    soak.check_end();
    let Soak { daemon, summary, .. } = soak;
    let left = daemon.retire();
    assert!(left.is_empty(), "left behind: {left:?}");
    summary.into_inner()
}

impl Soak {
    fn is_over(&self) -> bool {
        Instant::now() >= self.deadline
    }

    /// Makes one request as a caller. `None` when the daemon went away meanwhile.
    fn ask<T>(
        &self,
        caller: usize,
        request: impl AsyncFnOnce(Api) -> Result<T, Status>,
    ) -> Option<Result<T, Status>> {
        // Requests start only while the daemon runs; a kill may interrupt them.
        let address = {
            let _running = self.running.read();
            self.daemon.listen()
        };
        let token = Some(self.tokens[caller].clone());
        let answer = block_on(REQUEST_LIMIT, async {
            match Api::try_connect(&address, token).await {
                Ok(api) => request(api).await,
                Err(error) => Err(Status::unavailable(error.to_string())),
            }
        });
        match answer {
            Err(status) if was_interrupted(&status) => None,
            answer => Some(answer),
        }
    }

    /// Builds at random until the deadline.
    fn call(&self, caller: usize, dice: &mut Dice) {
        let mut number = 0;
        while !self.is_over() {
            number += 1;
            let name = CALLERS[caller];
            let (context, _) = dice.pick(&CONTEXTS);
            let tag = format!("{name}/app{}:{}", dice.below(2), dice.below(3));
            let mut spec = spec(&tag, context);
            spec.build_args = [("N".to_owned(), dice.below(3).to_string())].into();
            let Some(build_id) = self.submit(caller, &format!("{name}-{number}"), &tag, &spec) else {
                continue;
            };
            match dice.below(5) {
                0 => {
                    std::thread::sleep(Duration::from_millis(dice.below(1500)));
                    self.cancel(caller, &build_id);
                }
                // The caller walks away, after a while at most.
                1 => std::thread::sleep(Duration::from_millis(dice.below(400))),
                _ => self.watch(caller, &build_id),
            }
        }
    }

    /// Submits a build; when the daemon goes away, asks again with the same key, also after the deadline: the daemon may
    /// have accepted the build.
    fn submit(&self, caller: usize, key: &str, tag: &str, spec: &BuildSpec) -> Option<String> {
        loop {
            let request = SubmitBuildRequest { spec: Some(spec.clone()), idempotency_key: key.to_owned() };
            let answer = self.ask(caller, async |api| Ok(api.builds().submit(request).await?.into_inner()));
            match answer {
                Some(Ok(submitted)) => {
                    let build_id = submitted.build_id;
                    self.summary.lock().submitted += 1;
                    self.accepted.lock().push(AcceptedBuild {
                        caller,
                        build_id: build_id.clone(),
                        tag: tag.to_owned(),
                    });
                    return Some(build_id);
                }
                Some(Err(status)) if status.code() == tonic::Code::ResourceExhausted => {
                    self.summary.lock().refused += 1;
                    std::thread::sleep(Duration::from_millis(200));
                    return None;
                }
                Some(Err(status)) => panic!("a build is refused: {status:?}"),
                None => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn cancel(&self, caller: usize, build_id: &str) {
        let request = CancelBuildRequest { build_id: build_id.to_owned() };
        let answer = self.ask(caller, async |api| Ok(api.builds().cancel(request).await?.into_inner()));
        if let Some(answer) = answer {
            let build = answer.expect("a build of one's own can be cancelled");
            assert!(is_final(build.state()), "cancelled, and yet {:?}", build.state());
            self.summary.lock().cancels += 1;
        }
    }

    fn watch(&self, caller: usize, build_id: &str) {
        // An answer that the daemon's end interrupts is not asked for again: the caller walks away.
        if let Some(events) = self.ask(caller, async |api| api.watch(build_id, 0).await) {
            whole_log(build_id, &events.expect("a build of one's own can be watched"));
        }
    }

    /// Kills the daemon or its builders every few seconds until the deadline.
    fn break_things(&self, dice: &mut Dice) {
        while !self.is_over() {
            std::thread::sleep(Duration::from_millis(2000 + dice.below(4000)));
            match dice.below(3) {
                0 => {
                    let _down = self.running.write();
                    self.daemon.kill9();
                    self.daemon.restart();
                    self.summary.lock().daemon_kills += 1;
                }
                1 => {
                    let _down = self.running.write();
                    let status = self.daemon.terminate();
                    assert!(status.success(), "SIGTERM ended hearthd with {status}");
                    self.daemon.restart();
                    self.summary.lock().daemon_kills += 1;
                }
                _ => {
                    let builders = self.daemon.buildkitds();
                    if !builders.is_empty() {
                        process::signal(dice.pick(&builders).pid, Signal::KILL);
                        self.summary.lock().builder_kills += 1;
                    }
                }
            }
        }
    }

    fn check_end(&self) {
        let accepted = std::mem::take(&mut *self.accepted.lock());
        let mut results: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for AcceptedBuild { caller, build_id, tag } in &accepted {
            let build =
                wait::poll(END_LIMIT, || Some(self.get(*caller, build_id)).filter(|b| is_final(b.state())));
            let build =
                build.unwrap_or_else(|| panic!("build {build_id} has no end\n{}", self.daemon.log_tail(40)));
            let events =
                self.ask(*caller, async |api| api.watch(build_id, 0).await).expect("the daemon runs");
            whole_log(build_id, &events.expect("the events of the build"));
            *self.summary.lock().ends.entry(build.state().as_str_name()).or_default() += 1;
            let made = results.entry(tag.clone()).or_default();
            if let (BuildState::Succeeded, Some(result)) = (build.state(), build.result) {
                made.push(result.digest);
            }
        }
        for (tag, made) in results {
            let (repository, version) = tag.split_once(':').expect("a tag");
            let found = self.daemon.tag_digest(repository, version);
            assert_eq!(found.is_some(), !made.is_empty(), "{tag}: {found:?}, made by {made:?}");
            let Some(found) = found else { continue };
            assert!(made.contains(&found), "{tag} is {found}, which none of its builds made: {made:?}");
            assert_eq!(self.daemon.image(&tag).digest, found, "{tag} is pulled whole");
        }
        let steps =
            || process::with_command("sleep").into_iter().filter(|p| p.command.contains("soak")).count();
        wait::until(seconds(10), "no step is left", || steps() == 0);
        let uploads = self.daemon.state().join("registry/uploads");
        let open = || fs::read_dir(&uploads).map_or(0, Iterator::count);
        // An upload that a killed builder began is dropped at the next start of the daemon.
        assert!(self.daemon.terminate().success(), "SIGTERM ends hearthd");
        self.daemon.restart();
        wait::until(seconds(20), "no upload is left", || open() == 0);
        let ready = http::Request::new("GET", "/readyz").send(&self.daemon.listen());
        assert_eq!(ready.status, 200, "{ready:?}");
    }

    fn get(&self, caller: usize, build_id: &str) -> Build {
        let request = GetBuildRequest { build_id: build_id.to_owned() };
        let build = self.ask(caller, async |api| Ok(api.builds().get(request).await?.into_inner()));
        build.expect("the daemon runs").expect("an accepted build is known")
    }
}

fn is_final(state: BuildState) -> bool {
    !matches!(state, BuildState::Unspecified | BuildState::Queued | BuildState::Running)
}

/// Asserts that events are numbered without a gap and that the last one is the end of the build.
fn whole_log(build_id: &str, events: &[BuildEvent]) {
    let mut next = 1;
    for event in events {
        assert_eq!(event.sequence, next, "events of build {build_id}");
        next += event.damaged_events.max(1);
    }
    let last = events.last().and_then(|event| event.event.as_ref());
    assert!(
        matches!(last, Some(hearth_proto::v1::build_event::Event::Finished(_))),
        "build {build_id} ends with {last:?}"
    );
}

/// Reports whether a request failed because the daemon ended or started meanwhile.
fn was_interrupted(status: &Status) -> bool {
    let transport =
        ["transport", "connection", "h2 protocol", "broken pipe", "error reading a body", "stream"];
    let message = status.message().to_ascii_lowercase();
    matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Cancelled)
        || transport.iter().any(|word| message.contains(word))
}
