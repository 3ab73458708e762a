//! `Range` of a download (RFC 9110, section 14.2) and `Content-Range` of an upload (distribution spec).

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByteRange {
    All,
    /// `count` bytes from byte `first`.
    Part {
        first: u64,
        count: u64,
    },
    Unsatisfiable,
}

/// Parses a `Range` header for content of `size` bytes. A malformed header, another unit or several ranges select the
/// whole content, as RFC 9110 allows.
pub(super) fn parse_range(header: Option<&str>, size: u64) -> ByteRange {
    let Some((first, last)) =
        header.and_then(|text| text.strip_prefix("bytes=")).and_then(|range| range.split_once('-'))
    else {
        return ByteRange::All;
    };
    let part = |first: u64, last: u64| ByteRange::Part { first, count: last - first + 1 };
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first > last => ByteRange::All,
        (Some(first), _) if first >= size && number_or_empty(last) => ByteRange::Unsatisfiable,
        (Some(first), Some(last)) => part(first, last.min(size - 1)),
        (Some(first), None) if last.is_empty() => part(first, size - 1),
        (None, Some(0)) if first.is_empty() => ByteRange::Unsatisfiable,
        (None, Some(_)) if first.is_empty() && size == 0 => ByteRange::Unsatisfiable,
        (None, Some(count)) if first.is_empty() => part(size.saturating_sub(count), size - 1),
        _ => ByteRange::All,
    }
}

/// Parses the `Content-Range` of an upload chunk into its first and last byte: `0-1023`, optionally preceded by
/// `bytes`, as some clients send it.
pub(super) fn parse_content_range(header: &str) -> Option<(u64, u64)> {
    let range = header.trim();
    let range = range.strip_prefix("bytes").map_or(range, |rest| rest.trim_start_matches([' ', '=']));
    let range = range.split('/').next()?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

fn number_or_empty(text: &str) -> bool {
    text.is_empty() || number(text).is_some()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_range_is_served_and_anything_odd_asks_for_all() {
        let part = |first, count| ByteRange::Part { first, count };
        for (header, size, expected) in [
            ("bytes=0-9", 100, part(0, 10)),
            ("bytes=90-", 100, part(90, 10)),
            ("bytes=90-1000", 100, part(90, 10)),
            ("bytes=-5", 100, part(95, 5)),
            ("bytes=-500", 100, part(0, 100)),
            ("bytes=100-", 100, ByteRange::Unsatisfiable),
            ("bytes=99999999999999999999999-", 100, ByteRange::Unsatisfiable),
            ("bytes=-0", 100, ByteRange::Unsatisfiable),
            ("bytes=0-", 0, ByteRange::Unsatisfiable),
            ("bytes=-1", 0, ByteRange::Unsatisfiable),
            ("bytes=5-2", 100, ByteRange::All),
            ("bytes=0-1,3-4", 100, ByteRange::All),
            ("bytes=-", 100, ByteRange::All),
            ("bytes=a-b", 100, ByteRange::All),
            ("bytes=+1-2", 100, ByteRange::All),
            ("lines=0-9", 100, ByteRange::All),
        ] {
            assert_eq!(parse_range(Some(header), size), expected, "{header} of {size}");
        }
        assert_eq!(parse_range(None, 5), ByteRange::All);
    }

    #[test]
    fn pieces_of_an_upload_have_a_first_and_a_last_byte() {
        for (header, expected) in [
            ("0-0", Some((0, 0))),
            ("10-19", Some((10, 19))),
            ("bytes 10-19/*", Some((10, 19))),
            ("bytes=10-19", Some((10, 19))),
            ("19-10", None),
            ("10-", None),
            ("-10", None),
            ("x", None),
        ] {
            assert_eq!(parse_content_range(header), expected, "{header}");
        }
    }

    proptest! {
        #[test]
        fn no_range_leads_out_of_the_content(header in "bytes=[0-9]{0,20}-[0-9]{0,20}|.{0,30}", size in 0..1000u64) {
            if let ByteRange::Part { first, count } = parse_range(Some(&header), size) {
                prop_assert!(count > 0 && first + count <= size);
            }
            let _ = parse_content_range(&header);
        }
    }
}
