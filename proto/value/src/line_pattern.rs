//! Patterns that choose lines of a log.

use regex::bytes::{Regex, RegexBuilder};

/// Maximum length of a pattern in bytes.
const MAX_LENGTH: usize = 4096;
/// Maximum memory of a compiled pattern in bytes, and of the cache that a search keeps.
const MAX_COMPILED: usize = 1 << 20;

/// A regular expression, or a literal text, that a line must contain.
///
/// The syntax is that of the `regex` crate, whose time is linear in the length of the line. The pattern is compared
/// with bytes, because a log may contain others than UTF-8.
#[derive(Clone, Debug)]
pub struct LinePattern(Regex);

/// Reason why a text is no [`LinePattern`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LinePatternError {
    #[error("a pattern has at most {MAX_LENGTH} bytes")]
    TooLong,
    #[error("the pattern needs more than {MAX_COMPILED} bytes of memory; write smaller repetitions")]
    TooLarge,
    /// The parser's reason.
    #[error("not a regular expression: {0}")]
    Syntax(String),
}

impl LinePattern {
    /// Parses a regular expression.
    pub fn regex(text: &str) -> Result<Self, LinePatternError> {
        Self::compile(text, text)
    }

    /// Makes a pattern that finds exactly this text.
    pub fn literal(text: &str) -> Result<Self, LinePatternError> {
        Self::compile(text, &regex::escape(text))
    }

    /// Compiles `pattern`, which was made from the text `given`.
    fn compile(given: &str, pattern: &str) -> Result<Self, LinePatternError> {
        if given.len() > MAX_LENGTH {
            return Err(LinePatternError::TooLong);
        }
        let compiled =
            RegexBuilder::new(pattern).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).build();
        compiled.map(Self).map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => LinePatternError::TooLarge,
            // The parser repeats the pattern in several lines, and ends with the reason.
            other => {
                let text = other.to_string();
                LinePatternError::Syntax(text.rsplit("error: ").next().unwrap_or(&text).trim().to_owned())
            }
        })
    }

    /// Reports whether a line, without its newline, contains the pattern.
    pub fn matches(&self, line: &[u8]) -> bool {
        self.0.is_match(line)
    }
}

impl std::str::FromStr for LinePattern {
    type Err = LinePatternError;

    fn from_str(text: &str) -> Result<Self, LinePatternError> {
        Self::regex(text)
    }
}

impl PartialEq for LinePattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl Eq for LinePattern {}

/// Writes the regular expression.
impl std::fmt::Display for LinePattern {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.0.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_a_regular_expression_and_a_literal_is_itself() {
        for (pattern, line, found) in [
            ("error|warn", "a warning", true),
            ("^err", "no err", false),
            (r"exit \d+$", "exit 17", true),
            ("(?i)ÄRGER", "großer ärger", true),
            ("a.c", "abc", true),
            ("", "anything", true),
        ] {
            assert_eq!(LinePattern::regex(pattern).unwrap().matches(line.as_bytes()), found, "{pattern}");
        }
        let literal = LinePattern::literal("a.c(").unwrap();
        assert!(literal.matches(b"xa.c(\xff") && !literal.matches(b"abc("));
    }

    #[test]
    fn a_pattern_that_is_wrong_or_large_is_refused_with_its_reason() {
        let refused = |text: &str| text.parse::<LinePattern>().unwrap_err();
        assert!(refused("a(b").to_string().contains("unclosed group"), "{}", refused("a(b"));
        assert_eq!(refused(r"(\w{200}){200}"), LinePatternError::TooLarge);
        assert_eq!(refused(&"x".repeat(MAX_LENGTH + 1)), LinePatternError::TooLong);
        assert_eq!(LinePattern::literal(&"(".repeat(MAX_LENGTH + 1)), Err(LinePatternError::TooLong));
    }
}
