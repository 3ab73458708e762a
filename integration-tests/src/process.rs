//! Commands with a time limit, and the processes in `/proc`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::{option_usage, wait};

/// Result of a command that has ended.
#[derive(Clone, Debug)]
pub struct Output {
    /// Exit code; 128 + n when signal n ended the command.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    #[track_caller]
    pub fn expect_code(&self, code: i32) -> &Self {
        assert_eq!(self.code, code, "exit code\n{self}");
        self
    }

    /// Returns the only line of standard output.
    #[track_caller]
    pub fn line(&self) -> &str {
        let text = self.stdout.trim_end_matches('\n');
        assert!(!text.is_empty() && !text.contains('\n'), "expected one line on stdout\n{self}");
        text
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("stdout is not JSON: {error}\n{self}"))
    }

    /// Asserts that standard error has each of these words, in any letter case.
    #[track_caller]
    pub fn says(&self, words: &[&str]) -> &Self {
        let stderr = self.stderr.to_lowercase();
        for word in words {
            assert!(stderr.contains(&word.to_lowercase()), "stderr lacks `{word}`\n{self}");
        }
        self
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let cut = |text: &str| {
            let lines: Vec<&str> = text.lines().collect();
            let skipped = lines.len().saturating_sub(60);
            let head = if skipped > 0 { format!("({skipped} lines before)\n") } else { String::new() };
            head + &lines[skipped..].join("\n")
        };
        write!(f, "-- exit {}\n-- stdout\n{}\n-- stderr\n{}", self.code, cut(&self.stdout), cut(&self.stderr))
    }
}

/// Runs a command to its end. Past the limit, kills its process group and fails the test.
#[track_caller]
pub fn run(command: &mut Command, limit: Duration) -> Output {
    run_with_input(command, &[], limit)
}

#[track_caller]
pub fn run_with_input(command: &mut Command, input: &[u8], limit: Duration) -> Output {
    let shown = format!("{command:?}");
    let running = start(command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() }));
    running
        .finish_with_input(input, limit)
        .unwrap_or_else(|| panic!("still running after {limit:?}: {shown}"))
}

/// A running command whose output is collected. Dropping it kills its process group.
pub struct Running {
    child: Child,
    stdout: Option<thread::JoinHandle<Vec<u8>>>,
    stderr: Option<thread::JoinHandle<Vec<u8>>>,
    ended: bool,
}

/// Starts a command in a process group of its own, and collects what it prints.
pub fn start(command: &mut Command) -> Running {
    option_usage::record(command);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let stdout = child.stdout.take().map(collect);
    let stderr = child.stderr.take().map(collect);
    Running { child, stdout, stderr, ended: false }
}

fn collect(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A broken pipe ends the output; the bytes before it are kept.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

impl Running {
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(self.pid(), signal).expect("the process is still there");
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the end of the command; past the limit, kills it and returns `None`.
    pub fn finish(self, limit: Duration) -> Option<Output> {
        self.finish_with_input(&[], limit)
    }

    fn finish_with_input(mut self, input: &[u8], limit: Duration) -> Option<Output> {
        let feeder = self.child.stdin.take().map(|mut stdin| {
            let input = input.to_vec();
            // The command may end without reading all of its input.
            thread::spawn(move || drop(stdin.write_all(&input)))
        });
        // Polls often, because benchmarks time commands through this function.
        let often = Duration::from_millis(1);
        let status = wait::poll_within(often, limit, || self.child.try_wait().expect("wait"))?;
        self.ended = true;
        if let Some(feeder) = feeder {
            feeder.join().expect("feeder");
        }
        let text = |handle: Option<thread::JoinHandle<Vec<u8>>>| {
            String::from_utf8_lossy(&handle.expect("piped").join().expect("reader")).into_owned()
        };
        Some(Output {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: text(self.stdout.take()),
            stderr: text(self.stderr.take()),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.ended {
            let _ = rustix::process::kill_process_group(self.pid(), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// One entry of `/proc`.
#[derive(Clone, Debug)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub name: String,
    /// Command line, with blanks between its words.
    pub command: String,
}

/// Returns all processes of the machine that this one can see, without zombies.
pub fn all() -> Vec<Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter_map(one).collect()
}

fn one(pid: i32) -> Option<Process> {
    let directory = Path::new("/proc").join(pid.to_string());
    let command = fs::read(directory.join("cmdline")).ok()?;
    // "PID (NAME) STATE PARENT ...", where NAME may have blanks and brackets.
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    let (head, tail) = stat.rsplit_once(") ")?;
    let mut fields = tail.split(' ');
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let name = head.split_once('(')?.1.to_owned();
    let command = String::from_utf8_lossy(&command).replace('\0', " ").trim_end().to_owned();
    (state != "Z").then_some(Process { pid, parent, name, command })
}

/// Returns the processes with this text in their command line.
pub fn with_command(text: &str) -> Vec<Process> {
    let mut found = all();
    found.retain(|process| process.command.contains(text));
    found
}

/// Returns the process and all its descendants.
pub fn tree_of(pid: i32) -> Vec<Process> {
    let everything = all();
    let mut found: Vec<Process> = everything.iter().filter(|process| process.pid == pid).cloned().collect();
    let mut next = 0;
    while next < found.len() {
        let parent = found[next].pid;
        found.extend(everything.iter().filter(|process| process.parent == parent).cloned());
        next += 1;
    }
    found
}

/// Sends a signal to a process that a test has started; a process that has already ended is no error.
pub fn signal(pid: i32, signal: Signal) {
    let pid = Pid::from_raw(pid).expect("a pid is above zero");
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => panic!("cannot signal {pid:?}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::seconds;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_code_and_signal_are_reported() {
        let output = run(&mut sh("echo out; echo err >&2; exit 7"), seconds(10));
        assert_eq!((output.code, output.line(), output.stderr.as_str()), (7, "out", "err\n"));
        assert_eq!(run(&mut sh("kill -9 $$"), seconds(10)).code, 137);
    }

    #[test]
    fn input_larger_than_a_pipe_reaches_the_command() {
        let output = run_with_input(&mut sh("wc -c"), &vec![b'x'; 1_000_000], seconds(10));
        assert_eq!(output.stdout.trim(), "1000000");
    }

    #[test]
    fn a_command_past_its_limit_is_killed_with_its_children() {
        let started = start(&mut sh("sleep 4711.25 & wait"));
        assert!(started.finish(Duration::from_millis(200)).is_none());
        wait::until(seconds(5), "the child is gone", || with_command("sleep 4711.25").is_empty());
    }

    #[test]
    fn the_tree_of_a_process_has_its_children() {
        let started = start(&mut sh("sleep 4712.25 & wait"));
        let pid = started.pid().as_raw_nonzero().get();
        wait::until(seconds(5), "the child shows up", || {
            tree_of(pid).iter().any(|process| process.command == "sleep 4712.25")
        });
    }
}
