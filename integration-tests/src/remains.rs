//! Inventory of what exists for a daemon's instances: in its own containerd, in the kernel, in the state directory.
//!
//! Each instance has the same number of objects of each kind, whatever it runs. So two moments with equally many
//! instances have equally many objects of each kind, and a surplus was left by an instance that no longer exists.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::daemon::Daemon;
use crate::process::{self, Output};
use crate::wait::{self, seconds};
use crate::{leftovers, network};

/// Time limit for containerd's garbage collection, which removes unreferenced objects with a delay.
const LIMIT: Duration = seconds(30);

/// Names of the existing objects, by kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remains(BTreeMap<&'static str, Vec<String>>);

impl Remains {
    /// Lists the objects of the daemon's instances; the daemon's own containerd must run.
    #[track_caller]
    pub fn of(daemon: &Daemon) -> Self {
        Self::look(daemon).expect("containerd answers")
    }

    fn look(daemon: &Daemon) -> Option<Self> {
        let state = daemon.state();
        let containerd = state.join("containerd");
        let namespace = network::namespace_of(&state).expect("a state directory");
        let listed = |arguments: &[&str]| {
            let output = ctr(&containerd, &namespace, arguments);
            (output.code == 0).then(|| words(&output.stdout))
        };
        let below = |path: &str| names(&containerd.join(path));
        let shims = shims(daemon).into_iter().map(|shim| format!("{} {}", shim.pid, shim.command));
        let mounts = leftovers::mounts(&state).into_iter().map(|point| point.display().to_string());
        let routes = daemon.hearth_ok(&["routes", "list"]).stdout;
        Some(Self(BTreeMap::from([
            ("containers", listed(&["containers", "list", "--quiet"])?),
            ("tasks", listed(&["tasks", "list", "--quiet"])?),
            // The first line is a heading; the first word of each other line is the name.
            ("snapshots", listed(&["snapshots", "list"])?),
            ("leases of containerd", listed(&["leases", "list", "--quiet"])?),
            ("blobs of containerd", listed(&["content", "list", "--quiet"])?),
            ("shims", shims.collect()),
            ("directories of tasks", below(&format!("state/io.containerd.runtime.v2.task/{namespace}"))),
            ("directories of runc", below(&format!("runc/{namespace}"))),
            ("pipes", below("pipes")),
            ("mounts", mounts.collect()),
            ("directories of mounts", names(&state.join("instances"))),
            ("network namespaces", names(&state.join("network/netns"))),
            ("network files", names(&state.join("network/instances"))),
            ("addresses", addresses(&state)),
            ("links", network::links(&state)),
            (
                "control groups",
                network::control_groups(&state).iter().map(|p| p.display().to_string()).collect(),
            ),
            ("routes", routes.lines().map(str::to_owned).collect()),
        ])))
    }

    /// Waits until there are as many objects of each kind as in `self` again.
    #[track_caller]
    pub fn come_back(&self, daemon: &Daemon) {
        let mut now = None;
        let same = wait::poll(LIMIT, || {
            now = Self::look(daemon);
            now.as_ref().is_some_and(|now| now.counts().eq(self.counts())).then_some(())
        });
        if same.is_none() {
            let now = now.expect("containerd answers");
            let more =
                now.0.iter().filter(|(kind, names)| self.0.get(*kind).map(Vec::len) != Some(names.len()));
            let more: Vec<_> = more
                .map(|(kind, names)| format!("{kind}: {:#?} before, {names:#?} now", self.0.get(kind)))
                .collect();
            panic!("object counts still differ after {LIMIT:?}\n{}", more.join("\n"));
        }
    }

    fn counts(&self) -> impl Iterator<Item = (&str, usize)> {
        self.0.iter().map(|(kind, names)| (*kind, names.len()))
    }
}

/// Returns the shims of this daemon: containerd starts them with the path of its socket.
pub fn shims(daemon: &Daemon) -> Vec<process::Process> {
    let state = daemon.state().display().to_string();
    let mut all = process::all();
    all.retain(|process| process.command.contains("containerd-shim") && process.command.contains(&state));
    all
}

fn ctr(containerd: &Path, namespace: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("ctr");
    command.arg("--address").arg(containerd.join("containerd.sock")).args(["--namespace", namespace]);
    process::run(command.args(arguments), seconds(30))
}

fn words(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn addresses(state: &Path) -> Vec<String> {
    let path: PathBuf = state.join("network/leases.json");
    let record: serde_json::Value = serde_json::from_slice(&fs::read(path).expect("leases")).expect("JSON");
    record["leases"].as_object().expect("leases").keys().cloned().collect()
}
