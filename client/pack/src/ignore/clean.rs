//! Go's path cleaning and the syntax check of its `filepath.Match`, on which the semantics of ignore files depend.

use std::iter::Peekable;
use std::str::Chars;

/// Returns the shortest lexical form of a slash-separated path, by the rules of Go's `path.Clean`, which ignore files
/// rely on.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            name => parts.push(name),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Checks the syntax of `pattern` as far as Docker does. Docker calls Go's `filepath.Match(pattern, ".")` and uses only
/// its error. `Match` goes through the parts between stars and stops at the first part that does not match, so that
/// syntax errors after that part are accepted.
pub(super) fn check_glob(pattern: &str) -> Result<(), &'static str> {
    let (part, rest) = split_part(pattern);
    if part_is_dot(part)? {
        part_is_dot(split_part(rest).0)?;
    }
    Ok(())
}

/// Removes leading stars, and splits the pattern before the next star that is not inside `[...]`.
fn split_part(pattern: &str) -> (&str, &str) {
    let pattern = pattern.trim_start_matches('*');
    let mut in_class = false;
    let mut chars = pattern.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '[' => in_class = true,
            ']' => in_class = false,
            '*' if !in_class => return pattern.split_at(at),
            _ => {}
        }
    }
    (pattern, "")
}

/// Checks the syntax of a part. Returns true if the part matches the text `.`.
fn part_is_dot(part: &str) -> Result<bool, &'static str> {
    let mut rest = part.chars().peekable();
    let (mut elements, mut dot) = (0, false);
    while let Some(c) = rest.next() {
        elements += 1;
        dot = match c {
            '\\' => rest.next().ok_or(TRAILING_BACKSLASH)? == '.',
            '[' => class_has_dot(&mut rest)?,
            '?' | '.' => true,
            _ => false,
        };
    }
    Ok(elements == 1 && dot)
}

const UNCLOSED_CLASS: &str = "a `[` is not closed";
const TRAILING_BACKSLASH: &str = "a `\\` at the end escapes nothing";

/// Reads a `[...]` class after its `[`. Returns true if the class matches `.`.
fn class_has_dot(rest: &mut Peekable<Chars<'_>>) -> Result<bool, &'static str> {
    let negated = rest.next_if_eq(&'^').is_some();
    let (mut ranges, mut has) = (0, false);
    loop {
        if ranges > 0 && rest.next_if_eq(&']').is_some() {
            return Ok(has != negated);
        }
        let low = class_char(rest)?;
        let high = if rest.next_if_eq(&'-').is_some() { class_char(rest)? } else { low };
        has |= (low..=high).contains(&'.');
        ranges += 1;
    }
}

fn class_char(rest: &mut Peekable<Chars<'_>>) -> Result<char, &'static str> {
    let c = match rest.next().ok_or(UNCLOSED_CLASS)? {
        '-' | ']' => return Err("a `-` or `]` stands in `[...]` where a character is needed"),
        '\\' => rest.next().ok_or(TRAILING_BACKSLASH)?,
        c => c,
    };
    rest.peek().ok_or(UNCLOSED_CLASS)?;
    Ok(c)
}
