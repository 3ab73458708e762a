//! Packs that cannot succeed: each reports why, and leaves nothing behind.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::daemon::Daemon;
use integration_tests::process::{self, Output};
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::sources::{Tree, noise};
use integration_tests::wait::{self, seconds};
use rustix::mount::UnmountFlags;
use rustix::process::Signal;

pub fn group() -> Group {
    Group::new(
        "pack_faults",
        shared_cases![
            a_full_disk_leaves_no_file,
            an_interrupted_pack_leaves_no_file,
            a_killed_pack_leaves_no_file,
            what_an_image_cannot_hold_is_named,
            what_cannot_be_read_is_named,
            links_in_a_circle_are_only_links,
            a_second_pack_is_unchanged_and_says_so,
        ],
    )
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn names(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// A small file system; dropping it unmounts.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf, size: &str) -> Self {
        fs::create_dir(&path).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "hearth-test"]).arg(&path);
        process::run(&mut mount, seconds(10)).expect_code(0);
        Self(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, UnmountFlags::DETACH);
    }
}

fn a_full_disk_leaves_no_file(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let tree = work.path().join("tree");
    Tree::new().file("noise", noise(5, 3_000_000)).write(&tree);
    let small = Small::mount(work.path().join("small"), "1m");
    let output = daemon.hearth(&["pack", text(&tree), "-o", text(&small.0.join("x.tar"))]);
    output.expect_code(1).says(&["x.tar", "No space left"]);
    assert!(names(&small.0).is_empty());
    fs::write(small.0.join("x.tar"), "before").unwrap();
    daemon.hearth(&["pack", text(&tree), "-o", text(&small.0.join("x.tar"))]).expect_code(1);
    assert_eq!(fs::read_to_string(small.0.join("x.tar")).unwrap(), "before");

    // A cache without free space makes the next pack slower, but does not affect this one.
    let mut command = daemon.client();
    command.env("XDG_CACHE_HOME", &small.0).args(["pack", text(&tree), "-o"]);
    process::run(command.arg(work.path().join("y.tar")), seconds(60)).expect_code(0);
}

/// Starts a pack that takes long without filling the disk: its file is almost entirely a hole.
fn long_pack(daemon: &Daemon, work: &Path) -> process::Running {
    let (tree, output) = (work.join("tree"), work.join("out"));
    fs::create_dir(&tree).unwrap();
    fs::create_dir(&output).unwrap();
    fs::File::create(tree.join("hole")).unwrap().set_len(200 << 30).unwrap();
    let mut command = daemon.client();
    command.args(["pack", text(&tree), "-o", text(&output.join("x.tar"))]);
    let mut running = process::start(&mut command);
    let pid = running.pid().as_raw_nonzero().get();
    wait::until(seconds(30), "the pack has its file open", || {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|file| file.starts_with(&output))
    });
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(running.is_running());
    running
}

fn an_interrupted_pack_leaves_no_file(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let running = long_pack(daemon, work.path());
    running.signal(Signal::INT);
    let output = running.finish(seconds(30)).expect("it ends soon");
    output.expect_code(130).says(&["interrupted"]);
    assert!(names(&work.path().join("out")).is_empty());
}

fn a_killed_pack_leaves_no_file(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let running = long_pack(daemon, work.path());
    running.signal(Signal::KILL);
    running.finish(seconds(30)).expect("it ends at once").expect_code(137);
    assert!(names(&work.path().join("out")).is_empty());
}

/// Function that makes a special file at a path.
type Make<'a> = &'a dyn Fn(&Path);

fn what_an_image_cannot_hold_is_named(daemon: &Daemon) {
    let special: [(&str, &str, Make<'_>); 3] = [
        ("app.sock", "socket", &|path| drop(UnixListener::bind(path).unwrap())),
        ("queue", "fifo", &|path| {
            process::run(Command::new("mkfifo").arg(path), seconds(5)).expect_code(0);
        }),
        ("null", "device", &|path| {
            process::run(Command::new("mknod").arg(path).args(["c", "1", "3"]), seconds(5)).expect_code(0);
        }),
    ];
    for (name, kind, make) in special {
        let work = tempfile::tempdir_in(daemon.directory()).unwrap();
        let tree = work.path().join("tree");
        fs::create_dir_all(tree.join("sub")).unwrap();
        make(&tree.join("sub").join(name));
        let output = daemon.hearth(&["pack", text(&tree), "-o", text(&work.path().join("x.tar"))]);
        output.expect_code(1).says(&[&format!("sub/{name}"), kind]);
        assert!(!work.path().join("x.tar").exists());
        fs::write(tree.join(".dockerignore"), format!("**/{name}\n")).unwrap();
        daemon.hearth_ok(&["pack", text(&tree), "-o", text(&work.path().join("x.tar"))]);
    }
}

/// Runs a pack as root without the capability to read everything.
fn pack_without_privilege(daemon: &Daemon, tree: &Path, output: &Path) -> Output {
    let client = daemon.client();
    let mut command = Command::new("setpriv");
    command.env_clear().current_dir(daemon.directory());
    command.envs(client.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.args(["--bounding-set", "-dac_override,-dac_read_search", "--inh-caps", "-all", "--"]);
    command.arg(client.get_program()).args(["pack", text(tree), "-o", text(output)]);
    process::run(&mut command, seconds(60))
}

fn what_cannot_be_read_is_named(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let (tree, output) = (work.path().join("tree"), work.path().join("x.tar"));
    Tree::new().file("sub/readable", "").file("sub/secret", "x").file("dir/inside", "").write(&tree);
    pack_without_privilege(daemon, &tree, &output).expect_code(0);
    for (name, mode) in [("sub/secret", 0o644), ("dir", 0o755)] {
        fs::set_permissions(tree.join(name), fs::Permissions::from_mode(0o000)).unwrap();
        fs::remove_file(&output).unwrap();
        pack_without_privilege(daemon, &tree, &output).expect_code(1).says(&[name, "Permission denied"]);
        assert!(!output.exists());
        fs::set_permissions(tree.join(name), fs::Permissions::from_mode(mode)).unwrap();
        pack_without_privilege(daemon, &tree, &output).expect_code(0);
    }
}

fn links_in_a_circle_are_only_links(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let (tree, output) = (work.path().join("tree"), work.path().join("x.tar"));
    fs::create_dir_all(tree.join("a/b")).unwrap();
    for (target, name) in [("../..", "a/b/up"), ("two", "one"), ("one", "two"), ("self", "self")] {
        symlink(target, tree.join(name)).unwrap();
    }
    daemon.hearth_ok(&["pack", text(&tree), "-o", text(&output)]);
    let image = integration_tests::image::Image::from_archive(&output);
    assert_eq!((image.link("a/b/up"), image.link("one"), image.link("self")), ("../..", "two", "self"));
    symlink("loop", work.path().join("loop")).unwrap();
    let looped = daemon.hearth(&["pack", text(&work.path().join("loop")), "-o", text(&output)]);
    assert_ne!(looped.code, 0);
    looped.says(&["loop"]);
}

fn a_second_pack_is_unchanged_and_says_so(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let (tree, output) = (work.path().join("tree"), work.path().join("x.tar"));
    Tree::new()
        .file("large", noise(8, 2_000_000))
        .file("small", "s")
        .file("app/node_modules/m.js", "m")
        .write(&tree);
    std::thread::sleep(std::time::Duration::from_millis(100));
    let pack = || {
        let report = daemon.hearth_ok(&["--json", "pack", text(&tree), "-o", text(&output)]);
        (report.json(), fs::read(&output).unwrap(), report.stderr)
    };
    let (first, bytes, remarks) = pack();
    assert_eq!((first["files"].as_u64(), first["bytes"].as_u64()), (Some(3), Some(2_000_002)), "{first}");
    assert_eq!(first["unchanged_bytes"], 0);
    assert_eq!(first["largest"][0]["path"], "large");
    assert_eq!(first["suspicious"][0]["path"], "app/node_modules");
    assert!(first["seconds"].as_f64().is_some_and(|seconds| seconds > 0.0), "{first}");
    assert!(remarks.contains("node_modules") && remarks.contains(".dockerignore"), "{remarks}");

    let (second, again, _) = pack();
    assert_eq!(second["unchanged_bytes"], 2_000_002, "{second}");
    assert_eq!((&second["digest"], &again), (&first["digest"], &bytes));

    fs::write(tree.join("small"), "t").unwrap();
    let (third, changed, _) = pack();
    assert_eq!(third["unchanged_bytes"], 0);
    assert!(third["digest"] != first["digest"] && changed != bytes);
}
