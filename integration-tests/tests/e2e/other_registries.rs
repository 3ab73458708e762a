//! Images of other registries: push, pull, deploy, mounts and base images. A second daemon is the other registry, which
//! requires tokens, and skopeo reads both.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use integration_tests::daemon::{Daemon, Options, scratch};
use integration_tests::http::Request;
use integration_tests::image::Image;
use integration_tests::lone_cases;
use integration_tests::process::{self, Output};
use integration_tests::runner::Group;
use integration_tests::service::{App, page};
use integration_tests::skopeo::skopeo;
use integration_tests::sources::{Tree, base_tree, noise, sha256};
use integration_tests::wait::seconds;
use serde_json::json;

pub fn group() -> Group {
    Group::new(
        "other_registries",
        lone_cases![
            an_image_goes_to_another_registry_and_comes_back,
            a_saved_image_loads_to_the_same_digest,
            a_pack_can_be_based_on_an_image_of_the_room_of_a_registry_and_of_a_mirror,
            an_archive_and_a_room_get_the_same_bytes,
            an_image_of_another_registry_becomes_a_service,
            a_build_mounts_an_image_of_another_registry,
            from_goes_through_the_mirror,
            a_build_tagged_for_another_registry_is_pushed_there,
            access_to_another_registry_needs_the_grant,
        ],
    )
    .in_sequence()
}

/// Address at which nothing listens.
const CLOSED_PORT: &str = "127.0.0.1:1";

/// A room, and a second daemon that is a remote registry to it.
struct Pair {
    room: Daemon,
    other: Daemon,
}

impl Pair {
    /// Starts a pair whose room may connect to the registry at its loopback address. The room has no credentials for it.
    fn start(name: &str) -> Self {
        let other = Daemon::start(Options::room(&format!("{name}-o")));
        let room = Daemon::start(Options::room(name).registries(&[&other.listen(), CLOSED_PORT]));
        Self { room, other }
    }

    /// Starts a pair whose room uses the other registry as a mirror of Docker Hub, with credentials from a file.
    fn mirrored(name: &str) -> Self {
        let other = Daemon::start(Options::room(&format!("{name}-o")));
        let file = scratch().join(format!("{name}-credentials.toml"));
        let entry = format!("['{}']\nusername = 'any'\npassword = '{}'\n", other.listen(), other.token());
        fs::write(&file, entry).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let mirror = format!("docker.io=http://{}", other.listen());
        let options = Options::room(name).arguments(&[
            "--registry-mirror",
            &mirror,
            "--registry-credentials",
            file.to_str().unwrap(),
        ]);
        let room = Daemon::start(options);
        Self { room, other }
    }

    /// Returns the full name of an image in the other registry.
    fn remote_name(&self, name: &str) -> String {
        format!("{}/{name}", self.other.listen())
    }

    fn cred(&self) -> String {
        format!("any,{}", self.other.token())
    }

    /// Returns the credential with the registry's name, as builds take it.
    fn named_cred(&self) -> String {
        format!("{},any,{}", self.other.listen(), self.other.token())
    }
}

fn pack(daemon: &Daemon, tree: &Tree, tag: &str) -> String {
    pack_for(daemon, tree, tag, "amd64")
}

fn pack_for(daemon: &Daemon, tree: &Tree, tag: &str, architecture: &str) -> String {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    tree.write(work.path());
    daemon.hearth_ok(&["pack", text(work.path()), "--tag", tag, "--arch", architecture]).line().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn sample() -> Tree {
    Tree::new().file("index.html", "<h1>hi</h1>\n").file("large", noise(5, 3_000_000))
}

fn an_image_goes_to_another_registry_and_comes_back() {
    let pair = Pair::start("away");
    let digest = pack(&pair.room, &sample(), "team/app:1");
    let target = pair.remote_name("copies/app:2");

    let denied = pair.room.hearth(&["images", "push", "team/app:1", &target]);
    denied.expect_code(3).says(&["401", "--cred"]);
    let wrong = pair.room.hearth(&["images", "push", "team/app:1", &target, "--cred", "any,hunter2"]);
    wrong.expect_code(3);
    assert!(!wrong.stderr.contains("hunter2") && !pair.room.log().contains("hunter2"), "{wrong}");
    assert_eq!(pair.other.tag_digest("copies/app", "2"), None);

    let pushed = pair.room.hearth_ok(&["images", "push", "team/app:1", &target, "--cred", &pair.cred()]);
    assert_eq!(pushed.line(), digest);
    assert_eq!(pair.other.tag_digest("copies/app", "2"), Some(digest.clone()));
    assert_eq!(pair.other.image("copies/app:2").file("index.html"), "<h1>hi</h1>\n");
    let again =
        pair.room.hearth_ok(&["images", "push", "team/app:1", &target, "--cred", &pair.cred(), "--json"]);
    assert_eq!(again.json()["sent_bytes"], 0, "{again}");
    assert!(!pair.room.log().contains(pair.other.token()));

    // Without a target, the image's name is the target.
    pair.room.hearth_ok(&["images", "push", &pair.remote_name("team/app:1"), "--cred", &pair.cred()]);
    assert_eq!(pair.other.tag_digest("team/app", "1"), Some(digest.clone()));

    pair.room.hearth_ok(&["images", "rm", "team/app:1"]);
    let pulled = pair.room.hearth_ok(&["images", "pull", &target, "--tag", "back:1", "--cred", &pair.cred()]);
    assert_eq!(pulled.line(), digest);
    assert_eq!(pair.room.image("back:1").file("index.html"), "<h1>hi</h1>\n");
    pair.room.hearth_ok(&["images", "pull", &target, "--cred", &pair.cred()]);
    assert_eq!(pair.room.tag_digest("copies/app", "2"), Some(digest));

    let missing =
        pair.room.hearth(&["images", "pull", &pair.remote_name("no/such:1"), "--cred", &pair.cred()]);
    missing.expect_code(1).says(&["no image", "no/such:1"]);
    let gone = pair.room.hearth(&["images", "pull", "127.0.0.1:1/x:1", "--json"]);
    assert_ne!(gone.code, 0);
    assert_eq!(gone.json()["error"]["code"], "registry_unreachable", "{gone}");
}

fn a_saved_image_loads_to_the_same_digest() {
    let pair = Pair::start("saved");
    let digest = pack(&pair.room, &sample(), "app:1");
    let second = pack_for(&pair.room, &Tree::new().file("arm", "64"), "arm:1", "arm64");
    let index = index_of(&pair.room, "both", &[("amd64", "app", &digest), ("arm64", "arm", &second)]);

    let file = |name: &str| pair.room.directory().join(name);
    for (image, digest, name) in [("app:1", &digest, "app.tar"), ("both:1", &index, "both.tar")] {
        let saved = pair.room.hearth_ok(&["images", "save", image, "-o", text(&file(name))]);
        assert_eq!(saved.line(), digest);
        let again = file("again.tar");
        pair.room.hearth_ok(&["images", "save", image, "-o", text(&again)]);
        assert!(fs::read(file(name)).unwrap() == fs::read(&again).unwrap(), "{image} saved twice");
        let piped = pair.room.client().args(["images", "save", image, "-o", "-"]).output().unwrap();
        assert!(piped.stdout == fs::read(file(name)).unwrap(), "{image} to standard output");
        let loaded = pair.other.hearth_ok(&["images", "load", text(&file(name)), "--tag", "loaded:1"]);
        assert_eq!(loaded.line(), digest);
        assert_eq!(pair.other.tag_digest("loaded", "1"), Some(digest.clone()));
    }
    let saved = Image::from_archive(&file("app.tar"));
    assert_eq!(saved.file("index.html"), "<h1>hi</h1>\n");
    let name = &saved.index["manifests"][0]["annotations"]["org.opencontainers.image.ref.name"];
    assert_eq!(name, "room.meshagent.com/app:1");
    skopeo(&["inspect", &format!("oci-archive:{}", file("app.tar").display())]).expect_code(0);
    skopeo(&["inspect", "--raw", &format!("oci-archive:{}", file("both.tar").display())]).expect_code(0);

    // An index is also pushed and pulled whole.
    pair.room.hearth_ok(&["images", "push", "both:1", &pair.remote_name("both:1"), "--cred", &pair.cred()]);
    assert_eq!(pair.other.tag_digest("both", "1"), Some(index.clone()));
    let one = [
        "images",
        "pull",
        &pair.remote_name("both:1"),
        "--tag",
        "one:1",
        "--arch",
        "arm64",
        "--cred",
        &pair.cred(),
    ];
    assert_eq!(pair.room.hearth_ok(&one).line(), second);
    let all = [
        "images",
        "pull",
        &pair.remote_name("both:1"),
        "--tag",
        "all:1",
        "--all-platforms",
        "--cred",
        &pair.cred(),
    ];
    assert_eq!(pair.room.hearth_ok(&all).line(), index);

    let unwritable = pair.room.hearth(&["images", "save", "app:1", "-o", "/nowhere/app.tar"]);
    unwritable.expect_code(2).says(&["/nowhere/app.tar"]);
    let missing = pair.room.hearth(&["images", "save", "no/such:1", "-o", text(&file("none.tar"))]);
    missing.expect_code(1).says(&["no/such:1"]);
    assert!(!file("none.tar").exists());
}

/// Puts an index of images of the room into a repository, together with the images, and returns its digest.
fn index_of(daemon: &Daemon, repository: &str, images: &[(&str, &str, &str)]) -> String {
    let mut manifests = Vec::new();
    for (architecture, from, digest) in images {
        let tag = format!("{repository}:{architecture}");
        daemon.hearth_ok(&["images", "tag", &format!("{from}:1"), &tag]);
        let head = Request::new("GET", &format!("/v2/{repository}/manifests/{digest}"))
            .header("accept", "application/vnd.oci.image.manifest.v1+json")
            .bearer(daemon.token())
            .send(&daemon.listen());
        let size = head.expect(200).body.len();
        manifests.push(json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest,
            "size": size, "platform": {"os": "linux", "architecture": architecture}}));
    }
    let media_type = "application/vnd.oci.image.index.v1+json";
    let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}).to_string();
    Request::new("PUT", &format!("/v2/{repository}/manifests/1"))
        .header("content-type", media_type)
        .bearer(daemon.token())
        .body(index.clone())
        .send(&daemon.listen())
        .expect(201);
    sha256(index.as_bytes())
}

fn a_pack_can_be_based_on_an_image_of_the_room_of_a_registry_and_of_a_mirror() {
    let pair = Pair::start("based");
    let base = Tree::new().file("base", "below").file("large", noise(9, 2_000_000));
    let work = tempfile::tempdir_in(pair.room.directory()).unwrap();
    base.write(work.path());
    let declared = ["--env", "FROM_BASE=1", "--cmd", "[\"sh\"]"];
    let there = |name: &str| {
        pair.other.hearth_ok(&[&["pack", text(work.path()), "--tag", name], &declared[..]].concat());
    };
    there("team/base:1");
    there("library/python:3.13");
    pair.room.hearth_ok(&[&["pack", text(work.path()), "--tag", "base:1"], &declared[..]].concat());

    let tree = tempfile::tempdir_in(pair.room.directory()).unwrap();
    Tree::new().file("top", "above").write(tree.path());
    let archive = pair.room.directory().join("app.tar");
    let packed = |more: &[&str], environment: &[(&str, &str)]| -> Output {
        let _ = fs::remove_file(&archive);
        let mut command = pair.room.client();
        command.args(["pack", text(tree.path()), "-o", text(&archive)]).args(more);
        command.envs(environment.iter().copied());
        process::run(&mut command, seconds(60))
    };
    let check = |output: &Output| {
        output.expect_code(0);
        let image = Image::from_archive(&archive);
        assert_eq!((image.file("base").as_str(), image.file("top").as_str()), ("below", "above"));
        assert_eq!(image.config["config"]["Env"], json!(["FROM_BASE=1"]));
        output.line().to_owned()
    };

    // Packs over the unix socket, with no token.
    let of_room = check(&packed(&["--base", "room.meshagent.com/base:1"], &[]));
    let of_registry =
        check(&packed(&["--base", &pair.remote_name("team/base:1"), "--cred", &pair.cred()], &[]));
    assert_eq!(of_room, of_registry, "the same base gives the same image, wherever it lies");

    // Docker's own configuration has the credentials for the mirror of Docker Hub.
    let config = tempfile::tempdir_in(pair.room.directory()).unwrap();
    let auth = STANDARD.encode(format!("any:{}", pair.other.token()));
    let auths = json!({"auths": {pair.other.listen(): {"auth": auth}}}).to_string();
    fs::write(config.path().join("config.json"), auths).unwrap();
    let mirror = format!("docker.io=http://{}", pair.other.listen());
    let environment = [("DOCKER_CONFIG", text(config.path())), ("HEARTH_REGISTRY_MIRROR", &mirror)];
    assert_eq!(check(&packed(&["--base", "python:3.13"], &environment)), of_registry);

    // The same with a credential helper that the configuration names.
    let helpers = tempfile::tempdir_in(pair.room.directory()).unwrap();
    let helper = helpers.path().join("docker-credential-of-the-test");
    let secret = json!({"ServerURL": pair.other.listen(), "Username": "any", "Secret": pair.other.token()});
    fs::write(&helper, format!("#!/bin/sh\ngrep -q '^{}$' && echo '{secret}'\n", pair.other.listen()))
        .unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    let with_helper = json!({"credHelpers": {pair.other.listen(): "of-the-test"}}).to_string();
    fs::write(helpers.path().join("config.json"), with_helper).unwrap();
    let path = format!("{}:{}", helpers.path().display(), std::env::var("PATH").unwrap());
    let with_helper = [("DOCKER_CONFIG", text(helpers.path())), ("PATH", &*path)];
    assert_eq!(check(&packed(&["--base", &pair.remote_name("team/base:1")], &with_helper)), of_registry);

    // A cached blob is not fetched again, and a damaged one is not used.
    let cache = pair.room.directory().join("home/.cache/hearth/blobs/sha256");
    let largest = fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
    let largest = largest.max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap();
    let mut content = fs::read(&largest).unwrap();
    content[1000] ^= 1;
    fs::write(&largest, content).unwrap();
    assert_eq!(check(&packed(&["--base", "python:3.13"], &environment)), of_registry);

    let denied = packed(&["--base", &pair.remote_name("team/base:1")], &[]);
    denied.expect_code(3).says(&["401"]);
    assert!(!archive.exists());
    let other = packed(
        &["--base", &pair.remote_name("team/base:1"), "--cred", &pair.cred(), "--arch", "arm/v7"],
        &[],
    );
    other.expect_code(1).says(&["linux/arm/v7", "linux/amd64"]);
    packed(&["--base", "127.0.0.1:1/none:1"], &[]).expect_code(4).says(&["127.0.0.1:1"]);
    packed(&["--base", "No Name"], &[]).expect_code(2).says(&["oci-archive:"]);
    packed(&["--base", "room.meshagent.com/no/such:1"], &[]).expect_code(1).says(&["no/such:1"]);
}

fn an_archive_and_a_room_get_the_same_bytes() {
    let room = Daemon::start(Options::room("both"));
    let tree = tempfile::tempdir_in(room.directory()).unwrap();
    sample().write(tree.path());
    let archive = room.directory().join("app.tar");
    let packed = room.hearth_ok(&[
        "pack",
        text(tree.path()),
        "-o",
        text(&archive),
        "--room",
        "both",
        "--tag",
        "app:1",
        "--room-path",
        "packs/app.tar",
    ]);
    assert_eq!(room.tag_digest("app", "1").as_deref(), Some(packed.line()));
    let local = fs::read(&archive).unwrap();
    assert!(
        local == fs::read(room.room_files().join("packs/app.tar")).unwrap(),
        "the copy in storage differs"
    );
    let saved = room.directory().join("saved.tar");
    room.hearth_ok(&["images", "save", "app:1", "-o", text(&saved)]);
    let (local, saved) = (Image::from_archive(&archive), Image::from_archive(&saved));
    assert!(local.blobs == saved.blobs);

    // A failed copy reports why, and no tag is set.
    fs::write(room.room_files().join("taken"), "a file").unwrap();
    let failed = room.hearth(&["pack", text(tree.path()), "--tag", "none:1", "--room-path", "taken/app.tar"]);
    failed.expect_code(1).says(&["taken"]);
    assert!(!failed.stderr.contains("truncated"), "{failed}");
    assert_eq!(room.tag_digest("none", "1"), None);
    fs::create_dir(room.room_files().join("folder")).unwrap();
    let failed = room.hearth(&["pack", text(tree.path()), "--tag", "none:1", "--room-path", "folder"]);
    failed.expect_code(1).says(&["folder"]);
    assert_eq!(room.tag_digest("none", "1"), None);
}

fn a_build_mounts_an_image_of_another_registry() {
    let pair = Pair::mirrored("mounted");
    pack(
        &pair.other,
        &Tree::new().file("assets/logo", "logo").file("large", noise(3, 2_000_000)),
        "team/assets:1",
    );
    let base = pair.room.base_image();
    pair.room.put("app", &Tree::new().dockerfile(&format!("FROM {base}\nCOPY assets/logo /logo\n")));
    let mount = format!("{}=/context/assets,subpath=assets", pair.remote_name("team/assets:1"));
    let build = |tag: &str, more: &[&str]| {
        let mut arguments = vec!["build", "--tag", tag, "--mount-room-path", "app:/context:ro"];
        arguments.extend(["--context-path", "/context", "--mount-image", &mount]);
        arguments.extend(more);
        pair.room.hearth(&arguments)
    };
    // The daemon's own credentials are used, and so are those of the build.
    build("own:1", &[]).expect_code(0);
    assert_eq!(pair.room.image("own:1").file("logo"), "logo");
    build("given:1", &["--cred", &pair.named_cred()]).expect_code(0);
    assert_eq!(pair.room.image("given:1").file("logo"), "logo");
    let wrong = build("wrong:1", &["--cred", &format!("{},any,hunter2", pair.other.listen())]);
    assert_ne!(wrong.code, 0);
    wrong.says(&["/context/assets", "401"]);
    assert!(!wrong.stderr.contains("hunter2"), "{wrong}");
    // The image that was fetched has no name in the room.
    let listed = pair.room.hearth_ok(&["images", "list", "--json"]).stdout;
    assert!(!listed.contains("assets"), "{listed}");
}

fn an_image_of_another_registry_becomes_a_service() {
    let pair = Pair::start("brought");
    App::page("one\n").pack(&pair.other, "team/web:1");
    App::page("two\n").pack(&pair.other, "team/web:2");
    let deploy = |tag: &str, more: &[&str]| {
        let image = pair.remote_name(tag);
        pair.room.hearth(&[&["deploy", "--tag", &image, "--domain", "web.test", "--public"], more].concat())
    };
    deploy("team/web:1", &[]).expect_code(3).says(&["401", "team/web", "--cred"]);
    let wrong = deploy("team/web:1", &["--cred", "any,hunter2"]);
    wrong.expect_code(3).says(&["401", "team/web"]);
    assert!(!wrong.to_string().contains("hunter2") && !pair.room.log().contains("hunter2"), "{wrong}");
    let typed = deploy("team/web:1", &["--cred", "any,hunter2", "--json"]).json();
    assert_eq!(typed["error"]["code"], "registry_denied", "{typed}");
    pair.room.hearth(&["services", "show", "team-web"]).expect_code(1);

    deploy("team/web:1", &["--cred", &pair.cred()]).expect_code(0);
    assert_eq!(page(&pair.room, "web.test"), "one\n");
    // Without credentials no new image can be fetched; the running service continues and can be restarted.
    deploy("team/web:2", &[]).expect_code(3);
    pair.room.hearth_ok(&["services", "restart", "team-web"]);
    assert_eq!(page(&pair.room, "web.test"), "one\n");
    deploy("team/web:2", &["--cred", &pair.named_cred()]).expect_code(0);
    assert_eq!(page(&pair.room, "web.test"), "two\n");
    let shown = pair.room.hearth_ok(&["services", "show", "team-web", "-o", "yaml"]).stdout;
    assert!(!shown.contains(pair.other.token()), "{shown}");
    pair.room.hearth_ok(&["services", "rm", "--now", "team-web"]);
}

fn from_goes_through_the_mirror() {
    let pair = Pair::mirrored("hub");
    let path = "PATH=/usr/sbin:/usr/bin:/sbin:/bin";
    let python = "library/python:3.13";
    pair.other.hearth_ok(&["pack", text(base_tree()), "--tag", python, "--cmd", "[\"sh\"]", "--env", path]);
    pair.room.put("app", &Tree::new().dockerfile("FROM python:3.13\nRUN echo mirrored > /proof\n"));
    pair.room.build_ok("app:1", "app", &[]);
    assert_eq!(pair.room.image("app:1").file("proof"), "mirrored\n");
    // Pulls and mounts use the mirror, too.
    let pulled = pair.room.hearth_ok(&["images", "pull", "python:3.13"]);
    assert_eq!(Some(pulled.line().to_owned()), pair.other.tag_digest("library/python", "3.13"));
    assert!(pair.room.image("python:3.13").has("bin/busybox"));
}

fn a_build_tagged_for_another_registry_is_pushed_there() {
    let pair = Pair::start("tagged");
    let base = pair.room.base_image();
    pair.room.put("app", &Tree::new().dockerfile(&format!("FROM {base}\nRUN echo built > /proof\n")));
    let target = pair.remote_name("team/app:1");
    let cred = pair.named_cred();
    let digest = pair.room.build_ok(&target, "app", &["--cred", &cred, "--also-tag", "here:1"]);
    assert_eq!(pair.other.tag_digest("team/app", "1"), Some(digest.clone()));
    assert_eq!(pair.other.image("team/app:1").file("proof"), "built\n");
    assert_eq!(pair.room.tag_digest("here", "1"), Some(digest.clone()));
    assert_eq!(pair.room.tag_digest("team/app", "1"), None, "the tag is in the other registry only");

    // A failed push leaves the image, and the error says how to push it again.
    let other = pair.remote_name("team/app:2");
    let failed = pair.room.build(&other, "app", &["--json"]);
    assert_ne!(failed.code, 0, "{failed}");
    let error = failed.json()["error"].clone();
    assert_eq!((error["code"].as_str(), error["stage"].as_str()), (Some("registry_denied"), Some("publish")));
    let hint = error["hint"].as_str().unwrap();
    let again = hint.split("push it again with: hearth ").nth(1).unwrap_or_else(|| panic!("{hint}"));
    let arguments: Vec<&str> = again.split(' ').chain(["--cred", &cred]).collect();
    pair.room.hearth_ok(&arguments);
    assert_eq!(pair.other.tag_digest("team/app", "2"), Some(digest));
}

fn access_to_another_registry_needs_the_grant() {
    let pair = Pair::start("granted");
    pack(&pair.other, &sample(), "team/app:1");
    pack(&pair.room, &sample(), "app:1");
    let all = ["*"];
    let scope = |pull: &[&str], write: &[&str]| {
        let registry = json!({"list": all, "pull": all, "run": all, "write": write});
        let containers = json!({"use_containers": true, "logs": true, "pull": pull, "registry": registry});
        let storage = json!({"paths": [{"path": "/"}]});
        pair.room.mint(&[
            "--name",
            "narrow",
            "--scope",
            &json!({"containers": containers, "storage": storage}).to_string(),
        ])
    };
    let run = |token: &str, arguments: &[&str]| {
        let mut command: Command = pair.room.client();
        command.env("HEARTH_TOKEN", token).args(arguments);
        process::run(&mut command, seconds(60))
    };
    let (source, cred) = (pair.remote_name("team/app:1"), pair.cred());
    let pull = ["images", "pull", source.as_str(), "--tag", "mine:1", "--cred", cred.as_str()];
    run(&scope(&["ghcr.io/*"], &["*"]), &pull).expect_code(3).says(&["pull", "team/app"]);
    run(&scope(&["*"], &["others/*"]), &pull).expect_code(3).says(&["write", "mine"]);
    run(&scope(&[&format!("{}/team/*", pair.other.listen())], &["mine"]), &pull).expect_code(0);
    let push = ["images", "push", "app:1", source.as_str(), "--cred", cred.as_str()];
    run(&scope(&["*"], &["app"]), &push).expect_code(3).says(&["push", "team/app"]);
    let mount = format!("{source}=/context");
    let build = ["build", "--tag", "b:1", "--mount-image", mount.as_str(), "--cred", cred.as_str()];
    run(&scope(&[], &["*"]), &build).expect_code(3).says(&["pull", "team/app"]);
}
