//! Streaming parser for the entries of a tar: reads headers, hashes content, keeps no content.
//!
//! ```text
//! Header --> Extension --> Padding --> Header            names and PAX records of the next entry
//!    '-----> Map --------> Content --> Padding --> Header
//!    '-----> Done                                        two blocks of zeros
//! ```
//!
//! Header fields are decoded by the `tar` crate. Iteration over the headers is implemented here, because the
//! crate's iterator reads name extensions of any size into memory, and because positions are needed. As in
//! Go's archive/tar, a PAX record takes precedence over a GNU extension, which takes precedence over the
//! header; links, directories and devices have no content, whatever their size field says.

use hearth_pack::identity::ContentHash;
use hearth_pack::{FileKind, SpecialFile};
use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::LayerError;
use super::content::ContentHasher;
use super::pax::{self, PaxHeader, PaxSparse, XattrList};
use super::sparse::{MAX_EXTENTS, SparseExtent, SparseRange, SparseTextMap, locate_extents};

const BLOCK: usize = 512;
/// Maximum size in bytes of a GNU name and of a PAX header; real ones are far smaller.
const MAX_NAME: u64 = 64 << 10;
const MAX_PAX: u64 = 1 << 20;
/// Maximum size in bytes of a file: no file system has larger ones.
const MAX_SIZE: u64 = i64::MAX as u64;

/// One entry of a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TarEntry {
    /// Path as written in the tar.
    pub path: Vec<u8>,
    /// Kind; a hard link has the path of the file as written in the tar.
    pub kind: FileKind<TarFile, Vec<u8>, Vec<u8>>,
    pub mode: u32,
    /// Modification time in nanoseconds since 1970.
    pub mtime: i64,
    pub xattrs: XattrList,
}

/// Content of a regular file of a tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TarFile {
    pub size: u64,
    pub content: TarContentLocation,
    pub hash: ContentHash,
}

impl TarEntry {
    /// Returns the number of bytes of the file that are not stored: the holes of a sparse file.
    pub(super) fn holes(&self) -> u64 {
        match &self.kind {
            FileKind::File(TarFile { size, content: TarContentLocation::Sparse(pieces), .. }) => {
                let stored: u64 = pieces.iter().map(|piece| piece.length).sum();
                size.saturating_sub(stored)
            }
            _ => 0,
        }
    }
}

/// Location of a file's content in the tar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum TarContentLocation {
    At(u64),
    /// The gaps between the extents are zeros.
    Sparse(Box<[SparseExtent]>),
}

/// Values of extension headers, which apply to the next entry.
#[derive(Default)]
struct ExtendedHeader {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: PaxHeader,
}

#[derive(Clone, Copy)]
enum ExtensionKind {
    Path,
    Link,
    Pax,
    Global,
}

/// A regular file whose content follows.
struct PendingFile {
    path: Vec<u8>,
    mode: u32,
    mtime: i64,
    xattrs: XattrList,
    size: u64,
    /// Size in bytes in the tar, including a sparse map at the start.
    stored: u64,
}

enum TarParserState {
    Header,
    Extension {
        kind: ExtensionKind,
        left: u64,
        padding: u64,
    },
    /// The blocks of an old GNU sparse map follow the header.
    GnuMap {
        file: PendingFile,
        parts: Vec<SparseRange>,
    },
    /// A PAX sparse map precedes the content.
    TextMap {
        file: PendingFile,
        map: SparseTextMap,
    },
    Content {
        file: PendingFile,
        content: TarContentLocation,
        sum: Box<ContentHasher>,
        left: u64,
    },
    Padding(u64),
    /// One block of zeros was read.
    EndMarker {
        at: u64,
    },
    Done,
}

/// Parses a tar that is supplied in chunks of any size.
pub(super) struct TarParser {
    state: TarParserState,
    /// An incomplete block or extension.
    buffer: Vec<u8>,
    /// Offset of the next byte in the tar.
    at: u64,
    extended: ExtendedHeader,
    /// False if content is not hashed; the hash of a file is then meaningless.
    hashes_content: bool,
    /// Number of zeros in holes that may still be hashed.
    hole_budget: u64,
}

fn entry_error(path: &[u8], what: &'static str) -> LayerError {
    LayerError::Entry { entry: String::from_utf8_lossy(path).into_owned(), what }
}

/// Returns the number of bytes between the end of `size` bytes and the end of their last block.
const fn padding(size: u64) -> u64 {
    (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64
}

impl TarParser {
    pub(super) fn new() -> Self {
        Self {
            hashes_content: true,
            state: TarParserState::Header,
            buffer: Vec::new(),
            at: 0,
            extended: ExtendedHeader::default(),
            hole_budget: super::content::MAX_HASHED_HOLES,
        }
    }

    /// Creates a parser that does not hash content.
    pub(super) fn without_hashes() -> Self {
        Self { hashes_content: false, ..Self::new() }
    }

    /// Parses the next bytes and calls `entry` with the entries that they complete.
    pub(super) fn feed(
        &mut self,
        mut bytes: &[u8],
        entry: &mut dyn FnMut(TarEntry) -> Result<(), LayerError>,
    ) -> Result<(), LayerError> {
        while !bytes.is_empty() || self.is_complete() {
            let state = std::mem::replace(&mut self.state, TarParserState::Done);
            self.state = self.step(state, &mut bytes, entry)?;
        }
        Ok(())
    }

    /// Ends the tar. The end marker and the padding of the last entry may be missing.
    pub(super) fn finish(self) -> Result<(), LayerError> {
        match &self.state {
            TarParserState::Header | TarParserState::EndMarker { .. } if self.buffer.is_empty() => Ok(()),
            TarParserState::Padding(_) | TarParserState::Done => Ok(()),
            TarParserState::Content { file, .. }
            | TarParserState::GnuMap { file, .. }
            | TarParserState::TextMap { file, .. } => {
                Err(entry_error(&file.path, "it is longer than what is left of the tar"))
            }
            TarParserState::Header | TarParserState::EndMarker { .. } => {
                Err(self.malformed("it ends within a block"))
            }
            TarParserState::Extension { .. } => Err(self.malformed("it ends within a name or PAX header")),
        }
    }

    const fn malformed(&self, what: &'static str) -> LayerError {
        LayerError::Malformed { at: self.at, what }
    }

    /// Reports whether the current state can advance without more bytes.
    const fn is_complete(&self) -> bool {
        matches!(
            self.state,
            TarParserState::Content { left: 0, .. }
                | TarParserState::Padding(0)
                | TarParserState::Extension { left: 0, .. }
        )
    }

    fn take<'b>(&mut self, bytes: &mut &'b [u8], most: u64) -> &'b [u8] {
        let count = usize::try_from(most).unwrap_or(usize::MAX).min(bytes.len());
        let (consumed, rest) = bytes.split_at(count);
        *bytes = rest;
        self.at = self.at.saturating_add(count as u64);
        consumed
    }

    /// Returns the next block once it is complete.
    fn block(&mut self, bytes: &mut &[u8]) -> Option<[u8; BLOCK]> {
        let missing = BLOCK - self.buffer.len();
        let consumed = self.take(bytes, missing as u64);
        if let Ok(block) = consumed.try_into() {
            return Some(block);
        }
        self.buffer.extend_from_slice(consumed);
        let block = self.buffer.as_slice().try_into().ok()?;
        self.buffer.clear();
        Some(block)
    }

    fn step(
        &mut self,
        state: TarParserState,
        bytes: &mut &[u8],
        entry: &mut dyn FnMut(TarEntry) -> Result<(), LayerError>,
    ) -> Result<TarParserState, LayerError> {
        match state {
            TarParserState::Header => match self.block(bytes) {
                Some(block) => self.header(&block, entry),
                None => Ok(TarParserState::Header),
            },
            TarParserState::EndMarker { at } => match self.block(bytes) {
                None => Ok(TarParserState::EndMarker { at }),
                Some(block) if block.iter().all(|byte| *byte == 0) => Ok(TarParserState::Done),
                Some(_) => {
                    Err(LayerError::Malformed { at, what: "a block of zeros is followed by something else" })
                }
            },
            // Bytes after the end marker are ignored.
            TarParserState::Done => {
                self.take(bytes, u64::MAX);
                Ok(TarParserState::Done)
            }
            TarParserState::Padding(0) => Ok(TarParserState::Header),
            TarParserState::Padding(left) => {
                let count = self.take(bytes, left).len() as u64;
                Ok(TarParserState::Padding(left - count))
            }
            TarParserState::Extension { kind, left: 0, padding } => {
                let data = std::mem::take(&mut self.buffer);
                self.extension(kind, data)?;
                Ok(TarParserState::Padding(padding))
            }
            TarParserState::Extension { kind, left, padding } => {
                let consumed = self.take(bytes, left);
                self.buffer.extend_from_slice(consumed);
                Ok(TarParserState::Extension { kind, left: left - consumed.len() as u64, padding })
            }
            TarParserState::GnuMap { file, mut parts } => {
                let Some(block) = self.block(bytes) else {
                    return Ok(TarParserState::GnuMap { file, parts });
                };
                let mut extension = GnuExtSparseHeader::new();
                extension.as_mut_bytes().copy_from_slice(&block);
                gnu_parts(extension.sparse(), &mut parts).map_err(|what| entry_error(&file.path, what))?;
                if extension.is_extended() {
                    return Ok(TarParserState::GnuMap { file, parts });
                }
                self.sparse(file, &parts, 0)
            }
            TarParserState::TextMap { file, mut map } => {
                let Some(block) = self.block(bytes) else { return Ok(TarParserState::TextMap { file, map }) };
                match map.block(&block).map_err(|what| entry_error(&file.path, what))? {
                    None => Ok(TarParserState::TextMap { file, map }),
                    Some(parts) => self.sparse(file, &parts, map.length()),
                }
            }
            TarParserState::Content { file, content, sum, left: 0 } => {
                let PendingFile { path, mode, mtime, xattrs, size, stored } = file;
                let kind = FileKind::File(TarFile { size, content, hash: sum.finish() });
                entry(TarEntry { path, kind, mode, mtime, xattrs })?;
                Ok(TarParserState::Padding(padding(stored)))
            }
            TarParserState::Content { file, content, mut sum, left } => {
                let consumed = self.take(bytes, left);
                if self.hashes_content {
                    sum.update(consumed);
                }
                Ok(TarParserState::Content { file, content, sum, left: left - consumed.len() as u64 })
            }
        }
    }

    fn header(
        &mut self,
        block: &[u8; BLOCK],
        entry: &mut dyn FnMut(TarEntry) -> Result<(), LayerError>,
    ) -> Result<TarParserState, LayerError> {
        let at = self.at - BLOCK as u64;
        if block.iter().all(|byte| *byte == 0) {
            return Ok(TarParserState::EndMarker { at });
        }
        let header = Header::from_byte_slice(block);
        let sum: u32 =
            block[..148].iter().chain(&[b' '; 8]).chain(&block[156..]).map(|byte| u32::from(*byte)).sum();
        if header.cksum().ok() != Some(sum) {
            return Err(LayerError::Malformed { at, what: "the checksum of a header is wrong" });
        }
        let (kind, limit) = match header.entry_type() {
            EntryType::GNULongName => (ExtensionKind::Path, MAX_NAME),
            EntryType::GNULongLink => (ExtensionKind::Link, MAX_NAME),
            EntryType::XHeader => (ExtensionKind::Pax, MAX_PAX),
            EntryType::XGlobalHeader => (ExtensionKind::Global, MAX_PAX),
            _ => return self.entry(header, entry),
        };
        let left =
            header.entry_size().map_err(|_| LayerError::Malformed { at, what: "a size is no number" })?;
        if left > limit {
            return Err(LayerError::Malformed { at, what: "a name or PAX header is too long" });
        }
        Ok(TarParserState::Extension { kind, left, padding: padding(left) })
    }

    fn extension(&mut self, kind: ExtensionKind, mut data: Vec<u8>) -> Result<(), LayerError> {
        match kind {
            ExtensionKind::Path | ExtensionKind::Link => {
                if let Some(end) = data.iter().position(|byte| *byte == 0) {
                    data.truncate(end);
                }
                match kind {
                    ExtensionKind::Path => self.extended.path = Some(data),
                    _ => self.extended.link = Some(data),
                }
            }
            ExtensionKind::Pax => {
                self.extended.pax = pax::parse(&data).map_err(|what| self.malformed(what))?;
            }
            ExtensionKind::Global => pax::check_global(&data).map_err(|what| self.malformed(what))?,
        }
        Ok(())
    }

    fn entry(
        &mut self,
        header: &Header,
        entry: &mut dyn FnMut(TarEntry) -> Result<(), LayerError>,
    ) -> Result<TarParserState, LayerError> {
        let ExtendedHeader { path, link, mut pax } = std::mem::take(&mut self.extended);
        let is_file =
            matches!(header.entry_type(), EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse);
        let sparse = pax.sparse.take().filter(|_| is_file);
        let sparse_name = sparse.as_ref().and_then(|sparse| sparse.name.clone());
        let path = sparse_name.or(pax.path).or(path).unwrap_or_else(|| header.path_bytes().into_owned());
        let wrong = |what| entry_error(&path, what);
        let mode = header.mode().map_err(|_| wrong("its mode is no number"))? & 0o7777;
        let seconds = || i64::try_from(header.mtime().unwrap_or_default()).unwrap_or(i64::MAX);
        let mtime = pax.mtime.unwrap_or_else(|| seconds().saturating_mul(1_000_000_000));
        let device = |character| {
            let number = |number: std::io::Result<Option<u32>>| {
                number.map(Option::unwrap_or_default).map_err(|_| wrong("a device number is no number"))
            };
            let (major, minor) = (number(header.device_major())?, number(header.device_minor())?);
            Ok::<_, LayerError>(FileKind::Special(SpecialFile::Device { character, major, minor }))
        };
        let link = || {
            let link =
                pax.link.or(link).or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
            link.filter(|link| !link.is_empty()).ok_or_else(|| wrong("a link without a target"))
        };
        let kind = match header.entry_type() {
            EntryType::Regular if path.ends_with(b"/") => FileKind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let size = match pax.size {
                    Some(size) => size,
                    None => header.entry_size().map_err(|_| wrong("its size is no number"))?,
                };
                if size > MAX_SIZE {
                    return Err(wrong("its size is larger than any file can be"));
                }
                let file = PendingFile { path, mode, mtime, xattrs: pax.xattrs, size, stored: size };
                return self.file(file, header, sparse);
            }
            EntryType::Directory => FileKind::Directory,
            EntryType::Symlink => FileKind::Symlink(link()?),
            EntryType::Link => FileKind::HardLink(link()?),
            EntryType::Fifo => FileKind::Special(SpecialFile::Fifo),
            EntryType::Char => device(true)?,
            EntryType::Block => device(false)?,
            _ => return Err(wrong("its type is not known")),
        };
        entry(TarEntry { path, kind, mode, mtime, xattrs: pax.xattrs })?;
        Ok(TarParserState::Header)
    }

    /// Starts a file whose header is complete: plain, or sparse in one of the four formats.
    fn file(
        &mut self,
        mut file: PendingFile,
        header: &Header,
        sparse: Option<PaxSparse>,
    ) -> Result<TarParserState, LayerError> {
        if header.entry_type() == EntryType::GNUSparse {
            let gnu = header
                .as_gnu()
                .ok_or_else(|| entry_error(&file.path, "a sparse file without a GNU header"))?;
            file.size = gnu.real_size().map_err(|_| entry_error(&file.path, "its size is no number"))?;
            let mut parts = Vec::new();
            gnu_parts(&gnu.sparse, &mut parts).map_err(|what| entry_error(&file.path, what))?;
            if gnu.is_extended() {
                return Ok(TarParserState::GnuMap { file, parts });
            }
            return self.sparse(file, &parts, 0);
        }
        let Some(sparse) = sparse else {
            let (left, content) = (file.stored, TarContentLocation::At(self.at));
            return Ok(TarParserState::Content {
                file,
                content,
                sum: Box::new(ContentHasher::plain()),
                left,
            });
        };
        let wrong = |what| entry_error(&file.path, what);
        let size = sparse.size.ok_or_else(|| wrong("a sparse file without its size"))?;
        match sparse.version {
            Some((1, 0)) => {
                file.size = size;
                Ok(TarParserState::TextMap { file, map: SparseTextMap::default() })
            }
            None | Some((0, 0 | 1)) => {
                let parts = sparse.parts().ok_or_else(|| wrong("its sparse map is damaged"))?;
                file.size = size;
                self.sparse(file, &parts, 0)
            }
            Some(_) => Err(wrong("its sparse format is not known")),
        }
    }

    /// Starts the content of a sparse file; `map` is the size in bytes of the map that was stored in it.
    fn sparse(
        &mut self,
        file: PendingFile,
        parts: &[SparseRange],
        map: u64,
    ) -> Result<TarParserState, LayerError> {
        let damaged = || entry_error(&file.path, "its sparse map is damaged");
        if file.size > MAX_SIZE {
            return Err(entry_error(&file.path, "its size is larger than any file can be"));
        }
        let left = file.stored.checked_sub(map).ok_or_else(damaged)?;
        let pieces = locate_extents(parts, file.size, left, self.at).ok_or_else(damaged)?;
        let sum = Box::new(match self.hashes_content {
            true => ContentHasher::sparse(&pieces, file.size, &mut self.hole_budget),
            false => ContentHasher::plain(),
        });
        Ok(TarParserState::Content { file, content: TarContentLocation::Sparse(pieces), sum, left })
    }
}

fn gnu_parts(headers: &[GnuSparseHeader], parts: &mut Vec<SparseRange>) -> Result<(), &'static str> {
    let number = |number: std::io::Result<u64>| number.map_err(|_| "its sparse map is damaged");
    for part in headers.iter().filter(|part| !part.is_empty()) {
        parts.push((number(part.offset())?, number(part.length())?));
        if parts.len() > MAX_EXTENTS {
            return Err("its sparse map is too long");
        }
    }
    Ok(())
}
