use std::iter::Peekable;
use std::str::Chars;

use super::BAD_ESCAPE;

const OPEN: &str = "a `[` is not closed";
const RANGE: &str = "a range in `[...]` runs backwards, or names an unknown class";

/// A set of characters.
#[derive(Debug, Clone)]
pub(super) struct CharClass {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl CharClass {
    pub(super) fn one(c: char) -> Self {
        Self { negated: false, ranges: vec![(c, c)] }
    }

    pub(super) fn not(c: char) -> Self {
        Self { negated: true, ranges: vec![(c, c)] }
    }

    pub(super) fn has(&self, c: char) -> bool {
        self.ranges.iter().any(|&(low, high)| (low..=high).contains(&c)) != self.negated
    }

    /// Parses the characters after a `[`.
    pub(super) fn parse(rest: &mut Peekable<Chars<'_>>) -> Result<Self, &'static str> {
        let negated = rest.next_if_eq(&'^').is_some();
        let mut ranges = Vec::new();
        let mut first = true;
        loop {
            if !first && rest.next_if_eq(&']').is_some() {
                return Ok(Self { negated, ranges });
            }
            first = false;
            if let Some(named) = named(rest)? {
                ranges.extend(named);
                continue;
            }
            if let Some(perl) = perl_ahead(rest) {
                ranges.extend(perl);
                continue;
            }
            let low = class_char(rest)?;
            let mut ahead = rest.clone();
            let high = if ahead.next() == Some('-') && ahead.next() != Some(']') {
                rest.next();
                class_char(rest)?
            } else {
                low
            };
            if high < low {
                return Err(RANGE);
            }
            ranges.push((low, high));
        }
    }
}

/// Parses the characters after a `\` outside of a class as a set of characters.
pub(super) fn escaped(rest: &mut Peekable<Chars<'_>>) -> Result<CharClass, &'static str> {
    if let Some(ranges) = rest.peek().copied().and_then(perl) {
        rest.next();
        return Ok(CharClass { negated: false, ranges });
    }
    escaped_char(rest).map(CharClass::one)
}

fn class_char(rest: &mut Peekable<Chars<'_>>) -> Result<char, &'static str> {
    match rest.next().ok_or(OPEN)? {
        '\\' => escaped_char(rest),
        c => Ok(c),
    }
}

fn escaped_char(rest: &mut Peekable<Chars<'_>>) -> Result<char, &'static str> {
    let code = match rest.next().ok_or(BAD_ESCAPE)? {
        c if c.is_ascii() && !c.is_ascii_alphanumeric() => return Ok(c),
        'a' => 0x07,
        'f' => 0x0c,
        'n' => 0x0a,
        'r' => 0x0d,
        't' => 0x09,
        'v' => 0x0b,
        'x' if rest.next_if_eq(&'{').is_some() => {
            let mut code: Option<u32> = None;
            loop {
                match rest.next().ok_or(BAD_ESCAPE)? {
                    '}' => break code.ok_or(BAD_ESCAPE)?,
                    c => {
                        let digit = c.to_digit(16).ok_or(BAD_ESCAPE)?;
                        let next = code.unwrap_or(0) * 16 + digit;
                        code = Some(next).filter(|&code| code <= char::MAX as u32);
                        code.ok_or(BAD_ESCAPE)?;
                    }
                }
            }
        }
        'x' => {
            let mut digit = || rest.next().and_then(|c| c.to_digit(16)).ok_or(BAD_ESCAPE);
            digit()? * 16 + digit()?
        }
        // A single digit other than 0 would be a back-reference.
        c @ '0'..='7' if c == '0' || rest.peek().is_some_and(|c| c.is_digit(8)) => {
            let mut code = c.to_digit(8).unwrap_or_default();
            for _ in 0..2 {
                if let Some(digit) = rest.peek().and_then(|c| c.to_digit(8)) {
                    rest.next();
                    code = code * 8 + digit;
                }
            }
            code
        }
        _ => return Err(BAD_ESCAPE),
    };
    char::from_u32(code).ok_or(BAD_ESCAPE)
}

fn perl_ahead(rest: &mut Peekable<Chars<'_>>) -> Option<Vec<(char, char)>> {
    let mut ahead = rest.clone();
    ahead.next_if_eq(&'\\')?;
    let ranges = perl(ahead.next()?)?;
    *rest = ahead;
    Some(ranges)
}

fn perl(letter: char) -> Option<Vec<(char, char)>> {
    let positive: &[(char, char)] = match letter.to_ascii_lowercase() {
        'd' => &[('0', '9')],
        's' => &[('\t', '\n'), ('\x0c', '\r'), (' ', ' ')],
        'w' => &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
        _ => return None,
    };
    Some(if letter.is_ascii_uppercase() { complement(positive) } else { positive.to_vec() })
}

/// Parses a named class such as `[:alpha:]`, or its complement such as `[:^alpha:]`. Returns `None` if no named class
/// comes next.
fn named(rest: &mut Peekable<Chars<'_>>) -> Result<Option<Vec<(char, char)>>, &'static str> {
    let ahead: String = rest.clone().collect();
    let Some(end) = ahead.strip_prefix("[:").and_then(|after| after.find(":]")) else {
        return Ok(None);
    };
    let name = &ahead[2..2 + end];
    rest.by_ref().take(name.chars().count() + 4).for_each(drop);
    let (negated, name) = name.strip_prefix('^').map_or((false, name), |name| (true, name));
    let positive: &[(char, char)] = match name {
        "alnum" => &[('0', '9'), ('A', 'Z'), ('a', 'z')],
        "alpha" => &[('A', 'Z'), ('a', 'z')],
        "ascii" => &[('\0', '\x7f')],
        "blank" => &[('\t', '\t'), (' ', ' ')],
        "cntrl" => &[('\0', '\x1f'), ('\x7f', '\x7f')],
        "digit" => &[('0', '9')],
        "graph" => &[('!', '~')],
        "lower" => &[('a', 'z')],
        "print" => &[(' ', '~')],
        "punct" => &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')],
        "space" => &[('\t', '\r'), (' ', ' ')],
        "upper" => &[('A', 'Z')],
        "word" => &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
        "xdigit" => &[('0', '9'), ('A', 'F'), ('a', 'f')],
        _ => return Err(RANGE),
    };
    Ok(Some(if negated { complement(positive) } else { positive.to_vec() }))
}

/// Returns all characters outside of `ranges`, which are sorted and ASCII only.
fn complement(ranges: &[(char, char)]) -> Vec<(char, char)> {
    let beside = |c: char, step: i32| char::from_u32((c as u32).wrapping_add_signed(step));
    let mut from = Some('\0');
    let mut gaps = Vec::new();
    for &(low, high) in ranges {
        if let (Some(start), Some(end)) = (from, beside(low, -1))
            && start <= end
        {
            gaps.push((start, end));
        }
        from = beside(high, 1);
    }
    gaps.extend(from.map(|start| (start, char::MAX)));
    gaps
}
