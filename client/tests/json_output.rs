//! With `--json`, standard output is exactly one JSON document, whatever the outcome; with `--progress json`, each line
//! of standard error is a JSON object. The commands that need a daemon are in the end-to-end tests.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

struct Ended {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn hearth(home: &Path, line: &str) -> Ended {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    for name in ["HEARTH_ADDR", "HEARTH_ROOM", "HEARTH_TOKEN", "MESHAGENT_ROOM", "MESHAGENT_TOKEN"] {
        command.env_remove(name);
    }
    command.env("HOME", home).env("XDG_CONFIG_HOME", home).current_dir(home).args(line.split_whitespace());
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Runs the command, checks its exit code, and returns its document.
#[track_caller]
fn document(home: &Path, line: &str, code: i32) -> Value {
    let ended = hearth(home, line);
    assert_eq!(ended.code, Some(code), "{line}: {}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{line}: {error}: {}", ended.stdout))
}

#[test]
fn each_outcome_is_one_document() {
    let home = tempfile::tempdir().unwrap();
    let document = |line: &str, code| document(home.path(), line, code);
    assert_eq!(document("--version --json", 0)["version"], env!("CARGO_PKG_VERSION"));
    assert!(document("build --help --json", 0)["help"].as_str().unwrap().contains("Usage:"));
    assert_eq!(document("room add a --addr http://127.0.0.1:9 --json", 0)["added"], "a");
    assert_eq!(document("room use a --json", 0)["current"], "a");
    assert_eq!(document("room list --json", 0)[0]["name"], "a");
    assert_eq!(document("room rm a --json", 0)["removed"], "a");
    assert_eq!(document("room rm a --json", 2)["error"]["code"], "usage");
    assert!(document("explain --json", 0).is_array());
    assert_eq!(document("completions bash --json", 0)["shell"], "bash");
    let usage = document("build --json", 2)["error"]["message"].as_str().unwrap().to_owned();
    assert!(usage.ends_with("--tag <TAG>"), "{usage}");
    for line in [
        "doctor",
        "builds cancel a b",
        "builds logs a",
        "images rm a:1",
        "routes rm a.example",
        "services rm a",
        "services logs a",
        "services exec a -- ls",
        "secrets rm a",
        "storage rm a",
    ] {
        let unreachable = document(&format!("--json --addr http://127.0.0.1:9 {line}"), 4);
        assert_eq!(unreachable["error"]["code"], "unreachable", "{line}");
    }
    std::fs::create_dir(home.path().join("tree")).unwrap();
    std::fs::write(home.path().join("tree/file"), "content").unwrap();
    assert!(document("pack tree -o tree.tar --json", 0)["digest"].is_string());
}

#[test]
fn the_stream_of_progress_has_nothing_else_in_it() {
    let home = tempfile::tempdir().unwrap();
    for line in [
        "build ./none --tag a:1 --progress json",
        "deploy --tag A --progress json",
        "services restart a --progress json --addr http://127.0.0.1:9",
    ] {
        let ended = hearth(home.path(), line);
        let objects: Vec<Value> =
            ended.stderr.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let last = objects.last().unwrap();
        assert_eq!(last["event"], "error", "{line}");
        assert!(last["error"]["code"].is_string() && ended.stdout.is_empty(), "{line}: {}", ended.stdout);
    }
}
