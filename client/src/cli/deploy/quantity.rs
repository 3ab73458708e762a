//! Amounts of memory and processors, in the notation that container tools share.

/// Parses an amount of memory, in bytes: `512m`, `1.5g`, `268435456`, `512MiB`. Units are powers of
/// 1024, in either case.
pub(in crate::cli) fn memory(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!(
            "`{text}` is not an amount of memory; write bytes, or a number with a unit such as `512m` or `1.5g`"
        )
    };
    let lower = text.trim().to_ascii_lowercase();
    let end = lower.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(lower.len());
    let shift = match lower[end..].trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "ki" | "kib" => 10,
        "m" | "mb" | "mi" | "mib" => 20,
        "g" | "gb" | "gi" | "gib" => 30,
        "t" | "tb" | "ti" | "tib" => 40,
        _ => return Err(wrong()),
    };
    let billionths = billionths(&lower[..end]).ok_or_else(wrong)?;
    let bytes = billionths.checked_mul(1 << shift).ok_or_else(wrong)? / BILLION;
    u64::try_from(bytes).ok().filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

/// Parses a number of processors such as `1.5`, in thousandths.
pub(in crate::cli) fn cpus(text: &str) -> Result<u32, String> {
    let wrong = || format!("`{text}` is not a number of processors; write one such as `0.5` or `2`");
    let millis = billionths(text.trim()).ok_or_else(wrong)? / (BILLION / 1000);
    u32::try_from(millis).ok().filter(|millis| *millis > 0).ok_or_else(wrong)
}

/// Formats bytes in the notation of [`memory`], in the largest unit that divides them evenly.
pub(in crate::cli) fn format_memory(bytes: u64) -> String {
    let units = [(30, "g"), (20, "m"), (10, "k")];
    let unit = units.iter().find(|(shift, _)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    unit.map_or_else(|| bytes.to_string(), |(shift, unit)| format!("{}{unit}", bytes >> shift))
}

/// Formats thousandths of a processor in the notation of [`cpus`].
pub(in crate::cli) fn format_cpus(millis: u32) -> String {
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

const BILLION: u128 = 1_000_000_000;

/// Parses a decimal number with at most nine digits after its point, in billionths.
fn billionths(text: &str) -> Option<u128> {
    let (whole, rest) = text.split_once('.').unwrap_or((text, "0"));
    let digits = |text: &str, most: usize| {
        (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !digits(whole, 20) || !digits(rest, 9) {
        return None;
    }
    Some(whole.parse::<u128>().ok()? * BILLION + format!("{rest:0<9}").parse::<u128>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_bytes_or_a_number_with_a_unit() {
        for (text, bytes) in [
            ("268435456", 1 << 28),
            ("512m", 1 << 29),
            ("512M", 1 << 29),
            ("512 MiB", 1 << 29),
            ("512mb", 1 << 29),
            ("1.5g", 3 << 29),
            ("1k", 1024),
            ("2b", 2),
            ("1Ti", 1 << 40),
            ("0.001k", 1),
        ] {
            assert_eq!(memory(text), Ok(bytes), "{text}");
        }
        for text in
            ["", "m", "0", "0m", "-1m", "1q", "1.m", ".5m", "1,5g", "1e9", "1.5.5g", "9999999999999999999g"]
        {
            let error = memory(text).unwrap_err();
            assert!(error.contains(&format!("`{text}`")) && error.contains("512m"), "{error}");
        }
    }

    #[test]
    fn processors_are_counted_in_thousandths() {
        for (text, millis) in [("1", 1000), ("1.5", 1500), ("0.25", 250), ("0.001", 1), (" 2 ", 2000)] {
            assert_eq!(cpus(text), Ok(millis), "{text}");
        }
        for text in ["", "0", "0.0", "0.0001", "-1", "one", "1.", "1e3", "99999999"] {
            assert!(cpus(text).unwrap_err().contains(&format!("`{text}`")), "{text}");
        }
    }

    #[test]
    fn what_is_shown_can_be_given() {
        for bytes in [1, 1000, 1024, 1 << 20, 512 << 20, 3 << 29, 1 << 30, u64::MAX] {
            assert_eq!(memory(&format_memory(bytes)), Ok(bytes), "{}", format_memory(bytes));
        }
        for millis in [1, 10, 250, 1000, 1500, 10_000, 12_345] {
            assert_eq!(cpus(&format_cpus(millis)), Ok(millis), "{}", format_cpus(millis));
        }
        assert_eq!((format_memory(512 << 20).as_str(), format_cpus(1500).as_str()), ("512m", "1.5"));
    }
}
