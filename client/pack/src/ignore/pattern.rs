use super::clean::{check_glob, clean};
use super::regex::PathRegex;

/// One parsed pattern.
#[derive(Debug, Clone)]
pub(super) struct IgnorePattern {
    text: String,
    negated: bool,
    form: PatternForm,
}

/// Matching method of a pattern. The three plain forms compare the literal bytes of the pattern, so `^` is an anchor
/// only if something else turned the pattern into a regular expression.
#[derive(Debug, Clone)]
enum PatternForm {
    Exact,
    /// `dir/**`
    Prefix,
    /// `**/name`
    Suffix,
    Regex(PathRegex),
}

impl IgnorePattern {
    /// Parses a pattern. Returns `None` for a blank one.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, &'static str> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Ok(None);
        }
        let cleaned = clean(trimmed);
        let (negated, text) = match cleaned.strip_prefix('!') {
            Some("") => return Err("a `!` alone brings nothing back"),
            Some(rest) => (true, rest.to_owned()),
            None => (false, cleaned),
        };
        check_glob(&text)?;
        let form = form(&text)?;
        Ok(Some(Self { text, negated, form }))
    }

    /// Returns the cleaned pattern without its `!`.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    pub(super) fn negated(&self) -> bool {
        self.negated
    }

    /// Returns the number of steps that repeats such as `a{1000}` add beyond the length of the text.
    pub(super) fn expansion(&self) -> usize {
        self.steps().map_or(0, |steps| steps.saturating_sub(self.text.len() + 2))
    }

    /// Returns the number of steps of the pattern's expression, if it has one.
    pub(super) fn steps(&self) -> Option<usize> {
        match &self.form {
            PatternForm::Regex(regex) => Some(regex.steps()),
            PatternForm::Exact | PatternForm::Prefix | PatternForm::Suffix => None,
        }
    }

    pub(super) fn matches(&self, path: &[u8]) -> bool {
        let text = self.text.as_bytes();
        match &self.form {
            PatternForm::Exact => path == text,
            PatternForm::Prefix => path.starts_with(&text[..text.len() - 2]),
            PatternForm::Suffix => {
                let suffix = &text[2..];
                path.ends_with(suffix) || suffix.strip_prefix(b"/").is_some_and(|name| path == name)
            }
            PatternForm::Regex(regex) => regex.matches(path),
        }
    }

    /// Reports whether the pattern matches `path` or any directory above it.
    pub(super) fn matches_at_or_above(&self, path: &[u8]) -> bool {
        self.matches(path)
            || path.iter().enumerate().any(|(index, &byte)| byte == b'/' && self.matches(&path[..index]))
    }

    /// Returns the pattern without a trailing `/**` or `/*`.
    pub(super) fn stem(&self) -> &str {
        let stem = self.text.strip_suffix("/**").unwrap_or(&self.text);
        stem.strip_suffix("/*").unwrap_or(stem)
    }

    /// Reports whether a directory itself or something below it may match. There are no false negatives: only the
    /// components before the first one with special characters are compared.
    pub(super) fn may_match_below(&self, directory: &[u8]) -> bool {
        let is_letter = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | ' ');
        // Syntax of regular expressions works in patterns, including alternatives.
        if self.text.contains(['|', '(', ')', '{', '}', '+']) {
            return true;
        }
        let plain = self.text.find(|c: char| !is_letter(c)).map_or(self.text.as_str(), |end| {
            let plain = &self.text[..end];
            plain.rsplit_once('/').map_or("", |(directory, _)| directory)
        });
        let leads = |from: &[u8], to: &[u8]| {
            to.strip_prefix(from).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        plain.is_empty() || leads(plain.as_bytes(), directory) || leads(directory, plain.as_bytes())
    }

    /// Reports whether the stem is a plain path, so that it tells which directories can contain a match.
    pub(super) fn is_plain(&self) -> bool {
        !self.stem().contains(['*', '[', ']', '?', '^', '\\'])
    }
}

fn form(text: &str) -> Result<PatternForm, &'static str> {
    #[derive(Clone, Copy, PartialEq)]
    enum PatternShape {
        Exact,
        Prefix,
        Suffix,
        Regex,
    }
    let mut seen = PatternShape::Exact;
    let mut source = String::new();
    // The scanner that Docker uses drops a byte order mark at the start.
    let mut rest = text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable();
    let mut first = true;
    while let Some(c) = rest.next() {
        match c {
            '*' if rest.next_if_eq(&'*').is_some() => {
                rest.next_if_eq(&'/');
                if rest.peek().is_some() {
                    source.push_str("(.*/)?");
                    seen = PatternShape::Regex;
                } else if seen == PatternShape::Exact {
                    seen = PatternShape::Prefix;
                } else {
                    source.push_str(".*");
                    seen = PatternShape::Regex;
                }
                if first {
                    seen = PatternShape::Suffix;
                }
            }
            '*' => {
                source.push_str("[^/]*");
                seen = PatternShape::Regex;
            }
            '?' => {
                source.push_str("[^/]");
                seen = PatternShape::Regex;
            }
            // `|`, `{` and `}` should be escaped, too, but the table of Docker's matcher does not include them: they
            // keep their meaning in an expression.
            '.' | '+' | '(' | ')' | '$' => {
                source.push('\\');
                source.push(c);
            }
            '\\' => {
                source.push('\\');
                if let Some(escaped) = rest.next() {
                    source.push(escaped);
                    seen = PatternShape::Regex;
                }
            }
            '[' | ']' => {
                source.push(c);
                seen = PatternShape::Regex;
            }
            _ => source.push(c),
        }
        first = false;
    }
    Ok(match seen {
        PatternShape::Exact => PatternForm::Exact,
        PatternShape::Prefix => PatternForm::Prefix,
        PatternShape::Suffix => PatternForm::Suffix,
        PatternShape::Regex => PatternForm::Regex(PathRegex::parse(&source)?),
    })
}
