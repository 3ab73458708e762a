//! Words of a Dockerfile: quotes, escapes, `$NAME` and `${NAME...}`, CSV.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

/// The word cannot be read. BuildKit reports the error when it parses the word.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnreadableWord;

type VariableValues = BTreeMap<String, String>;

/// Expands one word: removes quotes and escapes and fills in variables. Unset variables are empty.
pub(super) fn expand(word: &str, values: &VariableValues, escape: char) -> Result<String, UnreadableWord> {
    WordExpander { rest: word.chars().peekable(), values, escape, all_known: true }.until(None, false)
}

/// Like [`expand`], but a word with a variable that is not in `values` is unreadable.
pub(super) fn expand_known(
    word: &str,
    values: &VariableValues,
    escape: char,
) -> Result<String, UnreadableWord> {
    WordExpander { rest: word.chars().peekable(), values, escape, all_known: false }.until(None, false)
}

/// Returns a word without its quotes; variables stay as they are. `None` when a quote has no end.
pub(super) fn unquoted(word: &str) -> Option<String> {
    let mut out = String::new();
    let mut quote = None;
    let mut rest = word.chars();
    while let Some(c) = rest.next() {
        match (quote, c) {
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            (None | Some('"'), '\\') => out.extend(rest.next()),
            (None, c) if c.is_whitespace() => return None,
            (_, c) => out.push(c),
        }
    }
    quote.is_none().then_some(out)
}

struct WordExpander<'a> {
    rest: Peekable<Chars<'a>>,
    values: &'a VariableValues,
    escape: char,
    /// Variables that are not in `values` are unset.
    all_known: bool,
}

impl WordExpander<'_> {
    /// Reads up to `stop`, which is consumed, or to the end when `stop` is `None`.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<String, UnreadableWord> {
        let mut out = String::new();
        while let Some(c) = self.rest.next() {
            match c {
                c if Some(c) == stop => return Ok(out),
                '\'' => loop {
                    match self.rest.next().ok_or(UnreadableWord)? {
                        '\'' => break,
                        c => out.push(c),
                    }
                },
                '"' => self.double_quoted(&mut out)?,
                '$' => out.push_str(&self.dollar()?),
                c if c == self.escape => {
                    if raw_escapes {
                        out.push(c);
                    }
                    out.extend(self.rest.next());
                }
                c => out.push(c),
            }
        }
        if stop.is_some() { Err(UnreadableWord) } else { Ok(out) }
    }

    fn double_quoted(&mut self, out: &mut String) -> Result<(), UnreadableWord> {
        loop {
            match self.rest.next().ok_or(UnreadableWord)? {
                '"' => return Ok(()),
                '$' => out.push_str(&self.dollar()?),
                c if c == self.escape => match self.rest.peek() {
                    Some(&next) if next == '"' || next == '$' || next == self.escape => {
                        out.push(next);
                        self.rest.next();
                    }
                    Some(_) => out.push(c),
                    None => {}
                },
                c => out.push(c),
            }
        }
    }

    fn dollar(&mut self) -> Result<String, UnreadableWord> {
        if self.rest.peek() != Some(&'{') {
            let name = self.name();
            return match name.is_empty() {
                true => Ok("$".to_owned()),
                false => Ok(self.value(&name)?.unwrap_or_default()),
            };
        }
        self.rest.next();
        let name = self.name();
        if name.is_empty() {
            return Err(UnreadableWord);
        }
        let value = self.value(&name)?;
        match self.rest.next().ok_or(UnreadableWord)? {
            '}' => Ok(value.unwrap_or_default()),
            ':' => {
                let modifier = self.rest.next().ok_or(UnreadableWord)?;
                self.modified(modifier, value.filter(|value| !value.is_empty()))
            }
            '/' => self.replaced(&value.unwrap_or_default()),
            modifier @ ('#' | '%') => {
                let pattern = self.until(Some('}'), true)?;
                let (greedy, pattern) = match pattern.strip_prefix(modifier) {
                    Some(rest) => (true, rest),
                    None => (false, pattern.as_str()),
                };
                Ok(trimmed(&value.unwrap_or_default(), pattern, greedy, modifier == '%'))
            }
            modifier => self.modified(modifier, value),
        }
    }

    fn modified(&mut self, modifier: char, value: Option<String>) -> Result<String, UnreadableWord> {
        let word = self.until(Some('}'), false)?;
        match (modifier, value) {
            ('-', Some(value)) | ('?', Some(value)) => Ok(value),
            ('-', None) | ('+', Some(_)) => Ok(word),
            ('+', None) => Ok(String::new()),
            _ => Err(UnreadableWord),
        }
    }

    fn replaced(&mut self, value: &str) -> Result<String, UnreadableWord> {
        let all = self.rest.next_if_eq(&'/').is_some();
        let pattern = self.until(Some('/'), true)?;
        let replacement = self.until(Some('}'), true)?;
        let (mut out, mut rest) = (String::new(), value);
        while !rest.is_empty() {
            let longest =
                boundaries(rest).filter(|&end| end > 0 && glob_matches(&pattern, &rest[..end])).last();
            match longest {
                Some(end) => {
                    out.push_str(&replacement);
                    rest = &rest[end..];
                    if !all {
                        break;
                    }
                }
                None => {
                    let mut chars = rest.chars();
                    out.extend(chars.next());
                    rest = chars.as_str();
                }
            }
        }
        Ok(out + rest)
    }

    fn value(&self, name: &str) -> Result<Option<String>, UnreadableWord> {
        match self.values.get(name) {
            None if !self.all_known => Err(UnreadableWord),
            value => Ok(value.cloned()),
        }
    }

    fn name(&mut self) -> String {
        match self.rest.peek() {
            Some(c) if c.is_ascii_digit() => {
                let mut name = String::new();
                while let Some(c) = self.rest.next_if(char::is_ascii_digit) {
                    name.push(c);
                }
                name
            }
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => self.rest.next().into_iter().collect(),
            _ => {
                let mut name = String::new();
                while let Some(c) = self.rest.next_if(|c| c.is_alphanumeric() || *c == '_') {
                    name.push(c);
                }
                name
            }
        }
    }
}

/// Returns `value` without the shortest (or longest) prefix or suffix that matches `pattern`.
fn trimmed(value: &str, pattern: &str, greedy: bool, suffix: bool) -> String {
    let fits = |cut: &usize| glob_matches(pattern, if suffix { &value[*cut..] } else { &value[..*cut] });
    let mut cuts: Vec<usize> = boundaries(value).filter(fits).collect();
    // A later cut removes a shorter suffix.
    if suffix != greedy {
        cuts.reverse();
    }
    match cuts.first() {
        Some(&cut) if suffix => value[..cut].to_owned(),
        Some(&cut) => value[cut..].to_owned(),
        None => value.to_owned(),
    }
}

fn boundaries(text: &str) -> impl Iterator<Item = usize> + '_ {
    text.char_indices().map(|(at, _)| at).chain([text.len()])
}

/// Glob match: `*` any run, `?` any character, `\x` that character. Takes time linear in text times pattern.
pub fn glob_matches(pattern: &str, text: &str) -> bool {
    enum PatternToken {
        AnyRun,
        AnyChar,
        Literal(char),
    }
    let mut tokens = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        tokens.push(match c {
            '*' => PatternToken::AnyRun,
            '?' => PatternToken::AnyChar,
            '\\' => PatternToken::Literal(chars.next().unwrap_or('\\')),
            c => PatternToken::Literal(c),
        });
    }
    let text: Vec<char> = text.chars().collect();
    // reachable[i]: the tokens so far match the first i characters.
    let mut reachable = vec![false; text.len() + 1];
    reachable[0] = true;
    for token in tokens {
        let mut next = vec![false; text.len() + 1];
        for i in 0..=text.len() {
            next[i] = match token {
                PatternToken::AnyRun => reachable[i] || (i > 0 && next[i - 1]),
                PatternToken::AnyChar => i > 0 && reachable[i - 1],
                PatternToken::Literal(c) => i > 0 && reachable[i - 1] && text[i - 1] == c,
            };
        }
        reachable = next;
    }
    reachable[text.len()]
}

/// Splits text at blanks into words that keep their quotes and escapes.
pub(super) fn split_raw(text: &str, escape: char) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut rest = text.chars();
    while let Some(c) = rest.next() {
        match quote {
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            None if matches!(c, '\'' | '"') => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        if c == escape && quote != Some('\'') {
            if let Some(next) = rest.next() {
                word.extend([c, next]);
            }
        } else {
            word.push(c);
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Splits the flags (`--...`) at the start of an instruction's arguments, unquoted, from the text after them.
pub(super) fn split_flags(text: &str, escape: char) -> (Vec<String>, &str) {
    let mut flags = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start();
        if !rest.starts_with("--") {
            return (flags, rest);
        }
        let mut flag = String::new();
        let mut quote = None;
        let mut chars = rest.char_indices();
        let mut end = rest.len();
        while let Some((at, c)) = chars.next() {
            match quote {
                None if c.is_whitespace() => {
                    end = at;
                    break;
                }
                None if matches!(c, '\'' | '"') => quote = Some(c),
                Some(open) if c == open => quote = None,
                _ if c == escape => flag.extend(chars.next().map(|(_, c)| c)),
                _ => flag.push(c),
            }
        }
        rest = &rest[end..];
        if flag == "--" {
            return (flags, rest);
        }
        flags.push(flag);
    }
}

/// Splits a line into words for the heredoc search: quotes are kept, blanks after `<<` are part of the word. Empty
/// when a quote has no end.
pub(super) fn split_heredoc_words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut rest = line.chars().peekable();
    while let Some(c) = rest.next() {
        match (quote, c) {
            (None, c) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            (None, '\'' | '"') => quote = Some(c),
            (Some(open), c) if c == open => quote = None,
            _ => {}
        }
        word.push(c);
        if c == '\\' && quote != Some('\'') {
            word.extend(rest.next());
        }
        if quote.is_none() && c == '<' && rest.next_if_eq(&'<').is_some() {
            word.push('<');
            while let Some(blank) = rest.next_if(|c| matches!(c, ' ' | '\t' | '\r')) {
                word.push(blank);
            }
        }
    }
    if quote.is_some() {
        return Vec::new();
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Returns the fields of one CSV line. `None` when a quote has no end.
pub(super) fn csv_fields(line: &str) -> Option<Vec<String>> {
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        if let Some(mut quoted) = rest.strip_prefix('"') {
            let mut field = String::new();
            loop {
                let (part, after) = quoted.split_once('"')?;
                field.push_str(part);
                match after.strip_prefix('"') {
                    Some(more) => {
                        field.push('"');
                        quoted = more;
                    }
                    None => {
                        rest = after;
                        break;
                    }
                }
            }
            fields.push(field);
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => return rest.is_empty().then_some(fields),
            }
        } else {
            match rest.split_once(',') {
                Some((field, more)) => {
                    fields.push(field.to_owned());
                    rest = more;
                }
                None => {
                    fields.push(rest.to_owned());
                    return Some(fields);
                }
            }
        }
    }
}
