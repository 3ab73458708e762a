//! A file's bytes out of a layer's tar; holes are zeros that lie nowhere.

use std::io::{self, Read};
use std::sync::Arc;

use hearth_pack::identity::ContentHash;

use super::archive::Content;
use super::reader::LayerReader;

/// Fills as much of `buffer` as a file of `size` bytes has from `offset` on.
pub(super) fn read_at(
    layer: &LayerReader,
    content: &Content,
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

/// At least one byte, but at the end of the file.
fn read_some(
    layer: &LayerReader,
    content: &Content,
    size: u64,
    buffer: &mut [u8],
    offset: u64,
) -> io::Result<usize> {
    if offset >= size || buffer.is_empty() {
        return Ok(0);
    }
    // How far this kind of bytes goes, and where they lie.
    let (until, at) = match content {
        Content::At(at) => (size, Some(at + offset)),
        Content::Sparse(pieces) => {
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
pub(super) struct Extract {
    layer: Arc<LayerReader>,
    content: Content,
    size: u64,
    position: u64,
    /// Of what was read; none for sparse files, whose zeros are not worth it.
    sum: Option<(Box<blake3::Hasher>, ContentHash)>,
}

impl Extract {
    pub(super) fn new(layer: Arc<LayerReader>, content: Content, size: u64, hash: ContentHash) -> Self {
        let sum = match content {
            Content::At(_) => Some((Box::default(), hash)),
            Content::Sparse(_) => None,
        };
        Self { layer, content, size, position: 0, sum }
    }
}

impl Read for Extract {
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

/// In place of a sparse file that nobody should copy.
pub(super) struct Refused {
    pub limit: u64,
}

impl Read for Refused {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        let limit = self.limit;
        let what = format!(
            "the sparse files of its image have more than {limit} bytes of holes, which only a mount serves"
        );
        Err(io::Error::new(io::ErrorKind::FileTooLarge, what))
    }
}
