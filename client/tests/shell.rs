//! What a shell and `man` get from the client: completions and manual pages.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::Command;

fn hearth(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    for name in ["HEARTH_ADDR", "HEARTH_ROOM", "HEARTH_TOKEN", "MESHAGENT_ROOM", "MESHAGENT_TOKEN"] {
        command.env_remove(name);
    }
    command.env("HOME", home).env("XDG_CONFIG_HOME", home).current_dir(home);
    command
}

fn stdout(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns what bash is offered for the last of the words.
fn offered(home: &Path, words: &[&str]) -> String {
    let mut command = hearth(home);
    command.env("COMPLETE", "bash").env("_CLAP_COMPLETE_INDEX", (words.len() - 1).to_string());
    stdout(command.env("_CLAP_IFS", "\n").arg("--").args(words))
}

#[test]
fn each_command_has_a_manual_page() {
    let home = tempfile::tempdir().unwrap();
    stdout(hearth(home.path()).args(["man", "share/man/man1"]));
    for page in ["hearth", "hearth-build", "hearth-services-logs"] {
        let text = std::fs::read_to_string(home.path().join(format!("share/man/man1/{page}.1"))).unwrap();
        assert!(text.contains(".SH SYNOPSIS"), "{page}");
    }
}

#[test]
fn names_of_this_machine_are_completed_and_a_room_that_is_away_is_no_error() {
    let home = tempfile::tempdir().unwrap();
    stdout(hearth(home.path()).args(["room", "add", "studio", "--addr", "http://127.0.0.1:9"]));
    assert_eq!(offered(home.path(), &["hearth", "room", "use", "st"]), "studio");
    assert_eq!(offered(home.path(), &["hearth", "build", "--metad"]), "--metadata-file");
    assert_eq!(offered(home.path(), &["hearth", "services", "logs", "w"]), "");
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(hearth(home.path()).args(["completions", shell]));
        assert!(script.contains("COMPLETE="), "{shell}: {script}");
    }
}
