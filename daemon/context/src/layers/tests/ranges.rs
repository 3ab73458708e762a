//! Reads of arbitrary ranges of layers in every compression.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};

use super::super::access_points::BlobFormat;
use super::super::blob::{ByteSource, SharedBlob};
use super::super::pass::{PassSummary, index_layer};
use super::super::reader::{DecodedCache, LayerReader};
use super::*;

/// Counts the bytes read from a blob.
struct Counted {
    bytes: Vec<u8>,
    read: AtomicU64,
}

impl ByteSource for Counted {
    fn length(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> std::io::Result<usize> {
        let count = self.bytes.read_at(buffer, at)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

fn random() -> StdRng {
    StdRng::seed_from_u64(7)
}

/// Generates text that compresses like text.
fn words(random: &mut StdRng, length: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(length + 16);
    while text.len() < length {
        let word = random.next_u32();
        text.extend_from_slice(format!("{:x} ", word & 0xfff).as_bytes());
        if word & 0x3000 == 0 {
            text.extend_from_slice(&word.to_le_bytes());
        }
    }
    text.truncate(length);
    text
}

/// Creates about 20 MiB in files of all sizes.
fn large() -> Vec<u8> {
    let mut random = random();
    let mut tar = Tar::default();
    let sizes = [0, 1, 511, 512, 513, 70_000, 1 << 20, (3 << 20) + 17, 9 << 20];
    for (number, size) in sizes.iter().chain(&sizes[..8]).enumerate() {
        let content = words(&mut random, *size);
        let header =
            Tar::header(EntryType::Regular, format!("f{number:02}").as_bytes(), content.len() as u64);
        tar = tar.raw(&header, &content);
    }
    tar.end()
}

fn frames(tar: &[u8], size: usize, with_size: bool) -> Vec<u8> {
    let mut stored = Vec::new();
    for piece in tar.chunks(size) {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        if with_size {
            encoder.set_pledged_src_size(Some(piece.len() as u64)).unwrap();
        }
        encoder.include_checksum(true).unwrap();
        encoder.write_all(piece).unwrap();
        stored.extend(encoder.finish().unwrap());
    }
    stored
}

/// Appends the end of the seekable format: a skippable frame that decoders skip.
fn with_table(mut stored: Vec<u8>) -> Vec<u8> {
    stored.extend_from_slice(&[0x5e, 0x2a, 0x4d, 0x18, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0xb1, 0xea, 0x92, 0x8f]);
    stored
}

fn ways(tar: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let members: Vec<u8> = tar.chunks(3 << 20).flat_map(gzip).collect();
    let mut named = flate2::GzBuilder::new()
        .filename("layer.tar")
        .comment("made for a test")
        .extra(vec![1, 2, 3])
        .write(Vec::new(), flate2::Compression::best());
    named.write_all(tar).unwrap();
    // The fastest level produces one block for everything.
    let mut fast = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    fast.write_all(tar).unwrap();
    vec![
        ("plain", tar.to_vec()),
        ("gzip", gzip(tar)),
        ("gzip in one block", fast.finish().unwrap()),
        ("gzip in members", members),
        ("gzip with a long header and zeros after it", [named.finish().unwrap(), vec![0; 700]].concat()),
        ("zstd, one frame", frames(tar, usize::MAX, true)),
        ("zstd, one frame without its size", frames(tar, usize::MAX, false)),
        ("zstd in frames of 1 MiB with a table", with_table(frames(tar, 1 << 20, true))),
        ("zstd in frames without sizes", frames(tar, 300_000, false)),
        (
            "zstd in tiny frames",
            frames(&tar[..3 << 20], 100, true)
                .into_iter()
                .chain(frames(&tar[3 << 20..], 5 << 20, true))
                .collect(),
        ),
    ]
}

fn passed(stored: &[u8]) -> (Arc<Counted>, PassSummary, tempfile::NamedTempFile) {
    let counted = Arc::new(Counted { bytes: stored.to_vec(), read: AtomicU64::new(0) });
    let mut windows = tempfile::NamedTempFile::new().unwrap();
    let blob: SharedBlob = Arc::clone(&counted) as SharedBlob;
    let passed =
        index_layer(&blob, BlobFormat::of(stored), &LayerLimits::default(), windows.as_file_mut()).unwrap();
    (counted, passed, windows)
}

fn reader(counted: &Arc<Counted>, passed: &PassSummary, windows: &tempfile::NamedTempFile) -> LayerReader {
    let access = (BlobFormat::of(&counted.bytes), passed.points.clone(), passed.length);
    let index = Some(windows.reopen().unwrap());
    LayerReader::new(Arc::clone(counted) as SharedBlob, index, access, Arc::<DecodedCache>::default())
}

fn read(reader: &LayerReader, at: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match reader.read_at(&mut bytes[filled..], at + filled as u64).unwrap() {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    bytes
}

#[test]
fn every_range_is_what_the_tar_has() {
    let tar = large();
    for (way, stored) in ways(&tar) {
        let (counted, passed, windows) = passed(&stored);
        assert_eq!((passed.diff_id, passed.length), (digest(&tar), tar.len() as u64), "{way}");
        let reader = reader(&counted, &passed, &windows);
        let mut random = random();
        for turn in 0..60 {
            let at = match turn {
                0 => tar.len() - 1,
                1 => 0,
                _ => random.next_u64() as usize % tar.len(),
            };
            let length = (random.next_u32() as usize % 200_000).min(tar.len() - at);
            assert!(
                read(&reader, at as u64, length) == tar[at..at + length],
                "{way}: {length} bytes at {at}"
            );
        }
        assert_eq!(read(&reader, tar.len() as u64 - 3, 100), tar[tar.len() - 3..], "{way}");
        assert_eq!(read(&reader, tar.len() as u64 + 3, 100), b"", "{way}");
    }
}

#[test]
fn reading_in_the_order_of_the_tar_reads_the_blob_about_once() {
    let tar = large();
    for (way, stored) in ways(&tar) {
        let (counted, passed, windows) = passed(&stored);
        let reader = reader(&counted, &passed, &windows);
        counted.read.store(0, Ordering::Relaxed);
        let mut at = 0;
        while at < tar.len() {
            let piece = read(&reader, at as u64, 50_000);
            assert!(piece == tar[at..at + piece.len()], "{way} at {at}");
            at += piece.len();
        }
        let read = counted.read.load(Ordering::Relaxed);
        // A decoder reads up to 64 KiB more than requested, and the smallest stretch is four times that.
        assert!(
            read <= stored.len() as u64 * 3 / 2 + (1 << 17),
            "{way}: {read} bytes read of {}",
            stored.len()
        );
    }
}

#[test]
fn a_decoder_can_begin_every_few_mebibytes() {
    let tar = large();
    let points = |stored: &[u8]| passed(stored).1.points;
    for (way, stored) in ways(&tar) {
        let farthest = points(&stored).windows(2).map(|pair| pair[1].tar - pair[0].tar).max().unwrap_or(0);
        let expected = match way {
            "plain" | "zstd, one frame" | "zstd, one frame without its size" => 0..1,
            "zstd in tiny frames" => 500_000..(6 << 20),
            way if way.starts_with("zstd") => 250_000..(2 << 20),
            _ => (3 << 20)..(6 << 20),
        };
        assert!(expected.contains(&farthest), "{way}: {farthest}");
    }
}

#[test]
fn many_threads_read_one_layer_and_all_of_them_rightly() {
    let tar = large();
    for stored in [gzip(&tar), frames(&tar, usize::MAX, true)] {
        let (counted, passed, windows) = passed(&stored);
        let reader = reader(&counted, &passed, &windows);
        std::thread::scope(|scope| {
            for thread in 0..4usize {
                let (reader, tar) = (&reader, &tar);
                scope.spawn(move || {
                    for step in 0..12 {
                        let at = (thread * 3 + step) * 700_000 % tar.len();
                        let length = 40_000.min(tar.len() - at);
                        assert!(read(reader, at as u64, length) == tar[at..at + length], "{at}");
                    }
                });
            }
        });
    }
}

#[test]
fn a_state_that_is_damaged_or_gone_costs_time_and_nothing_else() {
    let tar = large();
    let stored = gzip(&tar);
    let (counted, passed, windows) = passed(&stored);
    assert!(passed.points.len() > 3);
    windows.as_file().set_len(50_000).unwrap();
    let mut damaged = fs::read(windows.path()).unwrap();
    damaged[100] ^= 1;
    fs::write(windows.path(), damaged).unwrap();
    let reader = reader(&counted, &passed, &windows);
    for at in [tar.len() - 1000, 5 << 20, 9 << 20] {
        assert!(read(&reader, at as u64, 1000) == tar[at..at + 1000], "{at}");
    }
}

#[test]
fn a_blob_that_changes_after_it_was_indexed_is_an_error_and_never_content() {
    let tar = Tar::default().file("x", &"content ".repeat(100_000)).end();
    let stored = frames(&tar, usize::MAX, true);
    let (_directory, cache) = cache(LayerLimits::default());
    let other = Tar::default().file("x", &"CONTENT ".repeat(100_000)).end();
    drop(cache.image_tree(vec![blob(&stored, &tar)]).unwrap());
    let mut swapped = frames(&other, usize::MAX, true);
    swapped.resize(stored.len(), 0);
    let lying = LayerBlob { digest: digest(&stored), ..blob(&swapped, &tar) };
    let image = cache.image_tree(vec![lying]).unwrap();
    let mut bytes = Vec::new();
    let error = image.open(image.lookup(0, b"x").unwrap()).unwrap().read_to_end(&mut bytes).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    assert!(bytes.len() < 800_000);
}
