//! The first hour of a new user, right and wrong, typed in a pseudo terminal. The screens are kept as snapshots that a
//! reviewer reads: `integration-tests/tests/e2e/first_hour/*.snap`.
//!
//! After a wanted change of what is shown: `INSTA_UPDATE=always make e2e CASE=first_hour`, and read the difference.

use std::fs;
use std::process::Command;

use integration_tests::binaries::repository;
use integration_tests::daemon::Daemon;
use integration_tests::process;
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::shell_session::ShellSession;
use integration_tests::wait::seconds;

/// Commands that are typed, and whose screens are one snapshot.
type Chapter = fn(&mut ShellSession);

pub fn group() -> Group {
    Group::new("first_hour", shared_cases![the_first_hour_shows_calm_screens]).in_sequence()
}

fn the_first_hour_shows_calm_screens(daemon: &Daemon) {
    let mut copy = Command::new("cp");
    copy.arg("-r").arg(repository().join("examples/my-app")).arg(daemon.directory().join("my-app"));
    process::run(&mut copy, seconds(10)).expect_code(0);
    let mut base = Command::new(repository().join("deploy/base-image.sh"));
    process::run(base.arg(daemon.directory().join("busybox")), seconds(20)).expect_code(0);
    write_wrong_apps(daemon);

    let mut session = ShellSession::start(daemon);
    let chapters: [(&str, Chapter); 4] =
        [("first_steps", first_steps), ("builds", builds), ("services", services), ("tools", tools)];
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("first_hour");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let mut wrong = Vec::new();
    for (name, play) in chapters {
        play(&mut session);
        cancel_builds(daemon);
        let transcript = session.take_transcript();
        let same = settings.bind(|| std::panic::catch_unwind(|| insta::assert_snapshot!(name, transcript)));
        if same.is_err() {
            wrong.push(name);
        }
    }
    assert!(
        wrong.is_empty(),
        "the screens of {wrong:?} differ from their snapshots; see the files *.snap.new"
    );
}

/// Cancels the builds that the session left running: a daemon that drains would wait for them.
fn cancel_builds(daemon: &Daemon) {
    let running = daemon.hearth_ok(&["builds", "list", "--state", "running", "--json"]).json();
    for build in running.as_array().into_iter().flatten() {
        let id = build["build_id"].as_str().expect("an id");
        daemon.hearth_ok(&["builds", "cancel", id]);
    }
}

/// Writes directories with the mistakes that people make.
fn write_wrong_apps(daemon: &Daemon) {
    let from = "FROM room.meshagent.com/busybox:demo\n";
    for (name, dockerfile) in [
        ("fails", format!("{from}RUN echo about to fail; exit 3\n")),
        ("typo", format!("{from}RUNN echo hello\n")),
        ("missing", format!("{from}COPY sorce /source\n")),
        ("ignored", format!("{from}COPY notes.md /\n")),
        ("slow", format!("{from}RUN echo begun | tr b B; sleep 600\n")),
        ("slower", format!("{from}RUN echo waiting | tr w W; sleep 601\n")),
        ("stages", format!("{from}FROM room.meshagent.com/busybox:demo AS test\nRUN echo hello\n")),
        (
            "crashes",
            format!("{from}EXPOSE 80\nCMD [\"sh\", \"-c\", \"echo no configuration; sleep 1; exit 7\"]\n"),
        ),
    ] {
        let directory = daemon.directory().join(name);
        fs::create_dir(&directory).expect("directory");
        fs::write(directory.join("Dockerfile"), dockerfile).expect("Dockerfile");
        fs::write(directory.join("notes.md"), "notes\n").expect("a file");
        fs::write(directory.join("source"), "source\n").expect("a file");
        if name == "ignored" {
            fs::write(directory.join(".dockerignore"), "# not needed\n*.md\n").expect("a file");
        }
    }
}

fn first_steps(session: &mut ShellSession) {
    session.run("hearth");
    session.run("hearth doctor");
    session.run("hearth bulid --tag my-app:dev my-app");
    session.run("hearth build my-app");
    session.run("hearth build --tga my-app:dev my-app");
    session.run("hearth build --tag My-App my-app");
    session.run("hearth build --tag my-app:dev my-ap");
    session.run("hearth build --tag my-app:dev my-app");
    session.run("hearth pack busybox --tag busybox:demo --cmd '[\"sh\"]' --env PATH=/bin");
    session.run("hearth images list");
    session.run("hearth build --tag my-app:dev my-app");
    session.run("hearth build --tag my-app:dev my-app --label stage=dev --verbose");
    session.run("hearth images inspect my-app:dev");
    session.run("hearth");
}

fn builds(session: &mut ShellSession) {
    session.run("hearth build --tag fails:1 fails");
    session.run("hearth build --tag typo:1 typo");
    session.run("hearth build --tag missing:1 missing");
    session.run("hearth build --tag ignored:1 ignored");
    session.run("hearth build --tag stages:1 --target tset stages");
    session.run("hearth build --tag stages:1 --no-cache tset stages");
    session.run("hearth build --tag stages:1 --platform linux/arm64 stages");
    session.run("hearth build --tag stages:1 -f Dockerfile.prod stages");
    session.run("hearth build --tag stages:1 --build-arg =1 stages");
    session.run_with_keys(
        "hearth build --tag slow:1 slow",
        &[("Begun", "\u{3}"), ("leave it", "\n"), ("Begun", "\u{3}"), ("leave it", "l\n")],
    );
    session.run("hearth builds list");
    session.run("hearth builds list --state failed --limit 2");
    session.run("id=$(hearth build --tag slow:2 --detach slower)");
    session.run_with_keys("hearth builds logs $id --follow", &[("Waiting", "\u{3}")]);
    session.run("hearth builds cancel $id");
    session.run("hearth builds logs $id --follow --tail 2");
    session.run("hearth builds show $id");
    session.run("hearth builds rm $id; hearth builds show $id");
}

fn services(session: &mut ShellSession) {
    session.run("hearth deploy --tag my-app:prod");
    session.run("hearth deploy --tag my-app:dev --domain app.test --public --dry-run");
    session.run("hearth deploy --tag my-app:dev --domain app.test --public --cpus 1 --env GREETING=hello");
    session.run("hearth services list");
    session.run("hearth services show my-app");
    session.run("hearth services exec my-app -- cat /site/index.html");
    session.run("hearth services exec my-ap -- true");
    session.run("hearth deploy --tag my-app:dev --liveness /nope --timeout 3s");
    session.run("hearth deploy --tag my-app:dev --env GREETING=bye --wait");
    session.run("hearth services show my-app --revision 1 -o yaml");
    session.run("hearth services rollback my-app --wait");
    session.run("hearth services restart my-app --wait");
    session.run("hearth build --tag crashes:1 crashes --progress plain");
    session.run("hearth deploy --tag crashes:1 --timeout 3s");
    session.run("hearth routes list");
    session.run("hearth services rm my-app");
    session.run("hearth services list");
}

fn tools(session: &mut ShellSession) {
    session.run("hearth storage put my-app /apps/my-app");
    session.run("hearth storage ls /apps");
    session.run("hearth storage get /apps/nothing here");
    session.run("hearth storage rm /apps");
    session.run("hearth pack my-app -o new/my-app.oci.tar --docker");
    session.run("hearth pack my-app");
    session.run("hearth images load new/my-app.oci.tar --tag loaded:1");
    session.run("hearth images rm loaded:1");
    session.run("hearth images rm loaded:1");
    session.run("hearth token mint --name ci --ttl 400d");
    session.run("TOKEN=$(hearth token mint --name ci --scope agentDefault --ttl 1h)");
    session.run("hearth explain platform_mismatch");
    session.run("hearth explain nonsense");
    session.run("hearth context ls --pack my-app");
    session.run("hearth context cat --pack my-app site");
    session.run("hearth --room nowhere images list");
    session.run("HEARTH_ADDR=unix:///nowhere.sock hearth services list");
    session.run("hearth storage rm apps --recursive && hearth storage ls");
}
