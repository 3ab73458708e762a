//! Contexts of a room against a real buildkitd: only changes are sent, and nothing stale is ever built.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use hearthd::build::port::{SolveError, SolveOutcome, SolveRequest};
use hearthd::context::{
    ContextFiles, ContextMount, ContextOptions, ContextPreparer, ContextRequest, CopySelection, FileTree,
    LayerLimits, StorageRoot, StorageRoots, TransferWatch, TreeEntry, Xattr,
};
use hearthd::model::access::SymlinkPolicy;
use hearthd::model::build::{DockerfilePath, NoCache};
use hearthd::model::{BuildMount, BuildMountSource, MountAccess};
use parking_lot::Mutex;

use super::memory::MemoryTree;
use super::{Fixture, kill, ready};

/// Room storage, and the daemon's view of it.
struct Room {
    directory: tempfile::TempDir,
    contexts: ContextPreparer,
}

/// Content that one build transferred.
#[derive(Default)]
struct Traffic {
    /// Paths of the files whose content was requested.
    sent: Mutex<Vec<String>>,
    /// Number of transfers of more than an ignore file.
    transfers: AtomicUsize,
    /// Called before a file is read.
    #[expect(clippy::type_complexity, reason = "named once")]
    meanwhile: Mutex<Option<Box<dyn FnMut(&[u8]) + Send>>>,
}

impl Traffic {
    fn sent(&self) -> Vec<String> {
        let mut sent = self.sent.lock().clone();
        sent.sort();
        sent
    }

    fn is_silent(&self) -> bool {
        self.sent().is_empty() && self.transfers.load(Ordering::SeqCst) == 0
    }
}

struct Observed {
    files: ContextFiles,
    traffic: Arc<Traffic>,
}

impl FileTree for Observed {
    fn len(&self) -> usize {
        self.files.context.len()
    }

    fn entry(&self, index: usize) -> TreeEntry<'_> {
        self.files.context.entry(index)
    }

    fn xattrs(&self, index: usize) -> &[Xattr] {
        self.files.context.xattrs(index)
    }

    fn is_covered(&self, index: usize) -> bool {
        self.files.context.is_covered(index)
    }

    fn is_listed(&self, index: usize) -> bool {
        self.files.context.is_listed(index)
    }

    fn open(&self, index: usize) -> io::Result<Box<dyn Read + Send>> {
        let path = self.entry(index).path;
        if path != b".dockerignore" {
            self.traffic.sent.lock().push(String::from_utf8_lossy(path).into_owned());
        }
        if let Some(meanwhile) = &mut *self.traffic.meanwhile.lock() {
            meanwhile(path);
        }
        self.files.context.open(index)
    }
}

impl TransferWatch for Observed {
    fn files_sent(&self) {
        self.traffic.transfers.fetch_add(1, Ordering::SeqCst);
        self.files.watch.files_sent();
    }

    fn uncovered_requested(&self) {
        self.files.watch.uncovered_requested();
    }
}

impl Room {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let contexts = Self::open(&directory);
        Self { directory, contexts }
    }

    fn open(directory: &tempfile::TempDir) -> ContextPreparer {
        let root = |name: &str| StorageRoot::open_or_create(&directory.path().join(name)).unwrap();
        ContextPreparer::new(ContextOptions {
            room: "default".to_owned(),
            storage: StorageRoots { room: root("room"), project: root("project") },
            state_dir: directory.path().join("state"),
            limits: LayerLimits::default(),
        })
        .unwrap()
    }

    fn at(&self, path: &str) -> PathBuf {
        self.directory.path().join("room").join(path)
    }

    fn file(&self, path: &str, content: &str) -> &Self {
        fs::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs::write(self.at(path), content).unwrap();
        self
    }

    /// Sets the modification time of a file, and thereby its change time to now.
    fn touch(&self, path: &str, seconds: u64) {
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        File::options().write(true).open(self.at(path)).unwrap().set_modified(time).unwrap();
    }

    async fn files(&self, mount: &str, dockerfile: &str, roots: &[&str]) -> (ContextFiles, Arc<Traffic>) {
        let spec = BuildMount {
            source: BuildMountSource::Room(mount.to_owned()),
            target: "/context".parse().unwrap(),
            mode: MountAccess::ReadOnly,
            create: false,
        };
        let selection = match roots {
            ["."] => CopySelection::default(),
            roots => CopySelection::of(roots.iter().map(|root| root.as_bytes().to_vec())),
        };
        let prepared = self.contexts.prepare(ContextRequest {
            mounts: vec![ContextMount { spec, image: None, pack: None, links: SymlinkPolicy::Followed }],
            context_path: "/context".parse().unwrap(),
            dockerfile: DockerfilePath::At(format!("/context/{dockerfile}").parse().unwrap()),
            target: None,
            parse: Box::new(|text| (text, selection)),
        });
        let prepared = prepared.await.unwrap();
        let text = prepared.dockerfile.clone();
        let files = prepared.into_files(text);
        let traffic = Arc::new(Traffic::default());
        let observed = Arc::new(Observed { files: files.clone(), traffic: Arc::clone(&traffic) });
        let tree = Arc::clone(&observed) as Arc<dyn FileTree>;
        (ContextFiles { context: tree, watch: observed, ..files }, traffic)
    }
}

impl Fixture {
    fn of(&self, files: ContextFiles) -> SolveRequest {
        SolveRequest { files, ..self.request("", MemoryTree::default()) }
    }

    /// Builds all of a directory of the room.
    async fn build(&self, room: &Room, mount: &str) -> (Result<SolveOutcome, SolveError>, Arc<Traffic>) {
        let (files, traffic) = room.files(mount, "Dockerfile", &["."]).await;
        (self.solve(self.of(files)).await.0, traffic)
    }

    /// Returns the contents of the image's files.
    fn contents(&self, outcome: &SolveOutcome) -> BTreeMap<String, String> {
        let files = self.layers(outcome).into_iter().filter(|(_, (kind, ..))| *kind == 'f');
        files.map(|(path, (.., content))| (path, String::from_utf8_lossy(&content).into_owned())).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unchanged_context_is_not_asked_for_even_after_restarts() {
    Fixture::run(async |kit| {
        let mut room = Room::new();
        room.file("app/Dockerfile", "FROM scratch\nCOPY . /\n").file("app/a", "1").file("app/d/b", "2");
        let (first, traffic) = kit.build(&room, "app").await;
        let first = first.unwrap();
        assert_eq!(traffic.sent(), ["Dockerfile", "a", "d/b"]);
        let (again, traffic) = kit.build(&room, "app").await;
        assert_eq!((again.unwrap(), traffic.is_silent()), (first.clone(), true));

        // The daemon restarts after a drain.
        room.contexts.save().await;
        room.contexts = Room::open(&room.directory);
        let (again, traffic) = kit.build(&room, "app").await;
        assert_eq!((again.unwrap(), traffic.is_silent()), (first.clone(), true), "after a restart of ours");
        room.file("app/a", "changed");
        let (_, traffic) = kit.build(&room, "app").await;
        assert_eq!(traffic.sent(), ["a"], "what BuildKit has is known from the last run");

        // The daemon restarts after a kill: the first change then sends everything, because it is not known what was
        // sent last.
        room.contexts = Room::open(&room.directory);
        let (again, traffic) = kit.build(&room, "app").await;
        assert!(again.is_ok() && traffic.is_silent());

        kill(&format!("buildkitd --config {} ", kit.dir.path().join("buildkit/buildkitd.toml").display()));
        let mut status = kit.kit.status();
        status.wait_for(|status| !status.ready).await.unwrap();
        ready(&kit.kit).await;
        let (again, traffic) = kit.build(&room, "app").await;
        assert!(again.is_ok() && traffic.is_silent(), "after a restart of BuildKit");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_sends_what_changed_and_is_in_the_image_also_when_its_stat_hides_it() {
    Fixture::run(async |kit| {
        let room = Room::new();
        room.file("app/Dockerfile", "FROM scratch\nCOPY . /\n").file("app/a", "one").file("app/b", "two");
        room.touch("app/a", 1000);
        kit.build(&room, "app").await.0.unwrap();
        room.file("app/b", "three");
        let (outcome, traffic) = kit.build(&room, "app").await;
        assert_eq!(traffic.sent(), ["b"]);
        assert_eq!(kit.contents(&outcome.unwrap())["b"], "three");
        // Equal path, mode, size and time.
        room.file("app/a", "ONE");
        room.touch("app/a", 1000);
        let (outcome, _) = kit.build(&room, "app").await;
        assert_eq!(kit.contents(&outcome.unwrap())["a"], "ONE");
        // The same by another inode.
        fs::remove_file(room.at("app/a")).unwrap();
        room.file("app/a", "0ne");
        room.touch("app/a", 1000);
        let (outcome, _) = kit.build(&room, "app").await;
        assert_eq!(kit.contents(&outcome.unwrap())["a"], "0ne");
        // And back to what BuildKit had once.
        room.file("app/a", "one").file("app/b", "two");
        room.touch("app/a", 1000);
        let (outcome, _) = kit.build(&room, "app").await;
        let contents = kit.contents(&outcome.unwrap());
        assert_eq!((contents["a"].as_str(), contents["b"].as_str()), ("one", "two"));
        // Gone.
        fs::remove_file(room.at("app/b")).unwrap();
        let (outcome, traffic) = kit.build(&room, "app").await;
        assert!(traffic.sent().is_empty());
        assert!(!kit.contents(&outcome.unwrap()).contains_key("b"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn directories_that_look_alike_are_never_taken_for_each_other() {
    Fixture::run(async |kit| {
        let room = Room::new();
        for (directory, content) in [("one", "11"), ("two", "22")] {
            room.file(&format!("{directory}/Dockerfile"), "FROM scratch\nCOPY f /\n");
            room.file(&format!("{directory}/f"), content);
            room.touch(&format!("{directory}/f"), 0);
            room.touch(&format!("{directory}/Dockerfile"), 0);
        }
        for (directory, content) in [("one", "11"), ("two", "22"), ("one", "11")] {
            let (outcome, _) = kit.build(&room, directory).await;
            assert_eq!(kit.contents(&outcome.unwrap())["f"], content);
        }
        fs::rename(room.at("one"), room.at("old")).unwrap();
        fs::rename(room.at("two"), room.at("one")).unwrap();
        let (outcome, _) = kit.build(&room, "one").await;
        assert_eq!(kit.contents(&outcome.unwrap())["f"], "22");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn builds_that_start_together_share_one_transfer() {
    Fixture::run(async |kit| {
        let room = Room::new();
        room.file("app/Dockerfile", "FROM scratch\nCOPY . /\n");
        for n in 0..200 {
            room.file(&format!("app/f{n}"), &"x".repeat(n * 100));
        }
        let mut builds = Vec::new();
        for n in 0..3 {
            let (files, traffic) = room.files("app", "Dockerfile", &["."]).await;
            let mut request = kit.of(files);
            request.spec.labels.insert("n".to_owned(), n.to_string());
            builds.push((request, traffic));
        }
        let traffics: Vec<Arc<Traffic>> = builds.iter().map(|(_, traffic)| Arc::clone(traffic)).collect();
        let solves = builds.into_iter().map(|(request, _)| kit.solve(request));
        for (outcome, _) in futures::future::join_all(solves).await {
            assert_eq!(kit.contents(&outcome.unwrap()).len(), 201);
        }
        let sent: usize = traffics.iter().map(|traffic| traffic.sent().len()).sum();
        assert_eq!(sent, 201, "each file once for all builds");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_build_costs_the_next_one_nothing() {
    Fixture::run(async |kit| {
        let room = Room::new();
        room.file("files/a", "1")
            .file("files/b", "2")
            .file("files/Dockerfile", "FROM scratch\nCOPY . /\nCOPY nope /\n");
        let (outcome, traffic) = kit.build(&room, "files").await;
        let Err(SolveError::Failed(fault)) = outcome else { panic!("{outcome:?}") };
        assert_eq!((fault.code.as_str(), traffic.sent().len()), ("copy_source_missing", 3));
        for _ in 0..2 {
            let (outcome, traffic) = kit.build(&room, "files").await;
            assert!(outcome.is_err() && traffic.is_silent(), "{:?}", traffic.sent());
        }
        // Another Dockerfile for the same files.
        let (files, traffic) = room.files("files", "Dockerfile", &["."]).await;
        let corrected = MemoryTree::files(vec![("Dockerfile", b"FROM scratch\nCOPY . /\n")]);
        let mut request = kit.of(files);
        request.files.dockerfile = Arc::new(corrected);
        request.files.dockerfile_session.id.push('x');
        let outcome = kit.solve(request).await.0;
        assert_eq!(kit.contents(&outcome.unwrap())["b"], "2");
        assert!(traffic.is_silent(), "{:?}", traffic.sent());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_while_it_is_sent_is_named_and_never_built() {
    Fixture::run(async |kit| {
        let room = Room::new();
        room.file("app/Dockerfile", "FROM scratch\nCOPY . /\n").file("app/a", "1").file("app/z", "old");
        let (files, traffic) = room.files("app", "Dockerfile", &["."]).await;
        let path = room.at("app/z");
        *traffic.meanwhile.lock() = Some(Box::new(move |asked| {
            if asked == b"z" {
                fs::write(&path, "new").unwrap();
            }
        }));
        let fault = kit.fault(kit.of(files)).await;
        assert_eq!((fault.code.as_str(), fault.retryable), ("context_changed", true));
        assert!(fault.message.contains("/context/z"), "{}", fault.message);
        let (outcome, _) = kit.build(&room, "app").await;
        assert_eq!(kit.contents(&outcome.unwrap())["z"], "new");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_changes_after_it_was_sent_is_built_as_it_was_and_seen_by_the_next_build() {
    Fixture::run(async |kit| {
        let room = Room::new();
        room.file("app/Dockerfile", "FROM scratch\nCOPY . /\n").file("app/a", "old").file("app/z", "old");
        let (files, traffic) = room.files("app", "Dockerfile", &["."]).await;
        let first = files.context_session.id.clone();
        let (app, changed) = (room.at("app"), Arc::new(Mutex::new(None)));
        // Several files are read at once, in any order. When the second one is requested, the first has been sent, and
        // is changed.
        let (mut sent, told) = (None, Arc::clone(&changed));
        *traffic.meanwhile.lock() = Some(Box::new(move |asked| {
            let Some(asked) = ["a", "z"].into_iter().find(|name| name.as_bytes() == asked) else { return };
            match sent {
                None => sent = Some(asked),
                Some(sent) if sent != asked => {
                    std::thread::sleep(Duration::from_millis(200));
                    fs::write(app.join(sent), "new").unwrap();
                    *told.lock() = Some(sent);
                }
                Some(_) => {}
            }
        }));
        let outcome = kit.solve(kit.of(files)).await.0;
        let changed = changed.lock().expect("both files were asked for");
        if let Ok(outcome) = outcome {
            assert_eq!(kit.contents(&outcome)[changed], "old");
        }
        let (outcome, _) = kit.build(&room, "app").await;
        assert_eq!(kit.contents(&outcome.unwrap())[changed], "new");
        // The name of the first version was retired, because the tree had changed when it was scanned again.
        room.file(&format!("app/{changed}"), "old");
        let (files, _) = room.files("app", "Dockerfile", &["."]).await;
        assert_ne!(files.context_session.id, first);
        let outcome = kit.solve(kit.of(files)).await.0;
        assert_eq!(kit.contents(&outcome.unwrap())[changed], "old");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dockerfiles_that_copy_different_things_keep_apart_what_buildkit_has_for_them() {
    Fixture::run(async |kit| {
        let room = Room::new();
        room.file("app/one.Dockerfile", "FROM scratch\nCOPY one /\n").file("app/one/f", "1");
        room.file("app/two.Dockerfile", "FROM scratch\nCOPY two /\n").file("app/two/g", "2");
        let build = async |name: &str| {
            let (files, traffic) = room.files("app", &format!("{name}.Dockerfile"), &[name]).await;
            kit.solve(kit.of(files)).await.0.unwrap();
            traffic
        };
        assert_eq!(build("one").await.sent(), ["one/f"], "only what is copied is sent");
        assert_eq!(build("two").await.sent(), ["two/g"]);
        for name in ["one", "two"] {
            assert!(build(name).await.is_silent());
        }
        // A change outside of the copied files does not count.
        room.file("app/two/g", "22");
        assert!(build("one").await.is_silent());
        assert_eq!(build("two").await.sent(), ["two/g"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_not_expected_to_be_copied_is_asked_for_once_more_and_then_sent() {
    Fixture::run(async |kit| {
        let room = Room::new();
        room.file("app/Dockerfile", "FROM scratch\nCOPY links/* /\n").file("app/far/f", "1");
        fs::create_dir(room.at("app/links")).unwrap();
        symlink("../far/f", room.at("app/links/l")).unwrap();
        let (files, traffic) = room.files("app", "Dockerfile", &["links"]).await;
        let fault = kit.fault(kit.of(files)).await;
        assert_eq!((fault.code.as_str(), fault.retryable), ("context_selection", true));
        assert!(traffic.is_silent());
        let (files, traffic) = room.files("app", "Dockerfile", &["links"]).await;
        kit.solve(kit.of(files)).await.0.unwrap();
        assert_eq!(traffic.sent(), ["far/f"]);
        let (files, traffic) = room.files("app", "Dockerfile", &["links"]).await;
        kit.solve(kit.of(files)).await.0.unwrap();
        assert!(traffic.is_silent());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_time_alone_reaches_a_copy_that_runs_and_keeps_one_that_is_cached() {
    Fixture::run(async |kit| {
        let room = Room::new();
        room.file("app/Dockerfile", "FROM scratch\nCOPY f /\n").file("app/f", "1");
        room.touch("app/f", 1_000_000_000);
        let (files, _) = room.files("app", "Dockerfile", &["f"]).await;
        let first = kit.solve(kit.of(files)).await.0.unwrap();
        room.touch("app/f", 1_100_000_000);
        let (files, _) = room.files("app", "Dockerfile", &["f"]).await;
        let (second, events) = kit.solve(kit.of(files)).await;
        assert_eq!(second.unwrap(), first, "COPY's cache knows no times");
        let cached = events.iter().filter(|event| {
            matches!(event, hearthd::model::build::BuildEventKind::StepFinished { cached: true, .. })
        });
        assert!(cached.count() > 0);
        let (files, traffic) = room.files("app", "Dockerfile", &["f"]).await;
        let mut request = kit.of(files);
        request.spec.no_cache = NoCache::Everything;
        let third = kit.solve(request).await.0.unwrap();
        assert!(traffic.is_silent(), "BuildKit was given the new time before");
        assert_eq!((kit.time_of(&first, "f"), kit.time_of(&third, "f")), (1_000_000_000, 1_100_000_000));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_buildkit_dropped_is_sent_again() {
    Fixture::run(async |kit| {
        let room = Room::new();
        room.file("app/Dockerfile", "FROM scratch\nCOPY . /\n").file("app/a", "1");
        let (first, _) = kit.build(&room, "app").await;
        let first = first.unwrap();
        let socket = kit.dir.path().join("buildkit/buildkitd.sock");
        let address = format!("unix://{}", socket.display());
        let pruned =
            std::process::Command::new("buildctl").args(["--addr", &address, "prune", "--all"]).output();
        let pruned = pruned.unwrap();
        assert!(pruned.status.success(), "{pruned:?}");
        let (again, traffic) = kit.build(&room, "app").await;
        let again = again.unwrap();
        assert_eq!(traffic.sent(), ["Dockerfile", "a"]);
        assert_eq!(kit.contents(&again), kit.contents(&first));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_files_reach_the_image_as_they_are() {
    Fixture::run(async |kit| {
        let room = Room::new();
        let long = "n".repeat(255);
        room.file("app/Dockerfile", "FROM scratch\nCOPY . /\n")
            .file("app/first", "linked")
            .file("app/set", "s");
        room.file(&format!("app/{long}"), "long").file("app/new\nline", "newline");
        fs::hard_link(room.at("app/first"), room.at("app/second")).unwrap();
        fs::set_permissions(room.at("app/set"), fs::Permissions::from_mode(0o6755)).unwrap();
        fs::write(room.at("app").join(std::ffi::OsStr::from_bytes(b"\xff\xfe")), "bytes").unwrap();
        let sparse = File::create(room.at("app/sparse")).unwrap();
        sparse.set_len(3 << 20).unwrap();
        rustix::io::pwrite(&sparse, b"end", (3 << 20) - 3).unwrap();
        xattr::set(room.at("app/set"), "user.key", b"value").unwrap();
        // The kernel finishes a running write before its time stamps count; see the scan.
        let (outcome, _) = kit.build(&room, "app").await;
        let files = kit.layers(&outcome.unwrap());
        let content = |path: &str| String::from_utf8_lossy(&files[path].3).into_owned();
        assert_eq!((content(&long), content("new\nline")), ("long".to_owned(), "newline".to_owned()));
        assert_eq!(files["set"].1, 0o6755);
        assert_eq!((files["second"].0, files["second"].2.as_str()), ('h', "first"));
        assert_eq!(files["sparse"].3.len(), 3 << 20);
        assert!(files["sparse"].3.ends_with(b"\0end"));
        assert_eq!(files["\u{fffd}\u{fffd}"].3, b"bytes");
        assert_eq!(fs::metadata(room.at("app/first")).unwrap().nlink(), 2);
        // A change of an attribute alone makes another version of the tree.
        let before = room.files("app", "Dockerfile", &["."]).await.0.context_session;
        xattr::set(room.at("app/set"), "user.key", b"other").unwrap();
        let after = room.files("app", "Dockerfile", &["."]).await.0.context_session;
        assert!(before.id != after.id && before.shared_key != after.shared_key);
    })
    .await;
}
