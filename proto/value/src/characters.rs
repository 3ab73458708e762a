//! Cuts of process output that leave characters whole.

/// Returns the length of `bytes` without a UTF-8 character that only begins at its end. Output that is cut there shows
/// the same characters in its pieces as in one; bytes that are no UTF-8 are kept.
pub fn whole_characters(bytes: &[u8]) -> usize {
    for (length, byte) in (1..=3).zip(bytes.iter().rev()) {
        let width = match byte {
            0x80..=0xbf => continue,
            0xc2..=0xdf => 2,
            0xe0..=0xef => 3,
            0xf0..=0xf4 => 4,
            _ => 1,
        };
        return if width > length { bytes.len() - length } else { bytes.len() };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_a_character_that_goes_on_is_cut_off() {
        for (bytes, length) in [
            (&b""[..], 0),
            (b"a", 1),
            ("\u{e4}".as_bytes(), 2),
            (b"a\xc3", 1),
            (b"a\xe2\x82", 1),
            (b"a\xf0\x9f\x98", 1),
            (b"a\xf0\x9f\x98\x80", 5),
            // No character begins with these bytes.
            (b"a\xff", 2),
            (b"a\x80\x80\x80\x80", 5),
        ] {
            assert_eq!(whole_characters(bytes), length, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn text_in_pieces_is_the_text(text in ".{0,40}", cut in 0..100_usize) {
            let (first, _) = text.as_bytes().split_at(cut.min(text.len()));
            let cut = whole_characters(first);
            let (first, rest) = text.as_bytes().split_at(cut);
            let pieces = [first, rest].map(|piece| std::str::from_utf8(piece).unwrap()).concat();
            prop_assert_eq!(pieces, text);
        }
    }
}
