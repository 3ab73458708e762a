//! Sections of 64-bit little-endian ELF programs; others are not read.

use std::io;

use crate::scan::FileContent;

const HEADER_BYTES: usize = 64;
const SECTION_BYTES: usize = 64;
const MAX_SECTIONS: usize = 512;
const MAX_NAMES_BYTES: u64 = 64 * 1024;

pub(crate) const MAGIC: &[u8] = b"\x7fELF\x02\x01";

/// Finds the content of a section: its offset in the file and its length.
pub(crate) struct Sections {
    headers: Vec<u8>,
    names: Vec<u8>,
}

impl Sections {
    /// Returns `None` for a file that is no such program, or whose headers lead out of it.
    pub(crate) fn read(file: &dyn FileContent) -> io::Result<Option<Self>> {
        let header = bytes_at(file, 0, HEADER_BYTES as u64)?;
        if header.len() < HEADER_BYTES || !header.starts_with(MAGIC) {
            return Ok(None);
        }
        let (Some(table), Some(size), Some(count), Some(names)) =
            (number(&header, 40, 8), number(&header, 58, 2), number(&header, 60, 2), number(&header, 62, 2))
        else {
            return Ok(None);
        };
        if size != SECTION_BYTES as u64 || count as usize > MAX_SECTIONS {
            return Ok(None);
        }
        let headers = bytes_at(file, table, size * count)?;
        let Some((at, length)) = location(&headers, names as usize) else { return Ok(None) };
        let names = bytes_at(file, at, length.min(MAX_NAMES_BYTES))?;
        Ok(Some(Self { headers, names }))
    }

    pub(crate) fn find(&self, name: &str) -> Option<(u64, u64)> {
        let is_named = |index: &usize| {
            let at = number(&self.headers, index * SECTION_BYTES, 4).unwrap_or(u64::MAX);
            let rest = usize::try_from(at).ok().and_then(|at| self.names.get(at..));
            rest.is_some_and(|rest| {
                rest.strip_prefix(name.as_bytes()).is_some_and(|end| end.first() == Some(&0))
            })
        };
        let index = (0..self.headers.len() / SECTION_BYTES).find(is_named)?;
        location(&self.headers, index)
    }
}

fn location(headers: &[u8], index: usize) -> Option<(u64, u64)> {
    let start = index.checked_mul(SECTION_BYTES)?;
    Some((number(headers, start.checked_add(24)?, 8)?, number(headers, start.checked_add(32)?, 8)?))
}

/// Reads at most `length` bytes, or fewer at the end of the file.
pub(crate) fn bytes_at(file: &dyn FileContent, at: u64, length: u64) -> io::Result<Vec<u8>> {
    let length = length.min(file.size().saturating_sub(at));
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], at + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Reads a little-endian number of 1 to 8 bytes.
fn number(bytes: &[u8], at: usize, length: usize) -> Option<u64> {
    let field = bytes.get(at..at.checked_add(length)?)?;
    Some(field.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}
