//! `docs/reference/cli.md` is generated from the definition of the command line.
//! To regenerate it: `HEARTH_REGENERATE=1 cargo test -p hearth --test cli_reference`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt::Write as _;
use std::path::Path;

use clap::{Command, CommandFactory as _};
use hearth::cli::CliArguments;

const HEAD: &str = "\
# Command line

<!-- Made by a test from `client/src/cli.rs`. Write it again with
`HEARTH_REGENERATE=1 cargo test -p hearth --test cli_reference`. -->

The help of each command, as `hearth COMMAND --help` prints it. Options that every command has are shown once, under
`hearth`.
";

/// Appends the help of a command and of the commands below it.
fn describe(command: &Command, words: &str, text: &mut String) {
    let mut shown = command.clone().bin_name(words).term_width(100);
    if command.get_name() != "hearth" {
        let global = command.get_arguments().filter(|argument| argument.is_global_set());
        for id in global.map(|argument| argument.get_id().clone()).collect::<Vec<_>>() {
            shown = shown.mut_arg(id, |argument| argument.hide(true));
        }
    }
    let help = shown.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    write!(text, "\n## `{words}`\n\n```text\n{}\n```\n", lines.join("\n").trim_end()).unwrap();
    for below in command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help")
    {
        describe(below, &format!("{words} {}", below.get_name()), text);
    }
}

#[test]
fn the_reference_is_what_the_command_line_says() {
    let mut command = CliArguments::command();
    command.build();
    let mut text = HEAD.to_owned();
    describe(&command, "hearth", &mut text);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/cli.md");
    if std::env::var_os("HEARTH_REGENERATE").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == text,
        "docs/reference/cli.md is stale: run HEARTH_REGENERATE=1 cargo test -p hearth --test cli_reference"
    );
}
