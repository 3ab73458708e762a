//! Both sides of the benchmarks: one daemon with its client, and `buildctl` on the daemon's buildkitd.

use std::collections::VecDeque;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use integration_tests::daemon::{Daemon, Options};
use integration_tests::process::{self, Output};
use integration_tests::skopeo::skopeo;
use integration_tests::wait::seconds;

use super::registry;
use super::trees::{self, SourceTree};

const LIMIT: Duration = seconds(300);
/// Number of last lines shown of the progress of a failed command.
const LAST_LINES: usize = 30;

pub struct Bench {
    pub daemon: Daemon,
    /// Address of the managed buildkitd, which buildctl uses too.
    buildkit: String,
    /// Address of the registry that buildctl pushes to.
    pub registry: SocketAddr,
    pub work: PathBuf,
    small: OnceLock<SourceTree>,
    large: OnceLock<SourceTree>,
}

impl Bench {
    pub fn start() -> Self {
        let daemon = Daemon::start(Options::room("bench"));
        let socket = daemon.buildkit_socket().expect("the managed buildkitd's socket");
        let work = daemon.directory().join("bench");
        fs::create_dir_all(&work).expect("directory");
        let bench = Self {
            buildkit: format!("unix://{}", socket.display()),
            registry: registry::serve().expect("a registry"),
            work,
            daemon,
            small: OnceLock::new(),
            large: OnceLock::new(),
        };
        bench.base_images();
        bench
    }

    pub fn small(&self) -> &SourceTree {
        self.small.get_or_init(|| trees::small(&self.work))
    }

    pub fn large(&self) -> &SourceTree {
        self.large.get_or_init(|| trees::large(&self.work))
    }

    /// Returns the trees that were used so far, for the report.
    pub fn used_trees(&self) -> Vec<&SourceTree> {
        [self.small.get(), self.large.get()].into_iter().flatten().collect()
    }

    /// Prepares the same base image on both sides.
    fn base_images(&self) {
        let base = self.daemon.base_image();
        let name = base.rsplit('/').next().expect("a name");
        let source = format!("docker://{}/{name}", self.daemon.listen());
        let target = format!("docker://{}/{name}", self.registry);
        let credentials = format!("any:{}", self.daemon.token());
        let flags =
            ["copy", "--src-tls-verify=false", "--dest-tls-verify=false", "--src-creds", &credentials];
        skopeo(&[&flags[..], &[&source, &target]].concat()).expect_code(0);
    }

    /// Reports whether the client has a verb; a benchmark of a missing one is reported as not measured.
    pub fn has_verb(&self, verb: &[&str]) -> bool {
        process::run(self.daemon.client().args(verb).arg("--help"), seconds(10)).code == 0
    }

    pub fn hearth(&self, arguments: &[&str]) -> Output {
        let output = process::run(self.daemon.client().args(arguments), LIMIT);
        output.expect_code(0);
        output
    }

    fn hearth_command(&self, tag: &str, path: &str) -> Command {
        let mount = format!("{path}:/context:ro");
        let mut command = self.daemon.client();
        command.args(["build", "--tag", tag, "--mount-room-path", &mount, "--context-path", "/context"]);
        command
    }

    pub fn hearth_build(&self, tag: &str, path: &str) {
        process::run(&mut self.hearth_command(tag, path), LIMIT).expect_code(0);
    }

    pub fn hearth_build_fails(&self, tag: &str, path: &str) {
        let output = process::run(&mut self.hearth_command(tag, path), LIMIT);
        assert_ne!(output.code, 0, "the command succeeded but should fail\n{output}");
    }

    fn buildctl_command(&self, tag: &str, directory: &Path) -> Command {
        let mut command = Command::new("buildctl");
        let directory = directory.display();
        command.args(["--addr", &self.buildkit, "build", "--progress", "plain"]);
        command.args(["--frontend", "dockerfile.v0"]);
        command.args(["--local", &format!("context={directory}")]);
        command.args(["--local", &format!("dockerfile={directory}")]);
        let output = format!("type=image,name={}/{tag},push=true", self.registry);
        command.args(["--output", &output]).env("HOME", &self.work);
        command
    }

    pub fn buildctl_build(&self, tag: &str, directory: &Path) {
        process::run(&mut self.buildctl_command(tag, directory), LIMIT).expect_code(0);
    }

    /// Measures the part of a build before a step begins: for the first `COPY`, that is the time of the context.
    pub fn hearth_until(&self, tag: &str, path: &str, step: &str) -> Duration {
        until(self.hearth_command(tag, path).args(["--progress", "plain"]), step)
    }

    pub fn buildctl_until(&self, tag: &str, directory: &Path, step: &str) -> Duration {
        until(&mut self.buildctl_command(tag, directory), step)
    }

    /// Returns the resident memory of hearthd without its children, in bytes, after an idle pause.
    pub fn idle_memory(&self) -> f64 {
        std::thread::sleep(seconds(8));
        self.memory()
    }

    pub fn memory(&self) -> f64 {
        self.proc_number("status", "VmRSS:") * 1024.0
    }

    /// Returns the maximum growth of hearthd's resident memory while `work` runs, in bytes.
    pub fn memory_growth(&self, work: impl FnOnce()) -> f64 {
        // proc(5): this resets the peak to the current resident size.
        fs::write(format!("/proc/{}/clear_refs", self.daemon.pid()), "5").expect("/proc");
        let before = self.memory();
        work();
        (self.proc_number("status", "VmHWM:") * 1024.0 - before).max(0.0)
    }

    /// Returns the bytes that hearthd has read so far, from files and sockets.
    pub fn bytes_read(&self) -> f64 {
        self.proc_number("io", "rchar:")
    }

    fn proc_number(&self, file: &str, field: &str) -> f64 {
        let text = fs::read_to_string(format!("/proc/{}/{file}", self.daemon.pid())).expect("/proc");
        let line = text.lines().find(|line| line.starts_with(field)).expect("the field");
        line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number")
    }
}

/// Returns the time from the start of a command to the first line of its progress with this text. The command then runs
/// to its end and must succeed.
fn until(command: &mut Command, text: &str) -> Duration {
    let start = Instant::now();
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("a command");
    let mut found = None;
    let mut last = VecDeque::new();
    for line in BufReader::new(child.stderr.take().expect("piped")).lines() {
        let line = line.expect("progress is text");
        if found.is_none() && line.contains(text) {
            found = Some(start.elapsed());
        }
        if last.len() >= LAST_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
    let status = child.wait().expect("wait");
    assert!(status.success(), "{command:?}: {status}; its last lines:\n{}", Vec::from(last).join("\n"));
    found.unwrap_or_else(|| panic!("no `{text}` in the progress of {command:?}"))
}

/// Returns a port that is free at the moment, for a program that cannot choose one itself.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("its address").port()
}

/// Finds a program on PATH, or where Debian puts the programs of root.
pub fn installed(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/bin".into()]);
    places.map(|place: PathBuf| place.join(name)).find(|program| program.is_file())
}
