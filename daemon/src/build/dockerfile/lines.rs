//! Splits a Dockerfile into instructions: joins continued lines, drops comments, skips heredoc bodies.

use super::{syntax, words};

/// One instruction.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    /// Keyword in lower case.
    pub(super) keyword: String,
    /// The `--name=value` flags before the arguments, without quotes and escapes.
    pub(super) flags: Vec<String>,
    /// Text after the flags.
    pub(super) rest: String,
    /// First line, counted from 1.
    pub(super) start_line: u32,
    /// Last line, heredoc bodies included.
    pub(super) end_line: u32,
}

impl Instruction {
    /// Returns the value of each `--name=value` flag with this name.
    pub(super) fn flag_values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.flags
            .iter()
            .filter_map(|flag| flag.strip_prefix("--")?.split_once('='))
            .filter(move |(flag, _)| *flag == name)
            .map(|(_, value)| value)
    }
}

/// Returns the instructions of a Dockerfile and its escape character. The list ends early at a heredoc without an end.
pub(super) fn instructions(text: &str) -> (Vec<Instruction>, char) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let escape = syntax::escape_character(text);
    let mut lines = text.split_inclusive('\n').map(|line| line.trim_end_matches(['\r', '\n']));
    let mut number = 0u32;
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        number += 1;
        let start_line = number;
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (first, mut continues) = without_continuation(line, escape);
        let mut joined = first.to_owned();
        while continues {
            let Some(line) = lines.next() else { break };
            number += 1;
            let bare = line.trim_start();
            if bare.is_empty() || bare.starts_with('#') {
                continue;
            }
            let (part, more) = without_continuation(line, escape);
            joined.push_str(part);
            continues = more;
        }
        let (keyword, flags, rest) = split(&joined, escape);
        for (terminator, chomp) in heredocs(&keyword, &rest, &joined) {
            loop {
                let Some(line) = lines.next() else { return (found, escape) };
                number += 1;
                let line = if chomp { line.trim_start_matches('\t') } else { line };
                if line == terminator {
                    break;
                }
            }
        }
        found.push(Instruction { keyword, flags, rest, start_line, end_line: number });
    }
    (found, escape)
}

/// Splits text at blanks like the frontend does for FROM, COPY and ADD, which ignores quotes and escapes.
pub(super) fn blank_separated(text: &str) -> impl Iterator<Item = &str> {
    text.split(['\t', '\u{b}', '\u{c}', '\r', ' ']).filter(|word| !word.is_empty())
}

/// Returns the line without its trailing continuation character, and whether there was one.
fn without_continuation(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        // An escaped escape character is not a continuation.
        Some(rest) if !rest.ends_with(escape) => (rest, true),
        _ => (line, false),
    }
}

fn split(line: &str, escape: char) -> (String, Vec<String>, String) {
    let line = line.trim();
    let (keyword, arguments) = line.split_once(['\t', '\u{b}', '\u{c}', '\r', ' ']).unwrap_or((line, ""));
    let (flags, rest) = words::split_flags(arguments, escape);
    (keyword.to_ascii_lowercase(), flags, rest.trim().to_owned())
}

/// Returns the heredoc terminators that must follow, each with whether leading tabs are cut.
fn heredocs(keyword: &str, rest: &str, line: &str) -> Vec<(String, bool)> {
    let takes_heredoc = |keyword: &str| matches!(keyword, "add" | "copy" | "run");
    let (keyword, rest) = if keyword == "onbuild" {
        let (inner, rest) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        (inner.to_ascii_lowercase(), rest.trim())
    } else {
        (keyword.to_owned(), rest)
    };
    let is_json = rest.starts_with('[') && serde_json::from_str::<Vec<String>>(rest).is_ok();
    if !takes_heredoc(&keyword) || is_json || !line.contains("<<") {
        return Vec::new();
    }
    words::split_heredoc_words(line).iter().filter_map(|word| heredoc(word)).collect()
}

fn heredoc(word: &str) -> Option<(String, bool)> {
    let word = word.trim_start_matches(|c: char| c.is_ascii_digit()).strip_prefix("<<")?;
    let (chomp, word) = match word.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, word),
    };
    let word = word.trim_start();
    if word.is_empty() || word.contains('<') {
        return None;
    }
    let name = words::unquoted(word)?;
    // A terminator is a single word.
    (!name.is_empty()).then_some((name, chomp))
}

/// Returns the `from` of a `RUN --mount` value, which is one line of CSV.
pub(super) fn mount_source(value: &str) -> Option<String> {
    // The last field with that key counts.
    words::csv_fields(value)?.into_iter().rev().find_map(|field| {
        let (key, value) = field.split_once('=')?;
        key.eq_ignore_ascii_case("from").then(|| value.to_owned())
    })
}
