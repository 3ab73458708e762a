//! Encoding of a layer's entries as one byte sequence, in the order of the tar. A path is encoded as its
//! difference from the preceding path. A file takes about 60 bytes.

use hearth_pack::identity::ContentHash;
use hearth_pack::{FileKind, SpecialFile};

use super::encoding::{DamagedIndex, IndexDecoder, put_bytes, put_number, put_signed};
use super::sparse::{self, MAX_EXTENTS, SparseRange};
use super::tar_parser::{TarContentLocation, TarEntry, TarFile};

const FILE: u8 = 0;
const SPARSE: u8 = 1;
const DIRECTORY: u8 = 2;
const SYMLINK: u8 = 3;
const HARD_LINK: u8 = 4;
const FIFO: u8 = 5;
const CHARACTER: u8 = 6;
const BLOCK: u8 = 7;
const SOCKET: u8 = 8;
const XATTRS: u8 = 0x80;

/// Encodes entries.
#[derive(Debug, Default)]
pub(super) struct EntryWriter {
    pub bytes: Vec<u8>,
    pub count: usize,
    /// True if any path looks like a whiteout.
    pub has_whiteouts: bool,
    path: Vec<u8>,
}

impl EntryWriter {
    pub(super) fn push(&mut self, entry: TarEntry) {
        let TarEntry { path, kind, mode, mtime, xattrs } = entry;
        let out = &mut self.bytes;
        let tag = match &kind {
            FileKind::File(TarFile { content: TarContentLocation::At(_), .. }) => FILE,
            FileKind::File(TarFile { content: TarContentLocation::Sparse(_), .. }) => SPARSE,
            FileKind::Directory => DIRECTORY,
            FileKind::Symlink(_) => SYMLINK,
            FileKind::HardLink(_) => HARD_LINK,
            // No tar has sockets, but their tag keeps the encoding complete.
            FileKind::Special(SpecialFile::Socket) => SOCKET,
            FileKind::Special(SpecialFile::Fifo) => FIFO,
            FileKind::Special(SpecialFile::Device { character: true, .. }) => CHARACTER,
            FileKind::Special(SpecialFile::Device { character: false, .. }) => BLOCK,
        };
        out.push(if xattrs.is_empty() { tag } else { tag | XATTRS });
        let shared = self.path.iter().zip(&path).take_while(|(a, b)| a == b).count();
        put_number(out, shared as u64);
        put_bytes(out, &path[shared..]);
        put_number(out, u64::from(mode));
        put_signed(out, mtime);
        match kind {
            FileKind::File(TarFile { size, content: TarContentLocation::At(at), hash }) => {
                put_number(out, size);
                put_number(out, at);
                out.extend_from_slice(hash.as_bytes());
            }
            FileKind::File(TarFile { size, content: TarContentLocation::Sparse(pieces), hash }) => {
                put_number(out, size);
                put_number(out, pieces.first().map_or(0, |piece| piece.at));
                out.extend_from_slice(hash.as_bytes());
                put_number(out, pieces.len() as u64);
                for piece in &pieces {
                    put_number(out, piece.offset);
                    put_number(out, piece.length);
                }
            }
            FileKind::Symlink(target) | FileKind::HardLink(target) => put_bytes(out, &target),
            FileKind::Special(SpecialFile::Device { major, minor, .. }) => {
                put_number(out, u64::from(major));
                put_number(out, u64::from(minor));
            }
            FileKind::Directory | FileKind::Special(SpecialFile::Fifo | SpecialFile::Socket) => {}
        }
        if !xattrs.is_empty() {
            put_number(out, xattrs.len() as u64);
            for (name, value) in &xattrs {
                put_bytes(out, name);
                put_bytes(out, value);
            }
        }
        self.has_whiteouts |= path.windows(4).any(|part| part == b".wh.");
        self.path = path;
        self.count += 1;
    }
}

/// Decodes entries.
pub(super) struct EntryReader<'b> {
    wire: IndexDecoder<'b>,
    path: Vec<u8>,
}

impl<'b> EntryReader<'b> {
    pub(super) const fn new(bytes: &'b [u8]) -> Self {
        Self { wire: IndexDecoder(bytes), path: Vec::new() }
    }

    fn entry(&mut self) -> Result<TarEntry, DamagedIndex> {
        let [tag] = self.wire.array()?;
        let shared = usize::try_from(self.wire.number()?).map_err(|_| DamagedIndex)?;
        if shared > self.path.len() {
            return Err(DamagedIndex);
        }
        self.path.truncate(shared);
        self.path.extend_from_slice(self.wire.bytes()?);
        let mode = self.wire.number_u32()? & 0o7777;
        let mtime = self.wire.signed()?;
        let kind = match tag & !XATTRS {
            FILE => {
                let (size, at) = (self.wire.number()?, self.wire.number()?);
                let hash = ContentHash::from_bytes(self.wire.array()?);
                at.checked_add(size).ok_or(DamagedIndex)?;
                FileKind::File(TarFile { size, content: TarContentLocation::At(at), hash })
            }
            SPARSE => FileKind::File(self.sparse()?),
            DIRECTORY => FileKind::Directory,
            SYMLINK => FileKind::Symlink(self.wire.bytes()?.to_vec()),
            HARD_LINK => FileKind::HardLink(self.wire.bytes()?.to_vec()),
            FIFO => FileKind::Special(SpecialFile::Fifo),
            SOCKET => FileKind::Special(SpecialFile::Socket),
            kind @ (CHARACTER | BLOCK) => {
                let (major, minor) = (self.wire.number_u32()?, self.wire.number_u32()?);
                FileKind::Special(SpecialFile::Device { character: kind == CHARACTER, major, minor })
            }
            _ => return Err(DamagedIndex),
        };
        let mut xattrs = Vec::new();
        if tag & XATTRS != 0 {
            for _ in 0..self.wire.count(2)? {
                xattrs.push((self.wire.bytes()?.to_vec(), self.wire.bytes()?.to_vec()));
            }
        }
        Ok(TarEntry { path: self.path.clone(), kind, mode, mtime, xattrs })
    }

    fn sparse(&mut self) -> Result<TarFile, DamagedIndex> {
        let (size, at) = (self.wire.number()?, self.wire.number()?);
        let hash = ContentHash::from_bytes(self.wire.array()?);
        let count = self.wire.count(2)?;
        if count > MAX_EXTENTS {
            return Err(DamagedIndex);
        }
        let mut parts: Vec<SparseRange> = Vec::with_capacity(count);
        let mut stored = 0u64;
        for _ in 0..count {
            let part = (self.wire.number()?, self.wire.number()?);
            stored = stored.checked_add(part.1).ok_or(DamagedIndex)?;
            parts.push(part);
        }
        let pieces = sparse::locate_extents(&parts, size, stored, at).ok_or(DamagedIndex)?;
        Ok(TarFile { size, content: TarContentLocation::Sparse(pieces), hash })
    }
}

impl Iterator for EntryReader<'_> {
    type Item = Result<TarEntry, DamagedIndex>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.wire.0.is_empty() {
            return None;
        }
        let entry = self.entry();
        if entry.is_err() {
            self.wire.0 = &[];
        }
        Some(entry)
    }
}
