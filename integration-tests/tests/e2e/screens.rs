//! What a person sees at a terminal: a build, the question after Ctrl-C, `hearth up` and `hearth` alone.

use integration_tests::daemon::{BASE, Daemon};
use integration_tests::runner::Group;
use integration_tests::service::page;
use integration_tests::shared_cases;
use integration_tests::sources::Tree;
use integration_tests::terminal::Terminal;
use integration_tests::wait::{self, seconds};

pub fn group() -> Group {
    Group::new(
        "screens",
        shared_cases![
            a_build_at_a_terminal_shows_its_own_steps_and_each_error_once,
            a_build_that_is_left_goes_on_and_one_that_is_watched_on_is_shown_again,
            up_builds_and_runs_a_directory_and_hearth_shows_what_is_there,
        ],
    )
}

/// Puts the files of an app beside the daemon, where the terminal starts.
fn app(daemon: &Daemon, name: &str, tree: &Tree) {
    daemon.base_image();
    tree.write(&daemon.directory().join(name));
}

fn a_build_at_a_terminal_shows_its_own_steps_and_each_error_once(daemon: &Daemon) {
    app(daemon, "fine", &Tree::new().dockerfile(&format!("FROM {BASE}\nRUN echo a line of output\n")));
    let (code, screen) = Terminal::run(daemon, "$HEARTH build --tag fine:1 fine").end();
    assert_eq!(code, 0, "{screen}");
    assert!(screen.contains("[2/2] RUN echo a line of output"), "{screen}");
    for hidden in ["[internal]", "127.0.0.1:"] {
        let shown = screen.rsplit_once("built ").map_or(screen.as_str(), |(before, _)| before);
        assert!(!shown.contains(hidden), "{hidden}: {screen}");
    }
    app(daemon, "bad", &Tree::new().dockerfile(&format!("FROM {BASE}\nRUN echo bad luck >&2; exit 7\n")));
    let failed = daemon.hearth(&["build", "--tag", "bad:1", "bad", "--progress", "plain"]);
    failed.expect_code(7);
    for once in ["exit code: 7", "! bad luck", "FAILED"] {
        assert_eq!(failed.stderr.matches(once).count(), 1, "{once}: {failed}");
    }
    let (code, screen) = Terminal::run(daemon, "$HEARTH build --tag bad:1 bad").end();
    assert_eq!(code, 7, "{screen}");
    assert_eq!(screen.matches("exit code: 7").count(), 1, "{screen}");
    assert!(!screen.contains("last lines:"), "{screen}");
    let listed = daemon.hearth_ok(&["builds", "list", "--json", "--tag", "bad:1"]).json();
    assert!(listed[0]["duration_seconds"].as_f64() > Some(0.0), "{listed}");
}

fn a_build_that_is_left_goes_on_and_one_that_is_watched_on_is_shown_again(daemon: &Daemon) {
    app(
        daemon,
        "slow",
        &Tree::new().dockerfile(&format!("FROM {BASE}\nRUN echo begun; sleep 6; echo ended\n")),
    );
    let mut terminal = Terminal::run(daemon, "exec $HEARTH build --tag slow:1 slow");
    terminal.shows("begun");
    terminal.press("\x03");
    terminal.shows("keep watching [enter]?");
    let asked = terminal.screen().len();
    terminal.press("\r");
    wait::until(seconds(20), "the running step is shown again", || {
        terminal.screen()[asked..].contains("RUN echo begun")
    });
    terminal.press("\x03");
    wait::until(seconds(20), "the second question", || {
        terminal.screen().matches("keep watching [enter]?").count() == 2
    });
    terminal.press("l\r");
    let (code, screen) = terminal.end();
    assert_eq!(code, 0, "{screen}");
    assert!(
        screen.contains("the build goes on without this command") && !screen.contains("error:"),
        "{screen}"
    );
    wait::until(seconds(60), "the build that was left ends", || daemon.tag_digest("slow", "1").is_some());
}

fn up_builds_and_runs_a_directory_and_hearth_shows_what_is_there(daemon: &Daemon) {
    let serve = "trap 'exit 0' TERM; httpd -f -p 8000 -h /site & wait";
    let dockerfile =
        format!("FROM {BASE}\nCOPY site /site\nEXPOSE 8000\nCMD [\"sh\", \"-c\", \"{serve}\"]\n");
    app(daemon, "my-app", &Tree::new().dockerfile(&dockerfile).file("site/index.html", "up\n"));
    let shell = "$HEARTH init my-app && $HEARTH up my-app --domain up.example.com --public";
    let (code, screen) = Terminal::run(daemon, shell).end();
    assert_eq!(code, 0, "{screen}");
    for part in [
        "wrote my-app/.dockerignore",
        "next: hearth up my-app",
        "built room.meshagent.com/my-app:latest",
        "new service my-app, revision 1",
        "my-app revision 1 is live after",
        "http://up.example.com:",
    ] {
        assert!(screen.contains(part), "{part}: {screen}");
    }
    assert!(!screen.contains(" + #"), "steps that succeeded leave no line: {screen}");
    assert_eq!(page(daemon, "up.example.com"), "up\n");
    let shown = daemon.hearth_ok(&[]).stdout;
    for part in ["room ", "my-app", "succeeded", "disk: "] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let document = daemon.hearth_ok(&["--json"]).json();
    assert_eq!(document["services"][0]["name"], "my-app", "{document}");
    assert!(document["disk"]["free_bytes"].as_u64() > Some(0), "{document}");
    let page = daemon.hearth_ok(&["services", "show", "my-app"]).stdout;
    for part in ["memory       unlimited", "command      of the image"] {
        assert!(page.contains(part), "{part}: {page}");
    }
    // A second time, in place and as a program reads it.
    let again = daemon.hearth_ok(&["up", "my-app", "--json"]).json();
    assert_eq!(
        (&again["name"], &again["revision"], &again["live"]),
        (&"my-app".into(), &2.into(), &true.into())
    );
    daemon.hearth_ok(&["services", "rm", "my-app", "--now"]);
}
