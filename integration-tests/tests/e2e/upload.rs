//! Packs sent by content: content that the room has is not sent again, and nobody gets the content of another caller.

#[path = "upload/wire.rs"]
mod wire;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use integration_tests::daemon::{Daemon, Options};
use integration_tests::image::Image;
use integration_tests::process;
use integration_tests::runner::{Case, Group};
use integration_tests::sources::{Tree, noise, set_time};
use integration_tests::wait::{self, seconds};
use integration_tests::{lone_cases, shared_cases};
use rustix::process::Signal;
use serde_json::Value;

use wire::{
    a_call_without_its_upload_says_so, a_daemon_killed_between_upload_and_commit_has_what_arrived,
    a_lie_about_content_or_tree_leaves_nothing, a_list_of_a_million_entries_takes_bounded_memory,
    a_list_that_no_walk_can_give_is_refused, a_pack_of_another_participant_cannot_be_built_from,
    whoever_commits_a_pack_may_write_its_archive,
};

pub fn group() -> Group {
    let mut cases: Vec<Case> = shared_cases![
        a_second_pack_of_a_directory_sends_what_changed,
        an_image_of_the_room_has_the_digest_of_a_local_pack,
        a_pack_and_room_storage_give_the_same_layers,
        a_change_that_keeps_size_and_times_reaches_the_image,
        two_clients_at_once_with_one_tree,
        a_participant_with_the_same_files_sends_nothing_but_the_list,
        a_pack_of_another_participant_cannot_be_built_from,
        whoever_commits_a_pack_may_write_its_archive,
        a_list_that_no_walk_can_give_is_refused,
        a_lie_about_content_or_tree_leaves_nothing,
        a_call_without_its_upload_says_so,
    ];
    cases.extend(lone_cases![
        a_client_killed_while_it_sends_goes_on_where_it_was,
        a_daemon_killed_while_a_client_sends_gets_the_rest,
        a_daemon_killed_between_upload_and_commit_has_what_arrived,
        a_list_of_a_million_entries_takes_bounded_memory,
        a_quota_that_is_hit_says_so_and_loses_nothing,
        an_image_that_was_made_before_is_named_without_its_content,
    ]);
    Group::new("upload", cases)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn sample() -> Tree {
    Tree::new()
        .dockerfile("FROM scratch\nCOPY . /app\n")
        .file("index.html", "<h1>hi</h1>\n")
        .file_with_mode("bin/run", "#!/bin/sh\n", 0o755)
        .file_with_mode("bin/setuid", "", 0o4755)
        .directory("empty")
        .link("link", "bin/run")
        .file("large", noise(31, 3_000_000))
}

/// Packs a directory into the room; returns the output of `--json`.
#[track_caller]
fn pack(daemon: &Daemon, tree: &Path, tag: &str, more: &[&str]) -> Value {
    daemon.hearth_ok(&[&["pack", text(tree), "--tag", tag, "--json"], more].concat()).json()
}

fn a_second_pack_of_a_directory_sends_what_changed(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    sample().write(work.path());
    for number in 0..200 {
        fs::write(work.path().join(format!("empty/{number}")), noise(1000 + number, 10_000)).unwrap();
    }
    let first = pack(daemon, work.path(), "changed:1", &[]);
    assert!(first["sent_bytes"].as_u64() > Some(1_900_000), "{first}");
    let same = pack(daemon, work.path(), "changed:2", &[]);
    assert_eq!((same["sent_bytes"].as_u64(), &same["digest"]), (Some(0), &first["digest"]));
    fs::write(work.path().join("index.html"), "<h1>ho</h1>\n").unwrap();
    let changed = pack(daemon, work.path(), "changed:3", &[]);
    assert!(changed["sent_bytes"].as_u64() < Some(30_000), "{changed}");
    assert_ne!(changed["digest"], first["digest"]);
    assert_eq!(daemon.image("changed:3").file("index.html"), "<h1>ho</h1>\n");
    assert_eq!(daemon.image("changed:2").file("index.html"), "<h1>hi</h1>\n");
}

fn an_image_of_the_room_has_the_digest_of_a_local_pack(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let tree = work.path().join("tree");
    sample().write(&tree);
    fs::hard_link(tree.join("index.html"), tree.join("z")).unwrap();
    rustix::fs::setxattr(tree.join("large"), "user.note", b"kept", rustix::fs::XattrFlags::CREATE).unwrap();
    let config =
        ["--cmd", "[\"sh\"]", "--env", "A=1", "--arch", "arm/v7", "--workdir", "/w", "--label", "k=v"];
    for compression in ["zstd", "gzip", "none"] {
        for flags in [&config[..], &[]] {
            let flags = [&["--compression", compression], flags].concat();
            let file = work.path().join("local.tar");
            let local = ["pack", text(&tree), "-o", text(&file), "--tag", "same:1"];
            let local = daemon.hearth_ok(&[&local[..], &flags].concat()).line().to_owned();
            let in_room =
                pack(daemon, &tree, "same:1", &[&flags[..], &["--room-path", "packs/same.tar"]].concat());
            assert_eq!(in_room["digest"], local.as_str(), "{flags:?}");
            assert_eq!(daemon.tag_digest("same", "1"), Some(local));
            let kept = fs::read(daemon.room_files().join("packs/same.tar")).unwrap();
            assert!(kept == fs::read(&file).unwrap(), "the archive in room storage differs: {flags:?}");
        }
    }
    // A base is sent with the image, as one archive.
    let base = work.path().join("base.tar");
    let rootfs = work.path().join("base");
    Tree::new().file("from-base", "b").write(&rootfs);
    daemon.hearth_ok(&["pack", text(&rootfs), "-o", text(&base)]);
    let base = format!("oci-archive:{}", text(&base));
    let file = work.path().join("on-base.tar");
    let local = daemon.hearth_ok(&["pack", text(&tree), "-o", text(&file), "--base", &base]);
    let in_room = pack(daemon, &tree, "on-base:1", &["--base", &base]);
    assert_eq!(in_room["digest"], local.line());
}

fn a_pack_and_room_storage_give_the_same_layers(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    // Copies into the root, because a directory that COPY creates has the time of its creation.
    sample().dockerfile("FROM scratch\nCOPY . /\n").write(work.path());
    fs::hard_link(work.path().join("index.html"), work.path().join("z")).unwrap();
    // A pack has no times, and its root has no mode of its own.
    let stored = daemon.room_files().join("as-pack");
    process::run(Command::new("cp").arg("-a").arg(work.path()).arg(&stored), seconds(30)).expect_code(0);
    fs::set_permissions(&stored, fs::Permissions::from_mode(0o755)).unwrap();
    for path in ["bin/run", "bin/setuid", "bin", "empty", "index.html", "large", "Dockerfile", "link", ""] {
        let mut touch = Command::new("touch");
        touch.args(["-h", "-d", "@0"]).arg(stored.join(path));
        process::run(&mut touch, seconds(5)).expect_code(0);
    }
    set_time(&stored, 0);
    daemon.build_ok("from-room:1", "as-pack", &[]);
    daemon.hearth_ok(&["build", "--tag", "from-pack:1", "--no-cache", "--pack", text(work.path())]);
    let (room, pack) = (daemon.image("from-room:1"), daemon.image("from-pack:1"));
    assert_eq!(pack.names(""), room.names(""));
    assert_eq!(pack.config["rootfs"]["diff_ids"], room.config["rootfs"]["diff_ids"], "layers made by COPY");
    assert_eq!((pack.mode("bin/setuid"), pack.link("link")), (0o4755, "bin/run"));
}

fn a_change_that_keeps_size_and_times_reaches_the_image(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    Tree::new().dockerfile("FROM scratch\nCOPY f /\n").file("f", "aaaa").write(work.path());
    for content in ["aaaa", "bbbb", "aaaa"] {
        fs::write(work.path().join("f"), content).unwrap();
        set_time(&work.path().join("f"), 1_000_000_000);
        daemon.hearth_ok(&["build", "--tag", "flip:1", text(work.path())]);
        assert_eq!(daemon.image("flip:1").file("f"), content);
    }
}

fn a_client_killed_while_it_sends_goes_on_where_it_was() {
    let daemon = Daemon::start(Options::room("upload-client"));
    // A function of its own, so that everything below the daemon's directory is dropped before the daemon retires.
    killed_and_again(&daemon);
    assert_eq!(daemon.retire(), Vec::<String>::new());
}

fn killed_and_again(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    for number in 0..100 {
        fs::write(work.path().join(format!("{number}")), noise(5000 + number, 900_000)).unwrap();
    }
    let arrived = || directory_size(&daemon.state().join("packs/content"));
    let before = arrived();
    let mut command = daemon.client();
    command.args(["pack", text(work.path()), "--tag", "killed:1"]);
    let running = process::start(&mut command);
    // The client is killed after a part of the content has arrived.
    wait::until(seconds(60), "content arrives", || arrived() > before + 3_000_000);
    running.signal(Signal::KILL);
    running.finish(seconds(10));
    assert_eq!(daemon.tag_digest("killed", "1"), None);
    // Content that was in transit when the stream broke is made durable first.
    wait::until(seconds(20), "the daemon is done with the first", || {
        let one = arrived();
        std::thread::sleep(seconds(1));
        one == arrived()
    });
    let second = pack(daemon, work.path(), "killed:1", &[]);
    assert!(second["reused_bytes"].as_u64() > Some(2_000_000), "{second}");
    assert_eq!(daemon.tag_digest("killed", "1").as_deref(), second["digest"].as_str());
}

fn a_daemon_killed_while_a_client_sends_gets_the_rest() {
    let daemon = Daemon::start(Options::room("upload-outage"));
    daemon_killed(&daemon);
    assert_eq!(daemon.retire(), Vec::<String>::new());
}

fn daemon_killed(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    for number in 0..100 {
        fs::write(work.path().join(format!("{number}")), noise(9000 + number, 900_000)).unwrap();
    }
    let arrived = || directory_size(&daemon.state().join("packs/content"));
    let before = arrived();
    let mut command = daemon.client();
    command.args(["pack", text(work.path()), "--tag", "outage:1"]);
    let running = process::start(&mut command);
    wait::until(seconds(60), "content arrives", || arrived() > before + 3_000_000);
    daemon.kill9();
    daemon.restart();
    let output = running.finish(seconds(120)).expect("the client ends");
    output.expect_code(0);
    assert_eq!(daemon.tag_digest("outage", "1").as_deref(), Some(output.line()));
}

fn directory_size(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(entry.metadata().ok()?.len())).sum()
}

fn two_clients_at_once_with_one_tree(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    sample().file("more", noise(77, 8_000_000)).write(work.path());
    let start = |tag: &str| {
        let mut command = daemon.client();
        command.args(["pack", text(work.path()), "--tag", tag]);
        process::start(&mut command)
    };
    let (one, two) = (start("twin:1"), start("twin:2"));
    for running in [one, two] {
        running.finish(seconds(60)).expect("it ends").expect_code(0);
    }
    assert!(daemon.tag_digest("twin", "1").is_some());
    assert_eq!(daemon.tag_digest("twin", "1"), daemon.tag_digest("twin", "2"));
}

fn a_participant_with_the_same_files_sends_nothing_but_the_list(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    sample().file("shared", noise(88, 4_000_000)).write(work.path());
    pack(daemon, work.path(), "first:1", &[]);
    let token = daemon.mint(&["--name", "second-participant", "--scope", "full"]);
    let mut command = daemon.client();
    command.env("HEARTH_TOKEN", token).args(["pack", text(work.path()), "--tag", "second:1", "--json"]);
    let output = process::run(&mut command, seconds(60));
    let second = output.expect_code(0).json();
    assert!(second["sent_bytes"].as_u64() < Some(2000), "{second}");
    assert_eq!(daemon.tag_digest("second", "1"), daemon.tag_digest("first", "1"));
}

fn an_image_that_was_made_before_is_named_without_its_content() {
    let daemon = Daemon::start(Options::room("upload-again"));
    named_again(&daemon);
    assert_eq!(daemon.retire(), Vec::<String>::new());
}

fn named_again(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let (tree, local) = (work.path().join("tree"), work.path().join("local.tar"));
    sample().write(&tree);
    let mut first = pack(daemon, &tree, "again:1", &[]);
    // From here on, the content that was sent cannot be read.
    for entry in fs::read_dir(daemon.state().join("packs/content")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "content") {
            fs::File::options().write(true).open(path).unwrap().set_len(0).unwrap();
        }
    }
    for round in 0..2 {
        let second = pack(daemon, &tree, "again:2", &["--room-path", "packs/again.tar"]);
        for field in ["digest", "layer", "diff_id"] {
            assert!(second[field] == first[field], "{field}, {round}: {second} {first}");
        }
        assert_eq!(second["sent_bytes"].as_u64(), Some(0));
        assert_eq!(daemon.image("again:2").file("index.html"), "<h1>hi</h1>\n");
        daemon.hearth_ok(&["pack", text(&tree), "--tag", "again:2", "-o", text(&local)]);
        let (stored, local) = (fs::read(daemon.room_files().join("packs/again.tar")), fs::read(&local));
        assert!(stored.unwrap() == local.unwrap(), "the archive differs");
        first = second;
        daemon.kill9();
        daemon.restart();
    }
    // With another config, or when its layer is lost, the image would have to be made again.
    let refused = daemon.hearth(&["pack", text(&tree), "--tag", "again:3", "--label", "a=b"]);
    refused.expect_code(1);
    assert_eq!(daemon.tag_digest("again", "3"), None);
}

fn a_quota_that_is_hit_says_so_and_loses_nothing() {
    let options = Options::room("upload-quota").config("[packs]\nmax_bytes_per_caller = 3000000\n");
    let daemon = Daemon::start(options);
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let (small, large) = (work.path().join("small"), work.path().join("large"));
    Tree::new().file("f", noise(1, 1_000_000)).write(&small);
    Tree::new().file("f", noise(2, 5_000_000)).write(&large);
    let before = pack(&daemon, &small, "small:1", &[]);
    let refused = daemon.hearth(&["pack", text(&large), "--tag", "large:1"]);
    refused.expect_code(1).says(&["3000000", ".dockerignore"]);
    assert_eq!(daemon.tag_digest("large", "1"), None);
    assert_eq!(pack(&daemon, &small, "small:2", &[])["digest"], before["digest"]);
    let image: Image = daemon.image("small:2");
    assert!(image.has("f"));
    assert_eq!(daemon.retire(), Vec::<String>::new());
}
