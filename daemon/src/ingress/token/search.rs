//! Finds tokens of the room in texts: inside dotted words, behind percent-encoding, and in base64.
//!
//! Only text in the form of a token, with a header that names an algorithm of the room's tokens, is verified
//! with a key, and only a limited number of times per request, so that no client makes the daemon compute
//! signatures without end. A text without such a form costs one scan, and nothing is allocated for it unless it
//! is percent-encoded.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use serde::Deserialize;

use crate::access::TokenAuthority;
use crate::ingress::page::IngressError;

/// Minimum length of a token of the room.
const MIN_TOKEN_LENGTH: usize = 90;
/// Length of `{"alg":"HS256"}` in base64url.
const MIN_HEADER_LENGTH: usize = 20;
/// Maximum length of a token header.
const MAX_HEADER_LENGTH: usize = 4096;
/// Lengths of signatures in base64url: HMAC with SHA-256, Ed25519, RSA with 2048, 3072 and 4096 bits.
const HMAC_SIGNATURE_LENGTH: usize = 43;
const ED25519_SIGNATURE_LENGTH: usize = 86;
const RSA_SIGNATURE_LENGTHS: [usize; 3] = [342, 512, 683];
/// Usual start of a token header: `{"` in base64url.
const HEADER_START: &[u8] = b"eyJ";
/// The start of a header after a second base64 encoding, for each of the three possible alignments.
const ENCODED_HEADER_START: [&[u8]; 3] = [b"ZXlK", b"V5S", b"leU"];
/// Maximum numbers of headers that are parsed, and of signatures that are computed, for one request.
const MAX_HEADERS: u32 = 256;
const MAX_SIGNATURES: u32 = 32;

const STANDARD: GeneralPurpose = lenient(&alphabet::STANDARD);
const URL_SAFE: GeneralPurpose = lenient(&alphabet::URL_SAFE);

const fn lenient(alphabet: &alphabet::Alphabet) -> GeneralPurpose {
    let config = GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true);
    GeneralPurpose::new(alphabet, config)
}

/// Search through the texts of one request.
pub(super) struct TokenSearch<'a> {
    access: &'a TokenAuthority,
    heads: u32,
    signatures: u32,
}

#[derive(Deserialize)]
struct TokenHeader {
    alg: String,
}

impl<'a> TokenSearch<'a> {
    pub(super) const fn new(access: &'a TokenAuthority) -> Self {
        Self { access, heads: MAX_HEADERS, signatures: MAX_SIGNATURES }
    }

    /// Reports whether a text contains a token of the room.
    pub(super) fn finds(&mut self, text: &[u8]) -> Result<bool, IngressError> {
        if text.len() < MIN_TOKEN_LENGTH {
            return Ok(false);
        }
        if self.finds_unescaped(text)? {
            return Ok(true);
        }
        if !text.contains(&b'%') {
            return Ok(false);
        }
        let unescaped: Vec<u8> = percent_encoding::percent_decode(text).collect();
        Ok(unescaped.len() < text.len() && self.finds_unescaped(&unescaped)?)
    }

    fn finds_unescaped(&mut self, text: &[u8]) -> Result<bool, IngressError> {
        if self.finds_plain(text)? {
            return Ok(true);
        }
        for word in text.split(|b| !is_base64(*b)) {
            let encoded = word.len() >= MIN_TOKEN_LENGTH
                && ENCODED_HEADER_START.iter().any(|head| word.windows(head.len()).any(|part| part == *head));
            if !encoded {
                continue;
            }
            let url_safe = word.iter().any(|b| matches!(b, b'-' | b'_'));
            let decoded = if url_safe { URL_SAFE.decode(word) } else { STANDARD.decode(word) };
            if let Ok(decoded) = decoded
                && self.finds_plain(&decoded)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Searches for three parts separated by dots, possibly among further parts.
    fn finds_plain(&mut self, text: &[u8]) -> Result<bool, IngressError> {
        for word in
            text.split(|b| !(is_base64url(*b) || *b == b'.')).filter(|word| word.len() >= MIN_TOKEN_LENGTH)
        {
            let (mut head, mut claims, mut at) = (0..0, 0..0, 0);
            for part in word.split(|b| *b == b'.') {
                let signature = at..at + part.len();
                let plausible = head.len() >= MIN_HEADER_LENGTH
                    && !claims.is_empty()
                    && signature.len() >= HMAC_SIGNATURE_LENGTH;
                if plausible && self.is_token(word, head, signature.clone())? {
                    return Ok(true);
                }
                at = signature.end + 1;
                head = std::mem::replace(&mut claims, signature);
            }
        }
        Ok(false)
    }

    /// Checks a candidate. Characters before the header or after the signature may belong to other text.
    fn is_token(
        &mut self,
        word: &[u8],
        head: std::ops::Range<usize>,
        signature: std::ops::Range<usize>,
    ) -> Result<bool, IngressError> {
        let first = head.start.max(head.end.saturating_sub(MAX_HEADER_LENGTH));
        for start in first..=head.end - MIN_HEADER_LENGTH {
            let text = &word[start..head.end];
            // `{`, or white space before it.
            let begins = text.starts_with(HEADER_START)
                || start == head.start && matches!(text[0], b'e' | b'I' | b'C' | b'D');
            if !begins {
                continue;
            }
            self.heads = spend(self.heads)?;
            let read = URL_SAFE_NO_PAD.decode(text).ok();
            let Some(TokenHeader { alg }) = read.and_then(|text| serde_json::from_slice(&text).ok()) else {
                continue;
            };
            let rsa = [
                RSA_SIGNATURE_LENGTHS[0],
                RSA_SIGNATURE_LENGTHS[1],
                RSA_SIGNATURE_LENGTHS[2],
                signature.len(),
            ];
            let lengths: &[usize] = match alg.as_str() {
                "HS256" => &[HMAC_SIGNATURE_LENGTH],
                "EdDSA" => &[ED25519_SIGNATURE_LENGTH],
                "RS256" => {
                    if RSA_SIGNATURE_LENGTHS.contains(&signature.len()) {
                        &rsa[..3]
                    } else {
                        &rsa
                    }
                }
                _ => continue,
            };
            for length in lengths.iter().filter(|length| **length <= signature.len()) {
                let token = &word[start..signature.start + length];
                self.signatures = spend(self.signatures)?;
                if std::str::from_utf8(token).is_ok_and(|token| self.access.is_token(token)) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

fn spend(left: u32) -> Result<u32, IngressError> {
    left.checked_sub(1).ok_or(IngressError::Malformed("the request has too many tokens"))
}

const fn is_base64url(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_')
}

/// Base64 characters without the padding, because a word may follow a name and `=`.
const fn is_base64(b: u8) -> bool {
    is_base64url(b) || matches!(b, b'+' | b'/')
}
