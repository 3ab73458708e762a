//! Counted repeats: `x{2}`, `x{2,}`, `x{2,5}`.

use std::fmt;
use std::iter::Peekable;
use std::str::Chars;

use super::TOO_LONG;

/// Maximum count of a repeat, the same as in Go.
const MAX_REPEAT: u32 = 1000;

/// Bounds of a repeat; `most` is `None` if there is no upper one.
pub(super) struct RepeatBounds {
    least: u32,
    most: Option<u32>,
}

impl RepeatBounds {
    /// Returns the number of steps that the repeat adds to the one of its element.
    pub(super) fn added_steps(&self) -> usize {
        self.most.unwrap_or(self.least + 1).saturating_sub(1) as usize
    }
}

impl fmt::Display for RepeatBounds {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.most {
            Some(most) => write!(formatter, "{{{},{most}}}", self.least),
            None => write!(formatter, "{{{},}}", self.least),
        }
    }
}

/// Parses the bounds after a `{`. Returns `None` if it is no repeat and the `{` is literal.
pub(super) fn bounds(rest: &mut Peekable<Chars<'_>>) -> Result<Option<RepeatBounds>, &'static str> {
    let mut ahead = rest.clone();
    let Some(least) = number(&mut ahead) else { return Ok(None) };
    let most = if ahead.next_if_eq(&',').is_none() {
        Some(least)
    } else if ahead.peek() == Some(&'}') {
        None
    } else {
        match number(&mut ahead) {
            Some(most) => Some(most),
            None => return Ok(None),
        }
    };
    if ahead.next() != Some('}') {
        return Ok(None);
    }
    *rest = ahead;
    if least > MAX_REPEAT || most.is_some_and(|most| most > MAX_REPEAT || most < least) {
        return Err(TOO_LONG);
    }
    Ok(Some(RepeatBounds { least, most }))
}

/// Parses digits without a leading zero.
fn number(rest: &mut Peekable<Chars<'_>>) -> Option<u32> {
    let zero = rest.peek() == Some(&'0');
    let mut number = rest.next().and_then(|c| c.to_digit(10))?;
    while let Some(digit) = rest.peek().and_then(|c| c.to_digit(10)) {
        if zero {
            return None;
        }
        rest.next();
        number = number.saturating_mul(10).saturating_add(digit);
    }
    Some(number)
}
