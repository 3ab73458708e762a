//! Headers of a tar, read by position; content is skipped.
//!
//! Header fields come from the `tar` crate. The walk from header to header is ours, since its
//! iterator reads name extensions of any size into memory, and since positions are what is wanted.
//! As Go's archive/tar does it: a PAX record wins over a GNU extension, which wins over the header;
//! links, directories and devices have no content whatever their size field says.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use tar::{EntryType, GnuExtSparseHeader, GnuSparseHeader, Header};

use super::LayerError;

const BLOCK: u64 = 512;
/// A GNU name, and a PAX header; real ones are far smaller.
const MAX_NAME: u64 = 64 << 10;
const MAX_PAX: u64 = 1 << 20;
/// Pieces of one sparse file.
const MAX_PIECES: usize = 100_000;

pub(super) struct TarEntry {
    /// As written.
    pub path: Vec<u8>,
    pub kind: TarKind,
    pub mode: u32,
    /// Nanoseconds since 1970.
    pub mtime: i64,
}

pub(super) enum TarKind {
    File { size: u64, content: Content },
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Fifo,
    Device { character: bool, major: u32, minor: u32 },
}

/// Where a file's bytes lie in the tar.
pub(super) enum Content {
    At(u64),
    /// What is between the pieces is zeros.
    Sparse(Box<[Piece]>),
}

#[derive(Clone, Copy)]
pub(super) struct Piece {
    /// In the file.
    pub offset: u64,
    pub length: u64,
    /// In the tar.
    pub at: u64,
}

/// What extension headers say about the entry after them.
#[derive(Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    pax: Pax,
}

#[derive(Default)]
struct Pax {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<i64>,
}

/// All entries of a tar of `length` bytes, at most `limit`.
pub(super) fn entries(file: &File, length: u64, limit: usize) -> Result<Vec<TarEntry>, LayerError> {
    let mut walk = Headers { file, length, at: 0 };
    let mut entries = Vec::new();
    let mut extended = Extended::default();
    while let Some((header, at)) = walk.next_header()? {
        match header.entry_type() {
            EntryType::GNULongName => extended.path = Some(walk.text(&header, MAX_NAME)?),
            EntryType::GNULongLink => extended.link = Some(walk.text(&header, MAX_NAME)?),
            EntryType::XHeader => {
                let records = walk.data(&header, MAX_PAX)?;
                extended.pax = pax(&records).map_err(|what| LayerError::Malformed { at, what })?;
            }
            EntryType::XGlobalHeader => {
                walk.data(&header, MAX_PAX)?;
            }
            _ => {
                if entries.len() >= limit {
                    return Err(LayerError::TooManyEntries { limit });
                }
                entries.push(walk.entry(&header, std::mem::take(&mut extended))?);
            }
        }
    }
    Ok(entries)
}

struct Headers<'f> {
    file: &'f File,
    length: u64,
    /// Where the next header or the content of the last one begins.
    at: u64,
}

impl Headers<'_> {
    const fn malformed(&self, what: &'static str) -> LayerError {
        LayerError::Malformed { at: self.at, what }
    }

    fn block(&mut self) -> Result<[u8; BLOCK as usize], LayerError> {
        if self.length.saturating_sub(self.at) < BLOCK {
            return Err(self.malformed("it ends within a block"));
        }
        let mut block = [0; BLOCK as usize];
        self.file.read_exact_at(&mut block, self.at)?;
        self.at += BLOCK;
        Ok(block)
    }

    /// The next header and its position; none at the end, which is two blocks of zeros or the end of the file.
    fn next_header(&mut self) -> Result<Option<(Header, u64)>, LayerError> {
        let at = self.at;
        if at >= self.length {
            return Ok(None);
        }
        let block = self.block()?;
        if block.iter().all(|byte| *byte == 0) {
            if self.at < self.length && self.block()?.iter().any(|byte| *byte != 0) {
                return Err(LayerError::Malformed {
                    at,
                    what: "a block of zeros is followed by something else",
                });
            }
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        let sum: u32 =
            block[..148].iter().chain(&[b' '; 8]).chain(&block[156..]).map(|byte| u32::from(*byte)).sum();
        if header.cksum().ok() != Some(sum) {
            return Err(LayerError::Malformed { at, what: "the checksum of a header is wrong" });
        }
        Ok(Some((header, at)))
    }

    /// Steps over `size` bytes of content and its padding.
    fn skip(&mut self, size: u64) -> Result<(), LayerError> {
        if size > self.length.saturating_sub(self.at) {
            return Err(self.malformed("an entry is longer than what is left of the tar"));
        }
        // The padding of the last entry may be missing, as the end mark may.
        self.at = (self.at + size.next_multiple_of(BLOCK)).min(self.length);
        Ok(())
    }

    fn data(&mut self, header: &Header, limit: u64) -> Result<Vec<u8>, LayerError> {
        let size = header.entry_size().map_err(|_| self.malformed("a size is no number"))?;
        if size > limit {
            return Err(self.malformed("a name or PAX header is too long"));
        }
        let start = self.at;
        self.skip(size)?;
        let mut data = vec![0; usize::try_from(size).unwrap_or_default()];
        self.file.read_exact_at(&mut data, start)?;
        Ok(data)
    }

    fn text(&mut self, header: &Header, limit: u64) -> Result<Vec<u8>, LayerError> {
        let mut text = self.data(header, limit)?;
        if let Some(end) = text.iter().position(|byte| *byte == 0) {
            text.truncate(end);
        }
        Ok(text)
    }

    fn entry(&mut self, header: &Header, extended: Extended) -> Result<TarEntry, LayerError> {
        let Extended { path, link, pax } = extended;
        let path = pax.path.or(path).unwrap_or_else(|| header.path_bytes().into_owned());
        let wrong = |what| LayerError::Entry { entry: String::from_utf8_lossy(&path).into_owned(), what };
        let link = || {
            let link =
                pax.link.or(link).or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
            link.filter(|link| !link.is_empty()).ok_or_else(|| wrong("a link without a target"))
        };
        let device = |character| {
            let number = |number: std::io::Result<Option<u32>>| {
                number.map(Option::unwrap_or_default).map_err(|_| wrong("a device number is no number"))
            };
            let (major, minor) = (number(header.device_major())?, number(header.device_minor())?);
            Ok::<_, LayerError>(TarKind::Device { character, major, minor })
        };
        let kind = match header.entry_type() {
            EntryType::Regular if path.ends_with(b"/") => TarKind::Directory,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let stored = match pax.size {
                    Some(size) => size,
                    None => header.entry_size().map_err(|_| wrong("its size is no number"))?,
                };
                self.file_content(header, stored, wrong)?
            }
            EntryType::Directory => TarKind::Directory,
            EntryType::Symlink => TarKind::Symlink(link()?),
            EntryType::Link => TarKind::HardLink(link()?),
            EntryType::Fifo => TarKind::Fifo,
            EntryType::Char => device(true)?,
            EntryType::Block => device(false)?,
            _ => return Err(wrong("its type is not known")),
        };
        let mode = header.mode().map_err(|_| wrong("its mode is no number"))? & 0o7777;
        let seconds = || i64::try_from(header.mtime().unwrap_or_default()).unwrap_or(i64::MAX);
        let mtime = pax.mtime.unwrap_or_else(|| seconds().saturating_mul(1_000_000_000));
        Ok(TarEntry { path, kind, mode, mtime })
    }

    fn file_content(
        &mut self,
        header: &Header,
        stored: u64,
        wrong: impl Fn(&'static str) -> LayerError,
    ) -> Result<TarKind, LayerError> {
        if header.entry_type() != EntryType::GNUSparse {
            let content = Content::At(self.at);
            self.skip(stored)?;
            return Ok(TarKind::File { size: stored, content });
        }
        let gnu = header.as_gnu().ok_or_else(|| wrong("a sparse file without a GNU header"))?;
        let size = gnu.real_size().map_err(|_| wrong("its size is no number"))?;
        let mut parts: Vec<GnuPart> = Vec::new();
        let mut add = |headers: &[GnuSparseHeader]| {
            for part in headers.iter().filter(|part| !part.is_empty()) {
                let number =
                    |number: std::io::Result<u64>| number.map_err(|_| wrong("its sparse map is damaged"));
                parts.push((number(part.offset())?, number(part.length())?));
                if parts.len() > MAX_PIECES {
                    return Err(wrong("its sparse map is too long"));
                }
            }
            Ok(())
        };
        add(&gnu.sparse)?;
        let mut more = gnu.is_extended();
        while more {
            let mut extension = GnuExtSparseHeader::new();
            extension.as_mut_bytes().copy_from_slice(&self.block()?);
            add(extension.sparse())?;
            more = extension.is_extended();
        }
        let pieces =
            pieces(&parts, size, stored, self.at).ok_or_else(|| wrong("its sparse map is damaged"))?;
        self.skip(stored)?;
        Ok(TarKind::File { size, content: Content::Sparse(pieces) })
    }
}

/// Offset in the file, and length.
type GnuPart = (u64, u64);

/// Where the parts lie, one after the other from `at` on. None when they overlap, go past the end of
/// the file, or are not as long together as what is stored.
fn pieces(parts: &[GnuPart], size: u64, stored: u64, at: u64) -> Option<Box<[Piece]>> {
    let (mut end, mut used) = (0u64, 0u64);
    let mut pieces = Vec::with_capacity(parts.len());
    for &(offset, length) in parts {
        if offset < end {
            return None;
        }
        end = offset.checked_add(length).filter(|end| *end <= size)?;
        pieces.push(Piece { offset, length, at: at.checked_add(used)? });
        used = used.checked_add(length)?;
    }
    (used == stored).then(|| pieces.into())
}

/// Records of a PAX header: `LENGTH KEY=VALUE\n`, each as long as it says.
fn pax(mut data: &[u8]) -> Result<Pax, &'static str> {
    const DAMAGED: &str = "a PAX header is damaged";
    let mut pax = Pax::default();
    while !data.is_empty() {
        let space = data.iter().take(20).position(|byte| *byte == b' ').ok_or(DAMAGED)?;
        let length: usize =
            std::str::from_utf8(&data[..space]).ok().and_then(|digits| digits.parse().ok()).ok_or(DAMAGED)?;
        let record = data.get(space + 1..length).ok_or(DAMAGED)?;
        data = &data[length..];
        let record = record.strip_suffix(b"\n").ok_or(DAMAGED)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or(DAMAGED)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let digits = || std::str::from_utf8(value).map_err(|_| DAMAGED);
        match key {
            b"path" | b"linkpath" if value.contains(&0) => return Err("a PAX name has a NUL byte"),
            b"path" => pax.path = Some(value.to_vec()),
            b"linkpath" => pax.link = Some(value.to_vec()),
            b"size" => pax.size = Some(digits()?.parse().map_err(|_| "a PAX size is no number")?),
            b"mtime" => pax.mtime = Some(pax_time(digits()?).ok_or("a PAX time is no number")?),
            key if key.starts_with(b"GNU.sparse.") => {
                return Err("sparse files in PAX form are not supported");
            }
            _ => {}
        }
    }
    Ok(pax)
}

/// `-12.345` as nanoseconds; digits beyond those are dropped.
fn pax_time(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: i64 = digits.parse().ok()?;
    let nanos = if whole.starts_with('-') { -nanos } else { nanos };
    Some(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}
