//! A real daemon for tests, with its own directory, free ports and managed buildkitd, and with a check at the end that
//! nothing is left of it.
//!
//! ```text
//! /tmp/hearth-XXXXXX/     one per run of the tests
//!   NAME/                 one per daemon
//!     home/ log           HOME of commands; standard output and error of hearthd, of all its starts
//!     state/              --state-dir; state/storage/room is room storage
//!     hearth.sock
//! ```
//!
//! States: started -> (killed | stopped -> started again)* -> retired. `retire` (or `Drop`) drains with SIGTERM, then
//! checks for processes and mounts that are left, and removes the directory.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, Signal};
use serde_json::Value;

use crate::binaries::binaries;
use crate::image::Image;
use crate::process::{self, Output, Process};
use crate::sources::{Tree, base_tree};
use crate::wait::{self, seconds};
use crate::{http, leftovers, network, option_usage, skopeo, step_network};

/// Base image of the builds in tests: busybox, made without access to a registry.
pub const BASE: &str = "room.meshagent.com/busybox:test";

/// Time limit for one command of the client.
const COMMAND_LIMIT: Duration = seconds(150);
const START_LIMIT: Duration = seconds(60);
const STOP_LIMIT: Duration = seconds(40);

#[derive(Clone, Debug)]
pub struct Options {
    /// Name of the room, and of the daemon's directory.
    pub room: String,
    /// Additional command-line arguments of hearthd.
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// Size of a tmpfs for the state directory, such as `64m`; `None` for no tmpfs.
    pub state_size: Option<String>,
    /// Content of a configuration file.
    pub config: String,
    /// Capabilities that hearthd and its children do not get, such as `dac_override`.
    pub dropped_capabilities: Vec<String>,
}

impl Options {
    pub fn room(name: &str) -> Self {
        Self {
            room: name.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            state_size: None,
            config: String::new(),
            dropped_capabilities: Vec::new(),
        }
    }

    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// Passes `--registry-mirror` for these registries, so that they may be at any address and speak plain HTTP.
    pub fn registries(mut self, hosts: &[&str]) -> Self {
        for host in hosts {
            self.arguments.extend(["--registry-mirror".to_owned(), format!("{host}=http://{host}")]);
        }
        self
    }

    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn config(mut self, toml: &str) -> Self {
        self.config.push_str(toml);
        self
    }

    pub fn without_capabilities(mut self, names: &[&str]) -> Self {
        self.dropped_capabilities.extend(names.iter().map(ToString::to_string));
        self
    }

    pub fn state_size(mut self, size: &str) -> Self {
        self.state_size = Some(size.to_owned());
        self
    }
}

impl Options {
    /// Writes the configuration file, if there is one, and returns the flags that name it.
    fn config_file(&self, directory: &Path) -> Vec<String> {
        if self.config.is_empty() {
            return Vec::new();
        }
        let path = directory.join("hearthd.toml");
        fs::write(&path, &self.config).expect("configuration file");
        vec!["--config".to_owned(), path.display().to_string()]
    }
}

pub struct Daemon {
    directory: PathBuf,
    live: Mutex<Live>,
    token: OnceLock<String>,
    base: OnceLock<()>,
    retired: bool,
}

struct Live {
    options: Options,
    child: Option<Child>,
    /// Address of gRPC and `/v2/`: `host:port`.
    listen: String,
    /// Address of the ingress, at which services are reached: `host:port`.
    ingress: String,
    /// Mount points that the test itself made.
    own_mounts: Vec<PathBuf>,
}

impl Daemon {
    /// Starts a daemon and waits until it is ready.
    #[track_caller]
    pub fn start(options: Options) -> Self {
        let directory = scratch().join(&options.room);
        fs::create_dir_all(directory.join("home")).expect("home");
        let state = directory.join("state");
        fs::create_dir_all(&state).expect("state directory");
        let mut own_mounts = Vec::new();
        if let Some(size) = &options.state_size {
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=0755"), "hearth-test"]).arg(&state);
            process::run(&mut mount, seconds(10)).expect_code(0);
            own_mounts.push(state);
        }
        let live = Live { options, child: None, listen: String::new(), ingress: String::new(), own_mounts };
        let daemon = Self {
            directory,
            live: Mutex::new(live),
            token: OnceLock::new(),
            base: OnceLock::new(),
            retired: false,
        };
        daemon.launch(true);
        daemon
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock()
    }

    #[track_caller]
    fn launch(&self, ready: bool) {
        self.spawn_again();
        self.wait_published(ready);
    }

    /// Starts the daemon again without waiting for anything.
    #[track_caller]
    pub fn spawn_again(&self) {
        let mut live = self.live();
        assert!(live.child.is_none(), "the daemon is already running");
        // An earlier start may have left its addresses there, which must not be used for this one.
        let _ = fs::remove_file(self.addresses_file());
        live.child = Some(self.spawn(&live.options));
    }

    /// Waits until a daemon that was started has published its addresses, and until it is ready if `ready` is set.
    #[track_caller]
    pub fn wait_published(&self, ready: bool) {
        let mut live = self.live();
        let addresses = wait::poll(START_LIMIT, || {
            if let Some(status) = live.child.as_mut().and_then(|child| child.try_wait().expect("wait")) {
                live.child = None;
                panic!("hearthd ended while it started: {status}\n{}", self.log_tail(60));
            }
            let addresses: Value = serde_json::from_slice(&fs::read(self.addresses_file()).ok()?).ok()?;
            let listen = addresses["listen"].as_str()?.to_owned();
            let ingress = addresses["ingress"].as_str()?.to_owned();
            let answer = http::Request::new("GET", "/readyz").try_send(&listen).ok()?;
            (answer.status == 200 || !ready).then_some((listen, ingress))
        });
        let Some((listen, ingress)) = addresses else {
            panic!("not ready within {START_LIMIT:?}\n{}", self.log_tail(60))
        };
        (live.listen, live.ingress) = (listen, ingress);
    }

    fn spawn(&self, options: &Options) -> Child {
        let log = OpenOptions::new().create(true).append(true).open(self.log_file()).expect("log");
        let mut command = match options.dropped_capabilities.as_slice() {
            [] => Command::new(&binaries().hearthd),
            // setpriv replaces itself with hearthd, so that the child is hearthd in both cases.
            dropped => {
                let dropped: Vec<String> = dropped.iter().map(|name| format!("-{name}")).collect();
                let mut command = Command::new("setpriv");
                command.args(["--bounding-set", &dropped.join(","), "--inh-caps", &dropped.join(",")]);
                command.arg(&binaries().hearthd);
                command
            }
        };
        command
            .args(["--room", &options.room, "--listen", "127.0.0.1:0", "--ingress", "127.0.0.1:0"])
            .arg("--state-dir")
            .arg(self.state())
            .arg("--socket")
            .arg(self.socket())
            .args(&options.arguments)
            .args(options.config_file(&self.directory))
            .env_clear()
            .env("PATH", path_variable())
            .env("HOME", self.directory.join("home"))
            .env("NO_COLOR", "1")
            .envs(options.environment.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .process_group(0);
        option_usage::record(&command);
        command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"))
    }

    // --- paths, addresses and processes ---

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    pub fn state(&self) -> PathBuf {
        self.directory.join("state")
    }

    /// Directory of room storage on this machine.
    pub fn room_files(&self) -> PathBuf {
        self.state().join("storage/room")
    }

    pub fn project_files(&self) -> PathBuf {
        self.state().join("storage/project")
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.join("hearth.sock")
    }

    pub fn log_file(&self) -> PathBuf {
        self.directory.join("log")
    }

    fn addresses_file(&self) -> PathBuf {
        self.state().join("addresses.json")
    }

    /// Address of gRPC, `/v2/`, health and metrics: `host:port`.
    pub fn listen(&self) -> String {
        self.live().listen.clone()
    }

    /// Address of the ingress, at which services of the room are reached: `host:port`.
    pub fn ingress(&self) -> String {
        self.live().ingress.clone()
    }

    pub fn pid(&self) -> i32 {
        self.live().child.as_ref().expect("the daemon runs").id() as i32
    }

    /// Returns the buildkitds that this daemon owns: one for each trust domain in use.
    pub fn buildkitds(&self) -> Vec<Process> {
        let mut tree = process::tree_of(self.pid());
        tree.retain(|process| process.name == "buildkitd");
        tree
    }

    /// Returns the only buildkitd of a daemon that serves one trust domain.
    pub fn buildkitd(&self) -> Option<Process> {
        self.buildkitds().into_iter().next()
    }

    /// Returns the directory of the builder of a trust domain.
    pub fn builder_directory(&self, domain: &str) -> Option<PathBuf> {
        let serves_domain = |directory: &PathBuf| {
            let record = fs::read(directory.join("builder.json")).unwrap_or_default();
            serde_json::from_slice::<Value>(&record).is_ok_and(|record| record["domain"] == domain)
        };
        let all = fs::read_dir(self.state().join("builders")).into_iter().flatten().flatten();
        all.map(|entry| entry.path()).find(serves_domain)
    }

    /// Returns the socket of the builder that serves root on the unix socket.
    pub fn buildkit_socket(&self) -> Option<PathBuf> {
        let directory = self.builder_directory("local")?;
        Some(directory.join("buildkitd.sock")).filter(|path| path.exists())
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.log_file()).unwrap_or_default()).into_owned()
    }

    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        format!("-- end of hearthd's log\n{}", all[all.len().saturating_sub(lines)..].join("\n"))
    }

    // --- the client ---

    /// Returns a command of the client with a clean environment, HOME in the daemon's directory, and this daemon's
    /// socket.
    pub fn client(&self) -> Command {
        let mut command = Command::new(&binaries().hearth);
        command
            .env_clear()
            .env("PATH", path_variable())
            .env("HOME", self.directory.join("home"))
            .env("NO_COLOR", "1")
            .env("HEARTH_ADDR", format!("unix://{}", self.socket().display()))
            .current_dir(&self.directory)
            .stdin(Stdio::null());
        command
    }

    #[track_caller]
    pub fn hearth(&self, arguments: &[&str]) -> Output {
        process::run(self.client().args(arguments), COMMAND_LIMIT)
    }

    /// Runs the client like [`Self::hearth`], and panics when the command fails.
    #[track_caller]
    pub fn hearth_ok(&self, arguments: &[&str]) -> Output {
        let output = self.hearth(arguments);
        assert_eq!(output.code, 0, "hearth {arguments:?}\n{output}");
        output
    }

    /// Returns a token with every grant.
    #[track_caller]
    pub fn token(&self) -> &str {
        self.token.get_or_init(|| self.mint(&["--name", "tests", "--scope", "full"]))
    }

    #[track_caller]
    pub fn mint(&self, arguments: &[&str]) -> String {
        self.hearth_ok(&[&["token", "mint"], arguments].concat()).line().to_owned()
    }

    // --- files, builds, images ---

    /// Writes a tree as a new directory of room storage.
    #[track_caller]
    pub fn put(&self, path: &str, tree: &Tree) {
        tree.write(&self.room_files().join(path));
    }

    /// Packs the base image into the room, once per daemon; returns its name.
    #[track_caller]
    pub fn base_image(&self) -> &'static str {
        self.base.get_or_init(|| {
            let tree = base_tree();
            let tree = tree.to_str().expect("UTF-8");
            let path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
            self.hearth_ok(&["pack", tree, "--tag", BASE, "--cmd", "[\"sh\"]", "--env", path]);
        });
        BASE
    }

    /// Returns the arguments of a build of a directory of room storage, mounted at `/context`.
    pub fn build_arguments<'a>(&self, tag: &'a str, mount: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut arguments =
            vec!["build", "--tag", tag, "--mount-room-path", mount, "--context-path", "/context"];
        arguments.extend(more);
        arguments
    }

    /// Builds `room storage/path` as `tag`; returns the output whether or not the build succeeds.
    #[track_caller]
    pub fn build(&self, tag: &str, path: &str, more: &[&str]) -> Output {
        let mount = format!("{path}:/context:ro");
        self.hearth(&self.build_arguments(tag, &mount, more))
    }

    /// Builds like [`Self::build`], panics when the build fails, and returns the digest from standard output.
    #[track_caller]
    pub fn build_ok(&self, tag: &str, path: &str, more: &[&str]) -> String {
        let output = self.build(tag, path, more);
        assert_eq!(output.code, 0, "build of {path} as {tag}\n{output}");
        let digest = output.line();
        assert!(digest.starts_with("sha256:") && digest.len() == 71, "stdout is not a digest\n{output}");
        digest.to_owned()
    }

    /// Pulls `repository:tag` as any registry client would, and reads it.
    #[track_caller]
    pub fn image(&self, name: &str) -> Image {
        skopeo::pull(&self.listen(), self.token(), name)
    }

    /// Returns the current digest of a tag, or `None` if there is no such tag.
    #[track_caller]
    pub fn tag_digest(&self, repository: &str, tag: &str) -> Option<String> {
        let answer = http::Request::new("HEAD", &format!("/v2/{repository}/manifests/{tag}"))
            .header("accept", http::ANY_MANIFEST)
            .bearer(self.token())
            .send(&self.listen());
        match answer.status {
            200 => Some(answer.header("docker-content-digest").expect("a digest header").to_owned()),
            404 => None,
            _ => panic!("HEAD of {repository}:{tag}: {answer:?}"),
        }
    }

    pub fn status_of(&self, path: &str) -> Option<u16> {
        Some(http::Request::new("GET", path).try_send(&self.listen()).ok()?.status)
    }

    // --- kill, stop, restart ---

    /// Kills only hearthd with SIGKILL. Its child processes must end without help.
    #[track_caller]
    pub fn kill9(&self) {
        let mut child = self.live().child.take().expect("the daemon runs");
        child.kill().expect("SIGKILL");
        child.wait().expect("wait");
    }

    /// Drains hearthd with SIGTERM and returns its exit status.
    #[track_caller]
    pub fn terminate(&self) -> ExitStatus {
        let mut child = self.live().child.take().expect("the daemon runs");
        rustix::process::kill_process(Pid::from_child(&child), Signal::TERM).expect("SIGTERM");
        match wait::poll(STOP_LIMIT, || child.try_wait().expect("wait")) {
            Some(status) => status,
            None => {
                self.live().child = Some(child);
                panic!("the daemon did not drain within {STOP_LIMIT:?}\n{}", self.log_tail(60));
            }
        }
    }

    /// Starts the daemon again on the same state and waits until it is ready. The ports may differ from before.
    #[track_caller]
    pub fn restart(&self) {
        self.launch(true);
    }

    /// Restarts like [`Self::restart`], but does not wait until `/readyz` reports that the daemon is ready.
    #[track_caller]
    pub fn restart_unready(&self) {
        self.launch(false);
    }

    /// Restarts like [`Self::restart`] with other options; the directory stays.
    #[track_caller]
    pub fn restart_with(&self, options: Options) {
        self.live().options = options;
        self.launch(true);
    }

    /// Drains the daemon, checks that nothing is left of it, and removes its directory. Returns what was wrong.
    pub fn retire(mut self) -> Vec<String> {
        self.clear_away()
    }

    fn clear_away(&mut self) -> Vec<String> {
        if std::mem::replace(&mut self.retired, true) {
            return Vec::new();
        }
        let mut report = Vec::new();
        self.remove_services();
        let running = self.live().child.take();
        let drained = running.is_some();
        if let Some(mut child) = running {
            let pid = Pid::from_child(&child);
            let _ = rustix::process::kill_process(pid, Signal::TERM);
            match wait::poll(STOP_LIMIT, || child.try_wait().ok()?) {
                Some(status) if status.success() => {}
                Some(status) => report.push(format!("SIGTERM ended hearthd with {status}, expected exit 0")),
                None => {
                    report.push(format!("hearthd did not drain within {STOP_LIMIT:?} after SIGTERM"));
                    let _ = rustix::process::kill_process_group(pid, Signal::KILL);
                    let _ = child.wait();
                }
            }
        }
        // Children that are killed together with their parent do not end immediately.
        wait::poll(seconds(5), || leftovers::processes(&self.directory).is_empty().then_some(()));
        // A killed daemon could not remove its network. What it left is removed here, and not reported as a fault.
        let mut network = network::sweep(&self.state());
        network.extend(step_network::sweep(&self.state()));
        report.extend(network.into_iter().filter(|_| drained));
        self.keep_log_of_failure(!report.is_empty());
        let own_mounts = self.live().own_mounts.clone();
        report.extend(leftovers::sweep(&self.directory, &own_mounts));
        report
    }

    /// Removes all services, because services outlive their daemon and those of a test must not. A service that cannot
    /// be removed is later reported as left behind.
    fn remove_services(&self) {
        if self.live().child.is_none() {
            return;
        }
        // Each service has a directory of logs, named by its id.
        let logs = fs::read_dir(self.state().join("service-logs"));
        for service in logs.into_iter().flatten().flatten() {
            self.hearth(&["services", "rm", "--now", &service.file_name().to_string_lossy()]);
        }
    }

    fn keep_log_of_failure(&self, failed: bool) {
        if failed || std::thread::panicking() {
            let room = self.live().options.room.clone();
            let kept = binaries().target.join("e2e-logs");
            let copied = fs::create_dir_all(&kept)
                .and_then(|()| fs::copy(self.log_file(), kept.join(format!("{room}.log"))));
            match copied {
                Ok(_) => eprintln!("log of hearthd: {}", kept.join(format!("{room}.log")).display()),
                Err(error) => eprintln!("log of hearthd could not be kept: {error}"),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let report = self.clear_away();
        if !report.is_empty() {
            let text = format!("left behind: {}", report.join("; "));
            // A second panic would abort and hide the first one.
            if std::thread::panicking() { eprintln!("{text}") } else { panic!("{text}") }
        }
    }
}

/// Returns the PATH of this process with the directories added in which Debian and deploy/setup.sh install the programs
/// that tests run.
pub fn path_variable() -> String {
    format!("{}:/usr/local/bin:/usr/sbin:/sbin:/usr/bin:/bin", std::env::var("PATH").unwrap_or_default())
}

static SCRATCH: OnceLock<PathBuf> = OnceLock::new();

/// Directory of this run. Its path is short, because the path of a socket has at most 107 bytes.
pub fn scratch() -> &'static Path {
    SCRATCH.get_or_init(|| {
        tempfile::Builder::new().prefix("hearth-").tempdir().expect("a temporary directory").keep()
    })
}

/// Removes the directory of this run. Returns what was left in it.
pub fn sweep_scratch() -> Vec<String> {
    SCRATCH.get().map(|directory| leftovers::sweep(directory, &[])).unwrap_or_default()
}
