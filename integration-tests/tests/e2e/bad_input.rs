//! Bad input gets a clear error that names it; nothing is published, lost or left behind.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;

use hearth_proto::v1::{LoadBegin, LoadImageRequest, load_begin::Destination, load_image_request::Message};
use integration_tests::binaries::binaries;
use integration_tests::daemon::{BASE, Daemon};
use integration_tests::grpc::{Api, block_on, detail, room_mount, spec};
use integration_tests::process;
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::sources::{Tree, noise};
use integration_tests::wait::seconds;
use tonic::Code;

pub fn group() -> Group {
    Group::new(
        "bad_input",
        shared_cases![
            wrong_tags_are_usage_errors,
            a_pack_cannot_be_tagged_for_another_registry,
            a_missing_and_an_unknown_room_are_reported,
            nobody_at_the_address_is_exit_four,
            wrong_mounts_are_usage_errors_that_show_the_grammar,
            the_api_refuses_what_the_client_would,
            a_missing_source_is_named,
            a_source_that_is_a_link_out_of_storage_is_refused,
            a_missing_dockerfile_lists_what_was_looked_for,
            a_dockerfile_that_is_no_plain_file_inside_the_context_is_refused,
            a_parse_error_has_the_line_and_its_text,
            a_missing_copy_source_is_named,
            an_unknown_stage_is_named,
            an_unknown_base_image_is_named,
            a_context_path_outside_the_mounts_is_refused,
            unknown_flags_and_verbs_are_usage_errors,
            a_pack_path_that_is_missing_or_a_file_is_named,
            an_unreadable_file_in_a_pack_is_an_error,
            a_socket_in_a_pack_is_named,
            a_pack_that_is_cut_off_leaves_nothing,
            a_pack_with_wrong_content_is_refused,
            wrong_options_of_a_build_are_usage_errors,
        ],
    )
}

/// Runs a build command line that must be refused as a usage error.
#[track_caller]
fn usage(daemon: &Daemon, arguments: &[&str], words: &[&str]) {
    let output = daemon.hearth(arguments);
    assert_eq!(output.code, 2, "hearth {arguments:?}\n{output}");
    output.says(words);
    assert!(output.stdout.is_empty(), "{output}");
}

fn plain(daemon: &Daemon, path: &str) {
    daemon.put(path, &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", path));
}

fn wrong_tags_are_usage_errors(daemon: &Daemon) {
    let long = format!("a:{}", "t".repeat(129));
    for tag in [
        "UPPER",
        "a:",
        "a:.dot",
        "a:b c",
        "-a",
        "a//b",
        "a..b",
        "room.meshagent.com/",
        "host:port/a",
        &long,
        "",
    ] {
        usage(daemon, &["build", "--tag", tag, "--mount-room-path", "x"], &["tag"]);
        usage(daemon, &["pack", "/", "--tag", tag], &["tag"]);
    }
    let digest = format!("a@sha256:{}", "0".repeat(64));
    usage(daemon, &["build", "--tag", &digest, "--mount-room-path", "x"], &["digest"]);
    usage(daemon, &["build", "--mount-room-path", "x"], &["--tag"]);
}

fn a_pack_cannot_be_tagged_for_another_registry(daemon: &Daemon) {
    plain(daemon, "elsewhere");
    let path = daemon.room_files().join("elsewhere");
    let path = path.to_str().unwrap();
    for arguments in [
        ["pack", path, "--tag", "docker.io/library/x:1"].as_slice(),
        &["build", "--tag", "docker.io/x/y:1", "--pack", path],
    ] {
        usage(daemon, arguments, &["docker.io", "room"]);
    }
    usage(daemon, &["pack", path, "--room", "bad_input"], &["--tag"]);
}

fn a_missing_and_an_unknown_room_are_reported(daemon: &Daemon) {
    // No address, no room, and a home directory without known rooms. The default socket of this machine may exist.
    let bare = |arguments: &[&str]| {
        let mut command = Command::new(&binaries().hearth);
        command.env_clear().env("HOME", "/nonexistent").env("PATH", "/usr/bin:/bin").args(arguments);
        process::run(command.current_dir("/"), seconds(60))
    };
    let unknown = bare(&["build", "--room", "no-such-room", "--tag", "x:1", "--mount-room-path", "x"]);
    unknown.expect_code(2).says(&["no-such-room", "room add"]);
    let by_variable = process::run(
        Command::new(&binaries().hearth)
            .env_clear()
            .env("HOME", "/nonexistent")
            .env("MESHAGENT_ROOM", "no-such-room")
            .args(["images", "list"]),
        seconds(60),
    );
    by_variable.expect_code(2).says(&["no-such-room"]);
    if !std::path::Path::new("/run/hearth/hearth.sock").exists() {
        let missing = bare(&["build", "--tag", "x:1", "--mount-room-path", "x"]);
        assert!(matches!(missing.code, 2 | 4), "{missing}");
        missing.says(&["room"]);
    }
    // A known room is found by its name, also as the current room.
    daemon.hearth_ok(&["room", "add", "here", "--addr", &format!("unix://{}", daemon.socket().display())]);
    let mut command = daemon.client();
    process::run(command.env_remove("HEARTH_ADDR").args(["--room", "here", "images", "list"]), seconds(60))
        .expect_code(0);
    daemon.hearth_ok(&["room", "use", "here"]);
    let mut command = daemon.client();
    process::run(command.env_remove("HEARTH_ADDR").args(["images", "list"]), seconds(60)).expect_code(0);
}

fn nobody_at_the_address_is_exit_four(daemon: &Daemon) {
    for address in ["unix:///nowhere/hearth.sock", "http://127.0.0.1:1"] {
        let output = daemon.hearth(&["--addr", address, "builds", "list"]);
        output.expect_code(4).says(&[address.rsplit('/').next().unwrap()]);
    }
    usage(daemon, &["--addr", "ftp://x", "builds", "list"], &["ftp://x"]);
}

fn wrong_mounts_are_usage_errors_that_show_the_grammar(daemon: &Daemon) {
    let build = |mounts: &[&str], words: &[&str]| {
        usage(daemon, &[&["build", "--tag", "mounts:1"], mounts].concat(), words);
    };
    build(&["--mount-room-path", "a:relative"], &["relative", "absolute"]);
    build(&["--mount-room-path", "a:/x/../y"], &[".."]);
    build(&["--mount-room-path", "a/../b:/x"], &[".."]);
    build(&["--mount-room-path", "a:/x:wrong"], &["wrong", "ro"]);
    build(&["--mount-room-path", "a:/x", "--mount-room-path", "b:/x/"], &["/x", "twice"]);
    build(&["--mount-room-path", "a:/x:ro:rw"], &["<source>"]);
    build(&["--mount-project-path", "a:relative"], &["relative"]);
    build(&["--mount-image", "UPPER=/x"], &["UPPER"]);
    build(&["--mount-image", "a=relative"], &["relative"]);
    build(&["--mount-room-path", "a:/x", "--mount-room-path", "b:/y"], &["--context-path"]);
    build(&["--mount-room-path", "a:/x", "--context-path", "relative"], &["absolute"]);
    build(&[], &["mount"]);
}

fn the_api_refuses_what_the_client_would(daemon: &Daemon) {
    block_on(seconds(60), async {
        let api = Api::of(daemon).await;
        let mut wrong = Vec::new();
        let mut change = |field: &'static str, edit: &dyn Fn(&mut hearth_proto::v1::BuildSpec)| {
            let mut spec = spec("api:1", "x");
            edit(&mut spec);
            wrong.push((field, spec));
        };
        change("tag", &|spec| spec.tag = "UPPER".to_owned());
        change("tag", &|spec| spec.tag = String::new());
        change("tag", &|spec| spec.tag = format!("a@sha256:{}", "0".repeat(64)));
        change("mounts", &|spec| spec.mounts.clear());
        change("mounts", &|spec| spec.mounts[0].target = "relative".to_owned());
        change("mounts", &|spec| spec.mounts[0].target = "/a/../b".to_owned());
        change("mounts", &|spec| spec.mounts.push(room_mount("y", "/context/")));
        change("mounts", &|spec| spec.mounts[0] = room_mount("../out", "/context"));
        change("mounts", &|spec| spec.mounts[0].source = None);
        change("context_path", &|spec| spec.context_path = "relative".to_owned());
        change("dockerfile_path", &|spec| spec.dockerfile_path = "../../etc/passwd".to_owned());
        change("platform", &|spec| spec.platform = "nonsense".to_owned());
        change("network", &|spec| spec.network = "host".to_owned());
        change("also_tags", &|spec| spec.also_tags = vec!["UPPER".to_owned()]);
        for (field, spec) in wrong {
            let status = api.submit(spec).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status:?}");
            let detail = detail(&status);
            assert!(detail.field.contains(field), "{field} in {detail:?}");
            assert!(!detail.code.is_empty() && !detail.message.is_empty(), "{detail:?}");
        }
        let none = hearth_proto::v1::SubmitBuildRequest::default();
        assert_eq!(api.builds().submit(none).await.unwrap_err().code(), Code::InvalidArgument);
    });
}

/// Builds and expects a failure that is not a usage error and names these words.
#[track_caller]
fn fails(daemon: &Daemon, path: &str, more: &[&str], words: &[&str]) {
    let output = daemon.build("bad:1", path, more);
    assert_eq!(output.code, 1, "build of {path}\n{output}");
    output.says(words);
    assert!(output.stdout.is_empty(), "{output}");
    assert_eq!(daemon.tag_digest("bad", "1"), None, "nothing is published");
}

fn a_missing_source_is_named(daemon: &Daemon) {
    fails(daemon, "no/such/directory", &[], &["no/such/directory"]);
    daemon.put("a-file", &Tree::new().file("x", ""));
    fails(daemon, "a-file/x/y", &[], &["a-file/x"]);
    let pack = hearth_proto::v1::Mount {
        source: Some(hearth_proto::v1::mount::Source::PackId("zzzzzzzzzzzz".to_owned())),
        target: "/context".to_owned(),
        ..Default::default()
    };
    block_on(seconds(30), async {
        let api = Api::of(daemon).await;
        let status = api
            .submit(hearth_proto::v1::BuildSpec { mounts: vec![pack], ..spec("bad:1", "") })
            .await
            .unwrap_err();
        assert!(matches!(status.code(), Code::NotFound | Code::InvalidArgument), "{status:?}");
        assert!(status.message().contains("zzzzzzzzzzzz"), "{status:?}");
    });
    let output = daemon.hearth(&["build", "--tag", "bad:1", "--mount-image", "no/such/image:9"]);
    output.expect_code(1).says(&["no/such/image:9"]);
}

fn a_source_that_is_a_link_out_of_storage_is_refused(daemon: &Daemon) {
    let outside = daemon.directory().join("outside-of-storage");
    Tree::new().dockerfile("FROM scratch\nCOPY canary /\n").file("canary", "c").write(&outside);
    fs::create_dir_all(daemon.room_files()).unwrap();
    symlink(&outside, daemon.room_files().join("link-out")).unwrap();
    symlink("../../../outside-of-storage", daemon.room_files().join("link-up")).unwrap();
    for path in ["link-out", "link-up"] {
        fails(daemon, path, &[], &[path]);
    }
}

fn a_missing_dockerfile_lists_what_was_looked_for(daemon: &Daemon) {
    daemon.put("no-dockerfile", &Tree::new().file("x", "").file("sub/x", ""));
    fails(daemon, "no-dockerfile", &[], &["/context/Containerfile", "/context/Dockerfile"]);
    fails(daemon, "no-dockerfile", &["-f", "other.Dockerfile"], &["other.Dockerfile"]);
    // A path outside of the mounts is wrong whatever the room has, so the client says so.
    let outside = daemon.build("bad:1", "no-dockerfile", &["--dockerfile-path", "/elsewhere/Dockerfile"]);
    outside.expect_code(2).says(&["/elsewhere/Dockerfile", "`/context`"]);
}

fn a_dockerfile_that_is_no_plain_file_inside_the_context_is_refused(daemon: &Daemon) {
    let outside = daemon.directory().join("outside-dockerfile");
    Tree::new().dockerfile("FROM scratch\n# canary-81fe\nCOPY a /\n").write(&outside);
    daemon.put("df-link", &Tree::new().file("a", ""));
    symlink(outside.join("Dockerfile"), daemon.room_files().join("df-link/Dockerfile")).unwrap();
    let output = daemon.build("bad:1", "df-link", &[]);
    output.expect_code(1).says(&["/context/Dockerfile", "link"]);
    assert!(!output.stderr.contains("canary-81fe"), "{output}");

    daemon.put(
        "df-up",
        &Tree::new().file("a", "").link("Dockerfile", "../../../../outside-dockerfile/Dockerfile"),
    );
    fails(daemon, "df-up", &[], &["/context/Dockerfile"]);
    daemon.put("df-directory", &Tree::new().directory("Dockerfile"));
    fails(daemon, "df-directory", &[], &["Dockerfile"]);
    daemon.put("df-fifo", &Tree::new().file("a", ""));
    let fifo = daemon.room_files().join("df-fifo/Dockerfile");
    process::run(Command::new("mkfifo").arg(fifo), seconds(5)).expect_code(0);
    fails(daemon, "df-fifo", &[], &["Dockerfile"]);
    // The ignore file is read under the same rules.
    daemon.put("ignore-fifo", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", ""));
    let fifo = daemon.room_files().join("ignore-fifo/.dockerignore");
    process::run(Command::new("mkfifo").arg(fifo), seconds(5)).expect_code(0);
    fails(daemon, "ignore-fifo", &[], &[".dockerignore"]);
}

fn a_parse_error_has_the_line_and_its_text(daemon: &Daemon) {
    daemon.put("parse", &Tree::new().dockerfile("FROM scratch\n\nCOPYY a /b\n").file("a", ""));
    fails(daemon, "parse", &[], &["COPYY a /b", "3"]);
    daemon.put("empty-dockerfile", &Tree::new().dockerfile(""));
    fails(daemon, "empty-dockerfile", &[], &["Dockerfile"]);
    let output = daemon.build("bad:1", "parse", &["--json"]);
    let error = output.expect_code(1).json()["error"].clone();
    assert!(error["dockerfile"].to_string().contains("COPYY a /b"), "{error}");
}

fn a_missing_copy_source_is_named(daemon: &Daemon) {
    daemon.put("copy", &Tree::new().dockerfile("FROM scratch\nCOPY not-there.txt /\n"));
    fails(daemon, "copy", &[], &["not-there.txt"]);
    fails(daemon, "copy", &[], &["not-there.txt"]);
}

fn an_unknown_stage_is_named(daemon: &Daemon) {
    plain(daemon, "stage");
    fails(daemon, "stage", &["--target", "no-such-stage"], &["no-such-stage"]);
    fails(daemon, "stage", &["--no-cache", "no-such-stage"], &["no stage `no-such-stage`", "its stages are"]);
    daemon.put(
        "stage-copy",
        &Tree::new()
            .dockerfile("FROM scratch AS a\nFROM scratch\nCOPY --from=room.meshagent.com/nope:1 /x /\n"),
    );
    fails(daemon, "stage-copy", &[], &["nope"]);
}

fn an_unknown_base_image_is_named(daemon: &Daemon) {
    daemon.put("base", &Tree::new().dockerfile("FROM room.meshagent.com/no/such/base:7\nRUN true\n"));
    fails(daemon, "base", &[], &["room.meshagent.com/no/such/base:7"]);
    let output = daemon.build("bad:1", "base", &["--json"]);
    assert!(output.json()["error"]["message"].to_string().contains("no/such/base:7"), "{output}");
}

fn a_context_path_outside_the_mounts_is_refused(daemon: &Daemon) {
    plain(daemon, "outside-path");
    let output = daemon.hearth(&[
        "build",
        "--tag",
        "bad:1",
        "--mount-room-path",
        "outside-path:/src",
        "--context-path",
        "/other",
    ]);
    assert!(matches!(output.code, 1 | 2), "{output}");
    output.says(&["/other"]);
}

fn unknown_flags_and_verbs_are_usage_errors(daemon: &Daemon) {
    usage(daemon, &["build", "--no-such-flag"], &["--no-such-flag"]);
    usage(daemon, &["no-such-verb"], &["no-such-verb"]);
    usage(daemon, &["builds", "show"], &["usage"]);
    daemon.hearth(&["builds", "show", "zzzzzzzzzzzz"]).expect_code(1).says(&["zzzzzzzzzzzz"]);
}

fn a_pack_path_that_is_missing_or_a_file_is_named(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let (missing, file) = (work.path().join("missing"), work.path().join("file"));
    fs::write(&file, "x").unwrap();
    let archive = work.path().join("x.tar");
    for path in [&missing, &file] {
        let path = path.to_str().unwrap();
        for arguments in [
            ["pack", path, "-o", archive.to_str().unwrap()].as_slice(),
            &["build", "--tag", "bad:1", "--pack", path],
        ] {
            let output = daemon.hearth(arguments);
            assert!(matches!(output.code, 1 | 2), "{arguments:?}\n{output}");
            output.says(&[path]);
        }
    }
    assert!(!archive.exists());
}

fn an_unreadable_file_in_a_pack_is_an_error(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let tree = work.path().join("tree");
    Tree::new().file("open", "").file_with_mode("closed/secret", "s", 0o600).write(&tree);
    // Root can read everything, so another user packs.
    for path in [daemon.directory().parent().unwrap(), daemon.directory(), work.path()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let out = work.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::set_permissions(&out, fs::Permissions::from_mode(0o777)).unwrap();
    let copy = work.path().join("hearth");
    fs::copy(&binaries().hearth, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    let pack = |path: &std::path::Path| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy).arg("pack").arg(path);
        command.arg("-o").arg(out.join("x.tar")).env_clear().env("HOME", "/nonexistent").current_dir("/");
        process::run(&mut command, seconds(60))
    };
    pack(&tree).expect_code(1).says(&["closed/secret", "permission"]);
    fs::set_permissions(tree.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    pack(&tree).expect_code(1).says(&["closed", "permission"]);
    assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "no part of an archive is left");
}

fn a_socket_in_a_pack_is_named(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    Tree::new().dockerfile("FROM scratch\nCOPY . /\n").write(work.path());
    let _socket = UnixListener::bind(work.path().join("the.sock")).unwrap();
    let path = work.path().to_str().unwrap();
    let out = daemon.directory().join("socket.tar");
    daemon.hearth(&["pack", path, "-o", out.to_str().unwrap()]).expect_code(1).says(&["the.sock", "socket"]);
    assert!(!out.exists());
    daemon.hearth(&["build", "--tag", "bad:1", "--pack", path]).expect_code(1).says(&["the.sock", "socket"]);
}

fn archive(daemon: &Daemon) -> Vec<u8> {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let (tree, out) = (work.path().join("tree"), work.path().join("x.tar"));
    Tree::new().dockerfile("FROM scratch\nCOPY . /\n").file("bulk", noise(61, 2_000_000)).write(&tree);
    daemon.hearth_ok(&["pack", tree.to_str().unwrap(), "-o", out.to_str().unwrap()]);
    fs::read(out).unwrap()
}

/// Sends an archive in pieces.
fn load(daemon: &Daemon, archive: &[u8], destination: Destination) -> Result<(), tonic::Status> {
    let begin = LoadBegin { destination: Some(destination), room_path: "loaded/pack.tar".to_owned() };
    let mut messages = vec![LoadImageRequest { message: Some(Message::Begin(begin)) }];
    for piece in archive.chunks(1_000_000) {
        messages.push(LoadImageRequest { message: Some(Message::Chunk(piece.to_vec().into())) });
    }
    block_on(seconds(60), async {
        let api = Api::of(daemon).await;
        api.images().load(tokio_stream::iter(messages)).await.map(drop)
    })
}

fn a_pack_that_is_cut_off_leaves_nothing(daemon: &Daemon) {
    let archive = archive(daemon);
    for length in [archive.len() / 2, 700, 0] {
        for destination in [Destination::Tag("cut:1".to_owned()), Destination::Temporary(true)] {
            let status = load(daemon, &archive[..length], destination).unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{length} bytes: {status:?}");
            assert!(!detail(&status).message.is_empty());
        }
    }
    assert_eq!(daemon.tag_digest("cut", "1"), None);
    assert!(!daemon.room_files().join("loaded/pack.tar").exists());
    load(daemon, &archive, Destination::Tag("cut:1".to_owned())).unwrap();
    assert!(daemon.tag_digest("cut", "1").is_some(), "the whole one is taken");
}

fn a_pack_with_wrong_content_is_refused(daemon: &Daemon) {
    let mut archive = archive(daemon);
    let middle = archive.len() / 2;
    archive[middle] ^= 1;
    let status = load(daemon, &archive, Destination::Tag("flipped:1".to_owned())).unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    assert!(status.message().contains("sha256:"), "the blob is named: {status:?}");
    assert_eq!(daemon.tag_digest("flipped", "1"), None);
    let status = load(daemon, &noise(62, 10_000), Destination::Temporary(true)).unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
}

fn wrong_options_of_a_build_are_usage_errors(daemon: &Daemon) {
    let _ = BASE;
    let build = |more: &[&str], words: &[&str]| {
        usage(daemon, &[&["build", "--tag", "options:1", "--mount-room-path", "x"], more].concat(), words);
    };
    build(&["--timeout", "soon"], &["soon"]);
    build(&["--platform", "nonsense"], &["nonsense"]);
    build(&["--secret", "id=a,src=/no/such/file"], &["/no/such/file"]);
    build(&["--secret", "id=a,env=NO_SUCH_VARIABLE"], &["NO_SUCH_VARIABLE"]);
    build(&["--secret", "src=/etc/hostname"], &["id"]);
    build(&["--build-arg", "=x"], &["build-arg"]);
    build(&["--label", "no-value"], &["no-value"]);
    build(&["--cred", "only-a-user"], &["cred"]);
    build(&["--progress", "fancy"], &["fancy"]);
}
