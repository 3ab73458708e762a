//! `make bench`: how fast Hearth is, as ratios beside `buildctl` on the same buildkitd and beside
//! `tar | zstd`, in one run. Uses the binaries as a user would, and writes docs/benchmarks.md.
//!
//! Exit code 1 when a target is missed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark stops at whatever goes wrong, and reports on the terminal"
)]

mod compare;
mod registry;

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use compare::{Comparison, ROUNDS, in_turns};
use integration_tests::binaries::{binaries, repository};
use integration_tests::daemon::{Daemon, Options, sweep_scratch};
use integration_tests::process;
use integration_tests::skopeo::skopeo;
use integration_tests::sources::Tree;
use integration_tests::wait::seconds;

const REPORT: &str = "docs/benchmarks.md";
const TREE_FILES: u64 = 7_500;
const IDLE_TARGET_MB: f64 = 40.0;

fn main() -> ExitCode {
    let bench = Bench::start();
    let fresh = bench.idle_memory();
    let mut comparisons = Vec::new();
    bench.tiny_builds(&mut comparisons);
    bench.contexts(&mut comparisons);
    bench.packs(&mut comparisons);
    let worked = bench.idle_memory();
    let report = bench.report(&comparisons, fresh, worked);
    drop(bench);
    let left = sweep_scratch();
    assert!(left.is_empty(), "left behind: {left:?}");

    let path = repository().join(REPORT);
    fs::create_dir_all(path.parent().expect("docs")).expect("docs");
    fs::write(&path, &report).expect("the report");
    println!("{report}\nwritten to {REPORT}");
    let good =
        comparisons.iter().all(Comparison::is_good) && fresh < IDLE_TARGET_MB && worked < IDLE_TARGET_MB;
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Bench {
    daemon: Daemon,
    /// The managed buildkitd's address, which buildctl uses too.
    buildkit: String,
    /// Where buildctl pushes to.
    registry: SocketAddr,
    work: PathBuf,
    /// See [`sources`].
    sources: PathBuf,
}

impl Bench {
    fn start() -> Self {
        let daemon = Daemon::start(Options::room("bench"));
        let socket = daemon.buildkit_socket().expect("the managed buildkitd's socket");
        let work = daemon.directory().join("bench");
        fs::create_dir_all(&work).expect("directory");
        let bench = Self {
            buildkit: format!("unix://{}", socket.display()),
            registry: registry::serve().expect("a registry"),
            sources: sources(&work),
            work,
            daemon,
        };
        bench.base_images();
        bench
    }

    /// The same base image on both sides.
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

    fn hearth_build(&self, tag: &str, path: &str) {
        let mount = format!("{path}:/context:ro");
        let mut command = self.daemon.client();
        command.args(["build", "--tag", tag, "--mount-room-path", &mount, "--context-path", "/context"]);
        process::run(&mut command, seconds(120)).expect_code(0);
    }

    fn buildctl_build(&self, tag: &str, directory: &Path) {
        let mut command = Command::new("buildctl");
        let directory = directory.display();
        command.args([
            "--addr",
            &self.buildkit,
            "build",
            "--progress",
            "plain",
            "--frontend",
            "dockerfile.v0",
        ]);
        command.args([
            "--local",
            &format!("context={directory}"),
            "--local",
            &format!("dockerfile={directory}"),
        ]);
        let output = format!("type=image,name={}/{tag},push=true", self.registry);
        command.args(["--output", &output]).env("HOME", &self.work);
        process::run(&mut command, seconds(120)).expect_code(0);
    }

    fn tiny_builds(&self, comparisons: &mut Vec<Comparison>) {
        let tree = |base: &str| {
            Tree::new()
                .dockerfile(&format!(
                    "FROM {base}\nCOPY index.html /site/\nRUN sha256sum /site/index.html > /sum\n"
                ))
                .file("index.html", "<h1>hi</h1>\n")
        };
        let name = self.daemon.base_image();
        self.daemon.put("tiny", &tree(name));
        let theirs = self.work.join("tiny");
        tree(&format!("{}/{}", self.registry, name.rsplit('/').next().expect("a name"))).write(&theirs);
        self.hearth_build("tiny:1", "tiny");
        self.buildctl_build("tiny:1", &theirs);

        let (ours, times) = in_turns(
            |_| || self.hearth_build("tiny:1", "tiny"),
            |_| || self.buildctl_build("tiny:1", &theirs),
        );
        comparisons.push(Comparison {
            name: "tiny warm build from a room mount, submit to published tag",
            ours,
            theirs: times,
            beside: "buildctl",
            target: Some(1.2),
        });

        let change = |directory: &Path, round: usize| {
            fs::write(directory.join("index.html"), format!("<h1>{} {round}</h1>\n", directory.display()))
                .expect("write");
        };
        let room = self.daemon.room_files().join("tiny");
        let (ours, times) = in_turns(
            |round| {
                change(&room, round);
                || self.hearth_build("tiny:1", "tiny")
            },
            |round| {
                change(&theirs, round);
                || self.buildctl_build("tiny:1", &theirs)
            },
        );
        let name = "the same after a change of its file: one COPY, one RUN, a new image";
        comparisons.push(Comparison { name, ours, theirs: times, beside: "buildctl", target: None });
    }

    /// All of the context is sent and copied; the image that is pushed is small, so that the time is
    /// the context's.
    fn contexts(&self, comparisons: &mut Vec<Comparison>) {
        let dockerfile = "FROM scratch AS all\nCOPY . /all/\nFROM scratch\nCOPY --from=all /all/go.mod /\n";
        let copy = |to: &Path, unique: &str| {
            fs::create_dir_all(to.parent().expect("a parent")).expect("directory");
            let mut cp = Command::new("cp");
            process::run(cp.args(["-r", "--no-preserve=mode"]).arg(&self.sources).arg(to), seconds(60))
                .expect_code(0);
            fs::write(to.join("Dockerfile"), dockerfile).expect("Dockerfile");
            // Without it the second copy's COPY would come from the cache.
            fs::write(to.join("unique"), unique).expect("unique");
            // Dirty pages that are written back meanwhile would hit whoever runs next.
            rustix::fs::sync();
        };
        let ignore = |to: &Path| drop(fs::remove_file(to.join(".dockerignore")));
        let room = |round: usize| self.daemon.room_files().join(format!("large/{round}"));
        let plain = |round: usize| self.work.join(format!("large/{round}"));
        let (ours, theirs) = in_turns(
            |round| {
                copy(&room(round), &format!("ours {round}"));
                ignore(&room(round));
                move || self.hearth_build("large:1", &format!("large/{round}"))
            },
            |round| {
                copy(&plain(round), &format!("theirs {round}"));
                ignore(&plain(round));
                move || self.buildctl_build("large:1", &plain(round))
            },
        );
        let name = "context of that tree, first transfer";
        comparisons.push(Comparison { name, ours, theirs, beside: "buildctl file sync", target: Some(1.0) });

        let last = ROUNDS - 1;
        let (ours, theirs) = in_turns(
            |_| || self.hearth_build("large:1", &format!("large/{last}")),
            |_| || self.buildctl_build("large:1", &plain(last)),
        );
        let name = "the same context, unchanged";
        comparisons.push(Comparison { name, ours, theirs, beside: "buildctl file sync", target: Some(1.0) });

        let change = |directory: &Path, round: usize| {
            let text = format!("// {} {round}\n", directory.display());
            fs::write(directory.join("solver/changed.go"), text).expect("write");
        };
        let (ours, theirs) = in_turns(
            |round| {
                change(&room(last), round);
                || self.hearth_build("large:1", &format!("large/{last}"))
            },
            |round| {
                change(&plain(last), round);
                || self.buildctl_build("large:1", &plain(last))
            },
        );
        let name = "the same context, one file changed";
        comparisons.push(Comparison { name, ours, theirs, beside: "buildctl file sync", target: None });
    }

    fn packs(&self, comparisons: &mut Vec<Comparison>) {
        let (ours, theirs) = (self.work.join("pack.oci.tar"), self.work.join("pack.tar.zst"));
        let pack = || {
            let mut command = self.daemon.client();
            command.arg("pack").arg(&self.sources).arg("-o").arg(&ours);
            process::run(&mut command, seconds(120)).expect_code(0);
        };
        let tar = || {
            let script = "set -o pipefail; tar -C \"$0\" -cf - . | zstd -3 -T2 -q -f -o \"$1\"";
            let mut command = Command::new("bash");
            command.args(["-c", script]).arg(&self.sources).arg(&theirs);
            process::run(&mut command, seconds(120)).expect_code(0);
        };
        pack();
        tar();
        let (ours, theirs) = in_turns(|_| pack, |_| tar);
        let name = "`pack` of that tree";
        comparisons.push(Comparison {
            name,
            ours,
            theirs,
            beside: "`tar \\| zstd -3 -T2`",
            target: Some(1.5),
        });
    }

    /// Resident memory of hearthd alone, in MB, after it has been left alone for a while.
    fn idle_memory(&self) -> f64 {
        std::thread::sleep(seconds(5));
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon.pid())).expect("status");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        let kib: f64 = line.split_whitespace().nth(1).and_then(|text| text.parse().ok()).expect("a number");
        kib / 1024.0
    }

    fn report(&self, comparisons: &[Comparison], fresh: f64, worked: f64) -> String {
        let version = |command: &mut Command| {
            let output = process::run(command.arg("--version"), seconds(10));
            output.stdout.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
        };
        let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
            .map(|(_, name)| name);
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let kernel = kernel.split('-').next().unwrap_or_default().trim().to_owned();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let profile = if cfg!(debug_assertions) { "**debug, not to be compared**" } else { "release" };
        let mut text = String::from(
            "# Benchmarks\n\nWritten by `make bench`; run it to see your machine's figures. Ratios matter, not milliseconds.\n\n",
        );
        let _ = writeln!(
            text,
            "{}, {} ({profile} build), {cores} x {}, Linux {kernel}.\n",
            version(&mut Command::new(&binaries().hearthd)),
            version(&mut Command::new("buildkitd")),
            cpu.unwrap_or("unknown processor"),
        );
        let _ = writeln!(
            text,
            "Milliseconds: median of {ROUNDS} runs (least-most), the two sides in turns in one run, each as a whole command\n\
             with the start of its process. `buildctl` uses the same buildkitd and pushes to a registry in memory without\n\
             authentication; `hearth` publishes in the room's registry. The large tree is github.com/moby/buildkit@v0.32.2\n\
             and modules that it needs, as the Go module cache unpacks them ({} files, {} MB).\n",
            count(&self.sources).0,
            count(&self.sources).1 / 1_000_000,
        );
        text.push_str(
            "| what | hearth, ms | beside, ms | ratio | at most | met |\n|---|---|---|---|---|---|\n",
        );
        for comparison in comparisons {
            let _ = writeln!(text, "{}", comparison.row());
        }
        let met = |megabytes: f64| if megabytes < IDLE_TARGET_MB { "yes" } else { "**no**" };
        let _ = writeln!(
            text,
            "\nMemory of an idle hearthd, its children aside (less than {IDLE_TARGET_MB} MB): {fresh:.1} MB when started \
             ({}), {worked:.1} MB after all of the above ({}).",
            met(fresh),
            met(worked),
        );
        text
    }
}

/// BuildKit's own source and that of modules it is made of, as far as it takes to have as many files
/// as a large project; copied so that they can be written to.
fn sources(work: &Path) -> PathBuf {
    let module = repository().join("deploy/buildkit");
    let go = |arguments: &[&str]| {
        let mut go = Command::new("go");
        let output = process::run(go.args(arguments).current_dir(&module), seconds(300));
        output.expect_code(0);
        output
    };
    go(&["mod", "download"]);
    let to = work.join("sources");
    let copy = |from: &str, to: &Path| {
        let mut cp = Command::new("cp");
        process::run(cp.args(["-r", "--no-preserve=mode", from]).arg(to), seconds(60)).expect_code(0);
    };
    let root = go(&["list", "-m", "-f", "{{.Dir}}", "github.com/moby/buildkit"]);
    copy(root.line(), &to);
    fs::create_dir(to.join("modules")).expect("directory");
    let modules = go(&["list", "-m", "-f", "{{.Dir}}", "all"]);
    let others = modules.stdout.lines().filter(|dir| !dir.is_empty() && *dir != root.line());
    for (number, directory) in others.enumerate() {
        if count(&to).0 >= TREE_FILES {
            break;
        }
        // A few modules are generated code by the hundred megabytes.
        if Path::new(directory).is_dir() && count(Path::new(directory)).1 < 20_000_000 {
            copy(directory, &to.join(format!("modules/{number}")));
        }
    }
    to
}

/// Files below a directory, and their bytes.
fn count(directory: &Path) -> (u64, u64) {
    let (mut files, mut bytes) = (0, 0);
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(path).expect("list").flatten() {
            let meta = entry.metadata().expect("stat");
            if meta.is_dir() {
                pending.push(entry.path());
            } else {
                files += 1;
                bytes += meta.len();
            }
        }
    }
    (files, bytes)
}
