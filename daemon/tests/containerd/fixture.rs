//! Containerd of the test's own with the runtime on it, a room's blobs, and a network namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use hearth_pack::image::ConfigFlags;
use hearth_pack::layer::{Compression, LayerOptions};
use hearth_pack::{PackOptions, pack};
use hearthd::containerd::{ContainerdClient, managed, namespace_of_state_dir};
use hearthd::context::{LayerInspection, LayerLimits};
use hearthd::deploy::port::{
    ContainerRuntime as _, InstanceImage, InstanceSpec, InstanceState, NetworkAttachment, ObservedInstance,
};
use hearthd::image::ImageStore;
use hearthd::image::port::BlobStorage as _;
use hearthd::instance_log::read::{ExcerptQuery, read_excerpt};
use hearthd::model::RoomRegistries;
use hearthd::model::id::{InstanceId, ServiceId};
use hearthd::model::service::{InstanceLabel, ProcessExit, ResourceLimits};
use hearthd::registry::blobs::BlobStore;
use hearthd::store::StateStore;
use hearthd::supervise;
use rustix::mount::UnmountFlags;
use sha2::Digest as _;
use tokio::time::timeout;

pub const LIMIT: Duration = Duration::from_secs(60);

pub struct Fixture {
    pub runtime: ContainerdClient,
    pub supervision: supervise::Handle,
    pub blobs: Arc<BlobStore>,
    pub namespace: String,
    pub dir: tempfile::TempDir,
}

impl Fixture {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Arc::new(BlobStore::open(&dir.path().join("room")).unwrap());
        let namespace = namespace_of_state_dir(dir.path()).unwrap();
        let (runtime, supervision) = managed_in(dir.path(), &namespace, &blobs);
        let fixture = Self { runtime, supervision, blobs, namespace, dir };
        fixture.make_network();
        fixture.ready().await;
        fixture
    }

    pub async fn ready(&self) {
        let mut status = self.runtime.status();
        match timeout(LIMIT, status.wait_for(|status| status.ready)).await {
            Ok(result) => drop(result.unwrap()),
            Err(_) => panic!("{:?}", self.runtime.status().borrow()),
        }
    }

    /// Runs a test, and removes everything even if it fails.
    pub async fn run(test: impl AsyncFnOnce(&Self)) {
        let fixture = Self::start().await;
        let result = AssertUnwindSafe(test(&fixture)).catch_unwind().await;
        if result.is_err() {
            println!("{}", fs::read_to_string(fixture.dir.path().join("containerd/containerd.log")).unwrap());
        }
        fixture.stop().await;
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }

    /// Creates an empty network namespace, bound to a file as the network module does it.
    fn make_network(&self) {
        let file = self.network();
        fs::write(&file, "").unwrap();
        let thread = std::thread::spawn(move || {
            // SAFETY: a thread of its own that ends here; no file table is unshared.
            #[expect(unsafe_code, reason = "rustix marks every unshare")]
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
            rustix::mount::mount_bind("/proc/thread-self/ns/net", &file).unwrap();
        });
        thread.join().unwrap();
        for (name, text) in
            [("hosts", "10.9.8.7 other\n"), ("resolv.conf", "nameserver 10.9.8.1\n"), ("hostname", "web\n")]
        {
            fs::write(self.dir.path().join(name), text).unwrap();
        }
    }

    fn network(&self) -> PathBuf {
        self.dir.path().join("netns")
    }

    /// Packs a directory with busybox and `files` (path, mode, content) into the room.
    pub fn image(&self, config: ConfigFlags, files: &[(&str, u32, &str)]) -> InstanceImage {
        self.image_of(Compression::Zstd, config, files)
    }

    pub fn image_of(
        &self,
        compression: Compression,
        config: ConfigFlags,
        files: &[(&str, u32, &str)],
    ) -> InstanceImage {
        use std::os::unix::fs::PermissionsExt as _;
        let tree = tempfile::tempdir().unwrap();
        let root = tree.path();
        fs::create_dir(root.join("bin")).unwrap();
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for name in
            ["sh", "id", "cat", "ls", "sleep", "grep", "echo", "stat", "env", "yes", "head", "stty", "true"]
        {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        for (path, mode, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            match content.strip_prefix("-> ") {
                Some(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
                None => {
                    fs::write(&path, content).unwrap();
                    fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
                }
            }
        }
        let options = PackOptions {
            layer: LayerOptions { compression, ..LayerOptions::default() },
            config,
            platform: host(),
            ..PackOptions::default()
        };
        let packed = pack(root, &options, &mut |_| {}).unwrap();
        for blob in packed.blobs() {
            let mut content = packed.open_blob(&blob.digest).unwrap();
            self.blobs.put(&blob.digest, &mut content).unwrap();
        }
        InstanceImage { repository: "web".parse().unwrap(), manifest: packed.digest() }
    }

    /// Starts an instance that does nothing.
    pub async fn sleeping(&self) -> InstanceId {
        let image = self.image(ConfigFlags::default(), &[]);
        let spec = self.spec(&image, &["/bin/sleep", "1000"]);
        let id = spec.label.instance.clone();
        self.runtime.start(spec).await.unwrap();
        id
    }

    pub fn spec(&self, image: &InstanceImage, command: &[&str]) -> InstanceSpec {
        let instance = InstanceId::random();
        let log = self.dir.path().join("logs").join(instance.as_str());
        fs::create_dir_all(&log).unwrap();
        let at = |name: &str| self.dir.path().join(name);
        InstanceSpec {
            label: InstanceLabel {
                instance,
                service: ServiceId::random(),
                name: "web".parse().unwrap(),
                revision: 3,
                generation: 1,
            },
            image: image.clone(),
            command: Some(command.iter().map(|word| (*word).to_owned()).collect()),
            env: BTreeMap::new(),
            confidential: BTreeSet::new(),
            workdir: None,
            mounts: Vec::new(),
            limits: ResourceLimits::default(),
            capabilities: BTreeSet::new(),
            network: NetworkAttachment {
                address: [10, 9, 8, 7].into(),
                namespace: self.network(),
                hostname: "web".to_owned(),
                hosts: at("hosts"),
                resolv_conf: at("resolv.conf"),
                hostname_file: at("hostname"),
            },
            log,
        }
    }

    /// Runs a shell script in an instance to its end, and returns its exit and its log.
    pub async fn script(&self, mut spec: InstanceSpec, script: &str) -> (ProcessExit, Vec<String>) {
        spec.command = Some(["/bin/sh", "-c", script].map(str::to_owned).to_vec());
        let (id, log) = (spec.label.instance.clone(), spec.log.clone());
        self.runtime.start(spec).await.unwrap();
        let exit = self.ended(&id).await;
        self.runtime.remove(&id).await.unwrap();
        (exit, lines(&log))
    }

    pub async fn observed(&self, id: &InstanceId) -> Option<ObservedInstance> {
        let listed = self.runtime.list().await.unwrap();
        listed.into_iter().find(|observed| observed.label.instance == *id)
    }

    pub async fn pid(&self, id: &InstanceId) -> u32 {
        match self.observed(id).await.unwrap().state {
            InstanceState::Running { pid } => pid,
            other => panic!("{other:?}"),
        }
    }

    /// Waits for the end of an instance by the change notifications alone.
    pub async fn ended(&self, id: &InstanceId) -> ProcessExit {
        let mut changes = self.runtime.changes();
        let ended = async {
            loop {
                changes.borrow_and_update();
                match self.runtime.list().await {
                    Ok(listed) => {
                        let found = listed.into_iter().find(|observed| observed.label.instance == *id);
                        if let InstanceState::Exited(exit) = found.unwrap().state {
                            return exit;
                        }
                    }
                    Err(error) => println!("{error}"),
                }
                changes.changed().await.unwrap();
            }
        };
        timeout(LIMIT, ended).await.unwrap()
    }

    /// Lists the remains in all places that an instance uses.
    pub fn leftovers(&self) -> Vec<String> {
        let dir = self.dir.path();
        let mut found = processes(dir, &["containerd-shim", "instance-log"]);
        let tasks = dir.join("containerd/state/io.containerd.runtime.v2.task").join(&self.namespace);
        let runc = dir.join("containerd/runc").join(&self.namespace);
        for place in [tasks, runc, dir.join("containerd/pipes")] {
            found.extend(names(&place).into_iter().map(|name| place.join(name).display().to_string()));
        }
        for hierarchy in [vec![PathBuf::from("/sys/fs/cgroup")], below(Path::new("/sys/fs/cgroup"))].concat()
        {
            let groups = names(&hierarchy).into_iter().filter(|name| name.starts_with(&self.namespace));
            found.extend(groups.map(|name| hierarchy.join(name).display().to_string()));
        }
        found.extend(self.shim_sockets());
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Path::new);
        let points = points.filter(|point| point.starts_with(dir) && *point != self.network());
        found.extend(points.map(|point| point.display().to_string()));
        found
    }

    /// Lists sockets of the shims of any instance, present or past: their names are hashes.
    fn shim_sockets(&self) -> Vec<String> {
        let parent = self.dir.path().join("containerd/containerd.sock").join(&self.namespace);
        let sockets = names(&self.dir.path().join("logs")).into_iter().map(|instance| {
            let name = sha2::Sha256::digest(parent.join(instance).as_os_str().as_encoded_bytes());
            Path::new("/run/containerd/s").join(hex::encode(name))
        });
        sockets.filter(|path| path.exists()).map(|path| path.display().to_string()).collect()
    }

    /// Lists the remains once processes that end by themselves have ended.
    pub async fn settled(&self) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let found = self.leftovers();
            if found.is_empty() || begun.elapsed() > Duration::from_secs(10) {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Lists the directories in which containerd keeps files.
    pub fn snapshots(&self) -> usize {
        names(&self.dir.path().join("containerd/root/io.containerd.snapshotter.v1.overlayfs/snapshots")).len()
    }

    /// containerd removes their files a moment after their names.
    pub async fn no_snapshots(&self) {
        let begun = Instant::now();
        while self.snapshots() > 0 && begun.elapsed() < Duration::from_secs(10) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(self.snapshots(), 0);
    }

    pub fn containerd_pid(&self) -> u32 {
        let dir = self.dir.path().join("containerd/containerd.toml").display().to_string();
        let found = numbers().find(|pid| {
            let line = command(*pid);
            line.starts_with("containerd --config") && line.contains(&dir)
        });
        found.unwrap()
    }

    async fn stop(self) {
        for observed in self.runtime.list().await.unwrap() {
            self.runtime.remove(&observed.label.instance).await.unwrap();
        }
        let left = self.settled().await;
        drop(self.runtime);
        self.supervision.stop().await;
        rustix::mount::unmount(self.dir.path().join("netns"), UnmountFlags::DETACH).unwrap();
        assert_eq!(left, Vec::<String>::new(), "nothing of an instance is left");
        assert_eq!(processes(self.dir.path(), &[""]), Vec::<String>::new(), "no process is left");
    }
}

pub fn managed_in(
    dir: &Path,
    namespace: &str,
    blobs: &Arc<BlobStore>,
) -> (ContainerdClient, supervise::Handle) {
    let keeper = env!("CARGO_BIN_EXE_hearthd").into();
    let mut options = managed::Options::new(dir.join("containerd"), namespace.to_owned(), keeper);
    options.limits.restart_first = Duration::from_millis(50);
    let (child, connect) = options.plan().unwrap();
    let handle = supervise::start(child).unwrap();
    let store = StateStore::open(&dir.join("images.db")).unwrap();
    let inspection = LayerInspection::new(LayerLimits::default());
    let images =
        ImageStore::new(RoomRegistries::default(), blobs.clone(), Arc::new(store), Arc::new(inspection));
    let runtime =
        ContainerdClient::connect(connect.options(handle.status()), blobs.clone(), Arc::new(images));
    (runtime, handle)
}

fn host() -> hearth_oci::DeclaredPlatform {
    hearth_oci::DeclaredPlatform::linux(if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, None)
}

pub fn lines(log: &Path) -> Vec<String> {
    let query = ExcerptQuery { max_bytes: 1 << 20, tail: Some(10_000), ..ExcerptQuery::default() };
    read_excerpt(log, &query)
        .unwrap()
        .lines
        .into_iter()
        .map(|line| String::from_utf8(line.text).unwrap())
        .collect()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn below(dir: &Path) -> Vec<PathBuf> {
    names(dir).into_iter().map(|name| dir.join(name)).collect()
}

fn numbers() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn command(pid: u32) -> String {
    String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()).replace('\0', " ")
}

/// Lists processes whose command line names the directory and one of the words.
pub fn processes(dir: &Path, words: &[&str]) -> Vec<String> {
    let dir = format!("{}/", dir.display());
    let found = numbers().filter(|pid| *pid != std::process::id()).map(|pid| (pid, command(pid)));
    let found = found.filter(|(_, line)| line.contains(&dir) && words.iter().any(|word| line.contains(word)));
    found.map(|(pid, line)| format!("{pid} {line}")).collect()
}

pub fn kill(pid: u32) {
    signal(pid, rustix::process::Signal::KILL);
}

pub fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

pub fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
