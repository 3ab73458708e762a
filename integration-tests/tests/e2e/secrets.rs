//! Secrets appear nowhere: not in output, database, log or blob.

use std::path::Path;
use std::process::Command;

use integration_tests::daemon::{BASE, Daemon, Options};
use integration_tests::process;
use integration_tests::runner::{Case, Group};
use integration_tests::shared_cases;
use integration_tests::sources::Tree;
use integration_tests::terminal::Terminal;
use integration_tests::wait::seconds;

pub fn group() -> Group {
    let mut cases = shared_cases![
        a_secret_is_usable_in_a_step_and_found_nowhere,
        a_secret_that_a_step_prints_is_masked_in_the_log,
        credentials_are_found_nowhere,
        a_secret_that_is_not_given_is_named,
        a_secret_is_typed_unseen_and_never_cut,
    ];
    cases.push(Case::alone("tokens_are_in_no_log", tokens_are_in_no_log));
    Group::new("secrets", cases)
}

/// Returns the files below a directory that contain the text in plain.
fn files_with(directory: &Path, text: &str) -> String {
    let mut grep = Command::new("grep");
    grep.args(["-rlaF", "--", text]).arg(directory);
    let output = process::run(&mut grep, seconds(60));
    // Files of other builds may vanish meanwhile; no other read error is allowed.
    let vanished = |line: &str| line.ends_with(": No such file or directory");
    assert!(output.code <= 1 || output.stderr.lines().all(vanished), "{output}");
    output.stdout
}

/// Asserts that the text is in no file of the state directory, in no log, and in no file of an image as pulled.
#[track_caller]
fn nowhere(daemon: &Daemon, text: &str, images: &[&str]) {
    assert_eq!(files_with(&daemon.state(), text), "", "found below the state directory");
    assert!(!daemon.log().contains(text), "found in the daemon's log");
    for name in images {
        let image = daemon.image(name);
        assert!(!image.config.to_string().contains(text), "found in the history of {name}");
        for (path, node) in &image.files {
            if let integration_tests::image::Kind::File(content) = &node.kind {
                assert!(!String::from_utf8_lossy(content).contains(text), "found in {path} of {name}");
            }
        }
    }
}

fn a_secret_is_usable_in_a_step_and_found_nowhere(daemon: &Daemon) {
    daemon.base_image();
    let dockerfile = format!(
        "FROM {BASE}\n\
         RUN --mount=type=secret,id=from_env sha256sum /run/secrets/from_env | cut -c 1-64 > /sum-env\n\
         RUN --mount=type=secret,id=from_file,target=/s sha256sum /s | cut -c 1-64 > /sum-file\n"
    );
    daemon.put("secret", &Tree::new().dockerfile(&dockerfile));
    let file = tempfile::NamedTempFile::new().unwrap();
    let (in_env, in_file) = ("canary-env-5d0c1b9e7f", "canary-file-93ab64c2d1");
    std::fs::write(file.path(), in_file).unwrap();
    let from_file = format!("id=from_file,src={}", file.path().display());
    let mut command = daemon.client();
    let more = ["--secret", "id=from_env,env=CANARY", "--secret", &from_file];
    command.env("CANARY", in_env).args(daemon.build_arguments("secret:1", "secret:/context", &more));
    let output = process::run(&mut command, seconds(120));
    output.expect_code(0);
    let image = daemon.image("secret:1");
    let sum =
        |text: &str| integration_tests::sources::sha256(text.as_bytes())["sha256:".len()..].to_owned() + "\n";
    assert_eq!((image.file("sum-env"), image.file("sum-file")), (sum(in_env), sum(in_file)));
    for canary in [in_env, in_file] {
        assert!(!output.stdout.contains(canary) && !output.stderr.contains(canary), "{output}");
        nowhere(daemon, canary, &["secret:1"]);
    }
}

fn a_secret_that_a_step_prints_is_masked_in_the_log(daemon: &Daemon) {
    daemon.base_image();
    let dockerfile = format!(
        "FROM {BASE}\nRUN --mount=type=secret,id=s echo \"value: <$(cat /run/secrets/s)>\"; echo after\n"
    );
    daemon.put("printed", &Tree::new().dockerfile(&dockerfile));
    let canary = "canary-printed-e1f2a3b4";
    let mut command = daemon.client();
    let arguments = daemon.build_arguments("printed:1", "printed:/context", &["--secret", "id=s,env=CANARY"]);
    let output = process::run(command.env("CANARY", canary).args(arguments), seconds(120));
    output.expect_code(0).says(&["value: <", "after"]);
    assert!(!output.stderr.contains(canary), "{output}");
    nowhere(daemon, canary, &["printed:1"]);
}

fn credentials_are_found_nowhere(daemon: &Daemon) {
    daemon.put("cred", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", "cred"));
    let canary = "canary-password-07cd";
    let credential = format!("registry.example.com,someone,{canary}");
    let output = daemon.build("cred:1", "cred", &["--cred", &credential]);
    output.expect_code(0);
    assert!(!output.stderr.contains(canary), "{output}");
    nowhere(daemon, canary, &[]);
}

fn a_secret_that_is_not_given_is_named(daemon: &Daemon) {
    daemon.base_image();
    let dockerfile = format!("FROM {BASE}\nRUN --mount=type=secret,id=not_given,required=true true\n");
    daemon.put("not-given", &Tree::new().dockerfile(&dockerfile));
    let output = daemon.build("not-given:1", "not-given", &[]);
    assert_ne!(output.code, 0, "{output}");
    output.says(&["not_given"]);
}

fn tokens_are_in_no_log() {
    let options =
        Options::room("verbose").environment("HEARTH_LOG", "trace").environment("RUST_LOG", "trace");
    let daemon = Daemon::start(options);
    daemon.put("logged", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", ""));
    daemon.build_ok("logged:1", "logged", &[]);
    daemon.image("logged:1");
    let mut command = daemon.client();
    command.env("HEARTH_ADDR", format!("http://{}", daemon.listen())).env("HEARTH_TOKEN", daemon.token());
    process::run(command.args(["builds", "list"]), seconds(60)).expect_code(0);
    let token = daemon.token();
    for part in [token, token.rsplit('.').next().unwrap()] {
        assert!(!daemon.log().contains(part), "a token is in the log");
        assert_eq!(files_with(&daemon.state(), part), "");
    }
    // skopeo sends the token as the password of a Basic header.
    use base64::Engine as _;
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("any:{token}"));
    assert!(!daemon.log().contains(&basic[..60]), "a Basic header is in the log");
}

fn a_secret_is_typed_unseen_and_never_cut(daemon: &Daemon) {
    let typed = |name: &str, value: &str| {
        let mut terminal = Terminal::run(daemon, &format!("$HEARTH secrets set {name}"));
        terminal.shows("not shown");
        terminal.press(&format!("{value}\r"));
        terminal.end()
    };
    let (code, screen) = typed("typed", "canary-typed-71c2f0");
    assert_eq!(code, 0, "{screen}");
    assert!(!screen.contains("canary"), "{screen}");
    // The kernel drops input beyond its buffer, and a truncated secret would be noticed only at its first use.
    let (code, screen) = typed("long", &"x".repeat(5_000));
    assert_eq!(code, 2, "{screen}");
    assert!(screen.contains("4095 bytes") && screen.contains("--from-file"), "{screen}");
    let listed = daemon.hearth_ok(&["secrets", "ls"]).stdout;
    assert!(listed.contains("typed") && !listed.contains("long"), "{listed}");
    nowhere(daemon, "canary-typed-71c2f0", &[]);
}
