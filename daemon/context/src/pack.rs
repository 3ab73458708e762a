//! The tree of a pack, with its content by hash. The store of packs implements [`PackContentSource`].

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use hearth_pack::identity::ContentHash;
use hearth_pack::listing::TreeListing;

/// Hash and size of one piece of a file. A small file is its own only piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContentPiece {
    pub hash: ContentHash,
    pub size: u32,
}

/// Source of content by hash. The content store implements it.
pub trait PackContentSource: Send + Sync + 'static {
    /// Returns the pieces of a content in order, or `None` if the content is missing.
    fn pieces(&self, content: &ContentHash) -> io::Result<Option<Vec<ContentPiece>>>;
    /// Returns one whole, verified piece, or `None` if it is missing.
    fn piece(&self, piece: &ContentHash) -> io::Result<Option<Bytes>>;
}

/// A committed tree with access to its content.
pub struct PackTree {
    pub listing: TreeListing,
    contents: Arc<dyn PackContentSource>,
}

impl fmt::Debug for PackTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PackTree").field("digest", &self.listing.digest()).finish_non_exhaustive()
    }
}

impl PackTree {
    pub fn new(listing: TreeListing, contents: Arc<dyn PackContentSource>) -> Self {
        Self { listing, contents }
    }

    /// Opens content of the tree for reading. One piece of it is in memory at a time.
    pub fn open(&self, content: &ContentHash, size: u64) -> io::Result<PackContentReader> {
        self.open_at(content, size, 0)
    }

    /// Opens content from `offset` on; pieces before it are not read.
    pub fn open_at(&self, content: &ContentHash, size: u64, offset: u64) -> io::Result<PackContentReader> {
        let mut pieces = self.contents.pieces(content)?.ok_or_else(|| gone(content))?;
        let (mut skip, mut before) = (offset, 0);
        while let Some(piece) = pieces.get(before).filter(|piece| u64::from(piece.size) <= skip && skip > 0) {
            skip -= u64::from(piece.size);
            before += 1;
        }
        pieces.drain(..before);
        Ok(PackContentReader {
            contents: Arc::clone(&self.contents),
            pieces: pieces.into_iter(),
            piece: Bytes::new(),
            skip,
            left: size.saturating_sub(offset),
        })
    }
}

/// Reader for one content. It yields exactly the expected size or fails.
pub struct PackContentReader {
    contents: Arc<dyn PackContentSource>,
    pieces: std::vec::IntoIter<ContentPiece>,
    piece: Bytes,
    /// Number of bytes to skip at the start of the first piece.
    skip: u64,
    left: u64,
}

impl Read for PackContentReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && self.left > 0 {
            let next = self.pieces.next().ok_or(io::ErrorKind::UnexpectedEof)?;
            self.piece = self.contents.piece(&next.hash)?.ok_or_else(|| gone(&next.hash))?;
            let skip = usize::try_from(std::mem::take(&mut self.skip)).unwrap_or(usize::MAX);
            self.piece.advance(skip.min(self.piece.len()));
            if self.piece.len() as u64 > self.left {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "stored content is larger than its entry says",
                ));
            }
        }
        let count = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        self.left -= count as u64;
        Ok(count)
    }
}

fn gone(content: &ContentHash) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("content {content} of a pack is no longer in the room"))
}
