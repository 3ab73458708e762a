//! An update that pauses where a test needs it, and the kills at that point.
//!
//! Apps read a directory of room storage: while it has `hold-N`, those of text N do not listen, and while it has
//! `busy`, a response of `/cgi-bin/slow` does not end. So each step lasts until the test has seen it, and a kill in
//! that step has its consequences before the step ends.

use std::fs;
use std::io;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use integration_tests::daemon::{Daemon, Options};
use integration_tests::http::Request;
use integration_tests::process::{self, Process, Running};
use integration_tests::remains::{Remains, shims};
use integration_tests::service::App;
use integration_tests::sources::Tree;
use integration_tests::traffic::{self, Seen};
use integration_tests::wait::{self, seconds};
use rustix::process::Signal;
use serde_json::Value;

const HOST: &str = "web.test";
const TEXTS: [&str; 2] = ["one\n", "two\n"];
/// Time limit for a step to be reached.
const STEP: Duration = seconds(30);
/// Maximum number of requests that a kill can interrupt: the number of clients.
const IN_FLIGHT: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Victim {
    App,
    Shim,
    Containerd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The new instance has a shim, and its app does not run yet.
    Start,
    /// The new app runs, has been probed, and does not listen.
    HealthWait,
    /// The new app is healthy, and is observed a little longer before it gets the traffic.
    Settle,
    /// The first response of the new app was seen.
    Switch,
    /// The new instance has the traffic, and a last request keeps the old one.
    Drain,
}

impl Moment {
    pub const ALL: [Self; 5] = [Self::Start, Self::HealthWait, Self::Settle, Self::Switch, Self::Drain];
}

/// A daemon with the service `web`, and the inventory of its objects while nothing happens.
pub struct World {
    daemon: Daemon,
    still: Remains,
    /// Index of the text that is shown.
    shown: usize,
}

impl World {
    pub fn start(options: Options) -> Self {
        let daemon = Daemon::start(options);
        daemon.put("gate", &Tree::new().file("about", "what apps wait for\n"));
        let slow = "#!/bin/sh\nprintf 'content-type: text/plain\\n\\n'\n\
                    while [ -e /gate/busy ]; do sleep 0.05; done\necho done\n";
        for (number, text) in TEXTS.iter().enumerate() {
            let serve = &format!(
                "trap 'exit 0' TERM; while [ -e /gate/hold-{number} ]; do sleep 0.05; done; \
                 httpd -f -p 8000 -h /site & wait"
            );
            let app = App::page(text).program("site/cgi-bin/slow", slow.into()).command(&["sh", "-c", serve]);
            app.pack(&daemon, &format!("web:{number}"));
        }
        let common = ["--domain", HOST, "--public", "--room-mount", "gate:/gate:ro"];
        daemon.hearth_ok(&[&["deploy", "--tag", "web:0"], &common[..]].concat());
        // Unpacks both images, as they are from now on.
        daemon.hearth_ok(&["deploy", "--tag", "web:1"]);
        wait::until(STEP, "one instance is left", || instances(&show(&daemon)).len() == 1);
        let still = Remains::of(&daemon);
        Self { daemon, still, shown: 1 }
    }

    /// Updates the service, kills the victim at that moment, and checks that the update ends as expected.
    pub fn update_with_a_kill(&mut self, victim: Victim, moment: Moment) {
        let mut update = Update::prepare(self, moment);
        let slow = update.slow.take();
        let seen = traffic::during(&self.daemon.ingress(), HOST, &TEXTS, || {
            let deploy = update.begin();
            let killed = update.kill(victim, moment);
            update.consequences(victim, moment, &killed);
            update.go_on();
            let output = deploy.finish(seconds(90)).expect("the deploy ends");
            assert_eq!(output.code, 0, "{victim:?} at {moment:?}: {output}\n{}", self.daemon.log_tail(40));
            update.is_live(update.new);
        });
        let may_fail = match (victim, moment) {
            // The killed process had the traffic.
            (Victim::App | Victim::Shim, Moment::Switch) => IN_FLIGHT,
            _ => 0,
        };
        failed_at_most(&seen, may_fail, &format!("{victim:?} at {moment:?}"));
        if let Some(slow) = slow.map(|slow| slow.join().expect("no panic"))
            && victim == Victim::Containerd
        {
            assert_eq!(
                slow.expect("an answer"),
                (200, "done\n".to_owned()),
                "the pending request was finished"
            );
        }
        self.shown = update.new;
        self.still.come_back(&self.daemon);
    }

    /// Kills the new app in each wait for its health.
    pub fn update_killed_whenever_it_starts(&mut self) {
        let update = Update::prepare(self, Moment::HealthWait);
        let seen = traffic::during(&self.daemon.ingress(), HOST, &[TEXTS[update.old]], || {
            let deploy = update.begin();
            let mut last = String::new();
            for _ in 0..3 {
                let instance = update.waited_for(&last);
                process::signal(update.app_of_new(&update.old_shim).expect("an app").pid, Signal::KILL);
                last = instance;
            }
            let output = deploy.finish(seconds(60)).expect("the deploy ends");
            output.expect_code(1).says(&["revision", "keeps serving"]);
            update.go_on();
            update.is_live(update.old);
        });
        failed_at_most(&seen, 0, "the old one was not touched");
        self.still.come_back(&self.daemon);
    }

    /// Ends the old app before the new one serves.
    pub fn update_whose_old_app_ends(&mut self, signal: Signal) {
        let update = Update::prepare(self, Moment::HealthWait);
        let deploy = update.begin();
        update.waited_for("");
        let old = app_of(&update.old_shim).expect("the old app").pid;
        process::signal(old, signal);
        wait::until(STEP, "the old app is gone", || process::tree_of(old).is_empty());
        // The request is held until another instance of the old revision has the traffic.
        update.shows(update.old);
        update.waited_for("");
        update.go_on();
        deploy.finish(seconds(60)).expect("the deploy ends").expect_code(0);
        update.is_live(update.new);
        self.shown = update.new;
        self.still.come_back(&self.daemon);
    }
}

#[track_caller]
fn failed_at_most(seen: &Seen, count: usize, when: &str) {
    assert!(seen.answers > 100, "{when}: {} answers", seen.answers);
    assert!(
        seen.failures <= count,
        "{when}: {} of {} failed: {:?}",
        seen.failures,
        seen.answers,
        seen.failed
    );
}

struct Update<'a> {
    daemon: &'a Daemon,
    /// Indexes of the old and the new text.
    old: usize,
    new: usize,
    old_shim: Process,
    /// Number of the revision that the update creates.
    revision: u64,
    /// Pending response that keeps the old app.
    slow: Option<JoinHandle<io::Result<(u16, String)>>>,
}

/// A killed process, and the state at the time of the kill.
struct Killed {
    pid: i32,
    /// The new instance at that moment.
    instance: String,
}

impl<'a> Update<'a> {
    fn prepare(world: &'a World, moment: Moment) -> Self {
        let daemon = &world.daemon;
        let old_shim = shims(daemon).pop().expect("a shim");
        let show = show(daemon);
        let revision = show["desired_revision"].as_u64().expect("a revision") + 1;
        let gate = daemon.room_files().join("gate");
        if moment == Moment::HealthWait {
            fs::write(gate.join(format!("hold-{}", 1 - world.shown)), "").unwrap();
        }
        let mut slow = None;
        if moment == Moment::Drain {
            fs::write(gate.join("busy"), "").unwrap();
            let ingress = daemon.ingress();
            slow = Some(thread::spawn(move || {
                let answer = Request::new("GET", "/cgi-bin/slow").host(HOST).try_send(&ingress)?;
                Ok((answer.status, answer.text()))
            }));
            wait::until(STEP, "the slow request has reached the old app", || {
                process::tree_of(old_shim.pid).iter().any(|process| process.command.contains("slow"))
            });
        }
        Self { daemon, old: world.shown, new: 1 - world.shown, old_shim, revision, slow }
    }

    fn begin(&self) -> Running {
        process::start(self.daemon.client().args(["deploy", "--tag", &format!("web:{}", self.new)]))
    }

    /// Releases everything that the test holds back.
    fn go_on(&self) {
        for file in [&format!("hold-{}", self.new), "busy"] {
            match fs::remove_file(self.daemon.room_files().join("gate").join(file)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => panic!("{error}"),
                _ => {}
            }
        }
    }

    fn kill(&self, victim: Victim, moment: Moment) -> Killed {
        let instance = self.reach(moment);
        let victim = match victim {
            Victim::Containerd => containerd(self.daemon),
            Victim::Shim if moment == Moment::Drain => Some(self.old_shim.clone()),
            Victim::App if moment == Moment::Drain => app_of(&self.old_shim),
            Victim::Shim => self.new_shim(),
            // During the start, kills the process that becomes the app.
            Victim::App if moment == Moment::Start => {
                wait::poll_within(Duration::ZERO, STEP, || init_of(&self.new_shim()?))
            }
            Victim::App => self.app_of_new(&self.old_shim),
        };
        let pid = victim.expect("the process to kill exists").pid;
        process::signal(pid, Signal::KILL);
        Killed { pid, instance }
    }

    /// Waits until the moment is reached; returns the new instance where that is known.
    fn reach(&self, moment: Moment) -> String {
        let seen = || match moment {
            Moment::Start => self.new_shim().map(|_| String::new()),
            Moment::HealthWait => self.instance(|one| one["last_probe"]["healthy"] == false),
            Moment::Settle => self.instance(|one| one["phase"] == "healthy" && one["routed"] == false),
            Moment::Switch => {
                let answer = Request::new("GET", "/").host(HOST).try_send(&self.daemon.ingress()).ok()?;
                (answer.text() == TEXTS[self.new]).then(String::new)
            }
            Moment::Drain => {
                let instances = instances(&show(self.daemon));
                let retires = instances.iter().any(|one| one["phase"] == "retiring");
                retires.then(|| self.instance(|one| one["routed"] == true)).flatten()
            }
        };
        wait::poll_within(Duration::from_millis(2), STEP, seen)
            .unwrap_or_else(|| panic!("not reached: {moment:?}\n{}", self.daemon.log_tail(40)))
    }

    /// Returns the name of an instance of the new revision that satisfies `is_like`.
    fn instance(&self, is_like: impl Fn(&Value) -> bool) -> Option<String> {
        let instances = instances(&show(self.daemon));
        let found = instances.iter().find(|one| one["revision"] == self.revision && is_like(one));
        found.and_then(|one| one["instance"].as_str()).map(str::to_owned)
    }

    /// Returns an instance that the update waits for, other than `last`.
    fn waited_for(&self, last: &str) -> String {
        let waits = || {
            self.instance(|one| {
                one["instance"] != last && one["phase"] == "starting" && one["last_probe"]["healthy"] == false
            })
        };
        wait::poll_within(Duration::from_millis(20), STEP, waits)
            .unwrap_or_else(|| panic!("no other instance than {last:?}\n{}", self.daemon.log_tail(40)))
    }

    fn new_shim(&self) -> Option<Process> {
        let mut shims = shims(self.daemon);
        shims.retain(|shim| shim.pid != self.old_shim.pid && is_server(shim));
        shims.pop()
    }

    fn app_of_new(&self, old_shim: &Process) -> Option<Process> {
        let mut shims = shims(self.daemon);
        shims.retain(|shim| shim.pid != old_shim.pid);
        shims.iter().find_map(app_of)
    }

    /// Checks the consequences of the kill alone, while everything that can be held is held.
    fn consequences(&self, victim: Victim, moment: Moment, killed: &Killed) {
        if victim == Victim::Containerd {
            wait::until(STEP, "containerd is back", || {
                containerd(self.daemon).is_some_and(|process| process.pid != killed.pid)
                    && self.daemon.status_of("/readyz") == Some(200)
            });
        }
        match (victim, moment) {
            (Victim::Containerd, Moment::HealthWait) => {
                assert_eq!(self.waited_for(""), killed.instance, "the instance keeps running");
                self.shows(self.old);
            }
            (_, Moment::HealthWait) => {
                self.waited_for(&killed.instance);
                self.shows(self.old);
            }
            (_, Moment::Drain) => self.shows(self.new),
            _ => {}
        }
    }

    #[track_caller]
    fn shows(&self, index: usize) {
        assert_eq!(integration_tests::service::page(self.daemon, HOST), TEXTS[index]);
    }

    /// Asserts that the app with this text is the only one, and serves.
    #[track_caller]
    fn is_live(&self, index: usize) {
        let revision = if index == self.new { self.revision } else { self.revision - 1 };
        let settled = wait::poll(STEP, || {
            let service = show(self.daemon);
            let alone = instances(&service).len() == 1;
            (alone && service["status"] == "live" && service["live_revision"] == revision).then_some(())
        });
        assert!(settled.is_some(), "{}\n{}", show(self.daemon), self.daemon.log_tail(40));
        self.shows(index);
    }
}

fn show(daemon: &Daemon) -> Value {
    daemon.hearth_ok(&["services", "show", "web", "--json"]).json()
}

fn instances(service: &Value) -> Vec<Value> {
    service["instances"].as_array().expect("instances").clone()
}

fn containerd(daemon: &Daemon) -> Option<Process> {
    process::tree_of(daemon.pid()).into_iter().find(|process| process.name == "containerd")
}

/// Reports whether the shim serves an instance; other shims start one or clean up after it.
fn is_server(shim: &Process) -> bool {
    !shim.command.ends_with(" start") && !shim.command.ends_with(" delete")
}

/// Returns the first process of the instance.
fn app_of(shim: &Process) -> Option<Process> {
    let own = |process: &Process| process.parent == shim.pid && process.command.starts_with("sh -c ");
    process::tree_of(shim.pid).into_iter().find(own)
}

/// Returns runc's process that becomes the app.
fn init_of(shim: &Process) -> Option<Process> {
    process::tree_of(shim.pid).into_iter().find(|process| process.name.starts_with("runc:[2"))
}
