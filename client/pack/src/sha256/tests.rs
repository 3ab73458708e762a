use proptest::prelude::*;

use super::*;

fn reference(bytes: &[u8]) -> [u8; 32] {
    <sha2::Sha256 as sha2::Digest>::digest(bytes).into()
}

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8 ^ seed).collect()
}

#[test]
fn every_length_around_the_borders_of_blocks_has_the_hash_that_sha2_gives_it() {
    for length in 0..300 {
        let bytes = bytes(length, 1);
        let mut sum = Sha256::new();
        sum.update(&bytes);
        assert_eq!(sum.finish(), reference(&bytes), "{length}");
    }
}

#[test]
fn two_streams_have_the_hashes_that_each_has_alone() {
    for (one, other) in [(0, 0), (1, 200), (64, 64), (100_000, 40_001), (40_001, 100_000), (128, 0)] {
        let (one, other) = (bytes(one, 1), bytes(other, 2));
        let (mut sum, mut other_sum) = (Sha256::new(), Sha256::new());
        update_both((&mut sum, &one), (&mut other_sum, &other));
        assert_eq!((sum.finish(), other_sum.finish()), (reference(&one), reference(&other)));
    }
}

proptest! {
    #[test]
    fn however_two_streams_are_cut_their_hashes_are_those_of_the_whole(
        pieces in prop::collection::vec((0usize..400, 0usize..400), 0..20)
    ) {
        let (mut one, mut other) = (Vec::new(), Vec::new());
        let (mut sum, mut other_sum) = (Sha256::new(), Sha256::new());
        for (number, (length, other_length)) in pieces.into_iter().enumerate() {
            let (piece, other_piece) = (bytes(length, number as u8), bytes(other_length, 100 + number as u8));
            if number % 3 == 2 {
                sum.update(&piece);
                other_sum.update(&other_piece);
            } else {
                update_both((&mut sum, &piece), (&mut other_sum, &other_piece));
            }
            one.extend(piece);
            other.extend(other_piece);
        }
        prop_assert_eq!((sum.finish(), other_sum.finish()), (reference(&one), reference(&other)));
    }
}
