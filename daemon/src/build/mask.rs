//! Removes the values of a build's secrets from its output.
//!
//! A value is also found when it is spread over several chunks of one stream: the end of a chunk that may be the
//! beginning of a value is held back until more bytes arrive. At most the length of the longest value less one byte is
//! held back.

/// Minimum length of a masked value, in bytes. Shorter values would mask half of a log.
const MIN_MASKED_BYTES: usize = 4;
const STARS: &[u8] = b"***";

/// Secret values, longest first.
#[derive(Clone, Default)]
pub struct SecretMask {
    /// First bytes of the values, indexed by byte.
    values: Vec<Vec<u8>>,
    first_bytes: Vec<bool>,
}

/// Bytes of one stream that are held back.
#[derive(Default)]
pub struct MaskCarry(Vec<u8>);

impl SecretMask {
    pub fn new<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut kept: Vec<Vec<u8>> = Vec::new();
        for value in values {
            // A shell's `$(cat file)` drops the trailing newline.
            for form in [value, value.trim_ascii()] {
                if form.len() >= MIN_MASKED_BYTES {
                    kept.push(form.to_vec());
                }
            }
        }
        kept.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        kept.dedup();
        let mut starts = vec![false; 256];
        for value in &kept {
            starts[usize::from(value[0])] = true;
        }
        Self { values: kept, first_bytes: starts }
    }

    /// Masks a chunk of a stream and returns the bytes that may be shown so far.
    pub fn feed(&self, carry: &mut MaskCarry, chunk: Vec<u8>) -> Vec<u8> {
        if self.values.is_empty() {
            return chunk;
        }
        let mut bytes = std::mem::take(&mut carry.0);
        bytes.extend_from_slice(&chunk);
        self.mask_bytes(carry, &bytes, false)
    }

    /// Returns the bytes held back, at the end of a stream.
    pub fn finish(&self, carry: &mut MaskCarry) -> Vec<u8> {
        let bytes = std::mem::take(&mut carry.0);
        self.mask_bytes(carry, &bytes, true)
    }

    /// Masks a complete text.
    pub fn mask_text(&self, text: &str) -> String {
        if self.values.is_empty() {
            return text.to_owned();
        }
        String::from_utf8_lossy(&self.mask_bytes(&mut MaskCarry::default(), text.as_bytes(), true))
            .into_owned()
    }

    fn mask_bytes(&self, carry: &mut MaskCarry, bytes: &[u8], last: bool) -> Vec<u8> {
        let mut out = Vec::with_capacity(bytes.len());
        let mut at = 0;
        while at < bytes.len() {
            if !self.first_bytes.get(usize::from(bytes[at])).copied().unwrap_or(false) {
                out.push(bytes[at]);
                at += 1;
                continue;
            }
            let rest = &bytes[at..];
            // A longer value may still follow, so it takes precedence over a shorter one.
            if !last && self.values.iter().any(|value| value.len() > rest.len() && value.starts_with(rest)) {
                carry.0 = rest.to_vec();
                return out;
            }
            match self.values.iter().find(|value| rest.starts_with(value)) {
                Some(value) => {
                    out.extend_from_slice(STARS);
                    at += value.len();
                }
                None => {
                    out.push(bytes[at]);
                    at += 1;
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn masked(values: &[&str], chunks: &[&str]) -> String {
        let mask = SecretMask::new(values.iter().map(|value| value.as_bytes()));
        let mut carry = MaskCarry::default();
        let mut out = Vec::new();
        for chunk in chunks {
            out.extend(mask.feed(&mut carry, chunk.as_bytes().to_vec()));
        }
        out.extend(mask.finish(&mut carry));
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn values_are_masked_within_a_chunk_and_across_chunks() {
        assert_eq!(masked(&["hunter22"], &["pass hunter22 ok"]), "pass *** ok");
        assert_eq!(masked(&["hunter22"], &["pass hun", "ter", "22 ok"]), "pass *** ok");
        assert_eq!(masked(&["hunter22"], &["hunter2", "3"]), "hunter23");
        assert_eq!(masked(&["hunter22"], &["hunhunter22hun"]), "hun***hun");
        assert_eq!(masked(&["hunter22\n"], &["a hunter22 b"]), "a *** b");
        assert_eq!(masked(&["abcd", "abcdef"], &["abcd", "ef", " abcd", "x"]), "*** ***x");
        assert_eq!(masked(&["abc"], &["abc"]), "abc", "too short to be told from ordinary text");
        assert_eq!(masked(&[], &["abc"]), "abc");
    }

    proptest! {
        #[test]
        fn chunk_borders_make_no_difference(text in "[ab]{0,40}", cuts in proptest::collection::vec(0usize..40, 0..5)) {
            let values = ["abab", "babba"];
            let whole = masked(&values, &[&text]);
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.sort_unstable();
            cuts.push(text.len());
            let mut from = 0;
            let chunks: Vec<&str> = cuts.iter().map(|&to| { let part = &text[from..to]; from = to; part }).collect();
            prop_assert_eq!(masked(&values, &chunks), whole.clone());
            for value in values { prop_assert!(!whole.contains(value)); }
        }
    }
}
