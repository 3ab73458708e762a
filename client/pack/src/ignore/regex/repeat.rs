//! Counted repeats: `x{2}`, `x{2,}`, `x{2,5}`.

use std::iter::Peekable;
use std::str::Chars;

use super::{RegexStep, TOO_LONG};

/// Maximum count of a repeat, the same as in Go.
const MAX_REPEAT: u32 = 1000;

/// Parses the bounds after a `{`. Returns `None` if it is no repeat and the `{` is literal.
pub(super) fn bounds(rest: &mut Peekable<Chars<'_>>) -> Result<Option<(u32, Option<u32>)>, &'static str> {
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
    Ok(Some((least, most)))
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

/// Repeats the last of `steps`.
pub(super) fn repeat_last(
    steps: &mut Vec<RegexStep>,
    least: u32,
    most: Option<u32>,
) -> Result<(), &'static str> {
    let step = steps.pop().ok_or("a repeat has nothing to repeat")?;
    let RegexStep::One(class) = step else {
        // Any other step here consumes no character: once is the same as many times.
        steps.extend((least > 0).then_some(step));
        return Ok(());
    };
    steps.extend((0..least).map(|_| RegexStep::One(class.clone())));
    match most {
        Some(most) => steps.extend((least..most).map(|_| RegexStep::Maybe(class.clone()))),
        None => steps.push(RegexStep::Many(class)),
    }
    Ok(())
}
