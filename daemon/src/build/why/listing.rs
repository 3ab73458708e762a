//! Compact record of the files of a build context, from which a later build learns what changed.
//!
//! ```text
//! listing := zstd(entry*)       entry := kind:u8 mode:u16 shared:u32 length:u32 rest-of-path [fingerprint:u64]
//! ```
//!
//! An entry shares the beginning of its path with the entry before it. Files and symbolic links have the first eight
//! bytes of the hash of their content or target: enough to see a change, not to prove equality to an opponent.

use std::cmp::Ordering;
use std::io::{self, Read as _, Write as _};

use super::ChangedFile;
use crate::context::{ContentHash, EntryKind, FileKind, FileTree, path_order};
use crate::model::build_inputs::FileChange;

/// Maximum size in bytes of a listing, compressed and not. The files of a larger context are not recorded.
const MAX_COMPRESSED: usize = 16 << 20;
const MAX_BYTES: usize = 128 << 20;

const DIRECTORY: u8 = b'd';
const FILE: u8 = b'f';
const LINK: u8 = b'l';
const SPECIAL: u8 = b's';

/// Files of a context, in walk order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct FileListing(Vec<ListedFile>);

#[derive(Debug, PartialEq, Eq)]
struct ListedFile {
    path: Vec<u8>,
    kind: u8,
    mode: u16,
    fingerprint: u64,
}

/// Encodes the covered entries of a context. `None` if there are too many. Blocking.
pub fn encode_listing(tree: &dyn FileTree) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = 0;
    let mut packed = zstd::Encoder::new(Vec::new(), 1)?;
    let mut last: &[u8] = &[];
    let mut buffer = Vec::new();
    for index in (0..tree.len()).filter(|index| tree.is_covered(*index)) {
        let entry = tree.entry(index);
        let (kind, fingerprint) = fingerprint(tree, index, &entry.kind);
        let shared = entry.path.iter().zip(last).take_while(|(a, b)| a == b).count();
        let rest = &entry.path[shared..];
        buffer.clear();
        buffer.push(kind);
        buffer.extend_from_slice(&((entry.mode & 0o7777) as u16).to_le_bytes());
        buffer.extend_from_slice(&(shared as u32).to_le_bytes());
        buffer.extend_from_slice(&(rest.len() as u32).to_le_bytes());
        buffer.extend_from_slice(rest);
        if let Some(fingerprint) = fingerprint {
            buffer.extend_from_slice(&fingerprint.to_le_bytes());
        }
        bytes += buffer.len();
        if bytes > MAX_BYTES || packed.get_ref().len() > MAX_COMPRESSED {
            return Ok(None);
        }
        packed.write_all(&buffer)?;
        last = entry.path;
    }
    packed.finish().map(|packed| (packed.len() <= MAX_COMPRESSED).then_some(packed))
}

fn fingerprint(tree: &dyn FileTree, index: usize, kind: &EntryKind<&[u8]>) -> (u8, Option<u64>) {
    let short = |hash: &ContentHash| {
        let first: [u8; 8] = std::array::from_fn(|at| hash.as_bytes()[at]);
        u64::from_le_bytes(first)
    };
    match kind {
        FileKind::Directory => (DIRECTORY, None),
        FileKind::File(()) | FileKind::HardLink(_) => {
            (FILE, Some(tree.content_hash(index).as_ref().map(short).unwrap_or_default()))
        }
        FileKind::Symlink(target) => (LINK, Some(short(&ContentHash::of(target)))),
        FileKind::Special(_) => (SPECIAL, None),
    }
}

impl FileListing {
    /// Decodes what [`encode_listing`] wrote.
    pub fn decode(packed: &[u8]) -> io::Result<Self> {
        let mut bytes = Vec::new();
        zstd::Decoder::new(packed)?.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
        let mut rest = &bytes[..];
        let mut files: Vec<ListedFile> = Vec::new();
        while !rest.is_empty() {
            let file = read_file(&mut rest, files.last().map_or(&[], |last| &last.path));
            files.push(file.ok_or(io::ErrorKind::InvalidData)?);
        }
        Ok(Self(files))
    }

    /// Returns the differences to a later listing, in walk order.
    pub fn changes(&self, later: &Self) -> Vec<ChangedFile> {
        let (mut before, mut after) = (self.0.iter().peekable(), later.0.iter().peekable());
        let mut changes = Vec::new();
        loop {
            let order = match (before.peek(), after.peek()) {
                (None, None) => return changes,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(one), Some(other)) => path_order(&one.path, &other.path),
            };
            let found = match order {
                Ordering::Less => before.next().map(|file| (file, FileChange::Removed)),
                Ordering::Greater => after.next().map(|file| (file, FileChange::Added)),
                Ordering::Equal => {
                    let pair = before.next().zip(after.next());
                    pair.and_then(|(one, other)| Some((other, change(one, other)?)))
                }
            };
            changes.extend(found.map(|(file, change)| ChangedFile {
                path: String::from_utf8_lossy(&file.path).into_owned(),
                change,
            }));
        }
    }
}

fn change(before: &ListedFile, after: &ListedFile) -> Option<FileChange> {
    if before.kind != after.kind {
        return Some(FileChange::Kind);
    }
    if before.fingerprint != after.fingerprint {
        return Some(if after.kind == LINK { FileChange::LinkTarget } else { FileChange::Content });
    }
    (before.mode != after.mode && after.kind != LINK).then_some(FileChange::Mode)
}

fn read_file(rest: &mut &[u8], last: &[u8]) -> Option<ListedFile> {
    let kind = u8::from_le_bytes(take(rest)?);
    let mode = u16::from_le_bytes(take(rest)?);
    let shared = u32::from_le_bytes(take(rest)?) as usize;
    let length = u32::from_le_bytes(take(rest)?) as usize;
    let (end, left) = rest.split_at_checked(length)?;
    let path = [last.get(..shared)?, end].concat();
    *rest = left;
    let fingerprint = match kind {
        FILE | LINK => u64::from_le_bytes(take(rest)?),
        _ => 0,
    };
    Some(ListedFile { path, kind, mode, fingerprint })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (first, left) = rest.split_first_chunk()?;
    *rest = left;
    Some(*first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::TreeEntry;

    /// Path, kind, mode and content.
    type Entry = (&'static str, EntryKind<&'static [u8]>, u32, &'static [u8]);

    struct Entries(Vec<Entry>);

    impl FileTree for Entries {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn entry(&self, index: usize) -> TreeEntry<'_> {
            let (path, kind, mode, content) = self.0[index];
            TreeEntry { path: path.as_bytes(), kind, mode, size: content.len() as u64, mtime: 0 }
        }

        fn content_hash(&self, index: usize) -> Option<ContentHash> {
            Some(ContentHash::of(self.0[index].3))
        }

        fn open(&self, _index: usize) -> io::Result<Box<dyn io::Read + Send>> {
            Err(io::ErrorKind::NotFound.into())
        }
    }

    fn listing(entries: Vec<Entry>) -> FileListing {
        FileListing::decode(&encode_listing(&Entries(entries)).unwrap().unwrap()).unwrap()
    }

    #[test]
    fn each_kind_of_difference_is_found_and_nothing_else() {
        let (file, directory) = (FileKind::File(()), FileKind::Directory);
        let before = listing(vec![
            ("app", directory, 0o755, b""),
            ("app/gone", file, 0o644, b"1"),
            ("app/mode", file, 0o644, b"1"),
            ("app/same", file, 0o644, b"1"),
            ("app.txt", file, 0o644, b"1"),
            ("link", FileKind::Symlink(b"a"), 0o777, b""),
            ("turned", file, 0o644, b""),
        ]);
        let after = listing(vec![
            ("app", directory, 0o755, b""),
            ("app/mode", file, 0o755, b"1"),
            ("app/new", file, 0o644, b"1"),
            ("app/same", file, 0o644, b"1"),
            ("app.txt", file, 0o644, b"2"),
            ("link", FileKind::Symlink(b"b"), 0o777, b""),
            ("turned", directory, 0o755, b""),
        ]);
        let changes = before.changes(&after);
        let found: Vec<(&str, FileChange)> =
            changes.iter().map(|changed| (changed.path.as_str(), changed.change)).collect();
        assert_eq!(
            found,
            [
                ("app/gone", FileChange::Removed),
                ("app/mode", FileChange::Mode),
                ("app/new", FileChange::Added),
                ("app.txt", FileChange::Content),
                ("link", FileChange::LinkTarget),
                ("turned", FileChange::Kind),
            ]
        );
        assert_eq!(after.changes(&after), []);
    }

    #[test]
    fn damage_is_an_error() {
        assert!(FileListing::decode(b"nonsense").is_err());
        for damaged in [&b"f"[..], b"f\0\0\x05\0\0\0\0\0\0\0", b"d\0\0\0\0\0\0\xff\xff\xff\xff"] {
            assert!(FileListing::decode(&zstd::encode_all(damaged, 1).unwrap()).is_err());
        }
    }
}
