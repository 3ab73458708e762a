//! Inspection of layers in every storage format.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::super::blob::SharedBlob;
use super::super::inspect::inspect;
use super::*;

fn looked_through(stored: &[u8], limits: &LayerLimits) -> Result<LayerFacts, LayerError> {
    let blob: SharedBlob = Arc::new(stored.to_vec());
    inspect(&blob, limits, &AtomicBool::new(false))
}

fn files() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    prop::collection::vec(
        ("[a-z]{1,8}(/[a-z]{1,8}){0,2}", prop::collection::vec(any::<u8>(), 0..2000)),
        0..12,
    )
}

fn tar_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut tar = Tar::default();
    for (name, content) in files {
        let header = Tar::header(EntryType::Regular, name.as_bytes(), content.len() as u64);
        tar = tar.raw(&header, content);
    }
    tar.end()
}

/// Stores the tar in pieces, each of them a separate member or frame.
fn stored(tar: &[u8], compression: LayerCompression, cuts: &[prop::sample::Index]) -> Vec<u8> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(tar.len())).collect();
    places.extend([0, tar.len()]);
    places.sort_unstable();
    let pieces = places.windows(2).map(|pair| &tar[pair[0]..pair[1]]);
    match compression {
        LayerCompression::None => tar.to_vec(),
        LayerCompression::Gzip => pieces.flat_map(gzip).collect(),
        LayerCompression::Zstd => {
            let mut frames = Vec::new();
            for piece in pieces {
                frames.extend(zstd::bulk::compress(piece, 1).unwrap());
                // A skippable frame, which writers use for seek tables.
                frames.extend([0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
            }
            frames
        }
    }
}

fn compression() -> impl Strategy<Value = LayerCompression> {
    prop::sample::select(vec![LayerCompression::None, LayerCompression::Gzip, LayerCompression::Zstd])
}

proptest! {
    #[test]
    fn the_facts_are_those_of_the_tar_however_it_is_stored(
        files in files(),
        compression in compression(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let tar = tar_of(&files);
        let stored = stored(&tar, compression, &cuts);
        let facts = looked_through(&stored, &LayerLimits::default()).unwrap();
        let expected = LayerFacts {
            diff_id: digest(&tar),
            stored_bytes: stored.len() as u64,
            unpacked_bytes: tar.len() as u64,
            entries: files.len() as u64,
            compression,
        };
        prop_assert_eq!(facts, expected);
    }

    /// A correct DiffID although bytes are missing or appended would be one of content that was not read.
    #[test]
    fn what_is_cut_or_followed_by_something_never_has_the_tars_diff_id(
        files in files(),
        compression in compression(),
        cut in any::<prop::sample::Index>(),
        trailing in prop::collection::vec(1..=255u8, 1..600),
    ) {
        let tar = tar_of(&files);
        let whole = stored(&tar, compression, &[]);
        // A skippable frame at the end has no content.
        let content = whole.len() - if compression == LayerCompression::Zstd { 11 } else { 0 };
        let facts = |stored: &[u8]| looked_through(stored, &LayerLimits::default()).map(|facts| facts.diff_id);
        if let Ok(found) = facts(&whole[..cut.index(content)]) {
            prop_assert_ne!(found, digest(&tar));
        }
        if let Ok(found) = facts(&[whole.as_slice(), &trailing].concat()) {
            prop_assert_ne!(found, digest(&tar));
        }
    }

    #[test]
    fn an_altered_layer_is_refused_or_reported(
        files in files(),
        compression in compression(),
        at in any::<prop::sample::Index>(),
        change in 1..=255u8,
    ) {
        let tar = tar_of(&files);
        let mut altered = stored(&tar, compression, &[]);
        let at = at.index(altered.len());
        altered[at] ^= change;
        let Ok(facts) = looked_through(&altered, &LayerLimits::default()) else { return Ok(()) };
        // Content as other programs unpack it: these decoders are not ours.
        let mut unpacked = Vec::new();
        let read = match facts.compression {
            LayerCompression::None => {
                unpacked.clone_from(&altered);
                Ok(0)
            }
            LayerCompression::Gzip => flate2::read::MultiGzDecoder::new(&*altered).read_to_end(&mut unpacked),
            LayerCompression::Zstd => {
                zstd::stream::read::Decoder::new(&*altered).unwrap().read_to_end(&mut unpacked)
            }
        };
        if read.is_ok() {
            prop_assert_eq!(facts.diff_id, digest(&unpacked));
        }
    }
}

#[test]
fn limits_end_a_pass_while_it_decompresses() {
    let limits = LayerLimits { layer_bytes: 1 << 20, entries: 3, ..LayerLimits::default() };
    let large = Tar::default().file("a", &"x".repeat(2 << 20)).end();
    for stored in [gzip(&large), zstd::bulk::compress(&large, 1).unwrap(), large.clone()] {
        let error = looked_through(&stored, &limits).unwrap_err();
        assert!(matches!(error, LayerError::TooLarge { .. }), "{error}");
    }
    let four = (0..4).fold(Tar::default(), |tar, number| tar.file(&format!("{number}"), "")).end();
    let error = looked_through(&gzip(&four), &limits).unwrap_err();
    assert!(matches!(error, LayerError::TooManyEntries { limit: 3 }), "{error}");
    let bomb = LayerLimits { ratio: 10, ratio_floor: 1 << 16, ..LayerLimits::default() };
    let error = looked_through(&gzip(&large), &bomb).unwrap_err();
    assert!(matches!(error, LayerError::Bomb { ratio: 10 }), "{error}");
}

#[test]
fn a_cancelled_pass_ends() {
    let tar = Tar::default().file("a", &"x".repeat(1 << 20)).end();
    for stored in [gzip(&tar), zstd::bulk::compress(&tar, 1).unwrap(), tar.clone()] {
        let blob: SharedBlob = Arc::new(stored);
        let cancelled = inspect(&blob, &LayerLimits::default(), &AtomicBool::new(true));
        assert!(matches!(cancelled, Err(LayerError::Cancelled)), "{cancelled:?}");
    }
}
