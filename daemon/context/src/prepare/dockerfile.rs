use std::io::{self, Cursor, Read};

use hearth_model::MountTarget;
use hearth_model::build::DockerfilePath;
use hearth_pack::walk::DOCKERFILE_NAMES;
use sha2::{Digest as _, Sha256};

use super::MAX_DOCKERFILE;
use crate::ContextError;
use crate::port::{FileKind, FileTree, TreeEntry};
use crate::tree::{ContextTree, path_order};

/// Finds and reads the Dockerfile. It may lie in another mount than the context.
pub(super) fn read(
    tree: &ContextTree,
    context_path: &MountTarget,
    path: &DockerfilePath,
) -> Result<(MountTarget, Vec<u8>), ContextError> {
    let looked_for: Vec<MountTarget> = match path {
        DockerfilePath::At(path) => vec![path.clone()],
        DockerfilePath::Absent => return Ok((context_path.clone(), Vec::new())),
        DockerfilePath::Search => {
            DOCKERFILE_NAMES.iter().filter_map(|name| context_path.join(name).ok()).collect()
        }
    };
    for path in &looked_for {
        if let Some(bytes) = tree.read_small(path, MAX_DOCKERFILE)? {
            return Ok((path.clone(), bytes));
        }
    }
    Err(ContextError::DockerfileNotFound { looked_for })
}

/// Reads the Dockerfile's own ignore file, which lies beside it. A directory with that name counts as absent.
pub(super) fn read_ignore(
    tree: &ContextTree,
    dockerfile: &MountTarget,
) -> Result<Option<Vec<u8>>, ContextError> {
    let Ok(path) = ignore_name(dockerfile.as_str()).parse::<MountTarget>() else { return Ok(None) };
    if tree.is_directory(&path)? {
        return Ok(None);
    }
    tree.read_small(&path, MAX_DOCKERFILE)
}

pub(super) fn ignore_name(dockerfile: &str) -> String {
    format!("{dockerfile}.dockerignore")
}

pub(super) fn file_name(path: &MountTarget) -> &str {
    path.components().last().unwrap_or("Dockerfile")
}

/// Files in memory, all in the root directory.
///
/// Their mtime derives from their content. BuildKit treats files with equal size and mtime as equal, so it
/// never reuses an old Dockerfile for a new one, and never requests the same one twice.
pub struct MemoryTree {
    files: Vec<(String, Vec<u8>)>,
}

impl MemoryTree {
    /// Creates a tree from file names and contents; the names must be distinct.
    pub fn new(mut files: Vec<(String, Vec<u8>)>) -> Self {
        files.sort_by(|(a, _), (b, _)| path_order(a.as_bytes(), b.as_bytes()));
        Self { files }
    }
}

/// Returns a time between 2001 and 2019 that contains 59 bits of the content's hash.
fn content_time(content: &[u8]) -> i64 {
    const FROM: i64 = 1_000_000_000_000_000_000;
    let hash: [u8; 32] = Sha256::digest(content).into();
    let bits = hash[..8].iter().fold(0u64, |bits, byte| bits << 8 | u64::from(*byte));
    FROM.saturating_add_unsigned(bits >> 5)
}

impl FileTree for MemoryTree {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn entry(&self, index: usize) -> TreeEntry<'_> {
        let (name, content) = &self.files[index];
        TreeEntry {
            path: name.as_bytes(),
            kind: FileKind::File(()),
            mode: 0o644,
            size: content.len() as u64,
            mtime: content_time(content),
        }
    }

    fn open(&self, index: usize) -> io::Result<Box<dyn Read + Send>> {
        match self.files.get(index) {
            Some((_, content)) => Ok(Box::new(Cursor::new(content.clone()))),
            None => Err(io::ErrorKind::InvalidInput.into()),
        }
    }
}
