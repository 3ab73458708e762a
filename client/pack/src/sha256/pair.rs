//! As many blocks of one stream as of another, each into its own state.

use super::BLOCK;

pub(super) fn compress(states: [&mut [u32; 8]; 2], blocks: [&[[u8; BLOCK]]; 2]) {
    #[cfg(target_arch = "x86_64")]
    if x86::is_there() {
        return x86::compress(states, blocks);
    }
    for (state, blocks) in states.into_iter().zip(blocks) {
        sha2::block_api::compress256(state, blocks);
    }
}

/// Intel's SHA extensions ("Intel SHA Extensions", Gulley et al., 2013): a state is two registers of four words, ABEF and
/// CDGH, and one instruction does two rounds.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        __m128i, _mm_add_epi32, _mm_alignr_epi8, _mm_extract_epi32, _mm_set_epi32, _mm_set_epi64x,
        _mm_setzero_si128, _mm_sha256msg1_epu32, _mm_sha256msg2_epu32, _mm_sha256rnds2_epu32,
        _mm_shuffle_epi8, _mm_shuffle_epi32,
    };

    use super::BLOCK;

    /// The cube roots of the first 64 primes, FIPS 180-4 section 4.2.2.
    #[rustfmt::skip]
    const ROUNDS: [u32; 64] = [
        0x428a_2f98, 0x7137_4491, 0xb5c0_fbcf, 0xe9b5_dba5, 0x3956_c25b, 0x59f1_11f1, 0x923f_82a4, 0xab1c_5ed5,
        0xd807_aa98, 0x1283_5b01, 0x2431_85be, 0x550c_7dc3, 0x72be_5d74, 0x80de_b1fe, 0x9bdc_06a7, 0xc19b_f174,
        0xe49b_69c1, 0xefbe_4786, 0x0fc1_9dc6, 0x240c_a1cc, 0x2de9_2c6f, 0x4a74_84aa, 0x5cb0_a9dc, 0x76f9_88da,
        0x983e_5152, 0xa831_c66d, 0xb003_27c8, 0xbf59_7fc7, 0xc6e0_0bf3, 0xd5a7_9147, 0x06ca_6351, 0x1429_2967,
        0x27b7_0a85, 0x2e1b_2138, 0x4d2c_6dfc, 0x5338_0d13, 0x650a_7354, 0x766a_0abb, 0x81c2_c92e, 0x9272_2c85,
        0xa2bf_e8a1, 0xa81a_664b, 0xc24b_8b70, 0xc76c_51a3, 0xd192_e819, 0xd699_0624, 0xf40e_3585, 0x106a_a070,
        0x19a4_c116, 0x1e37_6c08, 0x2748_774c, 0x34b0_bcb5, 0x391c_0cb3, 0x4ed8_aa4a, 0x5b9c_ca4f, 0x682e_6ff3,
        0x748f_82ee, 0x78a5_636f, 0x84c8_7814, 0x8cc7_0208, 0x90be_fffa, 0xa450_6ceb, 0xbef9_a3f7, 0xc671_78f2,
    ];

    pub(super) fn is_there() -> bool {
        is_x86_feature_detected!("sha")
            && is_x86_feature_detected!("ssse3")
            && is_x86_feature_detected!("sse4.1")
    }

    /// Only where [`is_there`] says so.
    #[expect(unsafe_code, reason = "whether the processor has the instructions is known only now")]
    pub(super) fn compress(states: [&mut [u32; 8]; 2], blocks: [&[[u8; BLOCK]]; 2]) {
        assert!(is_there());
        // SAFETY: the processor has the instructions that the function asks for, as was just checked; it touches no memory
        // but through its slices.
        unsafe { compress_pair(states, blocks) }
    }

    /// Everything is done for both streams before the next step, and unrolled, so that the words stay in registers.
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn compress_pair(states: [&mut [u32; 8]; 2], blocks: [&[[u8; BLOCK]]; 2]) {
        let mut registers = [enter(states[0]), enter(states[1])];
        for (one, other) in blocks[0].iter().zip(blocks[1]) {
            let before = registers;
            let mut words = [load(one), load(other)];
            macro_rules! four_rounds {
                ($($number:literal)*) => { $({
                    const AT: usize = $number % 4;
                    let constants = constants($number);
                    for (state, words) in registers.iter_mut().zip(&mut words) {
                        if $number >= 4 {
                            words[AT] = extend(words[AT], words[(AT + 1) % 4], words[(AT + 2) % 4], words[(AT + 3) % 4]);
                        }
                        let sum = _mm_add_epi32(words[AT], constants);
                        state[1] = _mm_sha256rnds2_epu32(state[1], state[0], sum);
                        state[0] = _mm_sha256rnds2_epu32(state[0], state[1], _mm_shuffle_epi32::<0x0E>(sum));
                    }
                })* };
            }
            four_rounds!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
            for (state, before) in registers.iter_mut().zip(before) {
                state[0] = _mm_add_epi32(state[0], before[0]);
                state[1] = _mm_add_epi32(state[1], before[1]);
            }
        }
        for (state, registers) in states.into_iter().zip(registers) {
            *state = leave(registers);
        }
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn enter(state: &[u32; 8]) -> [__m128i; 2] {
        let [a, b, c, d, e, f, g, h] = state.map(u32::cast_signed);
        [_mm_set_epi32(a, b, e, f), _mm_set_epi32(c, d, g, h)]
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn leave([abef, cdgh]: [__m128i; 2]) -> [u32; 8] {
        [
            _mm_extract_epi32::<3>(abef),
            _mm_extract_epi32::<2>(abef),
            _mm_extract_epi32::<3>(cdgh),
            _mm_extract_epi32::<2>(cdgh),
            _mm_extract_epi32::<1>(abef),
            _mm_extract_epi32::<0>(abef),
            _mm_extract_epi32::<1>(cdgh),
            _mm_extract_epi32::<0>(cdgh),
        ]
        .map(i32::cast_unsigned)
    }

    /// The words of a block, which are big-endian.
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn load(block: &[u8; BLOCK]) -> [__m128i; 4] {
        let turn = _mm_set_epi64x(0x0C0D_0E0F_0809_0A0B, 0x0405_0607_0001_0203);
        let mut words = [_mm_setzero_si128(); 4];
        for (words, bytes) in words.iter_mut().zip(block.as_chunks::<16>().0) {
            let bytes = u128::from_le_bytes(*bytes).cast_signed();
            *words = _mm_shuffle_epi8(_mm_set_epi64x((bytes >> 64) as i64, bytes as i64), turn);
        }
        words
    }

    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn constants(number: usize) -> __m128i {
        let of = |place: usize| ROUNDS[4 * number + place].cast_signed();
        _mm_set_epi32(of(3), of(2), of(1), of(0))
    }

    /// The next four words of the message schedule, from the sixteen before them.
    #[target_feature(enable = "sha,ssse3,sse4.1")]
    fn extend(first: __m128i, second: __m128i, third: __m128i, fourth: __m128i) -> __m128i {
        let sum = _mm_add_epi32(_mm_sha256msg1_epu32(first, second), _mm_alignr_epi8::<4>(fourth, third));
        _mm_sha256msg2_epu32(sum, fourth)
    }
}
