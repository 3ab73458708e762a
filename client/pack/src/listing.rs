//! List of a tree's entries in memory or in a file. A client sends it before the content, and the room stores it.
//!
//! The sender is not trusted, so every constructed [`TreeListing`] has been validated: its entries are in walk order,
//! each is below a directory of the list, no name leads out of the tree, and a hard link refers to an earlier file.
//!
//! ```text
//! entry := kind:u8 mode:u16 path attributes content
//! path  := length:u16 bytes            attributes := count:u16 (name: length:u16 bytes, value: length:u32 bytes)*
//! content := d | f size:u64 hash:32 | l target: length:u16 bytes | h target: length:u16 bytes
//! ```
//!
//! Numbers are little-endian. An entry takes about 130 bytes, and 4 more in the index of entries.

mod check;
mod sealed;

use std::cmp::Ordering;

use crate::file_kind::FileKind;
use crate::identity::{ContentHash, HashedContent, TreeDigest, TreeHasher, TreeNode};
use crate::walk::EntryXattrs;
use check::ListingChecker;

/// Size limits of a list.
#[derive(Clone, Copy, Debug)]
pub struct ListingLimits {
    pub entries: usize,
    /// Maximum size of the list itself in bytes, without content.
    pub bytes: usize,
}

impl Default for ListingLimits {
    fn default() -> Self {
        Self { entries: 2_000_000, bytes: 512 << 20 }
    }
}

/// Error of a list that is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    #[error("`{path}`: {reason}")]
    Entry { path: String, reason: &'static str },
    #[error("`{path}`: comes after `{before}`, which violates the order of a list")]
    Order { path: String, before: String },
    #[error("`{path}`: its parent directory is not in the list")]
    NoParent { path: String },
    #[error("`{path}`: is a hard link to `{target}`, which is not an earlier file of the list")]
    LinkTarget { path: String, target: String },
    #[error("more than {limit} entries")]
    TooMany { limit: usize },
    #[error("the list takes more than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("the list is damaged at byte {at}")]
    Damaged { at: usize },
}

/// Compares paths in walk order, which is the order of BuildKit's file sync too: `/` sorts before every other byte.
pub fn path_order(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(rank).cmp(b.iter().map(rank))
}

/// An entry of a list: a [`TreeNode`] that owns its attributes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListingEntry<'a> {
    pub path: &'a [u8],
    pub mode: u32,
    pub kind: FileKind<HashedContent, &'a [u8], &'a [u8]>,
    pub xattrs: EntryXattrs,
}

/// A validated list of a tree's entries.
#[derive(Clone, Debug)]
pub struct TreeListing {
    digest: TreeDigest,
    bytes: Vec<u8>,
    /// Offset of each entry in `bytes`.
    starts: Vec<u32>,
}

/// Builder of a list, which validates each entry.
#[derive(Debug)]
pub struct ListingWriter {
    limits: ListingLimits,
    bytes: Vec<u8>,
    starts: Vec<u32>,
    sum: TreeHasher,
    checker: ListingChecker,
    /// Indexes of hard links, whose targets are checked at the end.
    links: Vec<u32>,
}

impl ListingWriter {
    pub fn new(limits: ListingLimits) -> Self {
        Self {
            limits,
            bytes: Vec::new(),
            starts: Vec::new(),
            sum: TreeHasher::default(),
            checker: ListingChecker::default(),
            links: Vec::new(),
        }
    }

    /// Returns the size of the list so far, in bytes.
    pub fn size(&self) -> usize {
        self.bytes.len() + 4 * self.starts.len()
    }

    pub fn push(&mut self, node: &TreeNode<'_>) -> Result<(), ListingError> {
        self.checker.check(node)?;
        if self.starts.len() >= self.limits.entries {
            return Err(ListingError::TooMany { limit: self.limits.entries });
        }
        let start = u32::try_from(self.bytes.len()).ok().filter(|_| self.size() < self.limits.bytes);
        let start = start.ok_or(ListingError::TooLarge { limit: self.limits.bytes })?;
        if matches!(node.kind, FileKind::HardLink(_)) {
            self.links.push(u32::try_from(self.starts.len()).unwrap_or(u32::MAX));
        }
        self.starts.push(start);
        encode(&mut self.bytes, node);
        self.sum.node(node);
        Ok(())
    }

    pub fn finish(self) -> Result<TreeListing, ListingError> {
        let Self { bytes, starts, sum, links, .. } = self;
        let listing = TreeListing { digest: sum.finish(), bytes, starts };
        for index in links {
            let entry = listing.entry(index as usize);
            let FileKind::HardLink(to) = entry.kind else { continue };
            let target = listing.find(to).filter(|target| *target < index as usize);
            let is_file =
                target.is_some_and(|target| matches!(listing.entry(target).kind, FileKind::File(_)));
            if !is_file {
                let (path, target) = (check::display_path(entry.path), check::display_path(to));
                return Err(ListingError::LinkTarget { path, target });
            }
        }
        Ok(listing)
    }
}

impl TreeListing {
    /// Parses the output of [`bytes`](Self::bytes) and validates all of it.
    pub fn parse(bytes: &[u8], limits: ListingLimits) -> Result<Self, ListingError> {
        let mut writer = ListingWriter::new(limits);
        writer.bytes.reserve_exact(bytes.len());
        let mut reader = ListingReader { bytes, at: 0 };
        while reader.at < bytes.len() {
            let entry = reader.entry()?;
            writer.push(&entry.node())?;
        }
        writer.finish()
    }

    pub fn digest(&self) -> TreeDigest {
        self.digest
    }

    pub fn len(&self) -> usize {
        self.starts.len()
    }

    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// Returns the list in the format of a file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the entry at `index`, which must be below [`len`](Self::len).
    pub fn entry(&self, index: usize) -> ListingEntry<'_> {
        let start = self.starts[index] as usize;
        // The bytes were encoded by this module, so they can be read.
        let read = ListingReader { bytes: &self.bytes, at: start }.entry();
        read.unwrap_or(ListingEntry { path: b"", mode: 0, kind: FileKind::Directory, xattrs: Vec::new() })
    }

    /// Returns only the path of the entry at `index`.
    pub fn path(&self, index: usize) -> &[u8] {
        ListingReader { bytes: &self.bytes, at: self.starts[index] as usize + 3 }.short().unwrap_or_default()
    }

    pub fn entries(&self) -> impl Iterator<Item = ListingEntry<'_>> {
        (0..self.len()).map(|index| self.entry(index))
    }

    pub fn find(&self, path: &[u8]) -> Option<usize> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match path_order(self.path(middle), path) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(middle),
            }
        }
        None
    }

    /// Returns the index after the last entry below the directory at `index`.
    pub fn end_of(&self, index: usize) -> usize {
        let top = self.path(index);
        let is_below =
            |path: &[u8]| path.len() > top.len() && path.starts_with(top) && path[top.len()] == b'/';
        // The entries below the directory follow it directly, so their end is found by binary search.
        let (mut low, mut high) = (index + 1, self.len());
        while low < high {
            let middle = low + (high - low) / 2;
            if is_below(self.path(middle)) { low = middle + 1 } else { high = middle }
        }
        low
    }
}

impl ListingEntry<'_> {
    pub fn node(&self) -> TreeNode<'_> {
        TreeNode { path: self.path, mode: self.mode, kind: self.kind, xattrs: &self.xattrs }
    }

    /// Returns the hash and size of a file's content, or `None` for other entries.
    pub fn content(&self) -> Option<(ContentHash, u64)> {
        match self.kind {
            FileKind::File(HashedContent { size, hash }) => Some((hash, size)),
            _ => None,
        }
    }
}

fn encode(out: &mut Vec<u8>, node: &TreeNode<'_>) {
    // The checker has limited all lengths.
    let short = |out: &mut Vec<u8>, bytes: &[u8]| {
        out.extend_from_slice(&(bytes.len() as u16).to_le_bytes());
        out.extend_from_slice(bytes);
    };
    out.push(match node.kind {
        FileKind::Directory => b'd',
        FileKind::File(_) => b'f',
        FileKind::Symlink(_) => b'l',
        _ => b'h',
    });
    out.extend_from_slice(&(node.mode as u16).to_le_bytes());
    short(out, node.path);
    out.extend_from_slice(&(node.xattrs.len() as u16).to_le_bytes());
    for (name, value) in node.xattrs {
        short(out, name);
        out.extend_from_slice(&(value.len() as u32).to_le_bytes());
        out.extend_from_slice(value);
    }
    match node.kind {
        FileKind::File(HashedContent { size, hash }) => {
            out.extend_from_slice(&size.to_le_bytes());
            out.extend_from_slice(hash.as_bytes());
        }
        FileKind::Symlink(target) => short(out, target),
        FileKind::HardLink(to) => short(out, to),
        _ => {}
    }
}

struct ListingReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> ListingReader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], ListingError> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or(ListingError::Damaged { at: self.at })?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ListingError> {
        let at = self.at;
        self.take(N)?.try_into().map_err(|_| ListingError::Damaged { at })
    }

    fn number(&mut self) -> Result<usize, ListingError> {
        Ok(u16::from_le_bytes(self.array()?).into())
    }

    fn short(&mut self) -> Result<&'a [u8], ListingError> {
        let length = self.number()?;
        self.take(length)
    }

    fn entry(&mut self) -> Result<ListingEntry<'a>, ListingError> {
        let at = self.at;
        let [kind] = self.array()?;
        let mode = u16::from_le_bytes(self.array()?).into();
        let path = self.short()?;
        let count = self.number()?;
        let mut xattrs = Vec::new();
        for _ in 0..count {
            let name = self.short()?.to_vec();
            let length = u32::from_le_bytes(self.array()?) as usize;
            xattrs.push((name, self.take(length)?.to_vec()));
        }
        let kind = match kind {
            b'd' => FileKind::Directory,
            b'f' => {
                let size = u64::from_le_bytes(self.array()?);
                FileKind::File(HashedContent { size, hash: ContentHash::from_bytes(self.array()?) })
            }
            b'l' => FileKind::Symlink(self.short()?),
            b'h' => FileKind::HardLink(self.short()?),
            _ => return Err(ListingError::Damaged { at }),
        };
        Ok(ListingEntry { path, mode, kind, xattrs })
    }
}

#[cfg(test)]
mod tests;
