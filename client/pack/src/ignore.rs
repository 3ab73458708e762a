//! Docker's ignore rules, as BuildKit applies them.
//!
//! Where the documentation of `.dockerignore` and the behaviour of BuildKit (moby/patternmatcher
//! 0.6 under fsutil's filter) differ, this follows the behaviour: a pattern is turned into a
//! regular expression, and some of that syntax shows through (`\d`, `^`, `[[:alpha:]]`).
//!
//! Paths are bytes: relative, separated by `/`, cleaned, and not always UTF-8.
//!
//! - [`Patterns`] is one ordered list of patterns, the last match wins.
//! - [`Patterns::matches_under`] is the incremental form for a walk: what the parent directory
//!   matched is handed to its children. It is *not* the same as [`Patterns::matches`]: a walk
//!   evaluates a `!` pattern on a directory only when something excluded that directory before.
//! - [`Filter`] decides over a whole sorted list, with exclude and include patterns together.

mod clean;
mod file;
mod filter;
mod pattern;
mod regex;

pub use clean::clean;
pub use filter::{Filter, FilterWalk, Visit};
pub(crate) use filter::{Matched, Verdict};

use pattern::Pattern;

/// A pattern, or a line of an ignore file, that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}pattern `{pattern}`: {reason}", .line.map(|n| format!("line {n}: ")).unwrap_or_default())]
pub struct IgnoreError {
    /// Line in the ignore file, from 1; none where the patterns came as a list.
    pub line: Option<usize>,
    pub pattern: String,
    pub reason: &'static str,
}

/// Steps that all patterns of a list may have beyond their text. The time that a match takes grows with them, and a
/// few hundred bytes of repeats would otherwise make a walk of hours.
const EXPANSION: usize = 5_000;

/// An ordered list of patterns; `!` in front of one brings back what earlier ones matched.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    list: Vec<Pattern>,
    negated: bool,
    expansion: usize,
}

/// What a directory matched, for its children. The default stands for "no parent known".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParentMatch(Vec<bool>);

impl Patterns {
    /// Reads the text of an ignore file.
    pub fn parse_file(text: &[u8]) -> Result<Self, IgnoreError> {
        let mut patterns = Self::default();
        for line in file::lines(text) {
            let (number, pattern) = line?;
            patterns.push(&pattern).map_err(|reason| IgnoreError { line: Some(number), pattern, reason })?;
        }
        Ok(patterns)
    }

    /// Takes patterns one by one, as BuildKit sends them with a file sync request.
    pub fn from_list<I>(list: I) -> Result<Self, IgnoreError>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        let mut patterns = Self::default();
        for item in list {
            let pattern = file::text(item.as_ref());
            patterns.push(&pattern).map_err(|reason| IgnoreError { line: None, pattern, reason })?;
        }
        Ok(patterns)
    }

    fn push(&mut self, text: &str) -> Result<(), &'static str> {
        if let Some(pattern) = Pattern::parse(text)? {
            self.expansion += pattern.expansion();
            if self.expansion > EXPANSION {
                return Err("it repeats too much, together with the patterns before it");
            }
            self.negated |= pattern.negated();
            self.list.push(pattern);
        }
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Whether any pattern starts with `!`.
    pub fn has_negation(&self) -> bool {
        self.negated
    }

    /// Whether `path` or a directory above it matches, and no later `!` pattern brings it back.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.matching(path).is_some()
    }

    /// The pattern by which `path` [`matches`](Self::matches), or a directory above it.
    pub fn matching(&self, path: &[u8]) -> Option<&str> {
        let mut by: Option<&Pattern> = None;
        for pattern in &self.list {
            if pattern.negated() == by.is_some() && pattern.matches_at_or_above(path) {
                by = Some(pattern).filter(|pattern| !pattern.negated());
            }
        }
        by.map(Pattern::text)
    }

    /// The same decision during a walk: `parent` is what the directory of `path` gave.
    pub fn matches_under(&self, path: &[u8], parent: &ParentMatch) -> (bool, ParentMatch) {
        let mut matched = false;
        let mut seen = vec![false; self.list.len()];
        for (index, pattern) in self.list.iter().enumerate() {
            let mut hit = parent.0.get(index).copied().unwrap_or(false);
            if !hit {
                if pattern.negated() != matched {
                    continue;
                }
                hit = if parent.0.is_empty() {
                    pattern.matches_at_or_above(path)
                } else {
                    pattern.matches(path)
                };
            }
            seen[index] = hit;
            if hit {
                matched = !pattern.negated();
            }
        }
        (matched, ParentMatch(seen))
    }

    fn iter(&self) -> impl Iterator<Item = &Pattern> {
        self.list.iter()
    }
}

#[cfg(test)]
mod tests;
