//! Runs groups of cases. The cases of a group share one daemon, which is started for the first of them and retired
//! after the last; the check that nothing is left of it is a case of its own, `GROUP::leaves_nothing_behind`.
//!
//! Two groups run at the same time: one whose cases run in parallel, and one whose cases run in sequence. Sequential
//! cases mostly wait for timeouts, restarts and exits, so that the parallel ones have the processors.
//!
//! The command line is the part of libtest's that people use: `[--exact] [--skip TEXT]... [--list] [--nocapture]
//! [--test-threads N] [TEXT]...`. The last line is libtest's `test result:`.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::daemon::{Daemon, Options};
use crate::option_usage;

/// Time limit for one case; a case that takes longer counts as hanging.
const CASE_LIMIT: Duration = Duration::from_secs(240);

pub struct Group {
    name: &'static str,
    options: Options,
    /// Number of cases that run at the same time.
    width: usize,
    cases: Vec<Case>,
}

#[derive(Clone, Copy)]
pub struct Case {
    name: &'static str,
    body: Body,
}

#[derive(Clone, Copy)]
enum Body {
    Shared(fn(&Daemon)),
    Standalone(fn()),
}

impl Case {
    /// Creates a case that shares the group's daemon with other cases.
    pub const fn shared(name: &'static str, body: fn(&Daemon)) -> Self {
        Self { name, body: Body::Shared(body) }
    }

    /// Creates a case that starts its own daemons and does not use the one of the group.
    pub const fn alone(name: &'static str, body: fn()) -> Self {
        Self { name, body: Body::Standalone(body) }
    }
}

impl Group {
    pub fn new(name: &'static str, cases: Vec<Case>) -> Self {
        Self { name, options: Options::room(name), width: 2, cases }
    }

    /// Sets the options of the shared daemon.
    pub fn options(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Runs the cases one after the other, because they would disturb each other.
    pub const fn in_sequence(mut self) -> Self {
        self.width = 1;
        self
    }
}

/// Lists functions as cases that share the group's daemon; their names are the names of the cases.
#[macro_export]
macro_rules! shared_cases {
    ($($case:ident),* $(,)?) => { vec![$($crate::runner::Case::shared(stringify!($case), $case)),*] };
}

/// Lists functions as cases that start their own daemons; their names are the names of the cases.
#[macro_export]
macro_rules! lone_cases {
    ($($case:ident),* $(,)?) => { vec![$($crate::runner::Case::alone(stringify!($case), $case)),*] };
}

/// Prints a value that a case has measured, for information.
pub fn note(text: &str) {
    println!("    {text}");
}

#[derive(Default)]
struct Arguments {
    wanted: Vec<String>,
    skipped: Vec<String>,
    exact: bool,
    list: bool,
    show_output: bool,
    threads: Option<usize>,
}

impl Arguments {
    fn parse(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut arguments = arguments;
        while let Some(argument) = arguments.next() {
            let (name, mut value) = match argument.split_once('=') {
                Some((name, value)) if name.starts_with("--") => (name.to_owned(), Some(value.to_owned())),
                _ => (argument, None),
            };
            let mut value =
                || value.take().or_else(|| arguments.next()).ok_or(format!("{name} needs a value"));
            match name.as_str() {
                "--exact" => parsed.exact = true,
                "--list" => parsed.list = true,
                "--nocapture" | "--no-capture" | "--show-output" => parsed.show_output = true,
                "--skip" => parsed.skipped.push(value()?),
                "--test-threads" => {
                    parsed.threads =
                        Some(value()?.parse().map_err(|_| "--test-threads needs a number".to_owned())?);
                }
                // No case is ever ignored here, and there is one output format.
                "--include-ignored" | "--quiet" | "-q" => {}
                "--format" | "--color" | "-Z" => drop(value()?),
                flag if flag.starts_with('-') => return Err(format!("unknown argument {flag}")),
                _ => parsed.wanted.push(name),
            }
        }
        Ok(parsed)
    }

    fn selects(&self, name: &str) -> bool {
        let fits = |text: &String| if self.exact { name == text } else { name.contains(text.as_str()) };
        (self.wanted.is_empty() || self.wanted.iter().any(fits)) && !self.skipped.iter().any(fits)
    }
}

#[derive(Default)]
struct Tally {
    passed: BTreeSet<String>,
    filtered: usize,
    failures: Vec<(String, String)>,
}

impl Tally {
    fn add(&mut self, name: &str, outcome: Result<(), String>, took: Duration) {
        let word = if outcome.is_ok() { "ok" } else { "FAILED" };
        println!("test {name} ... {word} <{:.1}s>", took.as_secs_f64());
        match outcome {
            Ok(()) => drop(self.passed.insert(name.to_owned())),
            Err(reason) => self.failures.push((name.to_owned(), reason)),
        }
    }
}

/// Runs the cases that the command line selects, then `finally`; each line that it returns is a failure.
pub fn main(groups: &[Group], finally: fn() -> Vec<String>) -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
        }
    };
    if arguments.list {
        for group in groups {
            for case in
                group.cases.iter().filter(|case| arguments.selects(&format!("{}::{}", group.name, case.name)))
            {
                println!("{}::{}: test", group.name, case.name);
            }
        }
        // The groups have made the directory of the run.
        let left = finally();
        left.iter().for_each(|line| eprintln!("error: {line}"));
        return if left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let panics = Panics::record(arguments.show_output);
    let start = Instant::now();
    let tally = Mutex::new(Tally::default());
    let (sequential, parallel): (Vec<_>, Vec<_>) = groups.iter().partition(|group| group.width == 1);
    let run = |groups: Vec<&Group>| {
        groups.into_iter().for_each(|group| run_group(group, &arguments, &panics, &tally));
    };
    if arguments.threads == Some(1) {
        run(sequential);
        run(parallel);
    } else {
        thread::scope(|scope| {
            scope.spawn(|| run(sequential));
            run(parallel);
        });
    }
    let mut tally = tally.into_inner();
    let left = finally();
    if !left.is_empty() {
        tally.add("run::leaves_nothing_behind", Err(left.join("\n")), Duration::ZERO);
    }
    let wrong = option_usage::check(&tally.passed);
    if !wrong.is_empty() {
        tally.add(
            "run::the_table_of_options_names_cases_that_use_them",
            Err(wrong.join("\n")),
            Duration::ZERO,
        );
    }
    if !tally.failures.is_empty() {
        println!("\nfailures:\n");
        for (name, reason) in &tally.failures {
            println!("---- {name} ----\n{reason}\n");
        }
        println!("failures:");
        tally.failures.iter().for_each(|(name, _)| println!("    {name}"));
    }
    let (word, code) = if tally.failures.is_empty() { ("ok", 0) } else { ("FAILED", 101) };
    println!(
        "\ntest result: {word}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        tally.passed.len(),
        tally.failures.len(),
        tally.filtered,
        start.elapsed().as_secs_f64()
    );
    // Threads of hanging cases would keep the process alive.
    std::process::exit(code)
}

fn run_group(group: &Group, arguments: &Arguments, panics: &Panics, tally: &Mutex<Tally>) {
    let selected: Vec<(String, Body)> = group
        .cases
        .iter()
        .map(|case| (format!("{}::{}", group.name, case.name), case.body))
        .filter(|(name, _)| arguments.selects(name))
        .collect();
    tally.lock().filtered += group.cases.len() - selected.len();
    if selected.is_empty() {
        return;
    }
    println!("\nrunning {} tests of {}", selected.len(), group.name);
    let mut daemon = None;
    if selected.iter().any(|(_, body)| matches!(body, Body::Shared(_))) {
        let start = Instant::now();
        let options = group.options.clone();
        let name = format!("{}::starts", group.name);
        match start_limited(&name, panics, move || Daemon::start(options)).recv_timeout(CASE_LIMIT) {
            Ok(Ok(started)) => daemon = Some(Arc::new(started)),
            Ok(Err(reason)) => return tally.lock().add(&name, Err(reason), start.elapsed()),
            Err(_) => return tally.lock().add(&name, Err("timed out".to_owned()), start.elapsed()),
        }
    }

    let width = arguments.threads.unwrap_or(group.width).clamp(1, group.width);
    let mut waiting = selected.into_iter();
    let mut running: Vec<(String, Instant, Outcome)> = Vec::new();
    let mut hung = false;
    loop {
        while running.len() < width {
            let Some((name, body)) = waiting.next() else { break };
            let daemon = daemon.clone();
            let done = start_limited(&name, panics, move || match body {
                Body::Shared(case) => case(daemon.as_deref().expect("a shared daemon")),
                Body::Standalone(case) => case(),
            });
            running.push((name, Instant::now(), done));
        }
        if running.is_empty() {
            break;
        }
        running.retain(|(name, since, done)| {
            let outcome = match done.try_recv() {
                Ok(outcome) => outcome,
                Err(mpsc::TryRecvError::Disconnected) => Err("its thread ended without a result".to_owned()),
                Err(mpsc::TryRecvError::Empty) if since.elapsed() > CASE_LIMIT => {
                    hung = true;
                    Err(format!("timed out: not finished within {CASE_LIMIT:?}"))
                }
                Err(mpsc::TryRecvError::Empty) => return true,
            };
            let outcome = outcome.map_err(|reason| match &daemon {
                Some(daemon) => format!("{reason}\n{}", daemon.log_tail(15)),
                None => reason,
            });
            tally.lock().add(name, outcome, since.elapsed());
            false
        });
        thread::sleep(Duration::from_millis(5));
    }

    if let Some(daemon) = daemon {
        let start = Instant::now();
        let left = match Arc::try_unwrap(daemon) {
            Ok(daemon) => daemon.retire(),
            // A hanging case still uses the daemon. The sweep at the end of the run kills the daemon.
            Err(_) if hung => vec!["a hanging case still uses the daemon".to_owned()],
            Err(_) => vec!["the daemon is still used after the last case".to_owned()],
        };
        let outcome = if left.is_empty() { Ok(()) } else { Err(left.join("\n")) };
        tally.lock().add(&format!("{}::leaves_nothing_behind", group.name), outcome, start.elapsed());
    }
}

/// Runs `work` in a thread of its own; the outcome is its value, or the message of its panic.
fn start_limited<T: Send + 'static>(
    name: &str,
    panics: &Panics,
    work: impl FnOnce() -> T + Send + 'static,
) -> mpsc::Receiver<Result<T, String>> {
    let (sender, receiver) = mpsc::channel();
    let (panics, thread_name) = (panics.clone(), name.to_owned());
    thread::Builder::new()
        .name(thread_name.clone())
        .spawn(move || {
            let outcome = panic::catch_unwind(AssertUnwindSafe(work)).map_err(|_| panics.take(&thread_name));
            // After a timeout nobody receives the outcome.
            let _ = sender.send(outcome);
        })
        .expect("thread");
    receiver
}

/// Receiver of the outcome of a case.
type Outcome = mpsc::Receiver<Result<(), String>>;

/// The message of the first panic of each thread, kept for the report.
#[derive(Clone, Default)]
struct Panics(Arc<Mutex<BTreeMap<String, String>>>);

impl Panics {
    fn record(show_at_once: bool) -> Self {
        let panics = Self::default();
        let record = panics.clone();
        panic::set_hook(Box::new(move |info| {
            let name = thread::current().name().unwrap_or("unnamed").to_owned();
            let place = info.location().map(ToString::to_string).unwrap_or_default();
            let payload = info.payload();
            let message = payload
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| payload.downcast_ref::<&str>().copied())
                .unwrap_or("a panic without a message");
            let text = format!("{place}: {message}");
            if show_at_once {
                eprintln!("{name}: {text}");
            }
            record.0.lock().entry(name).or_insert(text);
        }));
        panics
    }

    fn take(&self, thread: &str) -> String {
        let message = self.0.lock().remove(thread);
        message.unwrap_or_else(|| "it panicked without a message".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Arguments {
        Arguments::parse(arguments.iter().map(ToString::to_string)).unwrap()
    }

    #[test]
    fn names_are_selected_as_libtest_does() {
        assert!(parse(&[]).selects("basic_build::a"));
        assert!(
            parse(&["basic_build"]).selects("basic_build::a") && !parse(&["pack"]).selects("basic_build::a")
        );
        assert!(!parse(&["--exact", "basic_build"]).selects("basic_build::a"));
        assert!(!parse(&["basic_build", "--skip", "::a"]).selects("basic_build::a"));
        assert_eq!(parse(&["--test-threads=1"]).threads, Some(1));
        assert!(Arguments::parse(["--wrong".to_owned()].into_iter()).is_err());
    }
}
