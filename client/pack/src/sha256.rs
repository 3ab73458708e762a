//! SHA-256 of two streams side by side, for a layer has two digests: of its tar and of its compressed bytes.
//!
//! Each round waits for the one before it, and processors with instructions for SHA-256 could begin twice as many: two
//! streams together take the time of one. The single stream is `sha2`'s.

mod pair;
#[cfg(test)]
mod tests;

use sha2::block_api::compress256;

const BLOCK: usize = 64;

/// The square roots of the first eight primes, FIPS 180-4 section 5.3.3.
const START: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The hash of a stream so far.
pub(crate) struct Sha256 {
    state: [u32; 8],
    /// A block that is not full yet, and how many bytes it has.
    begun: [u8; BLOCK],
    held: usize,
    length: u64,
}

impl Sha256 {
    pub(crate) const fn new() -> Self {
        Self { state: START, begun: [0; BLOCK], held: 0, length: 0 }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        let (blocks, rest) = self.complete(bytes).as_chunks();
        self.end(blocks, rest);
    }

    pub(crate) fn finish(mut self) -> [u8; 32] {
        let bits = self.length.wrapping_mul(8);
        let zeros = (2 * BLOCK - 8 - 1 - self.held) % BLOCK;
        let mut padding = [0; 2 * BLOCK];
        padding[0] = 0x80;
        padding[1 + zeros..1 + zeros + 8].copy_from_slice(&bits.to_be_bytes());
        self.update(&padding[..1 + zeros + 8]);
        let mut sum = [0; 32];
        for (bytes, word) in sum.as_chunks_mut().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        sum
    }

    /// Fills up the block that is begun; gives the bytes behind it, none if it is not full.
    fn complete<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        self.length = self.length.wrapping_add(bytes.len() as u64);
        if self.held == 0 {
            return bytes;
        }
        let (first, rest) = bytes.split_at(bytes.len().min(BLOCK - self.held));
        self.hold(first);
        if self.held == BLOCK {
            compress256(&mut self.state, &[self.begun]);
            self.held = 0;
        }
        rest
    }

    fn end(&mut self, blocks: &[[u8; BLOCK]], rest: &[u8]) {
        compress256(&mut self.state, blocks);
        self.hold(rest);
    }

    fn hold(&mut self, bytes: &[u8]) {
        self.begun[self.held..self.held + bytes.len()].copy_from_slice(bytes);
        self.held += bytes.len();
    }
}

/// Takes the next bytes of two streams.
pub(crate) fn update_both(one: (&mut Sha256, &[u8]), other: (&mut Sha256, &[u8])) {
    let ((one, bytes), (other, other_bytes)) = (one, other);
    let (blocks, rest) = one.complete(bytes).as_chunks();
    let (other_blocks, other_rest) = other.complete(other_bytes).as_chunks();
    let both = blocks.len().min(other_blocks.len());
    pair::compress([&mut one.state, &mut other.state], [&blocks[..both], &other_blocks[..both]]);
    one.end(&blocks[both..], rest);
    other.end(&other_blocks[both..], other_rest);
}
