//! The BuildKit adapter and the supervisor against a real buildkitd.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking, and show what they measured"
)]

mod contexts;
mod gateway;
mod memory;
mod registry;

use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use hearthd::build::port::{
    CredentialProvider, PinnedImageSource, SolveCaches, SolveError, SolveOutcome, SolveRequest, Solver as _,
};
use hearthd::buildkit::{BuildKitClient, managed};
use hearthd::context::{ContextFiles, FileKind, NoTransferWatch, SessionName};
use hearthd::model::access::SymlinkPolicy;
use hearthd::model::build::{BuildEventKind, BuildNetwork, BuildSpec, DockerfilePath, LogStream, NoCache};
use hearthd::model::fault::Fault;
use hearthd::model::id::BuildId;
use hearthd::model::secret::{RegistryCredential, Secret};
use hearthd::model::trust::TrustDomain;
use hearthd::network::steps::{StepNetwork, StepNetworkOptions};
use hearthd::supervise;
use memory::MemoryTree;
use registry::Registry;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(60);

struct NoCredentials;

impl CredentialProvider for NoCredentials {
    fn for_registry(&self, _: &str) -> Option<RegistryCredential> {
        None
    }
}

/// Buildkitd of the test's own, a registry, and what a solve needs.
struct Fixture {
    kit: BuildKitClient,
    supervision: supervise::Handle,
    steps: StepNetwork,
    registry: Registry,
    address: String,
    dir: tempfile::TempDir,
}

impl Fixture {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (kit, supervision, steps) = managed_in(dir.path()).await;
        ready(&kit).await;
        let (registry, address) = Registry::start().await;
        Self { kit, supervision, steps, registry, address, dir }
    }

    fn request(&self, dockerfile: &str, context: MemoryTree) -> SolveRequest {
        let build = BuildId::random();
        SolveRequest {
            files: ContextFiles {
                context: Arc::new(context),
                dockerfile: Arc::new(MemoryTree::files(vec![("Dockerfile", dockerfile.as_bytes())])),
                dockerfile_name: "Dockerfile".to_owned(),
                context_session: SessionName {
                    id: format!("context-{build}"),
                    shared_key: build.to_string(),
                },
                dockerfile_session: SessionName {
                    id: format!("file-{build}"),
                    shared_key: build.to_string(),
                },
                watch: Arc::new(NoTransferWatch),
            },
            build,
            domain: TrustDomain::local(),
            program: Default::default(),
            spec: BuildSpec {
                tags: vec!["test/app:latest".parse().unwrap()],
                mounts: Vec::new(),
                path_links: SymlinkPolicy::default(),
                context_path: "/context".parse().unwrap(),
                dockerfile: DockerfilePath::Search,
                build_args: BTreeMap::new(),
                target: None,
                platforms: Vec::new(),
                annotations: Vec::new(),
                labels: BTreeMap::new(),
                no_cache: NoCache::Nothing,
                compression: hearthd::model::BuildCompression::Gzip,
                provenance: Default::default(),
                sbom: false,
                pull: false,
                network: BuildNetwork::Default,
                timeout: None,
                secret_ids: Vec::new(),
                room_secrets: BTreeMap::new(),
                step_limits: Default::default(),
                cache_from: Vec::new(),
                cache_to: Vec::new(),
                recipe: Default::default(),
            },
            secrets: BTreeMap::new(),
            converts_layers: false,
            images: Vec::new(),
            downloads: Vec::new(),
            repositories: Vec::new(),
            foreign_runs: Vec::new(),
            caches: SolveCaches::default(),
            registry: self.address.clone(),
            repository: "test/app".parse().unwrap(),
            credentials: Arc::new(NoCredentials),
        }
    }

    async fn solve(&self, request: SolveRequest) -> (Result<SolveOutcome, SolveError>, Vec<BuildEventKind>) {
        let (sender, mut receiver) = mpsc::channel(64);
        let collect = async {
            let mut events = Vec::new();
            while let Some(event) = receiver.recv().await {
                events.push(event);
            }
            events
        };
        let solve = self.kit.solve(request, sender, CancellationToken::new());
        timeout(LIMIT, async { tokio::join!(solve, collect) }).await.unwrap()
    }

    async fn fault(&self, request: SolveRequest) -> Fault {
        match self.solve(request).await.0 {
            Err(SolveError::Failed(fault)) => {
                println!("{fault:?}");
                *fault
            }
            other => panic!("{other:?}"),
        }
    }

    /// Returns the entries of all layers of an image: path, type letter, mode, link, content.
    fn layers(&self, outcome: &SolveOutcome) -> BTreeMap<String, (char, u32, String, Vec<u8>)> {
        let manifest = self.json(&outcome.digest.to_string());
        let mut all = BTreeMap::new();
        for layer in manifest["layers"].as_array().unwrap() {
            let bytes = self.registry.get(layer["digest"].as_str().unwrap()).unwrap();
            let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_ref()));
            for entry in archive.entries().unwrap() {
                let mut entry = entry.unwrap();
                let path = entry.path().unwrap().to_string_lossy().into_owned();
                let header = entry.header().clone();
                let kind = match header.entry_type() {
                    tar::EntryType::Directory => 'd',
                    tar::EntryType::Symlink => 'l',
                    tar::EntryType::Link => 'h',
                    _ => 'f',
                };
                let link =
                    entry.link_name().unwrap().map(|l| l.to_string_lossy().into_owned()).unwrap_or_default();
                let mut content = Vec::new();
                std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
                all.insert(path, (kind, header.mode().unwrap(), link, content));
            }
        }
        all
    }

    /// Returns the time of a file in an image, in seconds since 1970.
    fn time_of(&self, outcome: &SolveOutcome, path: &str) -> u64 {
        let manifest = self.json(&outcome.digest.to_string());
        let mut found = None;
        for layer in manifest["layers"].as_array().unwrap() {
            let bytes = self.registry.get(layer["digest"].as_str().unwrap()).unwrap();
            let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_ref()));
            for entry in archive.entries().unwrap() {
                let entry = entry.unwrap();
                if entry.path().unwrap().as_os_str() == path {
                    found = Some(entry.header().mtime().unwrap());
                }
            }
        }
        found.unwrap()
    }

    fn json(&self, digest: &str) -> serde_json::Value {
        serde_json::from_slice(&self.registry.get(digest).unwrap()).unwrap()
    }

    async fn stop(self) {
        drop(self.kit);
        self.supervision.stop().await;
        self.steps.close().await.unwrap();
        assert_eq!(processes_below(self.dir.path()), Vec::<String>::new(), "no process is left");
        assert_eq!(mounts_below(self.dir.path()), 0, "no mount is left");
    }

    /// Runs a test, and stops everything even if it fails.
    async fn run(test: impl AsyncFnOnce(&Self)) {
        let kit = Self::start().await;
        let result = AssertUnwindSafe(test(&kit)).catch_unwind().await;
        kit.stop().await;
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }
}

async fn managed_in(dir: &Path) -> (BuildKitClient, supervise::Handle, StepNetwork) {
    let plugin = env!("CARGO_BIN_EXE_hearthd").into();
    let steps = StepNetwork::open(StepNetworkOptions::new(dir.to_owned(), plugin)).await.unwrap();
    let directory = dir.join("buildkit");
    let network = steps.builder(&directory).unwrap();
    let mut options = managed::Options::new(directory, Ok(network));
    options.limits.restart_first = Duration::from_millis(50);
    let (child, mut options) = options.child_and_connection().unwrap();
    let handle = supervise::start(child).unwrap();
    options.child = Some(handle.status());
    (BuildKitClient::connect(options), handle, steps)
}

async fn ready(kit: &BuildKitClient) {
    let mut status = kit.status();
    let wait = status.wait_for(|status| status.ready);
    match timeout(Duration::from_secs(30), wait).await {
        Ok(result) => drop(result.unwrap()),
        Err(_) => panic!("{:?}", kit.status().borrow()),
    }
}

/// Returns the command lines of processes that name the directory, or whose root is below it.
fn processes_below(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let numbers = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = numbers.filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    let lines = numbers.filter(|pid| *pid != std::process::id()).filter_map(|pid| {
        let line =
            String::from_utf8_lossy(&std::fs::read(format!("/proc/{pid}/cmdline")).ok()?).replace('\0', " ");
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        let root = mounts.lines().any(|l| l.split(' ').nth(4) == Some("/") && l.contains(dir));
        (line.contains(dir) || root).then(|| format!("{pid} {line}"))
    });
    lines.collect()
}

fn mounts_below(dir: &Path) -> usize {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    text.lines().filter(|line| line.split(' ').nth(4).is_some_and(|p| Path::new(p).starts_with(dir))).count()
}

fn busybox() -> Vec<u8> {
    std::fs::read("/bin/busybox").unwrap()
}

/// `FROM scratch` with a shell, and the given commands.
fn with_shell(commands: &str) -> String {
    format!(
        "FROM scratch\nCOPY --chmod=755 busybox /bin/busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n{commands}\n"
    )
}

fn text_of(events: &[BuildEventKind], wanted: LogStream) -> String {
    let logs = events.iter().filter_map(|event| match event {
        BuildEventKind::StepLog { stream, data, .. } if *stream == wanted => {
            Some(String::from_utf8_lossy(data))
        }
        _ => None,
    });
    logs.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_a_context_become_an_image() {
    Fixture::run(async |kit| {
        let big: Vec<u8> = (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let tree = MemoryTree::new(vec![
            (".dockerignore", FileKind::File(()), 0o644, b"**/*.tmp\n!keep.tmp\nvendor\n"),
            ("big", FileKind::File(()), 0o600, &big),
            ("dir", FileKind::Directory, 0o750, b""),
            ("dir/empty", FileKind::Directory, 0o755, b""),
            ("dir/f", FileKind::File(()), 0o4755, b"hello"),
            ("dir/n\u{fc}", FileKind::File(()), 0o644, b"x"),
            ("dir/skip.tmp", FileKind::File(()), 0o644, b"no"),
            ("dir-x", FileKind::File(()), 0o644, b"sorts after dir/"),
            ("keep.tmp", FileKind::File(()), 0o644, b"yes"),
            ("link", FileKind::Symlink(b"dir/f".as_slice().into()), 0o777, b""),
            ("out", FileKind::Symlink(b"/etc/passwd".as_slice().into()), 0o777, b""),
            ("vendor", FileKind::Directory, 0o755, b""),
            ("vendor/v", FileKind::File(()), 0o644, b"no"),
        ]);
        let request = kit.request("FROM scratch\nLABEL a=b\nCOPY . /\n", tree);
        let (outcome, events) = kit.solve(request).await;
        let outcome = outcome.unwrap();
        let manifest = kit.json(&outcome.digest.to_string());
        assert_eq!(manifest["mediaType"], "application/vnd.oci.image.manifest.v1+json");
        let files = kit.layers(&outcome);
        let at = |path: &str| files.get(path).unwrap_or_else(|| panic!("{path} in {:?}", files.keys()));
        assert_eq!(at("big").3, big);
        assert_eq!((at("dir/").0, at("dir/").1), ('d', 0o750));
        assert_eq!((at("dir/f").1, at("dir/f").3.as_slice()), (0o4755, b"hello".as_slice()));
        assert_eq!(at("dir/n\u{fc}").3, b"x");
        assert_eq!(at("dir/empty/").0, 'd');
        assert_eq!(at("dir-x").3, b"sorts after dir/");
        assert_eq!((at("link").0, at("link").2.as_str()), ('l', "dir/f"));
        assert_eq!((at("out").0, at("out").2.as_str()), ('l', "/etc/passwd"));
        assert!(files.contains_key("keep.tmp"));
        for ignored in ["dir/skip.tmp", "vendor/", "vendor/v"] {
            assert!(!files.contains_key(ignored), "{ignored}");
        }
        assert!(matches!(&events[0], BuildEventKind::StepStarted { step: 1, .. }), "{:?}", events[0]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_run_and_their_log_is_whole_and_in_order() {
    Fixture::run(async |kit| {
    let shell = busybox();
    let commands = "RUN for i in $(/bin/busybox seq 1 40000); do echo line $i of a log that is longer than BuildKit keeps; done; \
                    echo bad >&2\nRUN --mount=type=secret,id=s [ \"$(/bin/busybox cat /run/secrets/s)\" = hush ]";
    let tree = || MemoryTree::new(vec![("busybox", FileKind::File(()), 0o755, &shell)]);
    let mut request = kit.request(&with_shell(commands), tree());
    request.secrets.insert("s".to_owned(), Secret::new(b"hush".to_vec()));
    let (outcome, events) = kit.solve(request).await;
    let first = outcome.unwrap();
    let out = text_of(&events, LogStream::Stdout);
    let numbers: Vec<u32> = out.lines().map(|line| line.split(' ').nth(1).unwrap().parse().unwrap()).collect();
    assert_eq!(numbers, (1..=40000).collect::<Vec<u32>>());
    assert_eq!(text_of(&events, LogStream::Stderr), "bad\n");
    let run = events.iter().find_map(|e| match e {
        BuildEventKind::StepStarted { step, name } if name.contains("RUN for") => Some(*step),
        _ => None,
    });
    let place = |wanted: &dyn Fn(&BuildEventKind) -> bool| events.iter().rposition(wanted).unwrap();
    let last_log = place(&|e| matches!(e, BuildEventKind::StepLog { step, .. } if Some(*step) == run));
    let finished = place(&|e| matches!(e, BuildEventKind::StepFinished { step, .. } if Some(*step) == run));
    assert!(last_log < finished, "the end of a step comes after its log");

    // Repeated: the step is cached and prints nothing.
    let mut again = kit.request(&with_shell(commands), tree());
    again.secrets.insert("s".to_owned(), Secret::new(b"hush".to_vec()));
    let (outcome, events) = kit.solve(again).await;
    assert_eq!(outcome.unwrap(), first);
    assert_eq!(text_of(&events, LogStream::Stdout), "");
    let cached = events.iter().filter(|e| matches!(e, BuildEventKind::StepFinished { cached: true, .. })).count();
    assert!(cached >= 3, "{events:?}");

    // An image of the registry under a name that only this build knows.
    let mut from = kit.request("FROM room.meshagent.com/base:1\nRUN [\"/bin/busybox\", \"true\"]\n", tree());
    from.images.push(PinnedImageSource {
        name: "room.meshagent.com/base:1".to_owned(),
        repository: "test/app".parse().unwrap(),
        digest: first.digest,
    });
    kit.solve(from).await.0.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_name_what_was_wrong() {
    Fixture::run(async |kit| {
        let shell = busybox();
        let tree = || MemoryTree::new(vec![("busybox", FileKind::File(()), 0o755, &shell)]);

        let commands =
            "RUN for i in $(/bin/busybox seq 1 80); do echo line $i; done; echo last words; exit 7";
        let fault = kit.fault(kit.request(&with_shell(commands), tree())).await;
        assert_eq!((fault.code.as_str(), fault.exit_code), ("step_failed", Some(7)));
        assert_eq!((fault.log_tail.len(), fault.log_tail.last().unwrap().as_str()), (50, "last words"));
        assert!(fault.step.unwrap().contains("RUN for"));
        let range = fault.dockerfile.unwrap();
        assert_eq!((range.start_line, range.end_line, range.text.as_str()), (4, 4, commands));
        assert_eq!(range.path.to_string(), "/Dockerfile");

        let fault = kit.fault(kit.request("FROM scratch\nCOPY nope /x\n", tree())).await;
        assert_eq!(fault.code, "copy_source_missing");
        assert!(fault.message.contains("\"/nope\""), "{}", fault.message);
        assert_eq!(fault.dockerfile.unwrap().text, "COPY nope /x");

        let fault = kit.fault(kit.request("FROM scratch\nCOPPY a b\n", tree())).await;
        assert_eq!(fault.code, "dockerfile_parse_error");
        let range = fault.dockerfile.unwrap();
        assert_eq!((range.start_line, range.text.as_str()), (2, "COPPY a b"));

        let fault = kit.fault(kit.request("FROM scratch\nCOPY a\n", tree())).await;
        assert_eq!(fault.code, "dockerfile_parse_error", "COPY with one argument");

        let mut request = kit.request("FROM scratch\nCOPY busybox /\n", tree());
        request.spec.target = Some("nope".to_owned());
        assert_eq!(kit.fault(request).await.code, "unknown_stage");

        let from = |registry: &str| {
            let mut request = kit.request("FROM alpine\n", tree());
            request.registry = registry.to_owned();
            request.images.push(PinnedImageSource {
                name: "docker.io/library/alpine:latest".to_owned(),
                repository: "no/such".parse().unwrap(),
                digest: hearthd::model::Digest::from_sha256([1; 32]),
            });
            request
        };
        assert_eq!(kit.fault(from(&kit.address)).await.code, "base_image_not_found");
        let fault = kit.fault(from("127.0.0.1:1")).await;
        assert_eq!((fault.code.as_str(), fault.retryable), ("registry_unreachable", true));

        // Images outside of the list are not fetched, by name or by digest.
        let digest = format!("no/such@sha256:{}", "01".repeat(32));
        let own = format!("{}/{digest}", kit.address);
        for name in ["debian", "127.0.0.1:1/no/such:1", "[::1]:1/no/such:1", &own] {
            for line in [
                "FROM NAME",
                "FROM scratch\nCOPY --from=NAME / /",
                "FROM scratch\nRUN --mount=from=NAME,target=/x [\"/x\"]",
            ] {
                let fault =
                    kit.fault(kit.request(&format!("{}\n", line.replace("NAME", name)), tree())).await;
                assert_eq!(fault.code, "image_not_resolved", "{line} {name}: {}", fault.message);
                assert!(fault.message.contains(name.trim_start_matches('[')), "{}", fault.message);
            }
        }

        for url in [format!("http://{}/metrics", kit.address), "http://127.0.0.1:1/x.git".to_owned()] {
            let fault = kit.fault(kit.request(&format!("FROM scratch\nADD {url} /x\n"), tree())).await;
            assert_eq!(fault.code, "source_not_resolved", "{url}: {}", fault.message);
        }

        let mut broken = tree();
        broken.broken = Some("busybox".to_owned());
        let fault = kit.fault(kit.request("FROM scratch\nCOPY busybox /\n", broken)).await;
        assert_eq!(fault.code, "context_changed");
        assert!(fault.message.contains("`busybox`"), "{}", fault.message);

        let mut request = kit.request("FROM scratch\nCOPY busybox /\n", tree());
        request.registry = "127.0.0.1:1".to_owned();
        assert_eq!(kit.fault(request).await.code, "push_failed");

        let mut request = kit.request("FROM scratch\nCOPY busybox /\n", tree());
        request.spec.build_args.insert("BUILDKIT_SYNTAX".to_owned(), "evil/frontend".to_owned());
        assert_eq!(kit.fault(request).await.code, "build_arg_reserved");

        // A frontend image is never fetched.
        let dockerfile = "# syntax=127.0.0.1:1/evil/frontend\nFROM scratch\nCOPY busybox /\n";
        kit.solve(kit.request(dockerfile, tree())).await.0.unwrap();
    })
    .await;
}

/// Starts a build that sleeps; returns once the sleep runs.
async fn sleeping(
    kit: &Fixture,
    cancel: &CancellationToken,
) -> (tokio::task::JoinHandle<Result<SolveOutcome, SolveError>>, String) {
    let shell = busybox();
    let tree = MemoryTree::new(vec![("busybox", FileKind::File(()), 0o755, &shell)]);
    let mark = format!("86{:06}", rand::random::<u32>() % 1_000_000);
    let request = kit.request(
        &with_shell(&format!("RUN /bin/busybox sleep {mark} & exec /bin/busybox sleep {mark}")),
        tree,
    );
    let (sender, mut receiver) = mpsc::channel(64);
    let (solver, token) = (kit.kit.clone(), cancel.clone());
    hearthd::task::spawn("test-drain", async move { while receiver.recv().await.is_some() {} });
    let task = hearthd::task::spawn("test-solve", async move { solver.solve(request, sender, token).await });
    let start = Instant::now();
    while sleeps(&mark) < 2 {
        assert!(start.elapsed() < LIMIT && !task.is_finished());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    (task, mark)
}

fn sleeps(mark: &str) -> usize {
    let numbers = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = numbers.filter_map(|e| std::fs::read(e.path().join("cmdline")).ok());
    lines.filter(|line| *line == format!("/bin/busybox\0sleep\0{mark}\0").into_bytes()).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn cancel_answers_when_the_processes_are_gone() {
    Fixture::run(async |kit| {
        for _ in 0..5 {
            let cancel = CancellationToken::new();
            let (task, mark) = sleeping(kit, &cancel).await;
            cancel.cancel();
            let start = Instant::now();
            let result = timeout(LIMIT, task).await.unwrap().unwrap();
            let left = sleeps(&mark);
            println!("cancelled after {:?}", start.elapsed());
            assert!(matches!(result, Err(SolveError::Cancelled)), "{result:?}");
            assert_eq!(left, 0);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_buildkitd_is_a_typed_error_and_comes_back() {
    Fixture::run(async |kit| {
        let (task, mark) = sleeping(kit, &CancellationToken::new()).await;
        let config = kit.dir.path().join("buildkit/buildkitd.toml");
        let start = Instant::now();
        kill(&format!("buildkitd --config {} ", config.display()));
        let result = timeout(LIMIT, task).await.unwrap().unwrap();
        println!("unavailable after {:?}", start.elapsed());
        assert!(matches!(result, Err(SolveError::Unavailable(_))), "{result:?}");
        assert!(start.elapsed() < Duration::from_secs(3));
        let mut status = kit.kit.status();
        timeout(LIMIT, status.wait_for(|status| !status.ready)).await.unwrap().unwrap();
        ready(&kit.kit).await;
        println!("ready again after {:?}", start.elapsed());
        assert_eq!(sleeps(&mark), 0, "the step of the killed one was ended");
        let request = kit.request("FROM scratch\nCOPY a /\n", MemoryTree::files(vec![("a", b"1")]));
        kit.solve(request).await.0.unwrap();
    })
    .await;
}

fn kill(command_line: &str) {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).replace('\0', " ") == command_line {
            let pid = entry.file_name().to_str().unwrap().parse().unwrap();
            let pid = rustix::process::Pid::from_raw(pid).unwrap();
            return rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }
    panic!("no process `{command_line}`");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_buildkitd_whose_steps_can_have_no_network_of_their_own_is_not_started() {
    let dir = tempfile::tempdir().unwrap();
    let reason = "nft: no such program".to_owned();
    let (child, mut options) =
        managed::Options::new(dir.path().join("buildkit"), Err(reason)).child_and_connection().unwrap();
    let handle = supervise::start(child).unwrap();
    options.child = Some(handle.status());
    let kit = BuildKitClient::connect(options);
    let mut status = kit.status();
    let told =
        status.wait_for(|status| status.detail.as_ref().is_some_and(|d| d.contains("nft: no such program")));
    timeout(LIMIT, told).await.unwrap().unwrap();
    assert!(!dir.path().join("buildkit/buildkitd.toml").exists());
    handle.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reason_of_a_buildkitd_that_cannot_start_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = managed::Options::new(dir.path().join("buildkit"), Err("none is needed".to_owned()));
    options.runc = "no-such-runc".into();
    let (child, mut options) = options.child_and_connection().unwrap();
    let handle = supervise::start(child).unwrap();
    options.child = Some(handle.status());
    let kit = BuildKitClient::connect(options);
    let mut status = kit.status();
    let told = status.wait_for(|status| status.detail.as_ref().is_some_and(|d| d.contains("no-such-runc")));
    timeout(LIMIT, told).await.unwrap().unwrap();
    handle.stop().await;
}

/// Not a test by itself: the daemon that the next test kills, in a process of its own.
#[tokio::test(flavor = "multi_thread")]
async fn as_a_daemon_that_will_be_killed() {
    let Some(dir) = std::env::var_os(DAEMON_DIR) else { return };
    let dir = std::path::PathBuf::from(dir);
    let (kit, supervision, steps) = managed_in(&dir).await;
    ready(&kit).await;
    let (registry, address) = Registry::start().await;
    // The other process removes the directory.
    let fixture = Fixture { kit, supervision, steps, registry, address, dir: tempfile::tempdir().unwrap() };
    let (task, mark) = sleeping(&fixture, &CancellationToken::new()).await;
    std::fs::write(dir.join("mark"), mark).unwrap();
    let _ = task.await;
}

const DAEMON_DIR: &str = "HEARTH_TEST_DAEMON_DIR";

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_leaves_nothing_running_and_the_next_one_starts() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_a_daemon_that_will_be_killed"])
        .env(DAEMON_DIR, dir.path())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let mark = loop {
        if let Ok(mark) = std::fs::read_to_string(dir.path().join("mark"))
            && !mark.is_empty()
        {
            break Some(mark);
        }
        if start.elapsed() > LIMIT || daemon.try_wait().unwrap().is_some() {
            break None;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    let killed = Instant::now();
    let below = dir.path().join("buildkit");
    while !processes_below(&below).is_empty() && killed.elapsed() < Duration::from_secs(10) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("nothing runs {:?} after the daemon was killed", killed.elapsed());
    let left = processes_below(&below);
    let sleeping = mark.as_deref().map(sleeps);
    let (kit, supervision, steps) = managed_in(dir.path()).await;
    ready(&kit).await;
    supervision.stop().await;
    steps.close().await.unwrap();
    assert_eq!((left, sleeping), (Vec::new(), Some(0)));
    assert_eq!((processes_below(&below), mounts_below(dir.path())), (Vec::new(), 0));
}
