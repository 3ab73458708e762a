//! Random access to a layer's tar, decompressed from its blob.
//!
//! The range between two access points is a *stretch*. A short stretch is decompressed as a whole and cached
//! for a while, since neighbouring files are usually requested next. A long one, such as a layer that is one
//! zstd frame, is decompressed block by block; its decoder stays idle between requests, and reading backwards
//! restarts it. All caches are limited, for all layers together.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::access_points::{AccessPoint, BlobFormat, DecoderStateRef};
use super::blob::{BlobInput, SharedBlob};
use super::frames::{FrameDecompressor, ZstdDecoder};
use super::gzip::{GzipDecoder, GzipStep};

/// Maximum size in bytes of a stretch that is decompressed as a whole.
const MAX_SHORT_STRETCH: u64 = 6 << 20;
/// Block size in bytes within a long stretch.
const BLOCK: u64 = 1 << 20;
/// Maximum number of cached decompressed bytes.
const MAX_CACHED_BYTES: usize = 64 << 20;
/// Maximum number of idle decoders within long stretches; each may hold a window.
const MAX_IDLE_DECODERS: usize = 4;
/// Number of locks that keep several readers from decompressing the same stretch at once.
const STRETCH_LOCKS: usize = 16;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The guarded values are consistent after every single step.
    mutex.lock()
}

/// Layer id, and offset in its tar.
type BlockKey = (u64, u64);

/// Cache of recently decompressed blocks and idle decoders, for all layers.
#[derive(Default)]
pub(super) struct DecodedCache {
    blocks: Mutex<CachedBlocks>,
    idle_decoders: Mutex<Vec<IdleDecoder>>,
    stretch_locks: [Mutex<()>; STRETCH_LOCKS],
}

#[derive(Default)]
struct CachedBlocks {
    map: HashMap<BlockKey, (Arc<Vec<u8>>, u64)>,
    bytes: usize,
    clock: u64,
}

/// An idle decoder within a long stretch.
struct IdleDecoder {
    layer: u64,
    /// Offset in the tar of its next byte.
    at: u64,
    decoder: LayerDecoder,
}

impl DecodedCache {
    fn get(&self, place: BlockKey) -> Option<Arc<Vec<u8>>> {
        let mut blocks = lock(&self.blocks);
        blocks.clock += 1;
        let clock = blocks.clock;
        let (block, used) = blocks.map.get_mut(&place)?;
        *used = clock;
        Some(Arc::clone(block))
    }

    fn put(&self, place: BlockKey, block: &Arc<Vec<u8>>) {
        let mut blocks = lock(&self.blocks);
        blocks.clock += 1;
        let clock = blocks.clock;
        blocks.bytes += block.capacity();
        if let Some((old, _)) = blocks.map.insert(place, (Arc::clone(block), clock)) {
            blocks.bytes -= old.capacity();
        }
        while blocks.bytes > MAX_CACHED_BYTES {
            let oldest = blocks.map.iter().min_by_key(|(_, (_, used))| *used).map(|(place, _)| *place);
            let Some((block, _)) = oldest.and_then(|oldest| blocks.map.remove(&oldest)) else { return };
            blocks.bytes -= block.capacity();
        }
    }

    fn lock_stretch(&self, (layer, start): BlockKey) -> MutexGuard<'_, ()> {
        lock(&self.stretch_locks[((start / BLOCK) ^ layer.wrapping_mul(7)) as usize % STRETCH_LOCKS])
    }

    /// Takes the idle decoder that is nearest to `at` within the stretch that begins at `start`.
    fn take_idle_decoder(&self, layer: u64, start: u64, at: u64) -> Option<IdleDecoder> {
        let mut waiting = lock(&self.idle_decoders);
        let fits = |(_, one): &(usize, &IdleDecoder)| one.layer == layer && (start..=at).contains(&one.at);
        let (index, _) = waiting.iter().enumerate().filter(fits).max_by_key(|(_, one)| one.at)?;
        Some(waiting.remove(index))
    }

    fn remove_layer(&self, layer: u64) {
        lock(&self.idle_decoders).retain(|one| one.layer != layer);
        let mut blocks = lock(&self.blocks);
        let CachedBlocks { map, bytes, .. } = &mut *blocks;
        map.retain(|place, (block, _)| {
            let stays = place.0 != layer;
            if !stays {
                *bytes -= block.capacity();
            }
            stays
        });
    }

    fn keep_decoder(&self, decoder: IdleDecoder) {
        let mut waiting = lock(&self.idle_decoders);
        waiting.push(decoder);
        if waiting.len() > MAX_IDLE_DECODERS {
            waiting.remove(0);
        }
    }
}

enum LayerDecoder {
    Zstd(ZstdDecoder),
    /// Decoder, and output that was not requested yet.
    Gzip(Box<GzipDecoder>, Vec<u8>),
}

impl LayerDecoder {
    /// Fills `out`, or less at the end.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Zstd(zstd) => zstd.read(out),
            Self::Gzip(gzip, left) => {
                let mut filled = 0;
                while filled < out.len() {
                    if left.is_empty() {
                        match gzip.step()? {
                            GzipStep::End => break,
                            GzipStep::Output(output) => {
                                let count = output.len().min(out.len() - filled);
                                out[filled..filled + count].copy_from_slice(&output[..count]);
                                left.extend_from_slice(&output[count..]);
                                filled += count;
                            }
                        }
                        continue;
                    }
                    let count = left.len().min(out.len() - filled);
                    out[filled..filled + count].copy_from_slice(&left[..count]);
                    left.drain(..count);
                    filled += count;
                }
                Ok(filled)
            }
        }
    }
}

/// A layer's tar, readable at any position by any number of threads.
pub(super) struct LayerReader {
    id: u64,
    blob: SharedBlob,
    /// The index file, which contains the states of gzip decoders.
    index: Option<File>,
    format: BlobFormat,
    points: Vec<AccessPoint>,
    length: u64,
    decoded: Arc<DecodedCache>,
}

/// A range of the tar that is decompressed in one step.
struct BlockRange {
    point: usize,
    /// Start of the stretch, where the decoder begins.
    stretch: u64,
    start: u64,
    end: u64,
    is_short: bool,
}

static IDS: AtomicU64 = AtomicU64::new(0);

impl LayerReader {
    pub(super) fn new(
        blob: SharedBlob,
        index: Option<File>,
        (format, points, length): (BlobFormat, Vec<AccessPoint>, u64),
        decoded: Arc<DecodedCache>,
    ) -> Self {
        Self { id: IDS.fetch_add(1, Ordering::Relaxed), blob, index, format, points, length, decoded }
    }

    /// Reads up to the end of the block that contains `at`; returns 0 only at the end of the tar.
    pub(super) fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        if at >= self.length || buffer.is_empty() {
            return Ok(0);
        }
        if self.format == BlobFormat::Plain {
            return self.blob.read_at(buffer, at);
        }
        let wanted = self.block_at(at);
        let block = self.block(&wanted)?;
        let rest = block.get((at - wanted.start) as usize..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    /// Returns the block that contains `at`.
    fn block_at(&self, at: u64) -> BlockRange {
        let point = self.points.partition_point(|point| point.tar <= at).saturating_sub(1);
        let stretch = self.points[point].tar;
        let end = self.points.get(point + 1).map_or(self.length, |next| next.tar);
        if end - stretch <= MAX_SHORT_STRETCH {
            return BlockRange { point, stretch, start: stretch, end, is_short: true };
        }
        let start = stretch + (at - stretch) / BLOCK * BLOCK;
        BlockRange { point, stretch, start, end: end.min(start + BLOCK), is_short: false }
    }

    fn block(&self, wanted: &BlockRange) -> io::Result<Arc<Vec<u8>>> {
        let &BlockRange { point, stretch, start, end, is_short } = wanted;
        if let Some(block) = self.decoded.get((self.id, start)) {
            return Ok(block);
        }
        // A long stretch has one decoder, which reads all its blocks.
        let _turn = self.decoded.lock_stretch((self.id, stretch));
        if let Some(block) = self.decoded.get((self.id, start)) {
            return Ok(block);
        }
        if is_short && self.format == BlobFormat::Zstd {
            let next = self.points.get(point + 1).map_or(self.blob.length(), |next| next.blob);
            let range = self.points[point].blob..next;
            let mut block = Vec::new();
            if FrameDecompressor::new()?.read(&*self.blob, range, end - start, &mut block)? {
                let block = Arc::new(block);
                self.decoded.put((self.id, start), &block);
                return Ok(block);
            }
        }
        let waiting = if is_short { None } else { self.decoded.take_idle_decoder(self.id, stretch, start) };
        let mut decoder = match waiting {
            Some(decoder) => decoder,
            None => self.begin(point)?,
        };
        let mut block = vec![0; (end - start) as usize];
        while decoder.at < start {
            let most = (start - decoder.at).min(block.len() as u64) as usize;
            self.fill(&mut decoder, &mut block[..most])?;
        }
        self.fill(&mut decoder, &mut block)?;
        if !is_short {
            self.decoded.keep_decoder(decoder);
        }
        let block = Arc::new(block);
        self.decoded.put((self.id, start), &block);
        Ok(block)
    }

    fn fill(&self, decoder: &mut IdleDecoder, out: &mut [u8]) -> io::Result<()> {
        let count = decoder.decoder.read(out)?;
        decoder.at += count as u64;
        if count < out.len() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a layer's blob was cut short"));
        }
        Ok(())
    }

    /// Creates a decoder at an access point, or at an earlier one if its state is damaged.
    fn begin(&self, last: usize) -> io::Result<IdleDecoder> {
        for point in self.points[..=last].iter().rev() {
            let input = BlobInput::new(Arc::clone(&self.blob), point.blob, u64::MAX);
            let decoder = match (self.format, &point.state) {
                (BlobFormat::Zstd | BlobFormat::Plain, _) => LayerDecoder::Zstd(ZstdDecoder::new(input)?),
                (BlobFormat::Gzip, None) => LayerDecoder::Gzip(Box::new(GzipDecoder::new(input)), Vec::new()),
                (BlobFormat::Gzip, Some(within)) => {
                    match self.state(within).and_then(|state| GzipDecoder::from_state(input, &state)) {
                        Ok(gzip) => LayerDecoder::Gzip(Box::new(gzip), Vec::new()),
                        Err(error) => {
                            tracing::warn!(
                                %error,
                                "failed to restore a decoder state; reading from an earlier access point",
                            );
                            continue;
                        }
                    }
                }
            };
            return Ok(IdleDecoder { layer: self.id, at: point.tar, decoder });
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "a layer's index has no start"))
    }

    fn state(&self, within: &DecoderStateRef) -> io::Result<Vec<u8>> {
        let index = self.index.as_ref().ok_or(io::ErrorKind::NotFound)?;
        let mut state = vec![0; within.length as usize];
        index.read_exact_at(&mut state, within.at)?;
        if blake3::hash(&state) != blake3::Hash::from_bytes(within.hash) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "its hash is another"));
        }
        Ok(state)
    }
}

impl Drop for LayerReader {
    fn drop(&mut self) {
        self.decoded.remove_layer(self.id);
    }
}
