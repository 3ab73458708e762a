//! `hearth context`: the files of a build are shown and mounted without a build.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use integration_tests::daemon::{Daemon, Options};
use integration_tests::process::{self, Output};
use integration_tests::runner::{Case, Group};
use integration_tests::shared_cases;
use integration_tests::sources::{Tree, noise};
use integration_tests::wait::{self, seconds};
use integration_tests::{leftovers, sources};

pub fn group() -> Group {
    let mut cases = shared_cases![
        a_context_is_listed_and_read_as_a_build_would_see_it,
        the_same_files_have_one_digest_from_every_source,
        a_difference_is_printed_as_a_letter_and_a_path,
        what_a_token_may_not_read_it_may_not_see_in_a_context,
        a_mount_shows_the_files_until_it_is_unmounted,
        what_is_written_in_a_mount_is_kept_and_the_room_never_changes,
        an_image_is_mounted_and_written_over,
        only_an_empty_directory_outside_of_the_room_can_be_mounted_on,
        mounting_over_the_network_is_denied,
    ];
    cases.push(Case::alone("a_mount_survives_the_daemons_death", a_mount_survives_the_daemons_death));
    cases.push(Case::alone("a_drained_daemon_leaves_no_mount", a_drained_daemon_leaves_no_mount));
    Group::new("context_command", cases)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Creates an empty directory to mount on; the daemon's sweep unmounts what a failed case leaves.
fn point(daemon: &Daemon, name: &str) -> PathBuf {
    let path = daemon.directory().join("points").join(name);
    fs::create_dir_all(&path).unwrap();
    path
}

fn is_mounted(point: &Path) -> bool {
    leftovers::mounts(point.parent().unwrap()).iter().any(|mounted| mounted == point)
}

/// Runs the client over TCP with a token, as from another machine.
fn remote(daemon: &Daemon, token: &str, arguments: &[&str]) -> Output {
    let mut command = daemon.client();
    command.env("HEARTH_ADDR", format!("http://{}", daemon.listen())).env("HEARTH_TOKEN", token);
    process::run(command.args(arguments), seconds(60))
}

fn a_context_is_listed_and_read_as_a_build_would_see_it(daemon: &Daemon) {
    let tree =
        Tree::new().file("f", "content").file("sub/deep", "2").link("out", "/etc/passwd").link("in", "sub");
    daemon.put("looked/app", &tree);
    daemon.put("looked/lib", &Tree::new().file("l", "lib"));
    let mounts = [
        "--mount-room-path",
        "looked/app",
        "--mount-room-path",
        "looked/lib:/context/sub/lib",
        "--context-path",
        "/context",
    ];
    let listed = daemon.hearth_ok(&[&["context", "ls", "-r", "--json"], &mounts[..]].concat()).json();
    let paths: Vec<&str> =
        listed.as_array().unwrap().iter().map(|entry| entry["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["f", "in", "out", "sub", "sub/deep", "sub/lib", "sub/lib/l"]);
    let read = |path: &str| daemon.hearth(&[&["context", "cat"], &mounts[..], &[path]].concat());
    assert_eq!(read("f").expect_code(0).stdout, "content");
    assert_eq!(read("/context/sub/lib/l").expect_code(0).stdout, "lib");
    assert_eq!(read("in/deep").expect_code(0).stdout, "2");
    read("out").expect_code(1);
    read("missing").expect_code(1).says(&["missing"]);
    read("../../../../etc/passwd").expect_code(1);
    let large = noise(5, 5_000_000);
    fs::write(daemon.room_files().join("looked/app/large"), &large).unwrap();
    let mut command = daemon.client();
    let out = command.args(["context", "cat", "--mount-room-path", "looked/app", "large"]).output().unwrap();
    assert!(out.status.success() && out.stdout == large, "a large file comes whole");
}

fn the_same_files_have_one_digest_from_every_source(daemon: &Daemon) {
    let tree = Tree::new()
        .file("a", "1")
        .file_with_mode("bin/run", "#!/bin/sh\n", 0o755)
        .link("link", "a")
        .directory("empty");
    daemon.put("same/app", &tree);
    tree.write(&daemon.project_files().join("same/app"));
    let local = tempfile::tempdir_in(daemon.directory()).unwrap();
    let local = local.path().join("app");
    tree.write(&local);
    daemon.hearth_ok(&["pack", text(&local), "--tag", "same/app:1"]);
    let digest = |arguments: &[&str]| {
        let output = daemon.hearth_ok(&[&["context", "digest"], arguments].concat());
        output.line().to_owned()
    };
    let room = digest(&["--mount-room-path", "same/app"]);
    assert!(room.starts_with("blake3:") && room.len() == 71, "{room}");
    assert_eq!(digest(&["--mount-project-path", "same/app"]), room);
    assert_eq!(digest(&["--mount-image", "same/app:1"]), room);
    assert_eq!(digest(&["--pack", text(&local)]), room);
    assert_eq!(digest(&["--mount-room-path", "same:/x", "--context-path", "/x/app"]), room);
    fs::write(daemon.room_files().join("same/app/a"), "2").unwrap();
    assert_ne!(digest(&["--mount-room-path", "same/app"]), room, "content counts");
}

fn a_difference_is_printed_as_a_letter_and_a_path(daemon: &Daemon) {
    daemon.put("diff/one", &Tree::new().file("same", "1").file("other", "1").file("gone", "1"));
    daemon.put("diff/two", &Tree::new().file("same", "1").file("other", "2").file("sub/new", "1"));
    let output =
        daemon.hearth_ok(&["context", "diff", "--mount-room-path", "diff/one", "--to-room-path", "diff/two"]);
    assert_eq!(output.stdout, "D gone\nM other\nA sub\nA sub/new\n");
    let same =
        daemon.hearth_ok(&["context", "diff", "--mount-room-path", "diff/one", "--to-room-path", "diff/one"]);
    assert_eq!(same.stdout, "");
}

fn what_a_token_may_not_read_it_may_not_see_in_a_context(daemon: &Daemon) {
    daemon.put("granted/app", &Tree::new().file("f", "1"));
    daemon.put("secret/app", &Tree::new().file("f", "canary"));
    let scope = r#"{"storage": {"paths": [{"path": "granted", "read_only": true}]}}"#;
    let token = daemon.mint(&["--name", "reader", "--scope", scope]);
    for verb in [&["ls"][..], &["digest"], &["cat", "f"]] {
        let ask = |path| remote(daemon, &token, &[&["context"], verb, &["--mount-room-path", path]].concat());
        ask("granted/app").expect_code(0);
        let denied = ask("secret/app");
        denied.expect_code(3);
        assert!(!denied.stdout.contains("canary"));
    }
    let both = ["context", "diff", "--mount-room-path", "granted/app", "--to-room-path", "secret/app"];
    remote(daemon, &token, &both).expect_code(3);
}

fn a_mount_shows_the_files_until_it_is_unmounted(daemon: &Daemon) {
    daemon.put("shown/app", &Tree::new().file("f", "content").link("out", "/etc/passwd").file("sub/g", "2"));
    let at = point(daemon, "shown");
    assert_eq!(
        daemon.hearth_ok(&["context", "mount", text(&at), "--mount-room-path", "shown/app"]).line(),
        text(&at)
    );
    assert!(is_mounted(&at));
    assert_eq!(fs::read_to_string(at.join("f")).unwrap(), "content");
    assert_eq!(fs::read_link(at.join("out")).unwrap(), Path::new("/etc/passwd"));
    assert!(fs::write(at.join("new"), "").is_err(), "it is read-only");
    let listed = daemon.hearth_ok(&["context", "mounts", "--json"]).json();
    let own =
        listed.as_array().unwrap().iter().find(|mount| mount["directory"] == text(&at)).unwrap().clone();
    assert_eq!((own["mounted"].as_bool(), own["writable"].as_bool()), (Some(true), Some(false)));
    let again = daemon.hearth(&["context", "mount", text(&at), "--mount-room-path", "shown/app"]);
    again.expect_code(1);
    let open = fs::File::open(at.join("f")).unwrap();
    daemon.hearth(&["context", "unmount", text(&at)]).expect_code(1).says(&["in use", "--lazy"]);
    drop(open);
    daemon.hearth_ok(&["context", "unmount", text(&at)]);
    assert!(!is_mounted(&at) && !at.join("f").exists());
    daemon.hearth(&["context", "unmount", text(&at)]).expect_code(1);
}

fn what_is_written_in_a_mount_is_kept_and_the_room_never_changes(daemon: &Daemon) {
    daemon.put("kept/app", &Tree::new().file("f", "below").file("sub/g", "g"));
    let before = sources::fingerprint(&daemon.room_files().join("kept/app"));
    let at = point(daemon, "kept");
    let mount = ["context", "mount", text(&at), "--rw", "--mount-room-path", "kept/app"];
    daemon.hearth_ok(&mount);
    fs::write(at.join("f"), "above").unwrap();
    fs::rename(at.join("sub"), at.join("renamed")).unwrap();
    fs::write(at.join("renamed/new"), "new").unwrap();
    let changes = daemon.hearth_ok(&["context", "diff", text(&at)]);
    assert_eq!(changes.stdout, "M f\nA renamed\nA renamed/g\nA renamed/new\nD sub\n");
    daemon.hearth_ok(&["context", "unmount", text(&at)]);
    assert_eq!(sources::fingerprint(&daemon.room_files().join("kept/app")), before);
    daemon.hearth_ok(&mount).says(&["earlier mount"]);
    assert_eq!(fs::read_to_string(at.join("f")).unwrap(), "above");
    assert_eq!(fs::read_to_string(at.join("renamed/new")).unwrap(), "new");
    assert!(!at.join("sub").exists());
    daemon.hearth_ok(&["context", "unmount", "--discard", text(&at)]);
    daemon.hearth_ok(&mount);
    assert_eq!(fs::read_to_string(at.join("f")).unwrap(), "below");
    daemon.hearth_ok(&["context", "unmount", "--discard", text(&at)]);
    assert_eq!(sources::fingerprint(&daemon.room_files().join("kept/app")), before);
}

fn an_image_is_mounted_and_written_over(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let tree = work.path().join("tree");
    let large = noise(3, 3_000_000);
    Tree::new().file("large", large.clone()).file("sub/one", "linked").link("l", "large").write(&tree);
    fs::hard_link(tree.join("sub/one"), tree.join("two")).unwrap();
    daemon.hearth_ok(&["pack", text(&tree), "--tag", "mounted/image:1"]);
    let at = point(daemon, "image");
    daemon.hearth_ok(&["context", "mount", text(&at), "--rw", "--mount-image", "mounted/image:1"]);
    assert!(fs::read(at.join("large")).unwrap() == large);
    let tail = {
        use std::os::unix::fs::FileExt;
        let mut tail = vec![0; 1000];
        fs::File::open(at.join("large")).unwrap().read_exact_at(&mut tail, 2_000_000).unwrap();
        tail
    };
    assert_eq!(tail, large[2_000_000..2_001_000]);
    fs::write(at.join("two"), "written").unwrap();
    assert_eq!(fs::read_to_string(at.join("sub/one")).unwrap(), "written", "two names of one file");
    fs::remove_file(at.join("l")).unwrap();
    assert_eq!(daemon.hearth_ok(&["context", "diff", text(&at)]).stdout, "D l\nM sub/one\nM two\n");
    daemon.hearth_ok(&["pack", text(&work.path().join("tree/sub")), "--tag", "mounted/image:1"]);
    daemon.hearth_ok(&["context", "unmount", text(&at)]);
    // The tag names another image now: the changes are not applied to that one.
    let mount = ["context", "mount", text(&at), "--rw", "--mount-image", "mounted/image:1"];
    daemon.hearth(&mount).expect_code(1).says(&["--discard"]);
    daemon.hearth_ok(&["context", "unmount", "--discard", text(&at)]);
    daemon.hearth_ok(&mount);
    assert!(!at.join("large").exists());
    daemon.hearth_ok(&["context", "unmount", "--discard", text(&at)]);
}

fn only_an_empty_directory_outside_of_the_room_can_be_mounted_on(daemon: &Daemon) {
    daemon.put("placed/app", &Tree::new().file("f", "1"));
    let full = point(daemon, "full");
    fs::write(full.join("x"), "").unwrap();
    let link = daemon.directory().join("points/link");
    symlink(point(daemon, "behind"), &link).unwrap();
    let inside = daemon.state().join("inside");
    fs::create_dir(&inside).unwrap();
    let room = daemon.room_files().join("placed/empty");
    fs::create_dir(&room).unwrap();
    let missing = daemon.directory().join("points/missing");
    let slash = format!("{}/", link.display());
    for place in
        [text(&full), text(&link), &slash, text(&inside), text(&room), text(&missing), text(&full.join("x"))]
    {
        let output = daemon.hearth(&["context", "mount", place, "--mount-room-path", "placed/app"]);
        assert_ne!(output.code, 0, "{place}\n{output}");
        output.says(&["hint"]);
    }
    for place in [&full, &link, &daemon.directory().join("points/behind")] {
        assert!(!is_mounted(place), "{}", place.display());
    }
    fs::remove_dir(inside).unwrap();
}

fn mounting_over_the_network_is_denied(daemon: &Daemon) {
    daemon.put("far/app", &Tree::new().file("f", "1"));
    let at = point(daemon, "far");
    let token = daemon.token();
    let mount = remote(daemon, token, &["context", "mount", text(&at), "--mount-room-path", "far/app"]);
    mount.expect_code(3).says(&["daemon's machine"]);
    remote(daemon, token, &["context", "unmount", text(&at)]).expect_code(3);
    assert!(!is_mounted(&at));
}

/// A writer continuously renames two files over each other and appends; the daemon is killed meanwhile.
fn a_mount_survives_the_daemons_death() {
    let daemon = Daemon::start(Options::room("mountkill"));
    let content = noise(9, 300_000);
    daemon.put("app", &Tree::new().file("f", content.clone()).file("dir/g", "g").file("steps", ""));
    let at = point(&daemon, "at");
    let mount = ["context", "mount", text(&at), "--rw", "--mount-room-path", "app"];
    for round in 0..4 {
        daemon.hearth_ok(&mount);
        let script = "i=0; while :; do echo $i >> steps || exit; mv -T f h || exit; mv -T h f || exit; \
                      mv -T dir other || exit; mv -T other dir || exit; mkdir made && rmdir made || exit; \
                      i=$((i+1)); done";
        let mut writer = Command::new("sh").args(["-c", script]).current_dir(&at).spawn().unwrap();
        let start = Instant::now();
        let steps = || fs::read_to_string(at.join("steps")).map_or(0, |text| text.lines().count());
        wait::until(seconds(30), "the writer is at work", || steps() > 20 * (round + 1));
        std::thread::sleep(std::time::Duration::from_millis(17 * round as u64));
        daemon.kill9();
        assert!(writer.wait().is_ok() && start.elapsed() < seconds(60), "the writer ends with the mount");
        assert!(fs::metadata(at.join("f")).is_err(), "nobody answers");
        daemon.restart();
        assert!(!is_mounted(&at), "the stale mount is taken away");
        daemon.hearth_ok(&mount).says(&["earlier mount"]);
        // Each rename has happened completely or not at all.
        let names = |names: [&str; 2]| {
            names
                .into_iter()
                .filter(|name| at.join(name).exists())
                .map(|name| at.join(name))
                .collect::<Vec<_>>()
        };
        let (files, directories) = (names(["f", "h"]), names(["dir", "other"]));
        assert_eq!((files.len(), directories.len()), (1, 1), "{files:?} {directories:?}");
        assert!(fs::read(&files[0]).unwrap() == content, "content is whole");
        assert_eq!(fs::read_to_string(directories[0].join("g")).unwrap(), "g");
        let lines = fs::read_to_string(at.join("steps")).unwrap();
        assert!(lines.lines().count() > 20 * (round + 1), "what was written is there");
        // Restores the names for the next round.
        if files[0].ends_with("h") {
            fs::rename(at.join("h"), at.join("f")).unwrap();
        }
        if directories[0].ends_with("other") {
            fs::rename(at.join("other"), at.join("dir")).unwrap();
        }
        let _ = fs::remove_dir(at.join("made"));
        daemon.hearth_ok(&["context", "unmount", text(&at)]);
    }
    assert_eq!(
        fs::read(daemon.room_files().join("app/steps")).unwrap(),
        b"",
        "the room's files never change"
    );
    let report = daemon.retire();
    assert!(report.is_empty(), "{report:?}");
}

fn a_drained_daemon_leaves_no_mount() {
    let daemon = Daemon::start(Options::room("mountdrain"));
    daemon.put("app", &Tree::new().file("f", "1"));
    let at = point(&daemon, "at");
    daemon.hearth_ok(&["context", "mount", text(&at), "--mount-room-path", "app"]);
    let open = fs::File::open(at.join("f")).unwrap();
    assert!(daemon.terminate().success(), "an open file does not hold the drain up");
    assert!(!is_mounted(&at));
    drop(open);
    daemon.restart();
    assert_eq!(daemon.hearth_ok(&["context", "mounts", "--json"]).json().as_array().unwrap().len(), 0);
}
