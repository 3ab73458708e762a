//! An additional process in a service: its input and output, its terminal, its exit, and why it cannot start.

use integration_tests::daemon::Daemon;
use integration_tests::process::{self, Output};
use integration_tests::runner::Group;
use integration_tests::service::{App, PORT};
use integration_tests::shared_cases;
use integration_tests::terminal::Terminal;
use integration_tests::wait::{self, seconds};

pub fn group() -> Group {
    Group::new(
        "service_exec",
        shared_cases![
            a_process_runs_beside_the_service,
            root_has_the_groups_that_the_image_lists,
            a_file_goes_through_a_process,
            a_terminal_is_one_inside_and_is_as_it_was_afterwards,
            keys_and_the_size_of_the_window_reach_the_process,
            a_terminal_without_a_keyboard_is_refused_or_shown,
            what_cannot_be_run_ends_as_in_a_shell,
        ],
    )
}

#[track_caller]
fn deploy(daemon: &Daemon, name: &str) {
    App::page("exec\n").file("etc/notes", "no program\n").pack(daemon, &format!("{name}:1"));
    daemon.hearth_ok(&["deploy", "--tag", &format!("{name}:1")]);
}

#[track_caller]
fn exec(daemon: &Daemon, service: &str, command: &[&str]) -> Output {
    daemon.hearth(&[&["services", "exec", service, "--"], command].concat())
}

fn a_process_runs_beside_the_service(daemon: &Daemon) {
    deploy(daemon, "beside");
    let output = exec(daemon, "beside", &["sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((output.code, output.stdout.as_str()), (7, "out\n"), "{output}");
    assert!(output.stderr.contains("err\n"), "{output}");
    let output = exec(daemon, "beside", &["sh", "-c", &format!("wget -q -O - http://127.0.0.1:{PORT}/")]);
    assert_eq!(output.stdout, "exec\n", "in the same network: {output}");
    exec(daemon, "nobody", &["true"]).expect_code(1).says(&["nobody"]);
}

fn root_has_the_groups_that_the_image_lists(daemon: &Daemon) {
    let passwd = "root:x:0:0:root:/root:/bin/sh\n";
    let group = "root:x:0:\nwheel:x:10:root\nother:x:11:web\n";
    for (user, groups) in [("", "0 10\n"), ("0", "0 10\n"), ("0:0", "0\n")] {
        let app = App::page("groups\n").file("etc/passwd", passwd).file("etc/group", group);
        let app = if user.is_empty() { app } else { app.with(&["--user", user]) };
        app.pack(daemon, "groups:1");
        daemon.hearth_ok(&["deploy", "--tag", "groups:1"]);
        let output = exec(daemon, "groups", &["sh", "-c", "grep Groups: /proc/1/status; id -G"]);
        assert!(output.stdout.ends_with(&format!("\n{groups}")), "{user}: {output}");
    }
}

fn a_file_goes_through_a_process(daemon: &Daemon) {
    deploy(daemon, "through");
    let look = ["sh", "-c", "wc -c; echo $A; pwd"];
    let input = vec![b'x'; 300_000];
    let with = |flags: &[&str]| {
        let mut client = daemon.client();
        client.args(["services", "exec", "-i"]).args(flags).args(["through", "--"]).args(look);
        process::run_with_input(&mut client, &input, seconds(60))
    };
    let output = with(&["-e", "A=b c", "-w", "/site"]);
    assert_eq!(output.stdout, "300000\nb c\n/site\n", "{output}");
    let output = with(&[]);
    assert_eq!(output.stdout, "300000\n\n/\n", "{output}");
}

fn a_terminal_is_one_inside_and_is_as_it_was_afterwards(daemon: &Daemon) {
    deploy(daemon, "pty");
    let inside = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all $TERM; stty size; echo ready; read line; echo got $line; exit 5";
    let shell = format!(
        "stty rows 33 cols 99; before=$(stty -g); \"$HEARTH\" services exec -it pty -- sh -c '{inside}'; code=$?; \
         [ \"$(stty -g)\" = \"$before\" ] && echo as before; exit $code"
    );
    let mut terminal = Terminal::run(daemon, &shell);
    terminal.shows("ready");
    terminal.press("a line\r");
    let (code, screen) = terminal.end();
    assert_eq!(code, 5, "{screen:?}");
    // The terminal inside echoes `a line` once.
    let shown: Vec<&str> = screen.lines().map(|line| line.trim_end_matches('\r')).collect();
    assert_eq!(shown, ["all xterm", "33 99", "ready", "a line", "got a line", "as before"], "{screen:?}");
}

fn keys_and_the_size_of_the_window_reach_the_process(daemon: &Daemon) {
    deploy(daemon, "keys");
    let larger = daemon.directory().join("larger");
    let inside = "trap \"echo caught; trap - INT\" INT; while :; do stty size; sleep 0.1; done";
    let shell = format!(
        "stty rows 20 cols 70; (until [ -e {} ]; do sleep 0.05; done; stty rows 44 cols 111 </dev/tty) & \
         exec \"$HEARTH\" services exec -it keys -- sh -c '{inside}'",
        larger.display()
    );
    let mut terminal = Terminal::run(daemon, &shell);
    terminal.shows("20 70");
    std::fs::write(&larger, "").unwrap();
    terminal.shows("44 111");
    terminal.press("\x03");
    terminal.shows("caught");
    // The second Ctrl-C is not caught.
    terminal.press("\x03");
    let (code, screen) = terminal.end();
    assert_eq!(code, 130, "{screen:?}");
    // A shell is not left behind when its user disconnects.
    let shells = || exec(daemon, "keys", &["sh", "-c", "ps | grep -c [s]leep.987"]).stdout;
    let terminal =
        Terminal::run(daemon, "exec \"$HEARTH\" services exec -it keys -- sh -c 'echo in; sleep 987'");
    terminal.shows("in");
    assert_ne!(shells(), "0\n");
    drop(terminal);
    wait::until(seconds(20), "the shell ends with its terminal", || shells() == "0\n");
}

fn a_terminal_without_a_keyboard_is_refused_or_shown(daemon: &Daemon) {
    deploy(daemon, "blind");
    let output = daemon.hearth(&["services", "exec", "-it", "blind", "--", "true"]);
    output.expect_code(2).says(&["-t with -i needs a terminal"]);
    let output =
        daemon.hearth_ok(&["services", "exec", "-t", "blind", "--", "sh", "-c", "stty size; [ -t 1 ]"]);
    assert_eq!(output.stdout, "24 80\r\n", "{output}");
}

fn what_cannot_be_run_ends_as_in_a_shell(daemon: &Daemon) {
    deploy(daemon, "wrong");
    for (command, code) in
        [("no-such-program", 127), ("/no/such/program", 127), ("/etc/notes", 126), ("/etc", 126)]
    {
        let output = exec(daemon, "wrong", &[command]);
        output.expect_code(code).says(&["error:", command]);
    }
}
