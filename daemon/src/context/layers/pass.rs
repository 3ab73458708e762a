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

use sha2::{Digest as _, Sha256};

use super::access::{Format, Point, Within};
use super::archive::TarParser;
use super::blob::{Blob, Input};
use super::buffers::{self, Buffers};
use super::entries::EntryWriter;
use super::frames::{Unit, Whole, Zstd};
use super::gzip::{Gzip, Step};
use super::{LayerError, LayerLimits, frames};
use crate::model::Digest;
use crate::task;

/// Target size in bytes of a chunk; one fits into a core's cache.
const PIECE: usize = 256 << 10;
/// Maximum size in bytes of a chunk that is a whole unit of zstd frames.
const MAX_PIECE: u64 = 2 << 20;
/// Number of chunks that wait between two threads.
const WAITING: usize = 4;
const MAX_DECODERS: usize = 8;
/// Output in bytes between two access points of a gzip member.
const GZIP_STEP: u64 = 4 << 20;
/// Maximum window in bytes of zstd frames that are decompressed in parallel.
const SMALL_WINDOW: u64 = 8 << 20;

/// Message from a decoder thread.
enum Said {
    /// The next chunk begins at an access point: its offset in the blob, and the decoder state.
    Begin(u64, Option<Vec<u8>>),
    Piece(Vec<u8>),
    /// End of a zstd unit.
    UnitEnd,
    Failed(LayerError),
}

/// Result of a pass.
#[derive(Debug)]
pub(super) struct Passed {
    pub diff_id: Digest,
    pub length: u64,
    /// Total size in bytes of the holes of sparse files, which are not stored.
    pub holes: u64,
    pub entry_count: usize,
    pub points: Vec<Point>,
    pub entries: Vec<u8>,
    /// True if any entry may be a whiteout.
    pub hides: bool,
}

/// Reads a whole blob and builds its index. States of gzip decoders are written to `states`, from its start
/// on.
pub(super) fn pass(
    blob: &Blob,
    format: Format,
    limits: &LayerLimits,
    states: &mut dyn Write,
) -> Result<Passed, LayerError> {
    run(blob, format, limits, Purpose::Index(states))
}

/// Reads a whole blob and stores nothing. Setting `cancelled` ends the pass early.
pub(super) fn look_through(
    blob: &Blob,
    format: Format,
    limits: &LayerLimits,
    cancelled: &AtomicBool,
) -> Result<Passed, LayerError> {
    run(blob, format, limits, Purpose::Facts(cancelled))
}

/// Purpose of a pass.
enum Purpose<'p> {
    /// Build an index; states of gzip decoders are written here.
    Index(&'p mut dyn Write),
    /// Inspect a layer that another program will unpack. Holes of files count as content, because the other
    /// program may write them out.
    Facts(&'p AtomicBool),
}

fn run(
    blob: &Blob,
    format: Format,
    limits: &LayerLimits,
    purpose: Purpose<'_>,
) -> Result<Passed, LayerError> {
    let with_states = matches!(purpose, Purpose::Index(_));
    let units = match format {
        Format::Zstd => frames::units(&**blob)?,
        Format::Plain | Format::Gzip => Vec::new(),
    };
    thread::scope(|scope| {
        let (hashed, to_hash) = sync_channel::<Arc<buffers::Piece>>(WAITING);
        let sum = task::scoped(scope, "layer-sum", move || {
            let mut sum = Sha256::new();
            to_hash.iter().for_each(|piece| sum.update(&**piece));
            Digest::from_sha256(sum.finalize().into())
        })?;
        let mut taker = Taker::new(blob.length(), limits, purpose, hashed);
        match format {
            Format::Zstd => decode_units(scope, blob, &units, &mut taker)?,
            Format::Plain | Format::Gzip => {
                let (sender, said) = sync_channel(WAITING);
                let input = Input::new(Arc::clone(blob), 0, u64::MAX);
                task::scoped(scope, "layer-decode", move || match format {
                    Format::Gzip => send_result(&sender, inflate(input, with_states, &sender)),
                    _ => send_result(&sender, copy(input, &sender)),
                })?;
                said.iter().try_for_each(|said| taker.take(said))?;
            }
        }
        let Taker { tar, entries, points, length, holes, hashed, .. } = taker;
        drop(hashed);
        let diff_id = sum.join().map_err(|_| LayerError::Io(io::Error::other("a hash was not finished")))?;
        tar.finish()?;
        let EntryWriter { bytes, count, hides, .. } = entries;
        Ok(Passed { diff_id, length, holes, entry_count: count, points, entries: bytes, hides })
    })
}

/// The receiver was dropped because it failed; it reports its own error.
struct Gone;

enum DecodeError {
    Gone,
    Layer(LayerError),
}

impl From<Gone> for DecodeError {
    fn from(Gone: Gone) -> Self {
        Self::Gone
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

fn send(sender: &SyncSender<Said>, said: Said) -> Result<(), Gone> {
    sender.send(said).map_err(|_| Gone)
}

fn send_result(sender: &SyncSender<Said>, result: Result<(), DecodeError>) {
    if let Err(DecodeError::Layer(error)) = result {
        // A receiver that is gone has failed already.
        drop(sender.send(Said::Failed(error)));
    }
}

fn copy(mut input: Input, sender: &SyncSender<Said>) -> Result<(), DecodeError> {
    loop {
        let piece = input.bytes()?.to_vec();
        if piece.is_empty() {
            return Ok(());
        }
        input.consume(piece.len());
        send(sender, Said::Piece(piece))?;
    }
}

fn inflate(input: Input, with_states: bool, sender: &SyncSender<Said>) -> Result<(), DecodeError> {
    let mut gzip = Gzip::new(input);
    send(sender, Said::Begin(0, None))?;
    let mut since = 0;
    let mut piece = Vec::with_capacity(2 * PIECE);
    while let Step::Output(output) = gzip.step()? {
        since += output.len() as u64;
        piece.extend_from_slice(output);
        if piece.len() >= PIECE {
            send(sender, Said::Piece(std::mem::replace(&mut piece, Vec::with_capacity(2 * PIECE))))?;
            if with_states && since >= GZIP_STEP {
                send(sender, Said::Begin(gzip.position(), gzip.state()?))?;
                since = 0;
            }
        }
    }
    Ok(send(sender, Said::Piece(piece))?)
}

/// Decodes units on `n` threads, where thread `k` has the units `k`, `k + n`, and so on; their output is
/// received in turn.
fn decode_units<'scope>(
    scope: &'scope Scope<'scope, '_>,
    blob: &Blob,
    units: &'scope [Unit],
    taker: &mut Taker<'_>,
) -> Result<(), LayerError> {
    let is_small = units.iter().all(|unit| unit.window <= SMALL_WINDOW);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let decoders = if is_small { cores.min(MAX_DECODERS).min(units.len()).max(1) } else { 1 };
    let mut receivers: Vec<Receiver<Said>> = Vec::with_capacity(decoders);
    for first in 0..decoders {
        let (sender, said) = sync_channel(WAITING);
        let (blob, buffers) = (Arc::clone(blob), taker.buffers.clone());
        task::scoped(scope, "layer-decode", move || {
            let mut mine = units.iter().skip(first).step_by(decoders);
            let result = Whole::new().map_err(DecodeError::from).and_then(|mut whole| {
                mine.try_for_each(|unit| decode_unit(&blob, unit, &mut whole, &buffers, &sender))
            });
            send_result(&sender, result);
        })?;
        receivers.push(said);
    }
    for index in 0..units.len() {
        for said in &receivers[index % decoders] {
            if matches!(said, Said::UnitEnd) {
                break;
            }
            taker.take(said)?;
        }
    }
    Ok(())
}

fn decode_unit(
    blob: &Blob,
    unit: &Unit,
    whole: &mut Whole,
    buffers: &Buffers,
    sender: &SyncSender<Said>,
) -> Result<(), DecodeError> {
    send(sender, Said::Begin(unit.range.start, None))?;
    if let Some(content) = unit.content.filter(|content| *content <= MAX_PIECE) {
        let mut piece = buffers.take(content as usize);
        if whole.read(&**blob, unit.range.clone(), content, &mut piece)? {
            send(sender, Said::Piece(piece))?;
            return Ok(send(sender, Said::UnitEnd)?);
        }
    }
    let mut zstd = Zstd::new(Input::new(Arc::clone(blob), unit.range.start, unit.range.end))?;
    loop {
        let mut piece = vec![0; PIECE];
        let count = zstd.read(&mut piece)?;
        if count == 0 {
            return Ok(send(sender, Said::UnitEnd)?);
        }
        piece.truncate(count);
        send(sender, Said::Piece(piece))?;
    }
}

/// Processes the messages of the decoders in the order of the tar.
struct Taker<'p> {
    blob_length: u64,
    limits: LayerLimits,
    purpose: Purpose<'p>,
    states_length: u64,
    buffers: Buffers,
    hashed: SyncSender<Arc<buffers::Piece>>,
    tar: TarParser,
    entries: EntryWriter,
    points: Vec<Point>,
    length: u64,
    holes: u64,
}

impl<'p> Taker<'p> {
    fn new(
        blob_length: u64,
        limits: &LayerLimits,
        purpose: Purpose<'p>,
        hashed: SyncSender<Arc<buffers::Piece>>,
    ) -> Self {
        Self {
            blob_length,
            limits: *limits,
            tar: match purpose {
                Purpose::Index(_) => TarParser::new(),
                Purpose::Facts(_) => TarParser::without_hashes(),
            },
            purpose,
            states_length: 0,
            buffers: Buffers::default(),
            hashed,
            entries: EntryWriter::default(),
            points: Vec::new(),
            length: 0,
            holes: 0,
        }
    }

    fn take(&mut self, said: Said) -> Result<(), LayerError> {
        match said {
            Said::Begin(blob, state) => self.begin(blob, state),
            Said::Piece(piece) => self.piece(piece),
            Said::UnitEnd => Ok(()),
            Said::Failed(error) => Err(error),
        }
    }

    fn begin(&mut self, blob: u64, state: Option<Vec<u8>>) -> Result<(), LayerError> {
        let Purpose::Index(states) = &mut self.purpose else { return Ok(()) };
        let within = match state {
            None => None,
            Some(state) => {
                states.write_all(&state)?;
                let at = self.states_length;
                let length = u32::try_from(state.len()).unwrap_or(u32::MAX);
                self.states_length += u64::from(length);
                Some(Within { at, length, hash: blake3::hash(&state).into() })
            }
        };
        let point = Point { tar: self.length, blob, within };
        // No output since the last access point: the later one is as good and nearer.
        if self.points.last().is_some_and(|last| last.tar == point.tar) {
            self.points.pop();
        }
        self.points.push(point);
        Ok(())
    }

    fn piece(&mut self, piece: Vec<u8>) -> Result<(), LayerError> {
        let cancelled = match self.purpose {
            Purpose::Index(_) => None,
            Purpose::Facts(cancelled) => Some(cancelled),
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
    if limits.is_bomb(unpacked, stored) {
        return Err(LayerError::Bomb { ratio: limits.ratio });
    }
    Ok(())
}
