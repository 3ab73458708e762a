//! Translates the part of Go's regular expression syntax that an ignore pattern can use into an expression of the
//! `regex` crate.
//!
//! Docker rewrites a pattern into an expression (`*` to `[^/]*`, `**/` to `(.*/)?`). Characters between `[` and `]`
//! or after `\`, and `^`, `|` and `{2}` keep their meaning in the expression. Groups cannot occur, because their
//! characters are escaped. Both syntaxes agree on these elements except for classes, escapes and literal braces,
//! which are written out here. Unicode classes (`\pL`) are refused.

mod class;
mod repeat;

use std::borrow::Cow;
use std::iter::Peekable;
use std::str::Chars;

use regex::Regex;

#[derive(Debug, Clone)]
pub(super) struct PathRegex {
    regex: Regex,
    steps: usize,
}

const BAD_ESCAPE: &str = "a `\\` before a letter or digit that has no meaning there";
const TOO_LONG: &str = "it repeats too much";

/// Maximum number of steps of an expression, more than any path has characters. Repeats are expanded.
const MAX_STEPS: usize = 5_000;

impl PathRegex {
    /// Parses the expression between the implied `^` and `$`.
    pub(super) fn parse(source: &str) -> Result<Self, &'static str> {
        let mut text = "^".to_owned();
        let mut closed = true;
        let mut rest = source.chars().peekable();
        // The implied `^` and `$` count, too.
        let mut steps = 2;
        // True if there is an element that a repeat would repeat.
        let mut repeatable = true;
        // True if the last element is already repeated.
        let mut repeated = false;
        while let Some(c) = rest.next() {
            if c == '{'
                && let Some(bounds) = repeat::bounds(&mut rest)?
            {
                if std::mem::replace(&mut repeated, true) {
                    return Err("a repeat follows a repeat");
                }
                if !repeatable {
                    return Err("a repeat has nothing to repeat");
                }
                steps += bounds.added_steps();
                text.push_str(&bounds.to_string());
            } else {
                repeated = false;
                repeatable = c != '|';
                steps += 1;
                match c {
                    '|' | '^' => text.push(c),
                    '(' => {
                        // The only group that occurs is `(.*/)?`.
                        rest.by_ref().take(5).for_each(drop);
                        text.push_str("(?:.*/)?");
                        repeated = true;
                    }
                    '\\' => closed = escape(&mut rest, &mut text, &mut steps)?,
                    c => {
                        match c {
                            '.' => text.push('.'),
                            '[' => class::translate(&mut rest, &mut text)?,
                            c => push_literal(&mut text, c),
                        }
                        repeated = rest.next_if_eq(&'*').is_some();
                        text.extend(repeated.then_some('*'));
                    }
                }
            }
            if steps > MAX_STEPS {
                return Err(TOO_LONG);
            }
        }
        text.extend(closed.then_some('$'));
        let regex = Regex::new(&text).map_err(|_| "it is too long, or has an empty `[...]`")?;
        Ok(Self { regex, steps })
    }

    /// Returns the number of steps. A match may visit each of them for every character of a path.
    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    /// Reports whether `path` matches. A byte that is not UTF-8 counts as U+FFFD.
    pub(super) fn matches(&self, path: &[u8]) -> bool {
        self.regex.is_match(&text_of(path))
    }
}

fn text_of(path: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(path) {
        return Cow::Borrowed(text);
    }
    let chars = path.utf8_chunks().flat_map(|chunk| {
        chunk.valid().chars().chain(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER))
    });
    Cow::Owned(chars.collect())
}

/// Writes a character so that it has no other meaning, inside and outside of a class.
fn push_literal(text: &mut String, c: char) {
    if c.is_alphanumeric() {
        text.push(c);
    } else {
        text.extend(c.escape_unicode());
    }
}

/// Translates the characters after a `\` outside of a class. Returns false if the escape swallowed the end of the
/// pattern.
fn escape(
    rest: &mut Peekable<Chars<'_>>,
    text: &mut String,
    steps: &mut usize,
) -> Result<bool, &'static str> {
    // Word boundaries are ASCII in Go.
    let assertion = match rest.peek() {
        Some('A') => r"\A",
        Some('z') => r"\z",
        Some('b') => r"(?-u:\b)",
        Some('B') => r"(?-u:\B)",
        Some('Q') => {
            rest.next();
            return Ok(quoted(rest, text, steps));
        }
        // The `\` escapes the implied final `$`.
        None => {
            push_literal(text, '$');
            return Ok(false);
        }
        _ => {
            class::translate_escaped(rest, text)?;
            return Ok(true);
        }
    };
    rest.next();
    text.push_str(assertion);
    Ok(true)
}

/// Translates `\Q...\E`. Without `\E` it extends over the end of the pattern and includes the implied final `$`.
fn quoted(rest: &mut Peekable<Chars<'_>>, text: &mut String, steps: &mut usize) -> bool {
    while let Some(c) = rest.next() {
        if c == '\\' && rest.next_if_eq(&'E').is_some() {
            return true;
        }
        push_literal(text, c);
        *steps += 1;
    }
    push_literal(text, '$');
    false
}
