mod names;

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;

use hearth_model::access::SymlinkPolicy;
use hearth_model::{MountAccess, Reference};
use sha2::{Digest as _, Sha256};

use super::*;
use crate::port::FileKind;
use crate::storage::{StorageError, StorageRoot};

struct Daemon {
    directory: tempfile::TempDir,
    contexts: ContextPreparer,
}

impl Daemon {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("secret"), "canary").unwrap();
        let contexts = Self::start(&directory);
        Self { directory, contexts }
    }

    fn start(directory: &tempfile::TempDir) -> ContextPreparer {
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

    fn fifo(&self, path: &str) {
        let mode = rustix::fs::Mode::from_raw_mode(0o644);
        rustix::fs::mknodat(rustix::fs::CWD, self.at(path), rustix::fs::FileType::Fifo, mode, 0).unwrap();
    }

    async fn prepare(
        &self,
        request: ContextRequest<Vec<u8>>,
    ) -> Result<ScannedContext<Vec<u8>>, ContextError> {
        self.contexts.prepare(request).await
    }
}

fn target(path: &str) -> MountTarget {
    path.parse().unwrap()
}

fn mount(source: BuildMountSource, at: &str) -> ContextMount {
    ContextMount {
        spec: BuildMount { source, target: target(at), mode: MountAccess::ReadOnly, create: false },
        image: None,
        pack: None,
        links: SymlinkPolicy::Followed,
    }
}

fn room(path: &str, at: &str) -> ContextMount {
    mount(BuildMountSource::Room(path.to_owned()), at)
}

fn request(mounts: Vec<ContextMount>) -> ContextRequest<Vec<u8>> {
    ContextRequest {
        mounts,
        context_path: target("/context"),
        dockerfile: DockerfilePath::Search,
        target: None,
        parse: Box::new(|text| (text, CopySelection::default())),
    }
}

fn app() -> ContextRequest<Vec<u8>> {
    request(vec![room("app", "/context")])
}

fn at(path: &str, request: ContextRequest<Vec<u8>>) -> ContextRequest<Vec<u8>> {
    ContextRequest { dockerfile: DockerfilePath::At(target(path)), ..request }
}

fn files_of(tree: &dyn FileTree) -> Vec<(String, String)> {
    let mut files = Vec::new();
    for (index, entry) in tree.entries().enumerate() {
        if entry.kind == FileKind::File(()) {
            let mut text = String::new();
            tree.open(index).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text.len() as u64, entry.size);
            files.push((String::from_utf8(entry.path.to_vec()).unwrap(), text));
        }
    }
    files
}

fn pair(a: &str, b: &str) -> (String, String) {
    (a.to_owned(), b.to_owned())
}

fn pack(files: &[(&str, &str)]) -> OpenedImage {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
    let tar = builder.into_inner().unwrap();
    let stored = zstd::encode_all(&tar[..], 3).unwrap();
    let digest = |bytes: &[u8]| Digest::from_sha256(Sha256::digest(bytes).into());
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&stored).unwrap();
    let layer = LayerBlob {
        digest: digest(&stored),
        diff_id: digest(&tar),
        media_type: "application/vnd.oci.image.layer.v1.tar+zstd".to_owned(),
        file,
    };
    OpenedImage { manifest: digest(&tar), layers: vec![layer] }
}

fn packed(image: OpenedImage, at: &str) -> ContextMount {
    let mount = mount(BuildMountSource::Pack("0123456789ab".to_owned()), at);
    ContextMount { image: Some(image), ..mount }
}

#[tokio::test]
async fn a_containerfile_is_found_before_a_dockerfile() {
    let daemon = Daemon::new();
    daemon.file("app/Dockerfile", "FROM a").file("app/main", "m");
    let prepared = daemon.prepare(app()).await.unwrap();
    assert_eq!(
        (prepared.dockerfile_path.as_str(), &prepared.dockerfile[..]),
        ("/context/Dockerfile", &b"FROM a"[..])
    );
    daemon.file("app/Containerfile", "FROM b").file("app/Containerfile.dockerignore", "main");
    let prepared = daemon.prepare(app()).await.unwrap();
    let files = prepared.into_files(b"# changed\nFROM b".to_vec());
    assert_eq!(files.dockerfile_name, "Containerfile");
    assert_eq!(
        files_of(&*files.dockerfile),
        [pair("Containerfile", "# changed\nFROM b"), pair("Containerfile.dockerignore", "main")]
    );
    assert_eq!(files_of(&*files.context).len(), 4);
}

#[tokio::test]
async fn the_dockerfile_may_lie_in_another_mount() {
    let daemon = Daemon::new();
    daemon.file("app/main", "m").file("build/web.Dockerfile", "FROM x");
    let mounts = vec![room("app", "/context"), room("build", "/build")];
    let prepared = daemon.prepare(at("/build/web.Dockerfile", request(mounts))).await.unwrap();
    assert_eq!(prepared.dockerfile, b"FROM x");
    let files = prepared.into_files(b"FROM x".to_vec());
    assert_eq!(files_of(&*files.context), [pair("main", "m")]);
}

#[tokio::test]
async fn without_a_dockerfile_the_error_lists_what_was_looked_for() {
    let daemon = Daemon::new();
    daemon.file("app/main", "m");
    let error = daemon.prepare(app()).await.map(|_| ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "no Dockerfile: looked for `/context/Containerfile`, `/context/Dockerfile`"
    );
    assert_eq!((error.code().as_str(), error.fault().retryable), ("dockerfile_not_found", false));
    let error = daemon.prepare(at("/context/x", app())).await.map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "no Dockerfile: looked for `/context/x`");
}

#[tokio::test]
async fn a_dockerfile_or_ignore_file_that_leads_out_or_hangs_is_refused() {
    for name in ["Dockerfile", "Dockerfile.dockerignore", ".dockerignore"] {
        let daemon = Daemon::new();
        daemon.file("app/main", "m");
        if name != "Dockerfile" {
            daemon.file("app/Dockerfile", "FROM x");
        }
        let path = daemon.at("app").join(name);
        for link in ["/etc/passwd", "../../secret", "/proc/self/environ"] {
            symlink(link, &path).unwrap();
            let error = daemon.prepare(app()).await.map(|_| ()).unwrap_err();
            // BuildKit resolves an absolute link in the context from the context's root, where it dangles.
            let refused =
                matches!(error, ContextError::LinkOutOfTree { .. } | ContextError::DanglingLink { .. });
            assert!(refused, "{name} -> {link}: {error}");
            fs::remove_file(&path).unwrap();
        }
        daemon.fifo(&format!("app/{name}"));
        let error = daemon.prepare(app()).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, ContextError::NotAFile { what: "a fifo", .. }), "{name}: {error}");
        fs::remove_file(&path).unwrap();
        fs::write(&path, vec![b'x'; (1 << 20) + 1]).unwrap();
        let error = daemon.prepare(app()).await.map(|_| ()).unwrap_err();
        assert!(matches!(error, ContextError::TooLarge { .. }), "{name}: {error}");
    }
}

#[tokio::test]
async fn a_directory_counts_as_no_ignore_file_and_is_no_dockerfile() {
    let daemon = Daemon::new();
    daemon.file("app/Dockerfile", "FROM x");
    fs::create_dir(daemon.at("app/.dockerignore")).unwrap();
    fs::create_dir(daemon.at("app/Dockerfile.dockerignore")).unwrap();
    assert!(daemon.prepare(app()).await.unwrap().ignore.is_none());
    daemon.file("app/d/x", "");
    let error = daemon.prepare(at("/context/d", app())).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, ContextError::NotAFile { what: "a directory", .. }), "{error}");
}

#[tokio::test]
async fn an_ignore_file_of_its_own_replaces_that_of_the_context_even_a_bad_one() {
    let daemon = Daemon::new();
    daemon.file("app/Dockerfile", "FROM x").file("app/Dockerfile.dockerignore", "");
    daemon.fifo("app/.dockerignore");
    assert_eq!(daemon.prepare(app()).await.unwrap().ignore, Some(Vec::new()));
}

#[tokio::test]
async fn sources_that_are_missing_or_outside_are_named() {
    let daemon = Daemon::new();
    symlink("..", daemon.at("out")).unwrap();
    let error = daemon.prepare(app()).await.map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "mount `/context`: `app` does not exist in this storage");
    let error = daemon.prepare(request(vec![room("out", "/context")])).await.map(|_| ()).unwrap_err();
    assert!(matches!(error, ContextError::Source { source: StorageError::Escapes { .. }, .. }), "{error}");
    assert_eq!(error.code(), "source_outside_storage");
    let bare = request(vec![mount(BuildMountSource::Pack("0123456789ab".to_owned()), "/context")]);
    assert!(matches!(daemon.prepare(bare).await.map(|_| ()), Err(ContextError::ImageNotOpened { .. })));
}

#[tokio::test]
async fn packs_images_storages_and_empty_directories_make_one_tree() {
    let daemon = Daemon::new();
    daemon.file("app/f", "room");
    fs::write(daemon.directory.path().join("project/p"), "project").unwrap();
    fs::create_dir(daemon.at("void")).unwrap();
    let reference: Reference = "room.meshagent.com/assets:2".parse().unwrap();
    let image = BuildMountSource::Image { reference: reference.clone(), subpath: "usr/share".to_owned() };
    let image = ContextMount {
        image: Some(pack(&[("usr/share/a", "image"), ("etc/b", "no")])),
        ..mount(image, "/context/image")
    };
    let mounts = vec![
        packed(pack(&[("Dockerfile", "FROM x"), ("room/hidden", "no")]), "/context"),
        room("app", "/context/room"),
        mount(BuildMountSource::Project(String::new()), "/context/room/deep"),
        room("void", "/context/empty"),
        image,
    ];
    let files = daemon.prepare(request(mounts)).await.unwrap().into_files(Vec::new());
    let expected = [
        pair("Dockerfile", "FROM x"),
        pair("image/a", "image"),
        pair("room/deep/p", "project"),
        pair("room/f", "room"),
    ];
    assert_eq!(files_of(&*files.context), expected);
    assert!(files.context.entries().any(|entry| entry.path == b"empty"));
    let wrong = BuildMountSource::Image { reference, subpath: "none".to_owned() };
    let wrong = ContextMount { image: Some(pack(&[("a", "")])), ..mount(wrong, "/context") };
    assert!(matches!(
        daemon.prepare(request(vec![wrong])).await.map(|_| ()),
        Err(ContextError::SubpathNotFound { .. })
    ));
}

#[tokio::test]
async fn equal_requests_share_a_key_until_a_change_hides_from_the_stat() {
    let daemon = Daemon::new();
    daemon.file("app/Dockerfile", "FROM x").file("app/f", "11");
    let key = async |request| daemon.prepare(request).await.unwrap().session.shared_key;
    let first = key(app()).await;
    assert_eq!(key(app()).await, first);
    daemon.file("app/g", "new");
    assert_eq!(key(app()).await, first, "a new file is a change that BuildKit sees");
    let before = fs::metadata(daemon.at("app/f")).unwrap().modified().unwrap();
    daemon.file("app/f", "22");
    fs::File::options().write(true).open(daemon.at("app/f")).unwrap().set_modified(before).unwrap();
    let second = key(app()).await;
    assert_ne!(second, first, "equal path, mode, size and mtime, other content");
    assert_eq!(key(app()).await, second);
    assert_ne!(key(ContextRequest { target: Some("s".to_owned()), ..app() }).await, second);
    let restarted = Daemon::start(&daemon.directory);
    assert_ne!(restarted.prepare(app()).await.unwrap().session.shared_key, second);
}

#[tokio::test]
async fn directories_and_packs_that_look_alike_never_share_a_key() {
    let daemon = Daemon::new();
    let time = std::time::SystemTime::UNIX_EPOCH;
    for (directory, content) in [("one", "11"), ("two", "22")] {
        daemon.file(&format!("{directory}/Dockerfile"), "FROM x").file(&format!("{directory}/f"), content);
        let file = fs::File::options().write(true).open(daemon.at(directory).join("f")).unwrap();
        file.set_modified(time).unwrap();
    }
    let key = async |mount| daemon.prepare(request(vec![mount])).await.unwrap().session.shared_key;
    assert_ne!(key(room("one", "/context")).await, key(room("two", "/context")).await);
    // The room's name for a directory may later mean another directory.
    let first = key(room("one", "/context")).await;
    fs::rename(daemon.at("one"), daemon.at("old")).unwrap();
    fs::rename(daemon.at("two"), daemon.at("one")).unwrap();
    assert_ne!(key(room("one", "/context")).await, first);
    let image = |content: &str| packed(pack(&[("Dockerfile", "FROM x"), ("f", content)]), "/context");
    let first = key(image("11")).await;
    assert_ne!(key(image("22")).await, first);
    assert_eq!(key(image("11")).await, first);
}

#[test]
fn another_dockerfile_of_equal_size_has_another_time() {
    let of = |content: &str| {
        let tree = MemoryTree::new(vec![("Dockerfile".to_owned(), content.into())]);
        let entry = tree.entry(0);
        (entry.path.to_vec(), entry.size, entry.mtime)
    };
    assert_eq!(of("FROM a"), of("FROM a"));
    assert_ne!(of("FROM a").2, of("FROM b").2);
}

#[tokio::test]
async fn a_context_that_changed_under_its_transfer_never_has_that_name_again() {
    let daemon = Daemon::new();
    daemon.file("app/Dockerfile", "FROM x").file("app/f", "1");
    let prepared = async || daemon.prepare(app()).await.unwrap();
    let first = prepared().await;
    let (id, identity) = (first.session.id.clone(), first.identity.clone());
    let files = first.into_files(Vec::new());
    files.watch.files_sent();
    let unchanged = prepared().await.session.id;
    fs::write(daemon.at("app/f"), "2").unwrap();
    files.watch.files_sent();
    fs::write(daemon.at("app/f"), "1").unwrap();
    let time = fs::metadata(daemon.at("app/Dockerfile")).unwrap().modified().unwrap();
    fs::File::options().write(true).open(daemon.at("app/f")).unwrap().set_modified(time).unwrap();
    let after = prepared().await;
    assert_eq!((unchanged, after.identity.digest), (id.clone(), identity.digest));
    assert_ne!(after.session.id, id);
    let restarted = Daemon::start(&daemon.directory).prepare(app()).await.unwrap();
    assert_eq!(restarted.session.id, after.session.id);
}

#[tokio::test]
async fn names_and_hashes_outlive_the_daemon_and_damage_only_costs_time() {
    let daemon = Daemon::new();
    daemon.file("app/Dockerfile", "FROM x").file("app/f", "1");
    std::thread::sleep(std::time::Duration::from_millis(40));
    let first = daemon.prepare(app()).await.unwrap();
    daemon.contexts.save().await;
    let state = daemon.directory.path().join("state/context");
    assert!(fs::metadata(state.join("hashes")).unwrap().len() > 2 * 72);
    let again = Daemon::start(&daemon.directory);
    let next = again.prepare(app()).await.unwrap();
    assert_eq!((&next.session, &next.identity), (&first.session, &first.identity));
    assert!(!state.join("lineages").exists(), "true only between two runs");
    again.save().await;
    for name in ["hashes", "lineages"] {
        fs::write(state.join(name), "damaged").unwrap();
    }
    let damaged = Daemon::start(&daemon.directory).prepare(app()).await.unwrap();
    assert_eq!((&damaged.session.id, &damaged.identity), (&first.session.id, &first.identity));
    assert_ne!(damaged.session.shared_key, first.session.shared_key);
}

#[tokio::test]
async fn the_id_of_a_context_is_that_of_what_can_be_copied() {
    let daemon = Daemon::new();
    daemon.file("app/Dockerfile", "FROM x").file("app/src/f", "1").file("app/.git/index", "1");
    daemon.file("app/.dockerignore", ".git\n");
    let id = async |roots: Option<&[u8]>| {
        let selection = roots.map_or_else(CopySelection::default, |root| CopySelection::of([root.to_vec()]));
        let request = ContextRequest { parse: Box::new(move |text| (text, selection)), ..app() };
        daemon.prepare(request).await.unwrap().session.id
    };
    let (all, src) = (id(None).await, id(Some(b"src")).await);
    assert_ne!(all, src);
    daemon.file("app/.git/index", "22");
    assert_eq!((id(None).await, id(Some(b"src")).await), (all.clone(), src.clone()));
    daemon.file("app/Dockerfile", "FROM y");
    assert_ne!(id(None).await, all);
    assert_eq!(id(Some(b"src")).await, src);
    daemon.file("app/src/f", "2");
    assert_ne!(id(Some(b"src")).await, src);
}

/// Waits until a later write certainly gets another time stamp, then prepares until the scan cache has a
/// result.
async fn looked_at_until_known(
    daemon: &Daemon,
    request: impl Fn() -> ContextRequest<Vec<u8>>,
) -> ScannedContext<Vec<u8>> {
    tokio::time::sleep(std::time::Duration::from_millis(60)).await;
    daemon.prepare(request()).await.unwrap();
    daemon.prepare(request()).await.unwrap();
    let recall = daemon.contexts.0.records.scan_cache();
    let (known, again) = (recall.found(), recall.revalidated());
    let prepared = daemon.prepare(request()).await.unwrap();
    assert_eq!(recall.found(), known + 1, "the look was not known again");
    assert_eq!(recall.revalidated(), again + 1, "the files were scanned");
    prepared
}

#[tokio::test]
async fn a_tree_that_is_known_again_is_the_same_and_any_change_is_seen() {
    let daemon = Daemon::new();
    daemon.file("app/Dockerfile", "FROM a").file("app/main", "aaaa").file("app/lib/one", "1");
    fs::hard_link(daemon.at("app/main"), daemon.at("app/other")).unwrap();
    daemon.file("app/.dockerignore", "hidden").file("app/hidden", "h");
    let scanned = daemon.prepare(app()).await.unwrap();
    let known = looked_at_until_known(&daemon, app).await;
    assert_eq!((&known.identity, &known.session), (&scanned.identity, &scanned.session));
    let covered = |prepared: &ScannedContext<Vec<u8>>| {
        let tree = &prepared.context;
        (0..tree.len()).map(|index| tree.is_covered(index)).collect::<Vec<_>>()
    };
    assert_eq!(covered(&known), covered(&scanned));
    assert!(covered(&known).contains(&false), "the ignore file hides something");

    type Change = fn(&Daemon);
    let changes: [(&str, Change); 8] = [
        ("content of the same length, with the time set back", |daemon| {
            let path = daemon.at("app/main");
            let modified = fs::metadata(&path).unwrap().modified().unwrap();
            fs::write(&path, "bbbb").unwrap();
            fs::File::options().write(true).open(&path).unwrap().set_modified(modified).unwrap();
        }),
        ("a mode", |daemon| {
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o600);
            fs::set_permissions(daemon.at("app/lib"), mode).unwrap();
        }),
        ("a name", |daemon| fs::rename(daemon.at("app/lib/one"), daemon.at("app/lib/two")).unwrap()),
        ("a link in place of a file", |daemon| {
            fs::remove_file(daemon.at("app/lib/two")).unwrap();
            symlink("../main", daemon.at("app/lib/two")).unwrap();
        }),
        ("another target of the link", |daemon| {
            fs::remove_file(daemon.at("app/lib/two")).unwrap();
            symlink("../othe", daemon.at("app/lib/two")).unwrap();
        }),
        ("a hard link that is none any more", |daemon| {
            fs::remove_file(daemon.at("app/other")).unwrap();
            fs::copy(daemon.at("app/main"), daemon.at("app/other")).unwrap();
        }),
        ("an empty directory", |daemon| fs::create_dir(daemon.at("app/lib/empty")).unwrap()),
        ("what the ignore file hides", |daemon| _ = daemon.file("app/.dockerignore", "hiddex")),
    ];
    let mut last = known;
    for (what, change) in changes {
        change(&daemon);
        let now = daemon.prepare(app()).await.unwrap();
        assert_ne!(now.identity.digest, last.identity.digest, "{what}");
        assert_ne!(now.session.id, last.session.id, "{what}");
        last = looked_at_until_known(&daemon, app).await;
        assert_eq!(last.identity, now.identity, "{what}");
    }
    // The ignore file determines which directories a scan reads.
    assert_eq!(daemon.contexts.0.records.scan_cache().kept(), 2, "one version for each ignore file");
}

#[tokio::test]
async fn the_same_files_with_another_selection_or_mount_are_not_the_known_ones() {
    let daemon = Daemon::new();
    daemon.file("app/Dockerfile", "FROM a").file("app/lib/one", "1").file("app/src/two", "2");
    let selected = |path: &'static str| {
        move || {
            let selection = CopySelection::of([path.as_bytes().to_vec()]);
            ContextRequest { parse: Box::new(move |text| (text, selection)), ..app() }
        }
    };
    let lib = looked_at_until_known(&daemon, selected("lib")).await;
    let src = daemon.prepare(selected("src")()).await.unwrap();
    let all = looked_at_until_known(&daemon, app).await;
    let elsewhere =
        || ContextRequest { context_path: target("/elsewhere"), ..request(vec![room("app", "/elsewhere")]) };
    let elsewhere = looked_at_until_known(&daemon, elsewhere).await;
    assert_ne!(lib.identity.digest, src.identity.digest);
    assert_ne!(lib.identity.digest, all.identity.digest);
    assert_eq!(elsewhere.identity.digest, all.identity.digest);
    assert_eq!(elsewhere.identity.mounts[0].0.as_str(), "/elsewhere");
}
