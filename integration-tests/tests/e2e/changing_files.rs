//! Files of a room that change, vanish or cannot be read while builds run: each build is consistent, or fails with an
//! error that names the file. Nothing outside storage is ever read.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hearth_proto::v1::BuildState;
use hearth_proto::v1::build_event::Event;
use integration_tests::daemon::{Daemon, Options};
use integration_tests::filesystem::FileSystem;
use integration_tests::grpc::{Api, block_on, spec};
use integration_tests::lone_cases;
use integration_tests::process::{self, Output};
use integration_tests::runner::Group;
use integration_tests::sources::{Tree, noise, sha256};
use integration_tests::wait::{self, seconds};
use rustix::fs::{CWD, RenameFlags, renameat_with};

const COPY_ALL: &str = "FROM scratch\nCOPY . /all/\n";

pub fn group() -> Group {
    let mut cases = integration_tests::shared_cases![
        links_swapped_with_directories_never_lead_out,
        a_file_that_changes_while_it_is_sent_is_never_torn,
        a_file_that_comes_and_goes_is_whole_or_named,
        a_tree_that_is_replaced_under_a_build_is_one_of_the_two,
        special_files_are_never_opened,
        loops_of_links_are_reported,
    ];
    cases.extend(lone_cases![
        what_the_daemon_may_not_read_is_named,
        a_daemon_killed_in_the_middle_of_a_transfer_loses_nothing,
    ]);
    Group::new("changing_files", cases)
}

/// Runs `work` repeatedly in a thread, with the number of the round, while `meanwhile` runs.
fn disturbed<T>(work: impl Fn(u32) + Sync, meanwhile: impl FnOnce() -> T) -> (T, u32) {
    let (stop, rounds) = (AtomicBool::new(false), AtomicU32::new(0));
    // Stops the thread also when `meanwhile` panics: otherwise the scope would wait for it forever.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                work(rounds.fetch_add(1, Ordering::Relaxed));
            }
        });
        let _stop = Stop(&stop);
        let result = meanwhile();
        (result, rounds.load(Ordering::Relaxed))
    })
}

/// Builds repeatedly, at most `count` times and within `limit`; passes the result of each build to `look`.
fn builds(
    daemon: &Daemon,
    name: &str,
    count: usize,
    limit: Duration,
    mut look: impl FnMut(&Output),
) -> usize {
    let start = Instant::now();
    let mut done = 0;
    while done < count && (done == 0 || start.elapsed() < limit) {
        look(&daemon.build(&format!("{name}:1"), name, &[]));
        done += 1;
    }
    done
}

#[track_caller]
fn image_of(daemon: &Daemon, name: &str, output: &Output) -> FileSystem {
    FileSystem::of_registry(&daemon.listen(), daemon.token(), name, output.line())
}

fn exchange(one: &Path, other: &Path) {
    renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE).unwrap();
}

fn links_swapped_with_directories_never_lead_out(daemon: &Daemon) {
    let canary = "canary-7d10-outside-of-storage";
    let outside = daemon.directory().join("outside-of-moving");
    Tree::new().file("x", canary).file("deep/x", canary).write(&outside);
    daemon.put(
        "swapped",
        &Tree::new()
            .dockerfile(COPY_ALL)
            .file("d/x", "inside")
            .file("d/deep/x", "inside")
            .file("f", "inside"),
    );
    let tree = daemon.room_files().join("swapped");
    // Entries that are outside of the context for a moment lie beside it, in storage.
    let aside = daemon.room_files().join("swapped-aside");
    fs::create_dir(&aside).unwrap();
    symlink(&outside, aside.join("d")).unwrap();
    symlink(outside.join("deep"), aside.join("deep")).unwrap();
    symlink(outside.join("x"), aside.join("f")).unwrap();
    let swap = |round: u32| {
        for name in ["d", "f"] {
            exchange(&tree.join(name), &aside.join(name));
        }
        // Runs only while `d` is the real directory, so that nothing outside is touched.
        if round % 2 == 1 && !tree.join("d").is_symlink() {
            exchange(&tree.join("d/deep"), &aside.join("deep"));
        }
    };
    let mut said = String::new();
    let hash = sha256(canary.as_bytes()).into_bytes();
    let ((built, failed), rounds) = disturbed(swap, || {
        let (mut built, mut failed) = (0, 0);
        builds(daemon, "swapped", 25, seconds(12), |output| {
            said.push_str(&format!("{output}"));
            if output.code == 0 {
                built += 1;
                let files = image_of(daemon, "swapped", output);
                let leaked = files.0.iter().find(|(_, entry)| entry.content == hash);
                assert!(leaked.is_none(), "the canary is in the image: {leaked:?}");
            } else {
                failed += 1;
                output.says(&["/context/"]);
            }
        });
        (built, failed)
    });
    assert!(built + failed > 1 && rounds > 50, "{built} built, {failed} failed, {rounds} swaps");
    assert!(!said.contains(canary), "the canary was printed");
    assert!(!daemon.log().contains(canary), "the canary is in the log of hearthd");
    for place in ["builds", "context"] {
        let mut grep = Command::new("grep");
        let found =
            process::run(grep.args(["-r", "-l", canary]).arg(daemon.state().join(place)), seconds(30));
        assert!(found.stdout.is_empty(), "the canary is in {found}");
    }
    assert_eq!(fs::read_to_string(outside.join("deep/x")).unwrap(), canary, "nothing outside was changed");
}

fn a_file_that_changes_while_it_is_sent_is_never_torn(daemon: &Daemon) {
    const SIZE: usize = 3_000_000;
    const KINDS: u32 = 8;
    let content = |round: u32| vec![b'a' + (round % KINDS) as u8; SIZE];
    daemon.put(
        "torn",
        &Tree::new().dockerfile(COPY_ALL).file("changing", content(0)).file("still", noise(8, 2_000_000)),
    );
    let path = daemon.room_files().join("torn/changing");
    let whole: BTreeSet<Vec<u8>> = (0..KINDS).map(|kind| sha256(&content(kind)).into_bytes()).collect();
    let file = File::options().write(true).open(&path).unwrap();
    let write = |round: u32| {
        file.write_all_at(&content(round), 0).unwrap();
        // The pauses vary, so that a scan meets both continuous and occasional changes.
        thread::sleep(Duration::from_millis(u64::from(round % 40) * 3));
    };
    let mut built = 0;
    let (count, rounds) = disturbed(write, || {
        builds(daemon, "torn", 20, seconds(15), |output| {
            if output.code == 0 {
                built += 1;
                let files = image_of(daemon, "torn", output);
                let entry = &files.0[&b"all/changing"[..]];
                assert_eq!(entry.size, SIZE as u64);
                assert!(whole.contains(&entry.content), "a torn file was accepted");
            } else {
                output.says(&["changing"]);
            }
        })
    });
    assert!(count > 1 && rounds > 3, "{count} builds, {rounds} writes");
    // Without changes, the file is built as it is.
    let output = daemon.build("torn:1", "torn", &[]);
    let last = sha256(&fs::read(&path).unwrap()).into_bytes();
    assert_eq!(image_of(daemon, "torn", output.expect_code(0)).0[&b"all/changing"[..]].content, last);
}

fn a_file_that_comes_and_goes_is_whole_or_named(daemon: &Daemon) {
    let content = noise(9, 400_000);
    daemon.put(
        "vanishing",
        &Tree::new().dockerfile(COPY_ALL).file("stays", noise(10, 2_000_000)).directory("d"),
    );
    let path = daemon.room_files().join("vanishing/d/comes-and-goes");
    let hash = sha256(&content).into_bytes();
    let work = |round: u32| {
        let _ = fs::remove_file(&path);
        thread::sleep(Duration::from_millis(u64::from(round % 7) * 4));
        // Writes under another name first: a half-written file is not part of this test.
        let aside = daemon.room_files().join("vanishing-aside");
        fs::write(&aside, &content).unwrap();
        fs::rename(&aside, &path).unwrap();
        thread::sleep(Duration::from_millis(u64::from(round % 5) * 6));
    };
    let (count, rounds) = disturbed(work, || {
        builds(daemon, "vanishing", 20, seconds(10), |output| {
            if output.code == 0 {
                let files = image_of(daemon, "vanishing", output);
                if let Some(entry) = files.0.get(&b"all/d/comes-and-goes"[..]) {
                    assert_eq!(entry.content, hash);
                }
                assert!(files.0.contains_key(&b"all/stays"[..]));
            } else {
                output.says(&["/d"]);
            }
        })
    });
    assert!(count > 1 && rounds > 3, "{count} builds, {rounds} rounds");
}

/// Two trees whose files have equal metadata are exchanged repeatedly. An image has files of one of them or of both,
/// depending on when the trees were exchanged; but the content of a file is never cut or mixed.
fn a_tree_that_is_replaced_under_a_build_is_one_of_the_two(daemon: &Daemon) {
    let tree = |byte: u8| {
        let tree = Tree::new().dockerfile(COPY_ALL).at(1_650_000_000);
        (0..20).fold(tree, |tree, file| tree.file(&format!("d/{file}"), vec![byte; 60_000]))
    };
    daemon.put("replaced", &tree(b'a'));
    daemon.put("replaced-by", &tree(b'b'));
    let (one, other) = (daemon.room_files().join("replaced/d"), daemon.room_files().join("replaced-by/d"));
    let hashes = [b'a', b'b'].map(|byte| sha256(&vec![byte; 60_000]).into_bytes());
    let swap = |round: u32| {
        exchange(&one, &other);
        thread::sleep(Duration::from_millis(u64::from(round % 50)));
    };
    let (count, _) = disturbed(swap, || {
        builds(daemon, "replaced", 15, seconds(10), |output| {
            if output.code == 0 {
                for (path, entry) in &image_of(daemon, "replaced", output).0 {
                    let of_either = hashes.contains(&entry.content);
                    assert!(!path.starts_with(b"all/d/") || of_either, "{}", String::from_utf8_lossy(path));
                }
            } else {
                output.says(&["/d"]);
            }
        })
    });
    assert!(count > 1);
    // After the exchanges, the current content is built, although path, size and time were the same all along.
    let output = daemon.build("replaced:1", "replaced", &[]);
    let now = sha256(&fs::read(one.join("7")).unwrap()).into_bytes();
    let files = image_of(daemon, "replaced", output.expect_code(0));
    assert!((0..20).all(|file| files.0[format!("all/d/{file}").as_bytes()].content == now), "stale files");
}

fn special_files_are_never_opened(daemon: &Daemon) {
    let fifo = |path: &str| {
        let path = daemon.room_files().join(path);
        process::run(Command::new("mkfifo").arg(path), seconds(5)).expect_code(0);
    };
    // A reader of a fifo would wait for a writer forever, and the build with it.
    daemon.put("special", &Tree::new().dockerfile("FROM scratch\nCOPY d /d/\n").file("d/a", "a"));
    fifo("special/d/pipe");
    daemon.build("special:1", "special", &["--timeout", "30s"]).expect_code(0);
    daemon.put("special-own", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "a"));
    fifo("special-own/Dockerfile.dockerignore");
    let output = daemon.build("special:2", "special-own", &["--timeout", "30s"]);
    output.expect_code(1).says(&["Dockerfile.dockerignore"]);
    daemon.put("special-linked", &Tree::new().link("Dockerfile", "pipe").file("a", "a"));
    fifo("special-linked/pipe");
    let output = daemon.build("special:3", "special-linked", &["--timeout", "30s"]);
    output.expect_code(1).says(&["Dockerfile"]);
    // A fifo as the only file that a pack would read.
    let output =
        daemon.hearth(&["pack", daemon.room_files().join("special").to_str().unwrap(), "--tag", "special:4"]);
    output.expect_code(1).says(&["d/pipe"]);
}

fn loops_of_links_are_reported(daemon: &Daemon) {
    let loops = |name: &str| Tree::new().file("a", "a").link(name, "other").link("other", name);
    daemon.put("loop-dockerfile", &loops("Dockerfile"));
    daemon.build("loop:1", "loop-dockerfile", &[]).expect_code(1).says(&["Dockerfile", "link"]);
    daemon.put("loop-ignore", &loops(".dockerignore").dockerfile(COPY_ALL));
    daemon.build("loop:2", "loop-ignore", &[]).expect_code(1).says(&[".dockerignore"]);
    daemon.put(
        "loop-copy",
        &Tree::new().dockerfile("FROM scratch\nCOPY a/b /x\n").link("a", "c").link("c", "a"),
    );
    daemon.build("loop:3", "loop-copy", &[]).expect_code(1).says(&["a/b"]);
    daemon.put("loop-source/in", &Tree::new().link("up", "../in/up"));
    daemon.build("loop:4", "loop-source/in/up", &[]).expect_code(1).says(&["loop-source/in/up"]);
}

/// Root can read everything, so the daemon runs without that capability; its builds run in another daemon's buildkitd.
fn what_the_daemon_may_not_read_is_named() {
    let owner = Daemon::start(Options::room("moving-owner"));
    let socket = owner.buildkit_socket().expect("the socket of the managed buildkitd");
    let address = format!("unix://{}", socket.display());
    let options = Options::room("moving-guest").arguments(&["--buildkit", &address]);
    let daemon = Daemon::start(options.without_capabilities(&["dac_override", "dac_read_search"]));
    let closed = |path: &str| {
        let path = daemon.room_files().join(path);
        fs::set_permissions(path, fs::Permissions::from_mode(0o000)).unwrap();
    };
    daemon.put("file", &Tree::new().dockerfile(COPY_ALL).file("d/closed", "c").file("a", "a"));
    closed("file/d/closed");
    let output = daemon.build("closed:1", "file", &[]);
    output.expect_code(1).says(&["d/closed", "permission"]);
    daemon.put("directory", &Tree::new().dockerfile(COPY_ALL).file("d/closed/x", "c").file("a", "a"));
    closed("directory/d/closed");
    let output = daemon.build("closed:1", "directory", &[]);
    output.expect_code(1).says(&["d/closed", "permission"]);
    daemon.put("dockerfile", &Tree::new().dockerfile(COPY_ALL).file("a", "a"));
    closed("dockerfile/Dockerfile");
    daemon.build("closed:1", "dockerfile", &[]).expect_code(1).says(&["/context/Dockerfile", "permission"]);
    assert_eq!(daemon.tag_digest("closed", "1"), None);
    // Files that the build does not use need not be readable.
    let dockerfile = "FROM scratch\nCOPY a /\n";
    daemon.put("beside", &Tree::new().dockerfile(dockerfile).file("closed", "c").file("a", "a"));
    closed("beside/closed");
    daemon.build_ok("closed:2", "beside", &[]);
}

fn a_daemon_killed_in_the_middle_of_a_transfer_loses_nothing() {
    let daemon = Daemon::start(Options::room("moving-killed"));
    let tree = (0..60).fold(
        Tree::new()
            .dockerfile("FROM scratch AS all\nCOPY . /all/\nFROM scratch\nCOPY --from=all /all/f7 /\n"),
        |tree, file| tree.file(&format!("f{file}"), noise(500 + file, 1_500_000)),
    );
    daemon.put("large", &tree);
    daemon.put("small", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "kept"));
    let before = daemon.build_ok("small:1", "small", &[]);
    let id = block_on(seconds(30), async {
        Api::of(&daemon).await.submit(spec("large:1", "large")).await.unwrap()
    });
    wait::until(seconds(60), "the context is under way", || {
        let events =
            block_on(seconds(20), async { Api::of(&daemon).await.events_so_far(&id, 0).await.unwrap() });
        events.iter().any(|event| matches!(&event.event, Some(Event::StepStarted(step)) if step.name.contains("load build context")))
    });
    daemon.kill9();
    daemon.restart();
    let ended = wait::poll(seconds(120), || {
        let state = block_on(seconds(20), async { Api::of(&daemon).await.state(&id).await });
        (!matches!(state, BuildState::Queued | BuildState::Running)).then_some(state)
    });
    match ended.expect("the build ends") {
        BuildState::Succeeded => assert!(daemon.tag_digest("large", "1").is_some()),
        BuildState::Failed | BuildState::Interrupted => assert_eq!(daemon.tag_digest("large", "1"), None),
        other => panic!("it ended as {other:?}"),
    }
    assert_eq!(daemon.tag_digest("small", "1"), Some(before), "what was published before is there");
    // The partial transfer in buildkitd does not prevent the build, and is not taken for the whole.
    let output = daemon.build("large:2", "large", &[]);
    let files = image_of(&daemon, "large", output.expect_code(0));
    assert_eq!(files.0[&b"f7"[..]].content, sha256(&noise(507, 1_500_000)).into_bytes());
}
