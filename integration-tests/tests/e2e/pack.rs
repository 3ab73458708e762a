//! `hearth pack`: a directory becomes an OCI archive, an image of the room, or the context of one build.

use std::fs;
use std::path::Path;
use std::process::Command;

use integration_tests::daemon::Daemon;
use integration_tests::image::{Image, Kind};
use integration_tests::process;
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::skopeo::skopeo;
use integration_tests::sources::{Tree, base_tree, noise, set_time};
use integration_tests::wait::seconds;

pub fn group() -> Group {
    Group::new(
        "pack",
        shared_cases![
            two_copies_of_a_tree_give_the_same_bytes,
            skopeo_reads_the_archive,
            the_archive_holds_the_tree_exactly,
            output_talks_to_no_room,
            a_pack_becomes_an_image_of_the_room_and_a_base,
            what_the_image_declares_can_be_given,
            a_base_from_an_archive_lies_below,
            a_base_that_is_no_name_is_a_usage_error,
            dockerignore_keeps_files_out_of_a_pack,
            a_build_of_a_pack_finds_its_dockerfile,
            a_build_of_a_pack_finds_its_containerfile,
            a_path_alone_is_a_pack,
            the_pack_of_a_build_is_dropped_when_it_ends,
            a_pack_path_keeps_the_archive_in_room_storage,
            other_compressions_hold_the_same_tree,
            a_failed_pack_leaves_no_file,
            an_archive_in_the_packed_directory_is_never_part_of_it,
            what_is_typed_wrong_is_a_usage_error,
            a_room_path_that_is_a_directory_gets_a_file_in_it,
            an_image_of_a_pack_builds_as_its_directory_does,
            archives_of_other_tools_load_and_lie_below,
            a_damaged_archive_fails_and_makes_no_tag,
        ],
    )
}

fn sample() -> Tree {
    Tree::new()
        .file("index.html", "<h1>hi</h1>\n")
        .file_with_mode("bin/run", "#!/bin/sh\n", 0o755)
        .directory("empty")
        .link("link", "bin/run")
        .link("dangling", "no/such")
        .file("large", noise(3, 700_000))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn two_copies_of_a_tree_give_the_same_bytes(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    for (name, time) in [("one", 1_000_000_000), ("a-longer-name", 1_700_000_000)] {
        let tree = work.path().join(name).join("my-app");
        sample().write(&tree);
        for path in ["index.html", "bin", "large"] {
            set_time(&tree.join(path), time);
        }
        daemon.hearth_ok(&["pack", text(&tree), "-o", text(&work.path().join(format!("{name}.tar")))]);
    }
    let read = |name: &str| fs::read(work.path().join(name)).unwrap();
    let (one, two) = (read("one.tar"), read("a-longer-name.tar"));
    assert_eq!(one.len(), two.len());
    assert!(one == two, "the archives differ");
    assert!(!String::from_utf8_lossy(&one).contains(text(work.path())), "no local path is in it");
}

fn skopeo_reads_the_archive(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let (tree, archive) = (work.path().join("tree"), work.path().join("app.oci.tar"));
    sample().write(&tree);
    daemon.hearth_ok(&["pack", text(&tree), "-o", text(&archive), "--arch", "amd64"]);
    let inspected = skopeo(&["inspect", &format!("oci-archive:{}", archive.display())]);
    let seen = inspected.expect_code(0).json();
    assert_eq!(
        (seen["Os"].as_str(), seen["Architecture"].as_str()),
        (Some("linux"), Some("amd64")),
        "{seen}"
    );
    let copied = work.path().join("copied");
    let copy = skopeo(&[
        "copy",
        &format!("oci-archive:{}", archive.display()),
        &format!("oci:{}:x", copied.display()),
    ]);
    copy.expect_code(0);
    assert_eq!(Image::from_layout(&copied).file("index.html"), "<h1>hi</h1>\n");
}

fn the_archive_holds_the_tree_exactly(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let (tree, archive) = (work.path().join("tree"), work.path().join("app.tar"));
    let long = "d".repeat(120);
    sample().file(&format!("{long}/{long}/{long}"), "deep").file_with_mode("setuid", "", 0o4755).write(&tree);
    fs::hard_link(tree.join("index.html"), tree.join("second-name")).unwrap();
    daemon.hearth_ok(&["pack", text(&tree), "-o", text(&archive), "--tag", "room.meshagent.com/app:dev"]);
    let image = Image::from_archive(&archive);
    let descriptor = &image.index["manifests"][0];
    assert!(descriptor["annotations"]["org.opencontainers.image.ref.name"].is_string(), "{descriptor}");
    assert_eq!(descriptor["platform"]["os"], "linux");
    assert_eq!(image.manifest["layers"].as_array().unwrap().len(), 1);
    assert_eq!(image.mode("bin/run"), 0o755);
    assert_eq!(image.mode("setuid"), 0o4755);
    assert_eq!(image.link("link"), "bin/run");
    assert_eq!(image.link("dangling"), "no/such");
    assert!(image.files["empty"].kind == Kind::Directory);
    assert!(image.files["large"].kind == Kind::File(noise(3, 700_000)));
    assert_eq!(image.file(&format!("{long}/{long}/{long}")), "deep");
    assert_eq!(image.file("second-name"), "<h1>hi</h1>\n");
    for (path, node) in &image.files {
        assert_eq!((node.owner, node.time), ((0, 0), 0), "{path}");
    }
}

fn output_talks_to_no_room(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let tree = work.path().join("tree");
    sample().write(&tree);
    let mut command = daemon.client();
    command.env("HEARTH_ADDR", "unix:///nowhere/hearth.sock").args(["pack", text(&tree), "-o"]);
    let output = process::run(command.arg(work.path().join("x.tar")), seconds(60));
    output.expect_code(0);
}

fn a_pack_becomes_an_image_of_the_room_and_a_base(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    sample().write(work.path());
    let tag = "room.meshagent.com/packed/app:dev";
    let output = daemon.hearth_ok(&["pack", text(work.path()), "--room", "pack", "--tag", tag]);
    assert!(
        daemon.tag_digest("packed/app", "dev").is_some_and(|digest| output.stdout.contains(&digest)),
        "{output}"
    );
    assert_eq!(daemon.image("packed/app:dev").file("index.html"), "<h1>hi</h1>\n");

    daemon
        .put("on-pack", &Tree::new().dockerfile(&format!("FROM {tag}\nCOPY more /more\n")).file("more", "m"));
    daemon.build_ok("on-pack:1", "on-pack", &[]);
    let image = daemon.image("on-pack:1");
    assert_eq!((image.file("index.html"), image.file("more")), ("<h1>hi</h1>\n".to_owned(), "m".to_owned()));
    assert_eq!(image.mode("bin/run"), 0o755);
}

fn what_the_image_declares_can_be_given(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    sample().write(work.path());
    daemon.hearth_ok(&[
        "pack",
        text(work.path()),
        "--tag",
        "declared:1",
        "--entrypoint",
        "[\"/bin/run\", \"a b\"]",
        "--cmd",
        "serve",
        "--env",
        "A=1",
        "--env",
        "B=x=y",
        "--workdir",
        "/srv",
        "--user",
        "1000:1000",
        "--label",
        "k=v",
        "--expose",
        "8080/tcp",
        "--volume",
        "/data",
    ]);
    let config = daemon.image("declared:1").config["config"].clone();
    assert_eq!(config["Entrypoint"], serde_json::json!(["/bin/run", "a b"]));
    assert_eq!(config["Cmd"], serde_json::json!(["serve"]));
    assert_eq!(config["Env"], serde_json::json!(["A=1", "B=x=y"]));
    assert_eq!((config["WorkingDir"].as_str(), config["User"].as_str()), (Some("/srv"), Some("1000:1000")));
    assert_eq!(config["Labels"]["k"], "v");
    assert!(
        config["ExposedPorts"]["8080/tcp"].is_object() && config["Volumes"]["/data"].is_object(),
        "{config}"
    );
}

fn a_base_from_an_archive_lies_below(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let (tree, base, archive) =
        (work.path().join("tree"), work.path().join("base.tar"), work.path().join("app.tar"));
    sample().write(&tree);
    daemon.hearth_ok(&[
        "pack",
        text(base_tree()),
        "-o",
        text(&base),
        "--env",
        "FROM_BASE=1",
        "--cmd",
        "[\"sh\"]",
    ]);
    let base = format!("oci-archive:{}", base.display());
    daemon.hearth_ok(&["pack", text(&tree), "-o", text(&archive), "--base", &base]);
    let image = Image::from_archive(&archive);
    assert_eq!(image.manifest["layers"].as_array().unwrap().len(), 2);
    assert!(image.has("bin/busybox") && image.has("index.html"));
    assert_eq!(image.config["config"]["Env"], serde_json::json!(["FROM_BASE=1"]));
    assert_eq!(image.config["config"]["Cmd"], serde_json::json!(["sh"]));
}

fn a_base_that_is_no_name_is_a_usage_error(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    sample().write(work.path());
    let output = daemon.hearth(&["pack", text(work.path()), "--tag", "on-base:1", "--base", "Python 3.13"]);
    output.expect_code(2).says(&["Python 3.13", "oci-archive:"]);
}

fn dockerignore_keeps_files_out_of_a_pack(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let (tree, archive) = (work.path().join("tree"), work.path().join("app.tar"));
    sample()
        .file(".dockerignore", "large\n**/*.tmp\n!keep.tmp\n")
        .file("a/b.tmp", "")
        .file("keep.tmp", "")
        .write(&tree);
    daemon.hearth_ok(&["pack", text(&tree), "-o", text(&archive)]);
    let image = Image::from_archive(&archive);
    assert!(!image.has("large") && !image.has("a/b.tmp"), "{:?}", image.names(""));
    assert!(image.has("keep.tmp") && image.has("index.html"), "{:?}", image.names(""));
}

fn build_of_pack(daemon: &Daemon, dockerfile: &str, tag: &str, arguments: &[&str]) -> Image {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    sample().file(dockerfile, "FROM scratch\nCOPY . /app\n").write(work.path());
    let mut all = vec!["build", "--tag", tag];
    all.extend(arguments);
    all.push(text(work.path()));
    let digest = daemon.hearth_ok(&all);
    let image = daemon.image(tag.strip_prefix("room.meshagent.com/").unwrap_or(tag));
    assert_eq!(image.digest, digest.line());
    image
}

fn a_build_of_a_pack_finds_its_dockerfile(daemon: &Daemon) {
    let image =
        build_of_pack(daemon, "Dockerfile", "room.meshagent.com/my-app:dev", &["--room", "pack", "--pack"]);
    assert_eq!(image.file("app/index.html"), "<h1>hi</h1>\n");
    assert_eq!(image.mode("app/bin/run"), 0o755);
    assert_eq!(image.link("app/dangling"), "no/such");
    assert!(image.files["app/empty"].kind == Kind::Directory);
}

fn a_build_of_a_pack_finds_its_containerfile(daemon: &Daemon) {
    assert!(build_of_pack(daemon, "Containerfile", "containerfile:1", &["--pack"]).has("app/large"));
}

fn a_path_alone_is_a_pack(daemon: &Daemon) {
    assert!(build_of_pack(daemon, "Dockerfile", "positional:1", &[]).has("app/large"));
}

fn the_pack_of_a_build_is_dropped_when_it_ends(daemon: &Daemon) {
    // Content that was sent is kept for the next pack of the directory, below `packs`; the pack itself is removed.
    let before = blobs(daemon);
    for (dockerfile, code) in [("FROM scratch\nCOPY small /\n", 0), ("FROM scratch\nCOPY not-there /\n", 1)] {
        let work = tempfile::tempdir_in(daemon.directory()).unwrap();
        let tree = Tree::new().dockerfile(dockerfile).file("small", "").file("bulk", noise(91, 3_000_000));
        tree.write(work.path());
        let output = daemon.hearth(&["build", "--tag", "dropped:1", "--pack", text(work.path())]);
        assert_eq!(output.code == 0, code == 0, "{output}");
    }
    let images = daemon.hearth_ok(&["images", "list"]);
    assert!(images.stdout.contains("dropped") && !images.stdout.to_lowercase().contains("pack-"), "{images}");
    integration_tests::wait::until(seconds(60), "the pack's 3 MB blob is deleted", || {
        blobs(daemon).iter().all(|blob| before.contains(blob) || blob.1 < 2_900_000)
    });
}

/// Returns the files of a registry below the state directory with their sizes, except buildkitd's own ones.
fn blobs(daemon: &Daemon) -> Vec<(String, u64)> {
    let mut command = Command::new("find");
    command.arg(daemon.state()).args([
        "-path",
        "*/buildkit*",
        "-prune",
        "-o",
        "-path",
        "*/storage",
        "-prune",
        "-o",
        "-path",
        "*/packs",
        "-prune",
    ]);
    command.args(["-o", "-type", "f", "-size", "+1000k", "-printf", "%P %s\n"]);
    let output = process::run(&mut command, seconds(30));
    let parse = |line: &str| {
        let (path, size) = line.rsplit_once(' ').unwrap();
        (path.to_owned(), size.parse().unwrap())
    };
    output.stdout.lines().map(parse).collect()
}

fn a_pack_path_keeps_the_archive_in_room_storage(daemon: &Daemon) {
    build_of_pack(daemon, "Dockerfile", "kept:1", &["--pack-room-path", "packs/kept.oci.tar", "--pack"]);
    let image = Image::from_archive(&daemon.room_files().join("packs/kept.oci.tar"));
    assert_eq!(image.file("index.html"), "<h1>hi</h1>\n");
}

fn other_compressions_hold_the_same_tree(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let tree = work.path().join("tree");
    sample().write(&tree);
    let mut seen = Vec::new();
    for compression in ["zstd", "gzip", "none"] {
        let archive = work.path().join(compression);
        daemon.hearth_ok(&["pack", text(&tree), "-o", text(&archive), "--compression", compression]);
        let image = Image::from_archive(&archive);
        let media_type = image.manifest["layers"][0]["mediaType"].as_str().unwrap().to_owned();
        assert_eq!(media_type.ends_with(compression), compression != "none", "{media_type}");
        seen.push(image.config["rootfs"]["diff_ids"].clone());
    }
    assert!(seen[0] == seen[1] && seen[1] == seen[2], "the layer's content is the same: {seen:?}");
}

fn a_failed_pack_leaves_no_file(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let (tree, output) = (work.path().join("tree"), work.path().join("out"));
    sample().write(&tree);
    fs::create_dir(&output).unwrap();
    let fifo = tree.join("zz-fifo");
    process::run(Command::new("mkfifo").arg(&fifo), seconds(5)).expect_code(0);
    let failed = daemon.hearth(&["pack", text(&tree), "-o", text(&output.join("x.tar"))]);
    failed.expect_code(1).says(&["zz-fifo"]);
    assert_eq!(fs::read_dir(&output).unwrap().count(), 0, "nothing is left of the archive");
    // An existing file stays as it was.
    fs::write(output.join("x.tar"), "before").unwrap();
    daemon.hearth(&["pack", text(&tree), "-o", text(&output.join("x.tar"))]).expect_code(1);
    assert_eq!(fs::read_to_string(output.join("x.tar")).unwrap(), "before");
    assert_eq!(fs::read_dir(&output).unwrap().count(), 1);
}

fn an_archive_in_the_packed_directory_is_never_part_of_it(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    sample().write(work.path());
    let output = work.path().join("out.tar");
    let mut archives = Vec::new();
    for arguments in [&[][..], &[], &["--room", "pack", "--tag", "own-output:1"]] {
        let pack = ["pack", text(work.path()), "-o", text(&output), "--compression", "gzip"];
        daemon.hearth_ok(&[&pack, arguments].concat());
        archives.push(Image::from_archive(&output));
    }
    assert!(archives.iter().all(|image| image.digest == archives[0].digest), "the digests differ");
    assert!(!archives[2].has("out.tar") && archives[2].has("index.html"));
    assert!(!daemon.image("own-output:1").has("out.tar"));
}

fn what_is_typed_wrong_is_a_usage_error(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    sample().write(work.path());
    let tree = text(work.path());
    let missing = work.path().join("new/dir/x.tar");
    for (arguments, said) in [
        (&["--env", "A"][..], "--env `A`"),
        (&["--workdir", "rel"], "--workdir `rel`"),
        (&["--expose", "0"], "--expose `0`"),
        (&["--label", "=x"], "--label `=x`"),
        (&["--label", "x"], "--label `x`"),
        (&["--volume", "rel"], "--volume `rel`"),
        (&["--room-path", "../x"], "--room-path"),
        (&["--base", "oci-archive:/no/such.tar"], "/no/such.tar"),
        (&["-o", text(&missing)], "new/dir` does not exist"),
    ] {
        let output = daemon.hearth(&[&["pack", tree, "--tag", "wrong:1"], arguments].concat());
        output.expect_code(2).says(&[said]);
    }
    assert!(daemon.tag_digest("wrong", "1").is_none());
}

fn a_room_path_that_is_a_directory_gets_a_file_in_it(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    sample().write(work.path());
    daemon.hearth_ok(&[
        "pack",
        text(work.path()),
        "--tag",
        "team/in-directory:1",
        "--room-path",
        "packs-of/",
    ]);
    let image = Image::from_archive(&daemon.room_files().join("packs-of/in-directory.oci.tar"));
    assert!(image.has("index.html"));
    // The archive is in the packed directory: it is never part of it.
    let storage = daemon.room_files().join("self");
    sample().write(&storage);
    for _ in 0..2 {
        daemon.hearth_ok(&["pack", text(&storage), "--tag", "self:1", "--room-path", "self/bin/own.tar"]);
    }
    let image = daemon.image("self:1");
    assert!(image.has("bin/run") && !image.has("bin/own.tar"), "{:?}", image.names("bin"));
}

fn an_image_of_a_pack_builds_as_its_directory_does(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let tree = Tree::new()
        .dockerfile("FROM scratch\nCOPY . /\n")
        .file(".dockerignore", "*\n!src\n")
        .file("src/main", "main")
        .file("secret", "secret");
    tree.write(work.path());
    daemon.hearth_ok(&["build", "--tag", "of-directory:1", "--pack", text(work.path())]);
    daemon.hearth_ok(&["pack", text(work.path()), "--tag", "ctx:1"]);
    assert!(!daemon.image("ctx:1").has("secret"));
    daemon.hearth_ok(&["build", "--tag", "of-image:1", "--mount-image", "ctx:1"]);
    let (directory, image) = (daemon.image("of-directory:1"), daemon.image("of-image:1"));
    assert_eq!(directory.names(""), image.names(""));
    assert_eq!((image.file("src/main").as_str(), image.has("Dockerfile")), ("main", false));
    // Rules that exclude everything.
    fs::write(work.path().join(".dockerignore"), "*").unwrap();
    daemon.hearth_ok(&["pack", text(work.path()), "--tag", "ctx:2"]).says(&["excludes every file"]);
}

/// Archives of one image by other tools: of the old `docker save`, compressed, and with two names.
fn archives_of_other_tools_load_and_lie_below(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let at = |name: &str| work.path().join(name);
    sample().write(&at("tree"));
    let plain = at("plain.tar");
    daemon.hearth_ok(&[
        "pack",
        text(&at("tree")),
        "-o",
        text(&plain),
        "--tag",
        "a:1",
        "--compression",
        "gzip",
    ]);
    let copy = |to: &str| {
        let from = format!("oci-archive:{}", plain.display());
        skopeo(&["copy", &from, &format!("{to}:saved:1")]).expect_code(0);
    };
    copy(&format!("docker-archive:{}", at("docker.tar").display()));
    for (program, archive) in
        [("gzip", "docker.tar"), ("zstd", "docker.tar"), ("gzip", "plain.tar"), ("zstd", "plain.tar")]
    {
        process::run(Command::new(program).args(["-q", "-k", "-f"]).arg(at(archive)), seconds(60))
            .expect_code(0);
    }
    let names =
        ["plain.tar", "plain.tar.gz", "plain.tar.zst", "docker.tar", "docker.tar.gz", "docker.tar.zst"];
    for name in names {
        daemon.hearth_ok(&["images", "load", text(&at(name)), "--tag", "loaded:1"]);
        assert_eq!(daemon.image("loaded:1").file("index.html"), "<h1>hi</h1>\n", "{name}");
        let base = format!("oci-archive:{}", at(name).display());
        daemon.hearth_ok(&["pack", text(&at("tree")), "-o", text(&at("on-it.tar")), "--base", &base]);
        let layers = Image::from_archive(&at("on-it.tar")).manifest["layers"].as_array().unwrap().len();
        assert_eq!(layers, 2, "{name}");
        daemon.hearth_ok(&["images", "rm", "loaded:1"]);
    }
}

fn a_damaged_archive_fails_and_makes_no_tag(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let at = |name: &str| work.path().join(name);
    let tree = at("tree");
    sample().write(&tree);
    daemon.hearth_ok(&["pack", text(&tree), "-o", text(&at("whole.tar"))]);
    let whole = fs::read(at("whole.tar")).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    let docker = [&b"manifest.json"[..], &[0; 600]].concat();
    for (name, bytes) in [
        ("cut", &whole[..whole.len() / 2]),
        ("flipped", &flipped),
        ("empty", &[]),
        ("text", &b"hello ".repeat(500)),
        ("gzip", &[&[0x1f, 0x8b][..], &[1; 700]].concat()),
        ("docker", &docker),
    ] {
        fs::write(at(name), bytes).unwrap();
        daemon.hearth(&["images", "load", text(&at(name)), "--tag", "damaged:1"]).expect_code(1);
        let base = format!("oci-archive:{}", at(name).display());
        let pack = ["pack", text(&tree), "--tag", "damaged:1", "--base", &base];
        daemon.hearth(&pack).expect_code(1);
        assert!(daemon.tag_digest("damaged", "1").is_none(), "{name}");
    }
}
