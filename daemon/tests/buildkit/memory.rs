//! Tree of files in memory.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};

use hearthd::context::{EntryKind, FileKind, FileTree, TreeEntry};

struct Item {
    path: Vec<u8>,
    kind: EntryKind,
    mode: u32,
    content: Vec<u8>,
}

#[derive(Default)]
pub struct MemoryTree {
    items: Vec<Item>,
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
        let item = |(path, kind, mode, content)| Item { path, kind, mode, content };
        Self { items: sorted.into_values().map(item).collect(), broken: None }
    }

    pub fn files(items: Vec<(&str, &[u8])>) -> Self {
        Self::new(
            items.into_iter().map(|(path, content)| (path, FileKind::File(()), 0o644, content)).collect(),
        )
    }
}

impl FileTree for MemoryTree {
    fn len(&self) -> usize {
        self.items.len()
    }

    fn entry(&self, index: usize) -> TreeEntry<'_> {
        let Item { path, kind, mode, content } = &self.items[index];
        let size = content.len() as u64;
        TreeEntry { path, kind: kind.borrowed(), mode: *mode, size, mtime: 1_700_000_000_000_000_000 }
    }

    fn open(&self, index: usize) -> io::Result<Box<dyn Read + Send>> {
        if self.broken.as_ref().is_some_and(|path| path.as_bytes() == self.items[index].path) {
            return Err(io::Error::other("it changed while it was read"));
        }
        Ok(Box::new(Cursor::new(self.items[index].content.clone())))
    }
}
