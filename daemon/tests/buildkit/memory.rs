//! A tree of files held in memory.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};

use hearthd::context::port::{Entry, EntryKind, FileTree};

#[derive(Default)]
pub struct MemoryTree {
    entries: Vec<Entry>,
    content: Vec<Vec<u8>>,
    /// This file cannot be read.
    pub broken: Option<String>,
}

impl MemoryTree {
    pub fn new(items: Vec<(&str, EntryKind, u32, &[u8])>) -> Self {
        let mut sorted: BTreeMap<Vec<u8>, _> = BTreeMap::new();
        for (path, kind, mode, content) in items {
            // `/` sorts before every other byte.
            let key = path.bytes().map(|b| if b == b'/' { 0 } else { b }).collect();
            sorted.insert(key, (path.as_bytes().to_vec(), kind, mode, content.to_vec()));
        }
        let mut tree = Self::default();
        for (path, kind, mode, content) in sorted.into_values() {
            let size = content.len() as u64;
            tree.entries.push(Entry {
                path: path.into(),
                kind,
                mode,
                size,
                mtime: 1_700_000_000_000_000_000,
            });
            tree.content.push(content);
        }
        tree
    }

    pub fn files(items: Vec<(&str, &[u8])>) -> Self {
        Self::new(items.into_iter().map(|(path, content)| (path, EntryKind::File, 0o644, content)).collect())
    }
}

impl FileTree for MemoryTree {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn open(&self, index: usize) -> io::Result<Box<dyn Read + Send>> {
        if self.broken.as_ref().is_some_and(|path| path.as_bytes() == &*self.entries[index].path) {
            return Err(io::Error::other("it is no longer what it was"));
        }
        Ok(Box::new(Cursor::new(self.content[index].clone())))
    }
}

/// A directory on disk, listed once.
pub struct DiskTree {
    root: std::path::PathBuf,
    entries: Vec<Entry>,
}

impl DiskTree {
    pub fn walk(root: &std::path::Path) -> Self {
        let mut entries = Vec::new();
        list(root, "", &mut entries);
        Self { root: root.to_owned(), entries }
    }
}

fn list(dir: &std::path::Path, prefix: &str, entries: &mut Vec<Entry>) {
    use std::os::unix::fs::MetadataExt as _;
    let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    for name in names {
        let (name, full) = (name.to_str().unwrap().to_owned(), dir.join(&name));
        let stat = std::fs::symlink_metadata(&full).unwrap();
        let path = format!("{prefix}{name}");
        let kind = if stat.is_dir() {
            EntryKind::Directory
        } else if stat.is_symlink() {
            EntryKind::Symlink(std::fs::read_link(&full).unwrap().to_str().unwrap().as_bytes().into())
        } else {
            EntryKind::File
        };
        entries.push(Entry {
            path: path.as_bytes().into(),
            size: if stat.is_file() { stat.len() } else { 0 },
            mode: stat.mode() & 0o7777,
            mtime: stat.mtime() * 1_000_000_000 + stat.mtime_nsec(),
            kind,
        });
        if stat.is_dir() {
            list(&full, &format!("{path}/"), entries);
        }
    }
}

impl FileTree for DiskTree {
    fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn open(&self, index: usize) -> io::Result<Box<dyn Read + Send>> {
        let path = self.root.join(std::str::from_utf8(&self.entries[index].path).unwrap());
        Ok(Box::new(std::fs::File::open(path)?))
    }
}
