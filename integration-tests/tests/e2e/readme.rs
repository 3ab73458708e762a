//! The examples of README.md run as they are typed there, in their order, and print what is shown there.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use integration_tests::binaries::{binaries, repository};
use integration_tests::daemon::{Daemon, Options, path_variable};
use integration_tests::lone_cases;
use integration_tests::process;
use integration_tests::runner::Group;
use integration_tests::scripted::Scripted;
use integration_tests::small_image::SmallRegistry;
use integration_tests::wait::seconds;
use serde_json::json;

pub fn group() -> Group {
    Group::new("readme", lone_cases![the_examples_run_as_typed_and_print_what_is_shown]).in_sequence()
}

/// A command of the README, and the lines that the README shows as its output.
#[derive(Debug)]
struct Example {
    command: String,
    shown: Vec<String>,
}

/// Returns the examples of the fenced blocks below a heading.
fn examples(heading: &str) -> Vec<Example> {
    let text = fs::read_to_string(repository().join("README.md")).expect("README.md");
    let (_, section) = text.split_once(heading).expect("the heading");
    let section = section.split("\n## ").next().expect("a section");
    let mut examples: Vec<Example> = Vec::new();
    let mut block = None;
    for line in section.lines() {
        match (block, line.strip_prefix("```")) {
            (None, Some(language)) => block = Some(language),
            (Some(_), Some(_)) => block = None,
            (None, None) => {}
            (Some("sh"), None) => examples.push(Example { command: line.to_owned(), shown: Vec::new() }),
            (Some("console"), None) => match line.strip_prefix("$ ") {
                Some(command) => examples.push(Example { command: command.to_owned(), shown: Vec::new() }),
                None => examples.last_mut().expect("a command first").shown.push(line.to_owned()),
            },
            (Some(other), None) => panic!("a block in {other:?}, which this test does not type"),
        }
    }
    examples
}

/// Replaces what differs between runs: numbers, ids, digests, months and units of sizes.
fn without_values(line: &str) -> String {
    let mask = |word: &str| {
        let is_value = word.contains(|c: char| c.is_ascii_digit())
            || [
                "B", "kB", "MB", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov",
                "Dec",
            ]
            .contains(&word);
        if is_value { "_".to_owned() } else { word.to_owned() }
    };
    let words: Vec<String> =
        line.split([' ', '(', ')', ',', ':']).filter(|word| !word.is_empty()).map(mask).collect();
    words.join(" ")
}

fn the_examples_run_as_typed_and_print_what_is_shown() {
    let mut registry = SmallRegistry::default();
    let image = registry.image("amd64", ("etc/debian_version", "12\n"), &json!({}));
    for name in ["library/debian:12", "debian:12"] {
        registry.tag(name, &image);
    }
    let hub = Scripted::start(move |asked| registry.answer(asked));
    let mirror = format!("docker.io=http://{}", hub.host());
    let daemon = Daemon::start(Options::room("readme").arguments(&["--registry-mirror", &mirror]));

    let directory = daemon.directory().join("clone");
    fs::create_dir(&directory).expect("directory");
    for name in ["deploy", "examples"] {
        symlink(repository().join(name), directory.join(name)).expect("link");
    }
    symlink(&binaries().target, directory.join("target")).expect("link");

    let mut script = String::new();
    let examples = examples("\n## Using it\n");
    for (number, example) in examples.iter().enumerate() {
        // The daemon of the test has a state directory and ports of its own.
        let command = match &example.command {
            start if start.starts_with("hearthd ") && start.contains('&') => ":",
            other => other,
        };
        let command =
            command.replace("127.0.0.1:4327", &daemon.listen()).replace("127.0.0.1:4380", &daemon.ingress());
        script += &format!("echo; echo '<{number}>'\n{command}\necho; echo \"<{number} ended $?>\"\n");
    }
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("exec 2>&1\n{script}")]).current_dir(&directory);
    shell.env_clear().env("HOME", daemon.directory().join("home")).env("PATH", path_variable());
    shell.env("HEARTH_ADDR", format!("unix://{}", daemon.socket().display()));
    let output = process::run(&mut shell, seconds(120));
    let mut wrong = Vec::new();
    for (number, example) in examples.iter().enumerate() {
        let printed = output.stdout.split_once(&format!("<{number}>\n"));
        let printed = printed.and_then(|(_, rest)| rest.split_once(&format!("\n<{number} ended ")));
        let Some((printed, rest)) = printed else { panic!("{}: did not run\n{output}", example.command) };
        if !rest.starts_with("0>") {
            wrong.push(format!(
                "$ {}\n{printed}\nexit code {}",
                example.command,
                rest.lines().next().unwrap_or_default()
            ));
        }
        let printed_lines: Vec<String> = printed.lines().map(without_values).collect();
        for line in &example.shown {
            if !printed_lines.contains(&without_values(line)) {
                wrong.push(format!(
                    "$ {}\nThe README shows `{line}`, but the command printed:\n{printed}",
                    example.command
                ));
            }
        }
    }
    assert!(examples.len() > 10, "the README has {} examples", examples.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}
