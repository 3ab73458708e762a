//! The single pass over a layer's content, which builds the layer's index or only inspects the layer.
//!
//! ```text
//! blob -- decoders (several for zstd) --> chunks --+--> DiffID, on its own thread
//!                                                  '--> tar parser: entries, hash of each content
//! ```
//!
//! Chunks pass through short channels, so memory is limited whatever the layer contains. An access point is
//! sent before the chunk that begins there.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Scope};

use hearth_model::Digest;
use hearth_task as task;
use sha2::{Digest as _, Sha256};

use super::access_points::{AccessPoint, BlobFormat, DecoderStateRef};
use super::blob::{BlobInput, SharedBlob};
use super::buffer_pool::{self, BufferPool};
use super::entries::EntryWriter;
use super::frames::{FrameDecompressor, FrameUnit, ZstdDecoder};
use super::gzip::{GzipDecoder, GzipStep};
use super::tar_parser::TarParser;
use super::{LayerError, LayerLimits, frames};

/// Target size in bytes of a chunk; one fits into a core's cache.
const CHUNK_BYTES: usize = 256 << 10;
/// Maximum size in bytes of a chunk that is a whole unit of zstd frames.
const MAX_CHUNK_BYTES: u64 = 2 << 20;
/// Number of chunks that wait between two threads.
const CHANNEL_CAPACITY: usize = 4;
const MAX_DECODERS: usize = 8;
/// Output in bytes between two access points of a gzip member.
const GZIP_STEP: u64 = 4 << 20;
/// Maximum window in bytes of zstd frames that are decompressed in parallel.
const SMALL_WINDOW: u64 = 8 << 20;

/// Message from a decoder thread.
enum DecoderEvent {
    /// The next chunk begins at an access point: its offset in the blob, and the decoder state.
    AccessPoint(u64, Option<Vec<u8>>),
    Chunk(Vec<u8>),
    /// End of a zstd unit.
    UnitEnd,
    Failed(LayerError),
}

/// Result of a pass.
#[derive(Debug)]
pub(super) struct PassSummary {
    pub diff_id: Digest,
    pub length: u64,
    /// Total size in bytes of the holes of sparse files, which are not stored.
    pub holes: u64,
    pub entry_count: usize,
    pub points: Vec<AccessPoint>,
    pub entries: Vec<u8>,
    /// True if any entry may be a whiteout.
    pub has_whiteouts: bool,
}

/// Reads a whole blob and builds its index. States of gzip decoders are written to `states`, from its start
/// on.
pub(super) fn index_layer(
    blob: &SharedBlob,
    format: BlobFormat,
    limits: &LayerLimits,
    states: &mut dyn Write,
) -> Result<PassSummary, LayerError> {
    run(blob, format, limits, PassPurpose::Index(states))
}

/// Reads a whole blob and stores nothing. Setting `cancelled` ends the pass early.
pub(super) fn inspect_layer(
    blob: &SharedBlob,
    format: BlobFormat,
    limits: &LayerLimits,
    cancelled: &AtomicBool,
) -> Result<PassSummary, LayerError> {
    run(blob, format, limits, PassPurpose::Inspect(cancelled))
}

/// Purpose of a pass.
enum PassPurpose<'p> {
    /// Build an index; states of gzip decoders are written here.
    Index(&'p mut dyn Write),
    /// Inspect a layer that another program will unpack. Holes of files count as content, because the other
    /// program may write them out.
    Inspect(&'p AtomicBool),
}

fn run(
    blob: &SharedBlob,
    format: BlobFormat,
    limits: &LayerLimits,
    purpose: PassPurpose<'_>,
) -> Result<PassSummary, LayerError> {
    let with_states = matches!(purpose, PassPurpose::Index(_));
    let units = match format {
        BlobFormat::Zstd => frames::units(&**blob)?,
        BlobFormat::Plain | BlobFormat::Gzip => Vec::new(),
    };
    thread::scope(|scope| {
        let (hashed, to_hash) = sync_channel::<Arc<buffer_pool::PooledBuffer>>(CHANNEL_CAPACITY);
        let sum = task::scoped(scope, "layer-sum", move || {
            let mut sum = Sha256::new();
            to_hash.iter().for_each(|piece| sum.update(&**piece));
            Digest::from_sha256(sum.finalize().into())
        })?;
        let mut taker = PassCollector::new(blob.length(), limits, purpose, hashed);
        match format {
            BlobFormat::Zstd => decode_units(scope, blob, &units, &mut taker)?,
            BlobFormat::Plain | BlobFormat::Gzip => {
                let (sender, event) = sync_channel(CHANNEL_CAPACITY);
                let input = BlobInput::new(Arc::clone(blob), 0, u64::MAX);
                task::scoped(scope, "layer-decode", move || match format {
                    BlobFormat::Gzip => send_result(&sender, inflate(input, with_states, &sender)),
                    _ => send_result(&sender, copy(input, &sender)),
                })?;
                event.iter().try_for_each(|event| taker.handle(event))?;
            }
        }
        let PassCollector { tar, entries, points, length, holes, hashed, .. } = taker;
        drop(hashed);
        let diff_id = sum.join().map_err(|_| LayerError::Io(io::Error::other("a hash was not finished")))?;
        tar.finish()?;
        let EntryWriter { bytes, count, has_whiteouts: hides, .. } = entries;
        Ok(PassSummary {
            diff_id,
            length,
            holes,
            entry_count: count,
            points,
            entries: bytes,
            has_whiteouts: hides,
        })
    })
}

/// The receiver was dropped because it failed; it reports its own error.
struct ReceiverClosed;

enum DecodeError {
    ReceiverClosed,
    Layer(LayerError),
}

impl From<ReceiverClosed> for DecodeError {
    fn from(ReceiverClosed: ReceiverClosed) -> Self {
        Self::ReceiverClosed
    }
}

impl From<io::Error> for DecodeError {
    fn from(error: io::Error) -> Self {
        Self::Layer(match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => LayerError::Decompress(error),
            _ => error.into(),
        })
    }
}

fn send(sender: &SyncSender<DecoderEvent>, event: DecoderEvent) -> Result<(), ReceiverClosed> {
    sender.send(event).map_err(|_| ReceiverClosed)
}

fn send_result(sender: &SyncSender<DecoderEvent>, result: Result<(), DecodeError>) {
    if let Err(DecodeError::Layer(error)) = result {
        // A receiver that is gone has failed already.
        drop(sender.send(DecoderEvent::Failed(error)));
    }
}

fn copy(mut input: BlobInput, sender: &SyncSender<DecoderEvent>) -> Result<(), DecodeError> {
    loop {
        let piece = input.bytes()?.to_vec();
        if piece.is_empty() {
            return Ok(());
        }
        input.consume(piece.len());
        send(sender, DecoderEvent::Chunk(piece))?;
    }
}

fn inflate(
    input: BlobInput,
    with_states: bool,
    sender: &SyncSender<DecoderEvent>,
) -> Result<(), DecodeError> {
    let mut gzip = GzipDecoder::new(input);
    send(sender, DecoderEvent::AccessPoint(0, None))?;
    let mut since = 0;
    let mut piece = Vec::with_capacity(2 * CHUNK_BYTES);
    while let GzipStep::Output(output) = gzip.step()? {
        since += output.len() as u64;
        piece.extend_from_slice(output);
        if piece.len() >= CHUNK_BYTES {
            send(
                sender,
                DecoderEvent::Chunk(std::mem::replace(&mut piece, Vec::with_capacity(2 * CHUNK_BYTES))),
            )?;
            if with_states && since >= GZIP_STEP {
                send(sender, DecoderEvent::AccessPoint(gzip.position(), gzip.save_state()?))?;
                since = 0;
            }
        }
    }
    Ok(send(sender, DecoderEvent::Chunk(piece))?)
}

/// Decodes units on `n` threads, where thread `k` has the units `k`, `k + n`, and so on; their output is
/// received in turn.
fn decode_units<'scope>(
    scope: &'scope Scope<'scope, '_>,
    blob: &SharedBlob,
    units: &'scope [FrameUnit],
    taker: &mut PassCollector<'_>,
) -> Result<(), LayerError> {
    let is_small = units.iter().all(|unit| unit.window <= SMALL_WINDOW);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let decoders = if is_small { cores.min(MAX_DECODERS).min(units.len()).max(1) } else { 1 };
    let mut receivers: Vec<Receiver<DecoderEvent>> = Vec::with_capacity(decoders);
    for first in 0..decoders {
        let (sender, event) = sync_channel(CHANNEL_CAPACITY);
        let (blob, buffers) = (Arc::clone(blob), taker.buffers.clone());
        task::scoped(scope, "layer-decode", move || {
            let mut mine = units.iter().skip(first).step_by(decoders);
            let result = FrameDecompressor::new().map_err(DecodeError::from).and_then(|mut whole| {
                mine.try_for_each(|unit| decode_unit(&blob, unit, &mut whole, &buffers, &sender))
            });
            send_result(&sender, result);
        })?;
        receivers.push(event);
    }
    for index in 0..units.len() {
        for event in &receivers[index % decoders] {
            if matches!(event, DecoderEvent::UnitEnd) {
                break;
            }
            taker.handle(event)?;
        }
    }
    Ok(())
}

fn decode_unit(
    blob: &SharedBlob,
    unit: &FrameUnit,
    whole: &mut FrameDecompressor,
    buffers: &BufferPool,
    sender: &SyncSender<DecoderEvent>,
) -> Result<(), DecodeError> {
    send(sender, DecoderEvent::AccessPoint(unit.range.start, None))?;
    if let Some(content) = unit.content.filter(|content| *content <= MAX_CHUNK_BYTES) {
        let mut piece = buffers.take(content as usize);
        if whole.read(&**blob, unit.range.clone(), content, &mut piece)? {
            send(sender, DecoderEvent::Chunk(piece))?;
            return Ok(send(sender, DecoderEvent::UnitEnd)?);
        }
    }
    let mut zstd = ZstdDecoder::new(BlobInput::new(Arc::clone(blob), unit.range.start, unit.range.end))?;
    loop {
        let mut piece = vec![0; CHUNK_BYTES];
        let count = zstd.read(&mut piece)?;
        if count == 0 {
            return Ok(send(sender, DecoderEvent::UnitEnd)?);
        }
        piece.truncate(count);
        send(sender, DecoderEvent::Chunk(piece))?;
    }
}

/// Processes the messages of the decoders in the order of the tar.
struct PassCollector<'p> {
    blob_length: u64,
    limits: LayerLimits,
    purpose: PassPurpose<'p>,
    states_length: u64,
    buffers: BufferPool,
    hashed: SyncSender<Arc<buffer_pool::PooledBuffer>>,
    tar: TarParser,
    entries: EntryWriter,
    points: Vec<AccessPoint>,
    length: u64,
    holes: u64,
}

impl<'p> PassCollector<'p> {
    fn new(
        blob_length: u64,
        limits: &LayerLimits,
        purpose: PassPurpose<'p>,
        hashed: SyncSender<Arc<buffer_pool::PooledBuffer>>,
    ) -> Self {
        Self {
            blob_length,
            limits: *limits,
            tar: match purpose {
                PassPurpose::Index(_) => TarParser::new(),
                PassPurpose::Inspect(_) => TarParser::without_hashes(),
            },
            purpose,
            states_length: 0,
            buffers: BufferPool::default(),
            hashed,
            entries: EntryWriter::default(),
            points: Vec::new(),
            length: 0,
            holes: 0,
        }
    }

    fn handle(&mut self, event: DecoderEvent) -> Result<(), LayerError> {
        match event {
            DecoderEvent::AccessPoint(blob, state) => self.add_access_point(blob, state),
            DecoderEvent::Chunk(piece) => self.add_chunk(piece),
            DecoderEvent::UnitEnd => Ok(()),
            DecoderEvent::Failed(error) => Err(error),
        }
    }

    fn add_access_point(&mut self, blob: u64, state: Option<Vec<u8>>) -> Result<(), LayerError> {
        let PassPurpose::Index(states) = &mut self.purpose else { return Ok(()) };
        let within = match state {
            None => None,
            Some(state) => {
                states.write_all(&state)?;
                let at = self.states_length;
                let length = u32::try_from(state.len()).unwrap_or(u32::MAX);
                self.states_length += u64::from(length);
                Some(DecoderStateRef { at, length, hash: blake3::hash(&state).into() })
            }
        };
        let point = AccessPoint { tar: self.length, blob, state: within };
        // No output since the last access point: the later one is as good and nearer.
        if self.points.last().is_some_and(|last| last.tar == point.tar) {
            self.points.pop();
        }
        self.points.push(point);
        Ok(())
    }

    fn add_chunk(&mut self, piece: Vec<u8>) -> Result<(), LayerError> {
        let cancelled = match self.purpose {
            PassPurpose::Index(_) => None,
            PassPurpose::Inspect(cancelled) => Some(cancelled),
        };
        if cancelled.is_some_and(|cancelled| cancelled.load(Ordering::Relaxed)) {
            return Err(LayerError::Cancelled);
        }
        let (limits, stored) = (self.limits, self.blob_length);
        self.length += piece.len() as u64;
        check_size(&limits, self.length.saturating_add(self.holes), stored)?;
        let piece = self.buffers.share(piece);
        if self.hashed.send(Arc::clone(&piece)).is_err() {
            return Err(LayerError::Io(io::Error::other("a hash was not finished")));
        }
        let (entries, holes, length) = (&mut self.entries, &mut self.holes, self.length);
        self.tar.feed(&piece, &mut |entry| {
            if entries.count >= limits.entries {
                return Err(LayerError::TooManyEntries { limit: limits.entries });
            }
            if cancelled.is_some() {
                entries.count += 1;
                *holes = holes.saturating_add(entry.holes());
                return check_size(&limits, length.saturating_add(*holes), stored);
            }
            entries.push(entry);
            if entries.bytes.len() as u64 > limits.index_bytes {
                return Err(LayerError::TooManyNames { limit: limits.index_bytes });
            }
            Ok(())
        })
    }
}

fn check_size(limits: &LayerLimits, unpacked: u64, stored: u64) -> Result<(), LayerError> {
    if unpacked > limits.layer_bytes {
        return Err(LayerError::TooLarge { limit: limits.layer_bytes });
    }
    if limits.is_decompression_bomb(unpacked, stored) {
        return Err(LayerError::Bomb { ratio: limits.ratio });
    }
    Ok(())
}
