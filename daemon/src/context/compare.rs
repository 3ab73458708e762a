//! Trees looked at as wholes: their identity, and what is different between two of them.

use std::cmp::Ordering;
use std::io::{self, Read};

use hearth_pack::identity::{ContentHash, Node, NodeKind, TreeDigest, TreeHasher};

use super::ContextError;
use super::error::text;
use super::port::{Entry, EntryKind, FileTree as _};
use super::tree::{Snapshot, path_order};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Difference {
    Added,
    Removed,
    Changed,
}

/// Reads content in pieces of this size.
const PIECE: usize = 128 * 1024;

/// The identity of a tree. Every byte of it is read.
pub fn digest(tree: &Snapshot) -> Result<TreeDigest, ContextError> {
    let entries = tree.entries();
    let mut hasher = TreeHasher::default();
    for (index, entry) in entries.iter().enumerate() {
        let kind = match &entry.kind {
            EntryKind::Directory => NodeKind::Directory,
            EntryKind::File => NodeKind::File { size: entry.size, content: content_hash(tree, index)? },
            EntryKind::Symlink(target) => NodeKind::Symlink { target },
            EntryKind::HardLink(first) => NodeKind::HardLink { to: &entries[*first].path },
            EntryKind::Fifo => NodeKind::Fifo,
            EntryKind::Socket => NodeKind::Socket,
            &EntryKind::Device { character, major, minor } => NodeKind::Device { character, major, minor },
        };
        hasher.node(&Node { path: &entry.path, mode: entry.mode, kind, xattrs: &[] });
    }
    Ok(hasher.finish())
}

fn content_hash(tree: &Snapshot, index: usize) -> Result<ContentHash, ContextError> {
    let mut hasher = blake3::Hasher::new();
    let mut content = open(tree, index)?;
    let mut piece = vec![0; PIECE];
    loop {
        match content.read(&mut piece) {
            Ok(0) => return Ok(ContentHash::from_bytes(hasher.finalize().into())),
            Ok(count) => hasher.update(&piece[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(unread(tree, index, error)),
        };
    }
}

fn open(tree: &Snapshot, index: usize) -> Result<Box<dyn Read + Send>, ContextError> {
    tree.open(index).map_err(|error| unread(tree, index, error))
}

/// Takes back the error that a reader of a [`Snapshot`] wrapped.
fn unread(tree: &Snapshot, index: usize, error: io::Error) -> ContextError {
    match error.downcast::<ContextError>() {
        Ok(error) => error,
        Err(source) => ContextError::Io { path: text(&tree.entries()[index].path), source },
    }
}

/// Tells `each` what is different, in walk order, until it says false.
pub fn compare(
    left: &Snapshot,
    right: &Snapshot,
    mut each: impl FnMut(Difference, &[u8]) -> bool,
) -> Result<(), ContextError> {
    let (mut a, mut b) = (0, 0);
    loop {
        let order = match (left.entries().get(a), right.entries().get(b)) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => path_order(&one.path, &other.path),
        };
        let go_on = match order {
            Ordering::Less => each(Difference::Removed, &left.entries()[a].path),
            Ordering::Greater => each(Difference::Added, &right.entries()[b].path),
            Ordering::Equal => {
                are_same(left, a, right, b)? || each(Difference::Changed, &left.entries()[a].path)
            }
        };
        a += usize::from(order != Ordering::Greater);
        b += usize::from(order != Ordering::Less);
        if !go_on {
            return Ok(());
        }
    }
}

/// By what a tree's identity is made of.
fn are_same(left: &Snapshot, a: usize, right: &Snapshot, b: usize) -> Result<bool, ContextError> {
    let (one, other): (&Entry, &Entry) = (&left.entries()[a], &right.entries()[b]);
    if one.mode != other.mode || one.size != other.size {
        return Ok(false);
    }
    match (&one.kind, &other.kind) {
        (EntryKind::File, EntryKind::File) => {
            let (one, other) = (open(left, a)?, open(right, b)?);
            Ok(same_bytes(one, other).map_err(|(side, error)| {
                if side == 0 { unread(left, a, error) } else { unread(right, b, error) }
            })?)
        }
        // The first names are compared where they are met; here only which they are.
        (EntryKind::HardLink(one), EntryKind::HardLink(other)) => {
            Ok(left.entries()[*one].path == right.entries()[*other].path)
        }
        (one, other) => Ok(one == other),
    }
}

/// An error comes with the number of the side that it happened on.
fn same_bytes(mut one: impl Read, mut other: impl Read) -> Result<bool, (u8, io::Error)> {
    let (mut a, mut b) = (vec![0; PIECE], vec![0; PIECE]);
    loop {
        let first = fill(&mut one, &mut a).map_err(|error| (0, error))?;
        let second = fill(&mut other, &mut b).map_err(|error| (1, error))?;
        if a[..first] != b[..second] {
            return Ok(false);
        }
        if first < PIECE {
            return Ok(true);
        }
    }
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match from.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
