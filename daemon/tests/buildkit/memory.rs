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
