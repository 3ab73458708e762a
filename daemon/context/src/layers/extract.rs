//! Reads a file's bytes from a layer's tar. Holes of sparse files are zeros that are not stored.

use std::io::{self, Read};
use std::sync::Arc;

use hearth_pack::identity::ContentHash;

use super::reader::LayerReader;
use super::tar_parser::TarContentLocation;

/// Fills `buffer` from `offset` on, as far as a file of `size` bytes reaches. Returns the number of bytes.
pub(super) fn read_at(
    layer: &LayerReader,
    content: &TarContentLocation,
    size: u64,
    buffer: &mut [u8],
    offset: u64,
) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        let count =
            read_some(layer, content, size, &mut buffer[filled..], offset.saturating_add(filled as u64))?;
        if count == 0 {
            break;
        }
        filled += count;
    }
    Ok(filled)
}

/// Reads at least one byte, except at the end of the file.
fn read_some(
    layer: &LayerReader,
    content: &TarContentLocation,
    size: u64,
    buffer: &mut [u8],
    offset: u64,
) -> io::Result<usize> {
    if offset >= size || buffer.is_empty() {
        return Ok(0);
    }
    // End of the current extent or hole, and the position of the extent's bytes in the tar.
    let (until, at) = match content {
        TarContentLocation::At(at) => (size, Some(at + offset)),
        TarContentLocation::Sparse(pieces) => {
            let next = pieces.partition_point(|piece| piece.offset + piece.length <= offset);
            match pieces.get(next) {
                Some(piece) if piece.offset <= offset => {
                    (piece.offset + piece.length, Some(piece.at + (offset - piece.offset)))
                }
                Some(piece) => (piece.offset, None),
                None => (size, None),
            }
        }
    };
    let most = usize::try_from(until - offset).unwrap_or(usize::MAX).min(buffer.len());
    let Some(at) = at else {
        buffer[..most].fill(0);
        return Ok(most);
    };
    match layer.read_at(&mut buffer[..most], at)? {
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a layer is shorter than its index says")),
        count => Ok(count),
    }
}

/// Reads a file from its start to its end.
pub(super) struct FileExtractor {
    layer: Arc<LayerReader>,
    content: TarContentLocation,
    size: u64,
    position: u64,
    /// Hash of the bytes read and the expected hash; `None` for sparse files, whose zeros are too expensive
    /// to hash.
    sum: Option<(Box<blake3::Hasher>, ContentHash)>,
}

impl FileExtractor {
    pub(super) fn new(
        layer: Arc<LayerReader>,
        content: TarContentLocation,
        size: u64,
        hash: ContentHash,
    ) -> Self {
        let sum = match content {
            TarContentLocation::At(_) => Some((Box::default(), hash)),
            TarContentLocation::Sparse(_) => None,
        };
        Self { layer, content, size, position: 0, sum }
    }
}

impl Read for FileExtractor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = read_some(&self.layer, &self.content, self.size, buffer, self.position)?;
        self.position += count as u64;
        if let Some((sum, expected)) = &mut self.sum
            && count > 0
        {
            sum.update(&buffer[..count]);
            if self.position == self.size && sum.finalize() != blake3::Hash::from_bytes(*expected.as_bytes())
            {
                self.position = self.size - count as u64;
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "a layer's blob is not what it was when it was indexed",
                ));
            }
        }
        Ok(count)
    }
}

/// Stands for a sparse file that must not be copied because of its holes: every read fails.
pub(super) struct RefusedSparseFile {
    pub limit: u64,
}

impl Read for RefusedSparseFile {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        let limit = self.limit;
        let what = format!(
            "the sparse files of its image have more than {limit} bytes of holes, which only a mount serves"
        );
        Err(io::Error::new(io::ErrorKind::FileTooLarge, what))
    }
}
