//! Lengths of time in the notation `90s`, `10m`, `1h30m`.

use std::time::Duration;

use jiff::Timestamp;

/// Maximum length of time that is accepted; longer than any timeout of the product, and far from
/// overflow.
const MAX_DURATION: Duration = Duration::from_secs(366 * 24 * 3600);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    #[error(
        "`{given}` is not a length of time; write numbers with units, such as `90s`, `10m`, `1h30m` or `7d`"
    )]
    NotALength { given: String },
    #[error("`{given}` is too long: at most {days}d")]
    TooLong { given: String, days: u64 },
}

/// Parses one or more `<number><unit>` with units `d`, `h`, `m`, `s` and `ms`, the larger first.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    parse_at_most(text, MAX_DURATION)
}

/// Parses a length of time with a maximum of its own.
pub fn parse_at_most(text: &str, longest: Duration) -> Result<Duration, DurationError> {
    let given = || text.chars().take(100).collect();
    match parts(text.trim()) {
        None => Err(DurationError::NotALength { given: given() }),
        Some(length) if length > longest => {
            Err(DurationError::TooLong { given: given(), days: longest.as_secs() / 86_400 })
        }
        Some(length) => Ok(length),
    }
}

fn parts(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    let mut larger = u64::MAX;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let count: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let milliseconds: u64 = match &rest[..unit_end] {
            "d" => 86_400_000,
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1_000,
            "ms" => 1,
            _ => return None,
        };
        if milliseconds >= larger {
            return None;
        }
        larger = milliseconds;
        rest = &rest[unit_end..];
        total = total.checked_add(Duration::from_millis(count.checked_mul(milliseconds)?))?;
    }
    (!total.is_zero()).then_some(total)
}

/// Formats seconds with one decimal below a minute, otherwise hours, minutes and seconds.
pub fn format_short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", duration.as_secs_f64()),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m{:02}s", seconds / 3600, seconds / 60 % 60, seconds % 60),
    }
}

/// Formats a length of time in the notation of [`parse`]; fractions of a millisecond are dropped.
pub fn format_exact(duration: Duration) -> String {
    match duration.subsec_millis() {
        0 => format!("{}s", duration.as_secs()),
        _ => format!("{}ms", duration.as_millis()),
    }
}

/// Converts from the wire. A negative duration, which no daemon sends, becomes zero.
pub fn from_wire(duration: prost_types::Duration) -> Duration {
    Duration::try_from(duration).unwrap_or_default()
}

/// Converts to the wire.
pub fn to_wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// Converts a time to its form in requests.
pub fn timestamp_to_wire(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

/// Parses a point in time: a timestamp, or how long ago it was.
pub fn parse_since(text: &str) -> Result<Timestamp, String> {
    let wrong =
        || format!("`{text}` is neither a time such as `2026-11-24T09:00:00Z` nor a length such as `10m`");
    match parse(text) {
        Ok(ago) => Timestamp::now().checked_sub(ago).map_err(|_| wrong()),
        Err(_) => text.trim().parse().map_err(|_| wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_units_add_up() {
        for (text, milliseconds) in [
            ("90s", 90_000),
            ("10m", 600_000),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
            (" 1m1s1ms ", 61_001),
            ("250ms", 250),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_length_of_time_is_refused_and_named() {
        for text in
            ["", "10", "m", "10x", "-1s", "1.5h", "1m1h", "1s1s", "0s", "99999999999999999999s", "9999d"]
        {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn the_error_of_a_duration_beyond_the_limit_names_the_limit() {
        assert_eq!(parse("9999d").unwrap_err().to_string(), "`9999d` is too long: at most 366d");
        let error = parse_at_most("31d", Duration::from_secs(30 * 86_400)).unwrap_err().to_string();
        assert_eq!(error, "`31d` is too long: at most 30d");
    }

    #[test]
    fn what_is_written_is_read_again() {
        for milliseconds in [1, 999, 1000, 1001, 60_000, 5_400_000] {
            let duration = Duration::from_millis(milliseconds);
            assert_eq!(parse(&format_exact(duration)), Ok(duration));
        }
    }

    #[test]
    fn lengths_are_shown_as_short_as_they_are_clear() {
        for (milliseconds, shown) in
            [(412, "0.4s"), (59_940, "59.9s"), (61_000, "1m01s"), (3_723_000, "1h02m03s")]
        {
            assert_eq!(format_short(Duration::from_millis(milliseconds)), shown);
        }
    }
}
