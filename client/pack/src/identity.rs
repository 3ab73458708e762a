//! Identity of trees. Two trees are the same if their paths, kinds, modes, link targets, hard links, extended
//! attributes and content are the same. Times, owners, inode numbers and the machine have no effect.
//!
//! Content is identified by its BLAKE3 hash, a tree by the hash over its nodes in walk order: depth first, each
//! directory before its content, the names of a directory sorted by their bytes.
//!
//! Hashing all content again for each walk would be slow, so [`HashCache`] caches hashes by the result of `stat`, and
//! does not trust files that were written a moment ago.

mod cache;
mod tree;

use std::fmt;
use std::str::FromStr;

use crate::file_kind::{FileKind, SpecialFile};
pub use cache::{CacheError, CachedHash, FileStamp, HashCache, is_settled, settles_in};
pub use tree::{HashedEntry, HashedTree, hash_tree};
pub(crate) use tree::{cache_hashed_entry, file_clock_now};

/// BLAKE3 hash of a file's content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash([u8; 32]);

/// Identity of a tree: BLAKE3 hash over its nodes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeDigest([u8; 32]);

/// Error: the text is not a hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hash is `blake3:` and 64 lower-case hexadecimal digits")]
pub struct InvalidHash;

macro_rules! hash_text {
    ($name:ident) => {
        impl $name {
            pub const fn from_bytes(bytes: [u8; 32]) -> Self {
                Self(bytes)
            }

            pub const fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("blake3:")?;
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidHash;

            fn from_str(text: &str) -> Result<Self, InvalidHash> {
                parse(text).map(Self)
            }
        }
    };
}

hash_text!(ContentHash);
hash_text!(TreeDigest);

fn parse(text: &str) -> Result<[u8; 32], InvalidHash> {
    let digits = text.strip_prefix("blake3:").ok_or(InvalidHash)?.as_bytes();
    if digits.len() != 64 {
        return Err(InvalidHash);
    }
    let nibble = |digit: u8| match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(InvalidHash),
    };
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Ok(bytes)
}

impl ContentHash {
    pub fn of(content: &[u8]) -> Self {
        Self(blake3::hash(content).into())
    }
}

/// One entry of a tree with everything that determines the tree's identity.
#[derive(Clone, Copy, Debug)]
pub struct TreeNode<'a> {
    /// Path relative to the root, with `/` between names.
    pub path: &'a [u8],
    /// Permission, setuid, setgid and sticky bits.
    pub mode: u32,
    /// Kind with the data that belongs to the identity. A hard link has the file's first name in walk order.
    pub kind: FileKind<HashedContent, &'a [u8], &'a [u8]>,
    /// Names and values of extended attributes, sorted by name.
    pub xattrs: &'a [(Vec<u8>, Vec<u8>)],
}

/// Size in bytes and hash of a file's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HashedContent {
    pub size: u64,
    pub hash: ContentHash,
}

/// Computes a [`TreeDigest`] from nodes that are added in walk order.
#[derive(Debug)]
pub struct TreeHasher {
    sum: blake3::Hasher,
    /// Encoding of one node. It is buffered because the hasher is slow with many small inputs.
    buffer: Vec<u8>,
}

/// Version of the encoding below. A new version gives every tree another digest.
const DOMAIN: &[u8] = b"hearth tree 1\n";

impl Default for TreeHasher {
    fn default() -> Self {
        let mut sum = blake3::Hasher::new();
        sum.update(DOMAIN);
        Self { sum, buffer: Vec::with_capacity(256) }
    }
}

impl TreeHasher {
    /// Adds a node. Every field has a fixed length or is preceded by its length, so two different trees never have
    /// the same encoding.
    pub fn node(&mut self, node: &TreeNode<'_>) {
        self.buffer.clear();
        self.field(node.path);
        self.number(node.mode);
        match node.kind {
            FileKind::Directory => self.buffer.push(b'd'),
            FileKind::File(HashedContent { size, hash }) => {
                self.buffer.push(b'f');
                self.buffer.extend_from_slice(&size.to_le_bytes());
                self.buffer.extend_from_slice(&hash.0);
            }
            FileKind::Symlink(target) => {
                self.buffer.push(b'l');
                self.field(target);
            }
            FileKind::HardLink(to) => {
                self.buffer.push(b'h');
                self.field(to);
            }
            FileKind::Special(SpecialFile::Fifo) => self.buffer.push(b'p'),
            FileKind::Special(SpecialFile::Socket) => self.buffer.push(b's'),
            FileKind::Special(SpecialFile::Device { character, major, minor }) => {
                self.buffer.push(if character { b'c' } else { b'b' });
                self.number(major);
                self.number(minor);
            }
        }
        self.number(u32::try_from(node.xattrs.len()).unwrap_or(u32::MAX));
        for (name, value) in node.xattrs {
            self.field(name);
            self.field(value);
        }
        self.sum.update(&self.buffer);
    }

    pub fn finish(self) -> TreeDigest {
        TreeDigest(self.sum.finalize().into())
    }

    fn field(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
        self.buffer.extend_from_slice(bytes);
    }

    fn number(&mut self, number: u32) {
        self.buffer.extend_from_slice(&number.to_le_bytes());
    }
}

#[cfg(test)]
mod tests;
