//! Each command and flag that a hint or an explanation names exists.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Command, CommandFactory as _};
use hearth::cli::CliArguments;
use hearth_proto::error_code::ErrorCode;

/// Words behind `hearth` in sentences that name no command, and flags of Dockerfile instructions.
const NO_COMMANDS: [&str; 2] = ["command", "there"];
const FLAGS_OF_OTHERS: [&str; 2] = ["--checksum", "--network"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Returns the string literals behind `.hint(`, up to the end of that call's line or of the next one.
fn hints_in(source: &str) -> Vec<String> {
    let lines: Vec<&str> = source.lines().collect();
    let mut hints = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        let Some((_, call)) = line.split_once(".hint(") else { continue };
        let text = [call, lines.get(number + 1).filter(|_| !call.contains('"')).unwrap_or(&"")].join(" ");
        hints.extend(text.split('"').skip(1).step_by(2).map(str::to_owned));
    }
    hints
}

fn flags(command: &Command, found: &mut Vec<String>) {
    for argument in command.get_arguments() {
        found.extend(
            argument
                .get_long_and_visible_aliases()
                .unwrap_or_default()
                .iter()
                .map(|flag| format!("--{flag}")),
        );
    }
    command.get_subcommands().for_each(|below| flags(below, found));
}

/// Returns what is wrong with a hint: a command or a flag that does not exist.
fn wrong_in(hint: &str, cli: &Command, flags: &[String]) -> Option<String> {
    let words: Vec<&str> = hint.split(|c: char| c.is_whitespace() || "`,;:()".contains(c)).collect();
    for (number, word) in words.iter().enumerate() {
        if let Some(flag) =
            word.strip_prefix("--").filter(|flag| flag.starts_with(|c: char| c.is_ascii_lowercase()))
        {
            let name = format!("--{}", flag.split(['=', '/', '.']).next().unwrap());
            if !flags.contains(&name) && !FLAGS_OF_OTHERS.contains(&name.as_str()) {
                return Some(name);
            }
        }
        let is_name =
            |word: &&&str| !word.is_empty() && word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        if *word != "hearth" {
            continue;
        }
        let Some(name) = words.get(number + 1).filter(is_name) else { continue };
        if NO_COMMANDS.contains(name) || name.starts_with("--") {
            continue;
        }
        let Some(group) = cli.find_subcommand(name) else { return Some(format!("hearth {name}")) };
        let below = words.get(number + 2).filter(is_name).filter(|word| !word.starts_with("--"));
        if let Some(below) = below
            && group.has_subcommands()
            && group.find_subcommand(below).is_none()
        {
            return Some(format!("hearth {name} {below}"));
        }
    }
    None
}

#[test]
fn a_hint_names_commands_and_flags_that_exist() {
    let mut cli = CliArguments::command();
    cli.build();
    let mut known = Vec::new();
    flags(&cli, &mut known);
    let configuration = fs::read_to_string(repository().join("docs/reference/configuration.md")).unwrap();
    known.extend(configuration.split(['`', ' ']).filter(|word| word.starts_with("--")).map(str::to_owned));
    let mut hints: Vec<(String, String)> = Vec::new();
    for code in ErrorCode::ALL {
        let entry = code.entry();
        let texts = [Some(entry.explanation), entry.hint].into_iter().flatten();
        hints.extend(texts.map(|text| (code.as_str().to_owned(), text.to_owned())));
    }
    let mut files = Vec::new();
    for directory in ["client/src", "client/registry/src", "daemon/src", "daemon/context/src"] {
        sources(&repository().join(directory), &mut files);
    }
    for file in files {
        let found = hints_in(&fs::read_to_string(&file).unwrap());
        hints.extend(found.into_iter().map(|hint| (file.display().to_string(), hint)));
    }
    assert!(hints.len() > 300, "only {} hints were found", hints.len());
    let wrong: Vec<String> = hints
        .iter()
        .filter_map(|(place, hint)| Some(format!("{place}: `{}` in: {hint}", wrong_in(hint, &cli, &known)?)))
        .collect();
    assert!(wrong.is_empty(), "hints name what does not exist:\n{}", wrong.join("\n"));
}

#[test]
fn a_wrong_hint_is_found() {
    let mut cli = CliArguments::command();
    cli.build();
    let wrong = |hint: &str| wrong_in(hint, &cli, &["--tag".to_owned()]);
    assert_eq!(wrong("see `hearth services list`, or give --tag A"), None);
    assert_eq!(wrong("see: hearth servises list"), Some("hearth servises".to_owned()));
    assert_eq!(wrong("see `hearth services lost`"), Some("hearth services lost".to_owned()));
    assert_eq!(wrong("give --tga"), Some("--tga".to_owned()));
}
