//! Programs that are replaced while they run, as by an update of their package.

use std::path::PathBuf;
use std::process::{Child as Running, Command, Stdio};
use std::time::Instant;

use super::*;
use crate::supervise::leftover::{self, ProcessMarker};

/// Copies the shell, so that it can be replaced.
fn program(dir: &Path) -> PathBuf {
    let path = dir.join("shell-that-is-replaced");
    std::fs::copy("/bin/sh", &path).unwrap();
    path
}

/// Replaces the file by another one of the same name, as a package manager does.
fn replace(program: &Path) {
    let new = program.with_extension("new");
    std::fs::copy("/bin/sh", &new).unwrap();
    std::fs::rename(new, program).unwrap();
}

/// A running process that is killed on drop.
struct Stray(Running);

impl Stray {
    fn start(command: &mut Command) -> Self {
        // Spawning returns when the program is executed, so the process shows its own environment by then.
        Self(command.spawn().unwrap())
    }

    /// Reports whether the process exits within some seconds.
    fn ends(&mut self) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(10) {
            if self.0.try_wait().unwrap().is_some() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Stray {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_program_that_was_replaced_while_it_ran_is_ended_and_what_lasts_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (program, root) = (program(dir.path()), dir.path().join("root"));
    std::fs::create_dir(&root).unwrap();
    let mark = ProcessMarker::of("script", &root).unwrap();
    let (variable, value) = mark.variable();
    let marked = |program: &Path, args: &[&str]| {
        Stray::start(Command::new(program).args(args).env(variable, value).stdin(Stdio::piped()))
    };
    let mut earlier = marked(&program, &["-c", "read line"]);
    let mut instance = marked(Path::new("sleep"), &["600"]);
    replace(&program);
    let mut child = child(dir.path(), "mkfifo ../fifo; echo $$ > $PID_FILE; read line < ../fifo");
    (child.program, child.descendants) = (program, DescendantPolicy::Surviving);
    let handle = super::super::start(child).unwrap();
    ready(&handle).await;
    assert!(earlier.ends(), "the program of before the update runs on beside the new one");
    assert!(instance.0.try_wait().unwrap().is_none(), "what it had started was ended");
    handle.stop().await;
    assert!(instance.0.try_wait().unwrap().is_none(), "what lasts was ended with the child");
}

#[test]
fn only_the_program_itself_with_these_words_together_is_ended() {
    let dir = tempfile::tempdir().unwrap();
    let program = program(dir.path());
    let root = dir.path().to_str().unwrap();
    let start = |program: &Path, words: &[&str]| {
        Stray::start(
            Command::new(program).args(["-c", "read line", "name"]).args(words).stdin(Stdio::piped()),
        )
    };
    let mut wanted = start(&program, &["--root", root]);
    let mut others = [
        start(&program, &["--root", "/elsewhere"]),
        start(&program, &["--root", "/elsewhere", root]),
        start(&program, &[root, "--root"]),
        start(Path::new("/bin/sh"), &["--root", root]),
    ];
    replace(&program);
    assert_eq!(leftover::kill_started_with(&program, &["--root", root]).unwrap(), 1);
    assert!(wanted.ends());
    for other in &mut others {
        assert!(other.0.try_wait().unwrap().is_none());
    }
}
