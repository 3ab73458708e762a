//! Maps of sparse files: the stored ranges; the gaps between them are zeros.

use super::pax;

/// Maximum number of extents of one sparse file.
pub(super) const MAX_EXTENTS: usize = 100_000;

/// Offset in the file, and length.
pub(super) type SparseRange = (u64, u64);

/// A stored range of a sparse file, and its position in the tar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SparseExtent {
    /// Offset in the file.
    pub offset: u64,
    pub length: u64,
    /// Offset in the tar.
    pub at: u64,
}

/// Locates the stored ranges, which are contiguous in the tar from `at` on. `None` when they overlap, exceed
/// the file, or do not add up to the stored size.
pub(super) fn locate_extents(
    parts: &[SparseRange],
    size: u64,
    stored: u64,
    at: u64,
) -> Option<Box<[SparseExtent]>> {
    let (mut end, mut used) = (0u64, 0u64);
    let mut pieces = Vec::with_capacity(parts.len());
    for &(offset, length) in parts {
        if offset < end {
            return None;
        }
        end = offset.checked_add(length).filter(|end| *end <= size)?;
        if length > 0 {
            pieces.push(SparseExtent { offset, length, at: at.checked_add(used)? });
        }
        used = used.checked_add(length)?;
    }
    (used == stored).then(|| pieces.into())
}

/// The map at the start of a file's content (PAX version 1.0): the number of ranges, then offset and length
/// of each, each number on its own line, padded to whole blocks.
#[derive(Debug, Default)]
pub(super) struct SparseTextMap {
    text: Vec<u8>,
    lines: usize,
    /// Number of lines of the whole map, known after its first line.
    needed: Option<usize>,
}

const WRONG: &str = "its sparse map is damaged";

impl SparseTextMap {
    /// Number of bytes read so far.
    pub(super) const fn length(&self) -> u64 {
        self.text.len() as u64
    }

    /// Adds one block; returns the map when it is complete.
    pub(super) fn block(&mut self, block: &[u8]) -> Result<Option<Vec<SparseRange>>, &'static str> {
        self.text.extend_from_slice(block);
        self.lines += block.iter().filter(|byte| **byte == b'\n').count();
        if self.needed.is_none() && self.lines > 0 {
            let first = self.text.split(|byte| *byte == b'\n').next().unwrap_or_default();
            let count = pax::number(first).and_then(|count| usize::try_from(count).ok()).ok_or(WRONG)?;
            if count > MAX_EXTENTS {
                return Err("its sparse map is too long");
            }
            self.needed = Some(1 + 2 * count);
        }
        match self.needed {
            Some(needed) if self.lines >= needed => self.parts(needed).map(Some),
            // A number has at most 20 digits.
            needed if self.text.len() > 1024 + 21 * needed.unwrap_or(1) => Err(WRONG),
            _ => Ok(None),
        }
    }

    fn parts(&self, needed: usize) -> Result<Vec<SparseRange>, &'static str> {
        let lines = self.text.split(|byte| *byte == b'\n').take(needed).skip(1);
        let numbers: Vec<u64> = lines.map(|line| pax::number(line).ok_or(WRONG)).collect::<Result<_, _>>()?;
        Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }
}
