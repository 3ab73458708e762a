//! Reader for tar members from an untrusted stream: only headers of bounded size are held in memory.
//!
//! PAX records (`path`, `size`, `linkpath`) and GNU long names are supported, because other writers use them. An
//! archive must end with an empty block, so that one that is truncated between two members is detected.

use std::io::{self, Read};

use tar::{EntryType, Header};

use super::ArchiveError;
use crate::layer::header::{TAR_BLOCK, padding};
use crate::walk::display_path;

/// Maximum size of an extension header, in bytes. Names and the few PAX records of an image archive are far smaller.
const EXTENSION_LIMIT: u64 = 64 * 1024;

/// Sequential reader for the members of a tar stream.
pub(crate) struct RawTar<R> {
    inner: R,
    position: u64,
    /// Number of unread content bytes of the current member.
    unread: u64,
    padding: u64,
}

/// The header of a member; its content is read from the archive next.
#[derive(Debug)]
pub(crate) struct TarMember {
    /// Name without leading `./`, otherwise unchecked.
    pub(crate) name: Vec<u8>,
    pub(crate) kind: EntryType,
    pub(crate) size: u64,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
}

impl<R: Read> RawTar<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, position: 0, unread: 0, padding: 0 }
    }

    /// Offset of the next byte in the archive. Before its content is read, this is where the current member's content
    /// starts.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// Returns the next member, or `None` at the end of the archive. Unread content of the last member is skipped.
    pub(crate) fn next_member(&mut self) -> Result<Option<TarMember>, ArchiveError> {
        let (mut name, mut size) = (None, None);
        loop {
            self.skip()?;
            let mut block = [0u8; TAR_BLOCK];
            if self.fill(&mut block)? < TAR_BLOCK {
                return Err(ArchiveError::Truncated);
            }
            if block.iter().all(|&byte| byte == 0) {
                return Ok(None);
            }
            let header = Header::from_byte_slice(&block);
            check(header, self.position == TAR_BLOCK as u64)?;
            let kind = header.entry_type();
            let own_size = header.entry_size().map_err(|_| ArchiveError::Header { what: "size" })?;
            match kind {
                EntryType::XHeader => {
                    let records = self.extension(own_size)?;
                    for (key, value) in pax(&records)? {
                        match key {
                            b"path" => name = Some(value.to_vec()),
                            b"size" => size = Some(number(value)?),
                            _ => {}
                        }
                    }
                }
                EntryType::GNULongName => {
                    let mut long = self.extension(own_size)?;
                    long.truncate(long.iter().position(|&byte| byte == 0).unwrap_or(long.len()));
                    name = Some(long);
                }
                EntryType::GNULongLink | EntryType::XGlobalHeader => {
                    self.extension(own_size)?;
                }
                kind => {
                    let name = name.unwrap_or_else(|| header.path_bytes().into_owned());
                    let size = size.unwrap_or(own_size);
                    // Links and directories have no content, whatever their size field says.
                    let has_content =
                        matches!(kind, EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse);
                    self.begin_content(if has_content { size } else { 0 })?;
                    let link = header.link_name_bytes().unwrap_or_default().into_owned();
                    return Ok(Some(TarMember { name: plain(&name), kind, size, link }));
                }
            }
        }
    }

    fn begin_content(&mut self, size: u64) -> Result<(), ArchiveError> {
        // Sizes near the end of the range are invalid and must not overflow the sums.
        if size > i64::MAX as u64 - TAR_BLOCK as u64 {
            return Err(ArchiveError::Header { what: "size" });
        }
        self.unread = size;
        self.padding = padding(size) as u64;
        Ok(())
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, ArchiveError> {
        if size > EXTENSION_LIMIT {
            return Err(ArchiveError::Header { what: "extension of more than 64 KiB" });
        }
        self.begin_content(size)?;
        let mut content = vec![0; size as usize];
        if self.fill(&mut content)? < content.len() {
            return Err(ArchiveError::Truncated);
        }
        self.unread = 0;
        Ok(content)
    }

    /// Skips the unread content and the padding of the member.
    fn skip(&mut self) -> Result<(), ArchiveError> {
        let mut left = self.unread + self.padding;
        let mut scratch = vec![0u8; left.min(64 * 1024) as usize];
        while left > 0 {
            let room = left.min(scratch.len() as u64) as usize;
            let count = self.fill(&mut scratch[..room])?;
            if count < room {
                return Err(ArchiveError::Truncated);
            }
            left -= count as u64;
        }
        (self.unread, self.padding) = (0, 0);
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, ArchiveError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.inner.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ArchiveError::Read { source }),
            }
        }
        self.position += filled as u64;
        Ok(filled)
    }
}

/// Reads the content of the current member. An archive that ends inside it gives `UnexpectedEof`.
impl<R: Read> Read for RawTar<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.unread).unwrap_or(usize::MAX).min(buffer.len());
        if room == 0 {
            return Ok(0);
        }
        let count = self.inner.read(&mut buffer[..room])?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends inside a blob"));
        }
        self.unread -= count as u64;
        self.position += count as u64;
        Ok(count)
    }
}

fn check(header: &Header, first: bool) -> Result<(), ArchiveError> {
    let block = header.as_bytes();
    let sum: u32 = block
        .iter()
        .enumerate()
        .map(|(at, &byte)| if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(byte) })
        .sum();
    match header.cksum() {
        Ok(declared) if declared == sum => Ok(()),
        _ if first && block.starts_with(&[0x1f, 0x8b]) => {
            Err(ArchiveError::NotAnArchive { what: "it is compressed with gzip" })
        }
        _ if first && block.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) => {
            Err(ArchiveError::NotAnArchive { what: "it is compressed with zstd" })
        }
        _ if first => Err(ArchiveError::NotAnArchive { what: "it is not a tar" }),
        _ => Err(ArchiveError::Header { what: "checksum" }),
    }
}

/// Key and value of a PAX record.
pub(crate) type PaxRecord<'a> = (&'a [u8], &'a [u8]);

/// Parses PAX records of the form `length key=value\n`.
pub(crate) fn pax(mut records: &[u8]) -> Result<Vec<PaxRecord<'_>>, ArchiveError> {
    const BAD: ArchiveError = ArchiveError::Header { what: "PAX record" };
    let mut list = Vec::new();
    while !records.is_empty() {
        let space = records.iter().position(|&byte| byte == b' ').ok_or(BAD)?;
        let length = usize::try_from(number(&records[..space])?).map_err(|_| BAD)?;
        if length <= space + 1 || length > records.len() {
            return Err(BAD);
        }
        let (record, rest) = records.split_at(length);
        let record = record[space + 1..].strip_suffix(b"\n").ok_or(BAD)?;
        let equals = record.iter().position(|&byte| byte == b'=').ok_or(BAD)?;
        list.push((&record[..equals], &record[equals + 1..]));
        records = rest;
    }
    Ok(list)
}

fn number(digits: &[u8]) -> Result<u64, ArchiveError> {
    std::str::from_utf8(digits)
        .ok()
        .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|text| text.parse().ok())
        .ok_or(ArchiveError::Header { what: "number in a PAX record" })
}

fn plain(name: &[u8]) -> Vec<u8> {
    let mut name = name;
    while let Some(rest) = name.strip_prefix(b"./") {
        name = rest;
    }
    name.to_vec()
}

impl TarMember {
    pub(crate) fn shown(&self) -> String {
        display_path(&self.name).chars().take(200).collect()
    }
}
