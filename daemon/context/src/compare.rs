//! Comparison of two trees.
//!
//! Both trees are walked side by side. Memory does not grow with the number of files, except for the names of
//! files with several hard links.

use std::cmp::Ordering;
use std::collections::HashMap;

use hearth_overlay::lower::{FileIdentity, user_xattrs};
use hearth_pack::identity::{ContentHash, HashedContent};
use hearth_pack::{FileKind, SpecialFile};
use rustix::fs::FileType;

use super::ContextError;
use super::tree::{ContextTree, TreeWalk, WalkedEntry, path_order};

use hearth_overlay::union::TreeDifference;

/// Buffer size in bytes for reading content.
const PIECE: usize = 128 * 1024;

/// First name of each file that has several hard links.
#[derive(Default)]
struct FirstNames(HashMap<FileIdentity, Vec<u8>>);

impl FirstNames {
    /// Returns the first name of the same file, or `None` if this entry is the first name.
    fn of(&mut self, entry: &WalkedEntry) -> Option<Vec<u8>> {
        if entry.stat.attr.kind != FileType::RegularFile || entry.stat.attr.links < 2 {
            return None;
        }
        let first = self.0.entry(entry.stat.identity.clone()).or_insert_with(|| entry.path.clone());
        (*first != entry.path).then(|| first.clone())
    }
}

/// The properties of one node that the tree's digest covers, apart from its path.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ComparedNode {
    mode: u32,
    /// Kind; a hard link has the path of the file's first name.
    kind: FileKind<HashedContent, Box<[u8]>, Vec<u8>>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

fn compared_node(
    tree: &ContextTree,
    entry: &WalkedEntry,
    firsts: &mut FirstNames,
) -> Result<ComparedNode, ContextError> {
    let attr = &entry.stat.attr;
    let kind = match (attr.kind, SpecialFile::from_stat(attr.kind, attr.device)) {
        (_, Some(special)) => FileKind::Special(special),
        (FileType::Directory, None) => FileKind::Directory,
        (FileType::Symlink, None) => FileKind::Symlink(entry.target.clone().unwrap_or_default()),
        (_, None) => match firsts.of(entry) {
            Some(first) => FileKind::HardLink(first),
            None => FileKind::File(compared_content(tree, entry)?),
        },
    };
    let mut xattrs = match kind {
        FileKind::Directory | FileKind::File(_) | FileKind::HardLink(_) => {
            user_xattrs(tree, &entry.tree_path).map_err(|errno| ContextError::at(&entry.tree_path, errno))?
        }
        _ => Vec::new(),
    };
    xattrs.sort();
    Ok(ComparedNode { mode: attr.mode, kind, xattrs })
}

fn compared_content(tree: &ContextTree, entry: &WalkedEntry) -> Result<HashedContent, ContextError> {
    if let Some(hash) = tree.known_hash(&entry.tree_path) {
        return Ok(HashedContent { size: entry.stat.attr.size, hash });
    }
    let mut content = tree.reader(&entry.tree_path)?;
    let (mut hasher, mut size) = (blake3::Hasher::new(), 0);
    let mut piece = vec![0; PIECE];
    loop {
        let count = content.read(&mut piece)?;
        if count == 0 {
            let hash = ContentHash::from_bytes(hasher.finalize().into());
            return Ok(HashedContent { size, hash });
        }
        hasher.update(&piece[..count]);
        size += count as u64;
    }
}

/// One side of a comparison.
struct ComparisonSide<'t> {
    tree: &'t ContextTree,
    walk: TreeWalk<'t>,
    next: Option<WalkedEntry>,
    firsts: FirstNames,
}

impl<'t> ComparisonSide<'t> {
    fn new(tree: &'t ContextTree, top: &[u8]) -> Result<Self, ContextError> {
        let mut side =
            Self { tree, walk: tree.walk_below(top, true)?, next: None, firsts: FirstNames::default() };
        side.advance()?;
        Ok(side)
    }

    fn advance(&mut self) -> Result<(), ContextError> {
        self.next = self.walk.next().transpose()?;
        Ok(())
    }

    /// Returns the current node for comparison. The content of files is always read, even when size, mode and
    /// times are equal, because these prove nothing about the content.
    fn node(&mut self) -> Result<Option<ComparedNode>, ContextError> {
        self.next.as_ref().map(|entry| compared_node(self.tree, entry, &mut self.firsts)).transpose()
    }

    /// Skips the current entry, but records it as the possible first name of a file.
    fn skip(&mut self) -> Result<(), ContextError> {
        if let Some(entry) = &self.next {
            self.firsts.of(entry);
        }
        self.advance()
    }
}

/// Calls `each` with every difference below two directories, in walk order, until it returns false.
pub fn compare_trees(
    (left, left_top): (&ContextTree, &[u8]),
    (right, right_top): (&ContextTree, &[u8]),
    mut each: impl FnMut(TreeDifference, &[u8]) -> bool,
) -> Result<(), ContextError> {
    let (mut left, mut right) =
        (ComparisonSide::new(left, left_top)?, ComparisonSide::new(right, right_top)?);
    loop {
        let order = match (&left.next, &right.next) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(one), Some(other)) => path_order(&one.path, &other.path),
        };
        let path = |side: &ComparisonSide<'_>| {
            side.next.as_ref().map(|entry| entry.path.clone()).unwrap_or_default()
        };
        let go_on = match order {
            Ordering::Less => {
                let path = path(&left);
                left.skip()?;
                each(TreeDifference::Removed, &path)
            }
            Ordering::Greater => {
                let path = path(&right);
                right.skip()?;
                each(TreeDifference::Added, &path)
            }
            Ordering::Equal => {
                let same = left.node()? == right.node()?;
                let path = path(&left);
                left.advance()?;
                right.advance()?;
                same || each(TreeDifference::Changed, &path)
            }
        };
        if !go_on {
            return Ok(());
        }
    }
}
