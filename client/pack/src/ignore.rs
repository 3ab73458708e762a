//! Ignore rules of Docker, as BuildKit applies them.
//!
//! This module follows the behaviour of BuildKit (moby/patternmatcher 0.6 under fsutil's filter) where the
//! documentation of `.dockerignore` differs: a pattern is turned into a regular expression, and some of Go's syntax
//! works in patterns (`\d`, `^`, `[[:alpha:]]`).
//!
//! Paths are bytes: relative, separated by `/`, cleaned, and not always UTF-8.
//!
//! - [`IgnorePatterns`] is one ordered list of patterns, the last match wins.
//! - [`IgnorePatterns::matches_under`] is the incremental form for a walk: the match of the parent
//!   directory is passed to its children. It is *not* the same as [`IgnorePatterns::matches`]: a walk
//!   evaluates a `!` pattern on a directory only if something excluded that directory before.
//! - [`TreeFilter`] filters a whole sorted list, with exclude and include patterns together.

mod clean;
mod file;
mod filter;
mod pattern;
mod regex;

pub use clean::clean;
pub(crate) use filter::{DirectoryMatch, EntryVerdict};
pub use filter::{FilterWalk, TreeFilter, VisitOutcome};

use pattern::IgnorePattern;

/// Invalid pattern or line of an ignore file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}pattern `{pattern}`: {reason}", .line.map(|n| format!("line {n}: ")).unwrap_or_default())]
pub struct IgnoreError {
    /// Line number in the ignore file, from 1. `None` if the patterns came as a list.
    pub line: Option<usize>,
    pub pattern: String,
    pub reason: &'static str,
}

/// Maximum number of steps that all patterns of a list may have beyond the length of their text. The time of a match
/// grows with the steps, and a few hundred bytes of repeats could otherwise make a walk take hours.
const MAX_EXPANSION: usize = 5_000;

/// Maximum size of the expressions of a list: the sum of their steps, and [`EXPRESSION_COST`] for each. A step takes a
/// few hundred bytes of memory.
const MAX_EXPRESSION_SIZE: usize = 200_000;
/// Fixed part of the size of an expression, in steps.
const EXPRESSION_COST: usize = 16;

/// An ordered list of patterns. A pattern that starts with `!` includes again what earlier ones excluded.
#[derive(Debug, Clone, Default)]
pub struct IgnorePatterns {
    list: Vec<IgnorePattern>,
    negated: bool,
    expansion: usize,
    expression_size: usize,
}

/// Matches of a directory, one for each pattern, passed to its children. The default means "no parent known".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ParentMatch(Vec<bool>);

impl IgnorePatterns {
    /// Reads the text of an ignore file.
    pub fn parse_file(text: &[u8]) -> Result<Self, IgnoreError> {
        let mut patterns = Self::default();
        for line in file::lines(text) {
            let (number, pattern) = line?;
            patterns.push(&pattern).map_err(|reason| IgnoreError { line: Some(number), pattern, reason })?;
        }
        Ok(patterns)
    }

    /// Creates the list from single patterns, as BuildKit sends them with a file sync request.
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
        if let Some(pattern) = IgnorePattern::parse(text)? {
            self.expansion += pattern.expansion();
            if self.expansion > MAX_EXPANSION {
                return Err("it repeats too much, together with the patterns before it");
            }
            if let Some(steps) = pattern.steps() {
                self.expression_size += EXPRESSION_COST + steps;
            }
            if self.expression_size > MAX_EXPRESSION_SIZE {
                return Err("there are too many patterns with wildcards");
            }
            self.negated |= pattern.negated();
            self.list.push(pattern);
        }
        Ok(())
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Reports whether any pattern starts with `!`.
    pub fn has_negation(&self) -> bool {
        self.negated
    }

    /// Reports whether `path` or a directory above it matches, and no later `!` pattern includes it again.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.matching(path).is_some()
    }

    /// Returns the pattern by which `path` or a directory above it [`matches`](Self::matches).
    pub fn matching(&self, path: &[u8]) -> Option<&str> {
        let mut by: Option<&IgnorePattern> = None;
        for pattern in &self.list {
            if pattern.negated() == by.is_some() && pattern.matches_at_or_above(path) {
                by = Some(pattern).filter(|pattern| !pattern.negated());
            }
        }
        by.map(IgnorePattern::text)
    }

    /// Makes the same decision during a walk. `parent` is the returned [`ParentMatch`] of the directory of `path`.
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

    fn iter(&self) -> impl Iterator<Item = &IgnorePattern> {
        self.list.iter()
    }
}

#[cfg(test)]
mod tests;
