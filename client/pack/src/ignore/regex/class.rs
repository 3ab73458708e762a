use std::iter::Peekable;
use std::str::Chars;

use super::{BAD_ESCAPE, push_literal};

const OPEN: &str = "a `[` is not closed";
const RANGE: &str = "a range in `[...]` runs backwards, or names an unknown class";

/// Named classes, which are the same in both syntaxes.
const NAMES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "word", "xdigit",
];

/// Translates the characters after a `[`.
pub(super) fn translate(rest: &mut Peekable<Chars<'_>>, text: &mut String) -> Result<(), &'static str> {
    text.push('[');
    text.extend(rest.next_if_eq(&'^'));
    let mut first = true;
    loop {
        if !first && rest.next_if_eq(&']').is_some() {
            text.push(']');
            return Ok(());
        }
        first = false;
        if named(rest, text)? || perl_ahead(rest, text) {
            continue;
        }
        let low = class_char(rest)?;
        push_literal(text, low);
        let mut ahead = rest.clone();
        if ahead.next() == Some('-') && ahead.next() != Some(']') {
            rest.next();
            let high = class_char(rest)?;
            if high < low {
                return Err(RANGE);
            }
            text.push('-');
            push_literal(text, high);
        }
    }
}

/// Translates the characters after a `\` outside of a class that stand for one character of a set.
pub(super) fn translate_escaped(
    rest: &mut Peekable<Chars<'_>>,
    text: &mut String,
) -> Result<(), &'static str> {
    match rest.peek().copied().and_then(perl) {
        Some(class) => {
            rest.next();
            text.push_str(class);
        }
        None => push_literal(text, escaped_char(rest)?),
    }
    Ok(())
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

fn perl_ahead(rest: &mut Peekable<Chars<'_>>, text: &mut String) -> bool {
    let mut ahead = rest.clone();
    let class = ahead.next_if_eq(&'\\').and_then(|_| perl(ahead.next()?));
    if let Some(class) = class {
        *rest = ahead;
        text.push_str(class);
    }
    class.is_some()
}

/// Returns the class of `\d`, `\s`, `\w` or its complement. They are ASCII in Go.
fn perl(letter: char) -> Option<&'static str> {
    Some(match letter {
        'd' => "[0-9]",
        'D' => "[^0-9]",
        's' => r"[\t\n\f\r\x20]",
        'S' => r"[^\t\n\f\r\x20]",
        'w' => "[0-9A-Z_a-z]",
        'W' => "[^0-9A-Z_a-z]",
        _ => return None,
    })
}

/// Translates a named class such as `[:alpha:]`, or its complement such as `[:^alpha:]`. Returns false if no named
/// class comes next.
fn named(rest: &mut Peekable<Chars<'_>>, text: &mut String) -> Result<bool, &'static str> {
    let ahead: String = rest.clone().collect();
    let Some(end) = ahead.strip_prefix("[:").and_then(|after| after.find(":]")) else {
        return Ok(false);
    };
    let name = &ahead[2..2 + end];
    if !NAMES.contains(&name.strip_prefix('^').unwrap_or(name)) {
        return Err(RANGE);
    }
    rest.by_ref().take(name.len() + 4).for_each(drop);
    text.push_str(&ahead[..end + 4]);
    Ok(true)
}
