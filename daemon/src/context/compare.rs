//! Comparison of two trees.
//!
//! Both trees are walked side by side. Memory does not grow with the number of files, except for the names of
//! files with several hard links.

use std::cmp::Ordering;
use std::collections::HashMap;

use hearth_pack::identity::ContentHash;
use rustix::fs::FileType;

use super::ContextError;
use super::tree::{Shown, Source, Tree, Walk, path_order};
use super::union::user_xattrs;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
/// Difference of an entry between the left and the right tree.
pub enum Difference {
    Added,
    Removed,
    Changed,
}

/// Buffer size in bytes for reading content.
const PIECE: usize = 128 * 1024;

/// First name of each file that has several hard links.
#[derive(Default)]
struct Firsts(HashMap<Source, Vec<u8>>);

impl Firsts {
    /// Returns the first name of the same file, or `None` if this entry is the first name.
    fn of(&mut self, shown: &Shown) -> Option<Vec<u8>> {
        if shown.seen.attr.kind != FileType::RegularFile || shown.seen.attr.links < 2 {
            return None;
        }
        let first = self.0.entry(shown.seen.source.clone()).or_insert_with(|| shown.path.clone());
        (*first != shown.path).then(|| first.clone())
    }
}

/// The properties of one node that the tree's digest covers, apart from its path.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Nature {
    mode: u32,
    kind: Kind,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    File { size: u64, content: ContentHash },
    Symlink(Box<[u8]>),
    HardLink(Vec<u8>),
    Fifo,
    Socket,
    Device { character: bool, major: u32, minor: u32 },
}

fn nature(tree: &Tree, shown: &Shown, firsts: &mut Firsts) -> Result<Nature, ContextError> {
    let attr = &shown.seen.attr;
    let kind = match attr.kind {
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink(shown.target.clone().unwrap_or_default()),
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice | FileType::BlockDevice => {
            let character = attr.kind == FileType::CharacterDevice;
            Kind::Device { character, major: attr.device.0, minor: attr.device.1 }
        }
        FileType::RegularFile | FileType::Unknown => match firsts.of(shown) {
            Some(first) => Kind::HardLink(first),
            None => file(tree, shown)?,
        },
    };
    let mut xattrs = match kind {
        Kind::Directory | Kind::File { .. } | Kind::HardLink(_) => {
            user_xattrs(tree, &shown.whole).map_err(|errno| ContextError::at(&shown.whole, errno))?
        }
        _ => Vec::new(),
    };
    xattrs.sort();
    Ok(Nature { mode: attr.mode, kind, xattrs })
}

fn file(tree: &Tree, shown: &Shown) -> Result<Kind, ContextError> {
    if let Some(content) = tree.known_hash(&shown.whole) {
        return Ok(Kind::File { size: shown.seen.attr.size, content });
    }
    let mut content = tree.reader(&shown.whole)?;
    let (mut hasher, mut size) = (blake3::Hasher::new(), 0);
    let mut piece = vec![0; PIECE];
    loop {
        let count = content.read(&mut piece)?;
        if count == 0 {
            let content = ContentHash::from_bytes(hasher.finalize().into());
            return Ok(Kind::File { size, content });
        }
        hasher.update(&piece[..count]);
        size += count as u64;
    }
}

/// One side of a comparison.
struct Side<'t> {
    tree: &'t Tree,
    walk: Walk<'t>,
    next: Option<Shown>,
    firsts: Firsts,
}

impl<'t> Side<'t> {
    fn new(tree: &'t Tree, top: &[u8]) -> Result<Self, ContextError> {
        let mut side = Self { tree, walk: tree.below(top, true)?, next: None, firsts: Firsts::default() };
        side.advance()?;
        Ok(side)
    }

    fn advance(&mut self) -> Result<(), ContextError> {
        self.next = self.walk.next().transpose()?;
        Ok(())
    }

    /// Returns the current node for comparison. The content of files is always read, even when size, mode and
    /// times are equal, because these prove nothing about the content.
    fn nature(&mut self) -> Result<Option<Nature>, ContextError> {
        self.next.as_ref().map(|shown| nature(self.tree, shown, &mut self.firsts)).transpose()
    }

    /// Skips the current entry, but records it as the possible first name of a file.
    fn pass(&mut self) -> Result<(), ContextError> {
        if let Some(shown) = &self.next {
            self.firsts.of(shown);
        }
        self.advance()
    }
}

/// Calls `each` with every difference below two directories, in walk order, until it returns false.
pub fn compare(
    (left, left_top): (&Tree, &[u8]),
    (right, right_top): (&Tree, &[u8]),
    mut each: impl FnMut(Difference, &[u8]) -> bool,
) -> Result<(), ContextError> {
    let (mut left, mut right) = (Side::new(left, left_top)?, Side::new(right, right_top)?);
    loop {
        let order = match (&left.next, &right.next) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => path_order(&one.path, &other.path),
        };
        let path = |side: &Side<'_>| side.next.as_ref().map(|shown| shown.path.clone()).unwrap_or_default();
        let go_on = match order {
            Ordering::Less => {
                let path = path(&left);
                left.pass()?;
                each(Difference::Removed, &path)
            }
            Ordering::Greater => {
                let path = path(&right);
                right.pass()?;
                each(Difference::Added, &path)
            }
            Ordering::Equal => {
                let same = left.nature()? == right.nature()?;
                let path = path(&left);
                left.advance()?;
                right.advance()?;
                same || each(Difference::Changed, &path)
            }
        };
        if !go_on {
            return Ok(());
        }
    }
}
