//! Images whose config names layers that they do not have, and layers that expand to more than any disk can store.
//!
//! A caller who may push to their own repository wrote the DiffIDs of another caller's image into their config:
//! BuildKit and containerd then gave them that image's files, or used their files for that image.

use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use integration_tests::daemon::{Daemon, Options};
use integration_tests::http::Request;
use integration_tests::process;
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::sources::{Tree, base_tree, sha256};
use integration_tests::wait::{self, seconds};
use serde_json::{Value, json};

/// Operator limits that are small enough to be reached within a test.
const LIMITS: &str = "[layers]\nany_ratio_bytes = 67108864\nmax_entries = 20000\n";

pub fn group() -> Group {
    let cases = shared_cases![
        files_of_another_image_are_not_read_through_its_diff_ids,
        a_foreign_layer_url_does_not_give_access_to_another_images_layer,
        a_base_that_others_use_is_not_replaced,
        a_bomb_is_refused_and_takes_no_disk,
        too_many_entries_are_refused,
        a_config_must_name_each_layer_once,
        honest_images_of_every_compression_work,
        a_wrong_image_is_shown_as_unusable,
    ];
    Group::new("walls_content", cases).options(Options::room("walls-content").config(LIMITS))
}

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A participant with a token for their own repositories, and for reading `base/*`.
struct Participant<'a> {
    daemon: &'a Daemon,
    name: &'static str,
    token: String,
}

impl<'a> Participant<'a> {
    fn new(daemon: &'a Daemon, name: &'static str) -> Self {
        let own = format!("{name}/*");
        let scope = json!({
            "services": {},
            "containers": {"use_containers": true, "logs": true, "registry": {
                "list": [own], "pull": [own, "base/*", "busybox"], "run": [own], "write": [own],
            }},
            "storage": {"paths": [{"path": name}]},
        });
        let token = daemon.mint(&["--name", name, "--scope", &scope.to_string()]);
        Self { daemon, name, token }
    }

    fn hearth(&self, arguments: &[&str]) -> process::Output {
        let mut command = self.daemon.client();
        command
            .env("HEARTH_ADDR", format!("http://{}", self.daemon.listen()))
            .env("HEARTH_TOKEN", &self.token)
            .args(arguments);
        process::run(&mut command, seconds(100))
    }

    /// Builds a Dockerfile without other files.
    fn build(&self, tag: &str, dockerfile: &str) -> process::Output {
        let path = format!("{}/{}", self.name, tag.replace([':', '/'], "-"));
        self.daemon.put(&path, &Tree::new().dockerfile(dockerfile));
        let mount = format!("{path}:/context:ro");
        let (tag, more) = (format!("{}/{tag}", self.name), ["--context-path", "/context", "--no-cache"]);
        self.hearth(
            &[&["build", "--json", "--tag", &tag, "--mount-room-path", &mount], more.as_slice()].concat(),
        )
    }

    #[track_caller]
    fn put_blob(&self, repository: &str, content: &[u8]) -> Value {
        let (address, digest) = (self.daemon.listen(), sha256(content));
        let begun = Request::new("POST", &format!("/v2/{repository}/blobs/uploads/"))
            .bearer(&self.token)
            .send(&address);
        let location = begun.expect(202).header("location").expect("a location").to_owned();
        Request::new("PUT", &format!("{location}?digest={digest}"))
            .bearer(&self.token)
            .body(content)
            .send(&address)
            .expect(201);
        json!({"digest": digest, "size": content.len()})
    }

    /// Pushes an image with any layers under any config, as a registry accepts it.
    #[track_caller]
    fn push(&self, name: &str, layers: &[(&str, &[u8])], diff_ids: &[String], command: &[&str]) {
        let (repository, _) = name.split_once(':').expect("a tag");
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "os": "linux", "architecture": architecture,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "config": {"Cmd": command, "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},
        });
        let blob = |media_type: &str, content: &[u8]| {
            let mut descriptor = self.put_blob(repository, content);
            descriptor["mediaType"] = json!(media_type);
            descriptor
        };
        let layers: Vec<Value> = layers.iter().map(|(media_type, bytes)| blob(media_type, bytes)).collect();
        let config = blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        self.put_manifest(name, &config, &layers);
    }

    #[track_caller]
    fn put_manifest(&self, name: &str, config: &Value, layers: &[Value]) {
        let (repository, tag) = name.split_once(':').expect("a tag");
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest =
            json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": layers});
        Request::new("PUT", &format!("/v2/{repository}/manifests/{tag}"))
            .bearer(&self.token)
            .header("content-type", media_type)
            .body(manifest.to_string())
            .send(&self.daemon.listen())
            .expect(201);
    }
}

/// Asserts that a command was refused, with all these words in its JSON.
#[track_caller]
fn refused(output: &process::Output, words: &[&str]) {
    assert_ne!(output.code, 0, "{output}");
    let missing: Vec<_> = words.iter().filter(|word| !output.stdout.contains(**word)).collect();
    assert!(missing.is_empty(), "stdout lacks {missing:?}\n{output}");
}

fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    add(&mut builder, files);
    builder.into_inner().unwrap()
}

fn add(builder: &mut tar::Builder<Vec<u8>>, files: &[(&str, &str)]) {
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        builder.append_data(&mut header, path, content.as_bytes()).unwrap();
    }
}

/// Returns a layer of busybox with these files.
fn rootfs(files: &[(&str, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.follow_symlinks(false);
    builder.append_dir_all(".", base_tree()).unwrap();
    add(&mut builder, files);
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    gzip_with(Compression::fast(), bytes)
}

fn gzip_with(effort: Compression, bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), effort);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Returns how many bytes hearthd's children keep on disk for images.
fn unpacked(daemon: &Daemon) -> u64 {
    let used = |directory: &Path| -> u64 {
        let output = process::run(Command::new("du").arg("-sxb").arg(directory), seconds(60));
        output.stdout.split_whitespace().next().and_then(|size| size.parse().ok()).unwrap_or(0)
    };
    used(&daemon.state().join("buildkit")) + used(&daemon.state().join("containerd"))
}

fn files_of_another_image_are_not_read_through_its_diff_ids(daemon: &Daemon) {
    let (ann, eve) = (Participant::new(daemon, "ann"), Participant::new(daemon, "eve"));
    let secret = "the canary of ann";
    let theirs = rootfs(&[("secret", secret)]);
    // Ann uses her image both ways, so that BuildKit and containerd have its files.
    ann.push("ann/private:1", &[(GZIP, &gzip(&theirs))], &[sha256(&theirs)], &["sleep", "1000"]);
    ann.build("used:1", "FROM room.meshagent.com/ann/private:1\nRUN test -s /secret\n").expect_code(0);
    ann.hearth(&["deploy", "--tag", "ann/private:1", "--name", "anns"]).expect_code(0);
    // Eve may not read the layers, but has seen their DiffIDs somewhere.
    let digest = sha256(&gzip(&theirs));
    let read = Request::new("GET", &format!("/v2/ann/private/blobs/{digest}")).bearer(&eve.token);
    read.send(&daemon.listen()).expect(403);
    let bait = gzip(&tar(&[("bait", "x")]));
    eve.push("eve/thief:1", &[(GZIP, &bait)], &[sha256(&theirs)], &["sh", "-c", "cat /secret; sleep 1000"]);
    let thief = "room.meshagent.com/eve/thief:1";
    let refused = |output: process::Output| {
        assert!(!output.to_string().contains(secret), "{output}");
        refused(&output, &["layer_mismatch", &sha256(&theirs)]);
    };
    refused(eve.build("read:1", &format!("FROM {thief}\nRUN cat /secret\n")));
    refused(eve.build("argument:1", &format!("ARG BASE={thief}\nFROM $BASE\nRUN cat /secret\n")));
    let copy =
        format!("FROM room.meshagent.com/busybox:test\nCOPY --from={thief} /secret /\nRUN cat /secret\n");
    daemon.base_image();
    refused(eve.build("copied:1", &copy));
    let mounted = format!(
        "FROM room.meshagent.com/busybox:test\nRUN --mount=from={thief},target=/theirs cat /theirs/secret\n"
    );
    refused(eve.build("mounted:1", &mounted));
    refused(eve.hearth(&["deploy", "--json", "--tag", "eve/thief:1", "--name", "eves"]));
    let as_context = ["context", "cat", "secret", "--json", "--mount-image", &format!("{thief}=/context")];
    refused(eve.hearth(&as_context));
    daemon.hearth_ok(&["services", "rm", "--now", "anns"]);
}

fn a_foreign_layer_url_does_not_give_access_to_another_images_layer(daemon: &Daemon) {
    let (ann, eve) = (Participant::new(daemon, "ann"), Participant::new(daemon, "eve"));
    let secret = "the second canary of ann";
    let theirs = rootfs(&[("hidden", secret)]);
    let layer = gzip(&theirs);
    ann.push("ann/hidden:1", &[(GZIP, &layer)], &[sha256(&theirs)], &["sh"]);
    // Eve's repository does not have the layer, and her manifest claims that it is stored elsewhere.
    let media_type = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let elsewhere = json!({"mediaType": media_type, "digest": sha256(&layer), "size": layer.len(),
        "urls": ["http://127.0.0.1:9/"]});
    let config = json!({"os": "linux", "architecture": "amd64",
        "rootfs": {"type": "layers", "diff_ids": [sha256(&theirs)]}});
    let mut config = eve.put_blob("eve/elsewhere", config.to_string().as_bytes());
    config["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
    eve.put_manifest("eve/elsewhere:1", &config, &[elsewhere]);
    let mount = "room.meshagent.com/eve/elsewhere:1=/context";
    let refused = |output: process::Output| {
        assert!(!output.to_string().contains(secret), "{output}");
        refused(&output, &[&sha256(&layer)]);
    };
    refused(eve.hearth(&["context", "cat", "hidden", "--json", "--mount-image", mount]));
    refused(eve.hearth(&["context", "ls", "--json", "--mount-image", mount]));
    daemon.base_image();
    daemon.put(
        "eve/elsewhere",
        &Tree::new().dockerfile("FROM room.meshagent.com/busybox:test\nCOPY hidden /\n"),
    );
    refused(eve.hearth(&[
        "build",
        "--json",
        "--tag",
        "eve/read-elsewhere:1",
        "--mount-room-path",
        "eve/elsewhere:/dockerfile:ro",
        "--dockerfile-path",
        "/dockerfile/Dockerfile",
        "--mount-image",
        mount,
        "--context-path",
        "/context",
    ]));
    refused(eve.build("from-elsewhere:1", "FROM room.meshagent.com/eve/elsewhere:1\nRUN cat /hidden\n"));
    refused(eve.hearth(&["deploy", "--json", "--tag", "eve/elsewhere:1", "--name", "elsewhere"]));
}

fn a_base_that_others_use_is_not_replaced(daemon: &Daemon) {
    let (ann, eve) = (Participant::new(daemon, "ann"), Participant::new(daemon, "eve"));
    let base = rootfs(&[("etc/motd", "the true base\n"), ("base-1", "")]);
    let operator = Participant { daemon, name: "operator", token: daemon.token().to_owned() };
    operator.push("base/os:1", &[(GZIP, &gzip(&base))], &[sha256(&base)], &["sh"]);
    let planted = gzip(&rootfs(&[("etc/motd", "planted by eve\n")]));
    eve.push("eve/poison:1", &[(GZIP, &planted)], &[sha256(&base)], &["sh"]);
    // Eve's image is used first.
    let output = eve.build("poison-out:1", "FROM room.meshagent.com/eve/poison:1\nRUN cat /etc/motd\n");
    refused(&output, &["layer_mismatch"]);
    let output = eve.hearth(&["deploy", "--json", "--tag", "eve/poison:1", "--name", "poison"]);
    refused(&output, &["layer_mismatch"]);
    let output = ann.build("on-base:1", "FROM room.meshagent.com/base/os:1\nRUN cp /etc/motd /copied\n");
    output.expect_code(0);
    assert_eq!(daemon.image("ann/on-base:1").file("copied"), "the true base\n");
}

fn a_bomb_is_refused_and_takes_no_disk(daemon: &Daemon) {
    const MEMBER: usize = 64 << 20;
    const MEMBERS: usize = 8;
    let eve = Participant::new(daemon, "eve");
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_size((MEMBER * MEMBERS) as u64);
    header.set_mode(0o644);
    header.set_cksum();
    // gzip members can be concatenated: repeating one makes half a gibibyte.
    let zeros = gzip_with(Compression::best(), &vec![0; MEMBER]);
    let bomb = [gzip(header.as_bytes()), zeros.repeat(MEMBERS), gzip(&[0; 1024])].concat();
    assert!(bomb.len() < 4 << 20, "{}", bomb.len());
    eve.push("eve/bomb:1", &[(GZIP, &bomb)], &[sha256(b"whatever it says")], &["sh"]);
    let before = unpacked(daemon);
    let output = eve.build("bombed:1", "FROM room.meshagent.com/eve/bomb:1\nCOPY Dockerfile /\n");
    refused(&output, &["layer_too_large", "decompression bomb"]);
    let output = eve.hearth(&["deploy", "--json", "--tag", "eve/bomb:1", "--name", "bomb"]);
    refused(&output, &["layer_too_large"]);
    let taken = unpacked(daemon).saturating_sub(before);
    // Other cases build at the same time.
    assert!(taken < 200 << 20, "{taken} bytes for a bomb of {}", bomb.len());
}

fn too_many_entries_are_refused(daemon: &Daemon) {
    let eve = Participant::new(daemon, "eve");
    let names: Vec<String> = (0..20_001).map(|number| format!("{number}")).collect();
    let files: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "")).collect();
    let layer = tar(&files);
    eve.push("eve/many:1", &[(GZIP, &gzip(&layer))], &[sha256(&layer)], &["sh"]);
    let output = eve.build("many-out:1", "FROM room.meshagent.com/eve/many:1\nCOPY Dockerfile /\n");
    refused(&output, &["layer_too_large", "20000 entries"]);
}

fn a_config_must_name_each_layer_once(daemon: &Daemon) {
    let eve = Participant::new(daemon, "eve");
    let layer = tar(&[("file", "x")]);
    for (name, diff_ids) in [("fewer", vec![]), ("more", vec![sha256(&layer); 2])] {
        let image = format!("eve/{name}:1");
        eve.push(&image, &[(GZIP, &gzip(&layer))], &diff_ids, &["sh"]);
        let dockerfile = format!("FROM room.meshagent.com/{image}\nCOPY Dockerfile /\n");
        let output = eve.build(&format!("{name}-out:1"), &dockerfile);
        refused(&output, &["layer_mismatch", "1 layers"]);
    }
}

fn honest_images_of_every_compression_work(daemon: &Daemon) {
    let ann = Participant::new(daemon, "ann");
    let zstd = |tar: &[u8]| zstd::bulk::compress(tar, 3).unwrap();
    for (name, media_type) in [
        ("plain", "application/vnd.oci.image.layer.v1.tar"),
        ("gzip", GZIP),
        ("zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("docker", "application/vnd.docker.image.rootfs.diff.tar.gzip"),
    ] {
        let below = rootfs(&[("compression", name)]);
        let above = tar(&[("above", name)]);
        let store = |tar: &[u8]| match name {
            "plain" => tar.to_vec(),
            "zstd" => zstd(tar),
            _ => gzip(tar),
        };
        let image = format!("ann/{name}:1");
        let layers = [store(&below), store(&above)];
        let layers: Vec<(&str, &[u8])> = layers.iter().map(|layer| (media_type, layer.as_slice())).collect();
        ann.push(&image, &layers, &[sha256(&below), sha256(&above)], &["sleep", "1000"]);
        let dockerfile = format!("FROM room.meshagent.com/{image}\nRUN cat /compression /above > /both\n");
        ann.build(&format!("{name}-out:1"), &dockerfile).expect_code(0);
        assert_eq!(daemon.image(&format!("ann/{name}-out:1")).file("both"), format!("{name}{name}"));
        ann.hearth(&["deploy", "--tag", &image, "--name", &format!("{name}-app")]).expect_code(0);
        daemon.hearth_ok(&["services", "rm", "--now", &format!("{name}-app")]);
    }
}

fn a_wrong_image_is_shown_as_unusable(daemon: &Daemon) {
    let eve = Participant::new(daemon, "eve");
    let layer = tar(&[("file", "x")]);
    eve.push("eve/marked:1", &[(GZIP, &gzip(&layer))], &[sha256(b"another")], &["sh"]);
    eve.push("eve/sound:1", &[(GZIP, &gzip(&layer))], &[sha256(&layer)], &["sh"]);
    let list = || eve.hearth(&["images", "list", "--json"]).json();
    let of = |list: &Value, name: &str| {
        let images = list.as_array().expect("a list");
        images.iter().find(|image| image["repository"] == name).cloned().unwrap_or_default()
    };
    // Nobody has used the image: it was checked because it was pushed.
    let marked = wait::poll(seconds(30), || {
        let image = of(&list(), "eve/marked");
        (image["unusable"]["code"] == "layer_mismatch").then_some(image)
    });
    let marked = marked.unwrap_or_else(|| panic!("not marked: {}", list()));
    let message = marked["unusable"]["message"].as_str().unwrap_or_default();
    for digest in [sha256(&layer), sha256(b"another"), sha256(&gzip(&layer))] {
        assert!(message.contains(&digest), "{marked}");
    }
    assert!(of(&list(), "eve/sound")["unusable"].is_null(), "{}", list());
    let shown = eve.hearth(&["images", "list"]);
    assert!(shown.stdout.contains("UNUSABLE") && shown.stdout.contains("layer_mismatch"), "{shown}");
    let shown = eve.hearth(&["images", "inspect", "eve/marked:1"]);
    assert!(shown.stdout.contains("unusable  layer_mismatch: image"), "{shown}");
    let inspected = eve.hearth(&["images", "inspect", "eve/marked:1", "--json"]).json();
    assert_eq!(inspected["image"]["unusable"]["code"], "layer_mismatch", "{inspected}");
    // A new tag of it changes nothing, and a correct image under its name is used.
    eve.hearth(&["images", "tag", "eve/marked:1", "eve/renamed:1"]).expect_code(0);
    let output = eve.build("renamed-out:1", "FROM room.meshagent.com/eve/renamed:1\nCOPY Dockerfile /\n");
    refused(&output, &["layer_mismatch"]);
    eve.push("eve/renamed:1", &[(GZIP, &gzip(&layer))], &[sha256(&layer)], &["sh"]);
    let sound = eve.build("sound-out:1", "FROM room.meshagent.com/eve/renamed:1\nCOPY Dockerfile /\n");
    sound.expect_code(0);
}
