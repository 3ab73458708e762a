//! Encoding of numbers and byte strings in an index file. Decoding never allocates more than the input's
//! size.

/// An index that differs from what was written. It is discarded and rebuilt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a layer's index is damaged")]
pub struct DamagedIndex;

/// Encodes a number in groups of seven bits, the lowest first; the top bit says that more follow.
pub(super) fn put_number(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// Encodes a signed number; values near zero are short whatever their sign.
pub(super) fn put_signed(out: &mut Vec<u8>, number: i64) {
    put_number(out, ((number << 1) ^ (number >> 63)).cast_unsigned());
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Decoder over the remaining bytes.
pub(super) struct IndexDecoder<'b>(pub &'b [u8]);

impl<'b> IndexDecoder<'b> {
    pub(super) fn number(&mut self) -> Result<u64, DamagedIndex> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first().ok_or(DamagedIndex)?;
            self.0 = rest;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DamagedIndex);
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(DamagedIndex)
    }

    pub(super) fn number_u32(&mut self) -> Result<u32, DamagedIndex> {
        self.number()?.try_into().map_err(|_| DamagedIndex)
    }

    pub(super) fn signed(&mut self) -> Result<i64, DamagedIndex> {
        let number = self.number()?;
        Ok((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    pub(super) fn take(&mut self, count: u64) -> Result<&'b [u8], DamagedIndex> {
        let count = usize::try_from(count).map_err(|_| DamagedIndex)?;
        let (taken, rest) = self.0.split_at_checked(count).ok_or(DamagedIndex)?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn bytes(&mut self) -> Result<&'b [u8], DamagedIndex> {
        let length = self.number()?;
        self.take(length)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], DamagedIndex> {
        self.take(N as u64)?.try_into().map_err(|_| DamagedIndex)
    }

    /// Decodes the number of elements that follow, each of at least `least` bytes.
    pub(super) fn count(&mut self, least: usize) -> Result<usize, DamagedIndex> {
        let count = usize::try_from(self.number()?).map_err(|_| DamagedIndex)?;
        if count > self.0.len() / least.max(1) {
            return Err(DamagedIndex);
        }
        Ok(count)
    }
}
