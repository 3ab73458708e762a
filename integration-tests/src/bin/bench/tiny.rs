//! Chapter `tiny`: a build so small that its time is the overhead of the daemon and the builder.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use integration_tests::daemon::{Daemon, Options};
use integration_tests::process;
use integration_tests::sources::Tree;
use integration_tests::wait::seconds;

use super::figures::{Figure, ROUNDS};
use super::side::Bench;
use super::turns::in_turns;

pub fn chapter(bench: &Bench) -> Vec<Figure> {
    let tree = |base: &str| {
        Tree::new()
            .dockerfile(&format!(
                "FROM {base}\nCOPY index.html /site/\nRUN sha256sum /site/index.html > /sum\n"
            ))
            .file("index.html", "<h1>hi</h1>\n")
    };
    let name = bench.daemon.base_image();
    bench.daemon.put("tiny", &tree(name));
    let buildctl_tree = bench.work.join("tiny");
    tree(&format!("{}/{}", bench.registry, name.rsplit('/').next().expect("a name"))).write(&buildctl_tree);
    bench.hearth_build("tiny:1", "tiny");
    bench.buildctl_build("tiny:1", &buildctl_tree);

    let warm = in_turns(
        |_| || bench.hearth_build("tiny:1", "tiny"),
        |_| || bench.buildctl_build("tiny:1", &buildctl_tree),
    );
    let change_file = |directory: &Path, round: usize| {
        fs::write(directory.join("index.html"), format!("<h1>{} {round}</h1>\n", directory.display()))
            .expect("write");
    };
    let room = bench.daemon.room_files().join("tiny");
    let changed = in_turns(
        |round| {
            change_file(&room, round);
            || bench.hearth_build("tiny:1", "tiny")
        },
        |round| {
            change_file(&buildctl_tree, round);
            || bench.buildctl_build("tiny:1", &buildctl_tree)
        },
    );
    vec![
        Figure::ratio(
            "tiny warm build from a room mount, submit to published tag",
            warm,
            "buildctl",
            Some(1.2),
        ),
        Figure::ratio(
            "the same after a change of its file: one COPY, one RUN, a new image",
            changed,
            "buildctl",
            None,
        ),
        Figure::shown(
            "first build of a fresh trust domain, with the start of its builder",
            &fresh_domains(&tree),
        ),
    ]
}

/// Measures the first build of several callers, each of whose builders has to be started.
fn fresh_domains(tree: &dyn Fn(&str) -> Tree) -> Vec<Duration> {
    let daemon = Daemon::start(Options::room("bench-domains").config("[builder]\nidle_seconds = 1\n"));
    daemon.put("tiny", &tree(daemon.base_image()));
    let build = |round: usize| {
        let token = daemon.mint(&["--name", &format!("caller-{round}"), "--scope", "agentDefault"]);
        let mut command = daemon.client();
        command.env("HEARTH_TOKEN", token).args(daemon.build_arguments("tiny:1", "tiny:/context:ro", &[]));
        let begun = Instant::now();
        process::run(&mut command, seconds(60)).expect_code(0);
        begun.elapsed()
    };
    (0..ROUNDS).map(build).collect()
}
