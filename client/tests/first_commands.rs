//! The first commands of a new user: `hearth`, `hearth init` and `hearth up`, as far as they need no daemon.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

fn hearth(home: &Path, line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    for name in ["HEARTH_ADDR", "HEARTH_ROOM", "HEARTH_TOKEN", "MESHAGENT_ROOM", "MESHAGENT_TOKEN"] {
        command.env_remove(name);
    }
    command.env("HOME", home).env("XDG_CONFIG_HOME", home).current_dir(home);
    command.args(line.split_whitespace()).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn without_a_room_hearth_shows_its_help_and_why_a_configured_room_is_missing() {
    let home = tempfile::tempdir().unwrap();
    let added = hearth(home.path(), "room add studio --addr http://127.0.0.1:9");
    assert!(added.status.success());
    let used = hearth(home.path(), "room use studio");
    assert!(used.status.success());
    let shown = hearth(home.path(), "");
    assert_eq!(shown.status.code(), Some(2));
    let text = stderr(&shown);
    assert!(text.contains("Usage: hearth") && text.contains("The room is not shown: "), "{text}");
    assert!(shown.stdout.is_empty());
    // A room that the command line names, and a program, get the error.
    assert_eq!(hearth(home.path(), "--addr http://127.0.0.1:9").status.code(), Some(4));
    let json = hearth(home.path(), "--json");
    let document: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((json.status.code(), &document["error"]["code"]), (Some(4), &"unreachable".into()));
}

#[test]
fn init_writes_an_ignore_file_and_says_what_comes_next() {
    let home = tempfile::tempdir().unwrap();
    std::fs::create_dir(home.path().join("my-app")).unwrap();
    let first = hearth(home.path(), "init ./my-app");
    assert!(first.status.success(), "{}", stderr(&first));
    assert_eq!(
        stderr(&first),
        "wrote ./my-app/.dockerignore\nnext: write ./my-app/Dockerfile, then hearth up ./my-app\n"
    );
    std::fs::write(home.path().join("my-app/Dockerfile"), "FROM scratch\n").unwrap();
    std::fs::write(home.path().join("my-app/.dockerignore"), "mine\n").unwrap();
    let again = hearth(home.path(), "init ./my-app --json");
    let document: serde_json::Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!(
        document,
        serde_json::json!({"written": null, "dockerfile": "Dockerfile", "next": "hearth up ./my-app"})
    );
    assert_eq!(std::fs::read_to_string(home.path().join("my-app/.dockerignore")).unwrap(), "mine\n");
    assert_eq!(hearth(home.path(), "init none").status.code(), Some(2));
}

#[test]
fn up_checks_what_was_typed_before_it_needs_a_room() {
    let home = tempfile::tempdir().unwrap();
    for line in ["up none", "up none --json", "up . --domain a/b", "up . --port 0", "up . --pack x"] {
        let ended = hearth(home.path(), line);
        assert_eq!(ended.status.code(), Some(2), "{line}: {}", stderr(&ended));
    }
    std::fs::write(home.path().join("Dockerfile"), "FROM scratch\n").unwrap();
    let unreachable = hearth(home.path(), "up . --tag my-app --addr http://127.0.0.1:9");
    assert_eq!(unreachable.status.code(), Some(4), "{}", stderr(&unreachable));
}
