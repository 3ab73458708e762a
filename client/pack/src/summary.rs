//! Summary of a packed tree for the user.

use crate::file_kind::FileKind;
use crate::walk::WalkedTree;

/// Counts of a packed tree.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PackSummary {
    /// Number of regular files. Additional names of the same file count as links.
    pub files: u64,
    pub dirs: u64,
    pub links: u64,
    /// Size of all files in bytes.
    pub bytes: u64,
    /// Number of bytes that were not read again because the layer came from an earlier pack.
    pub reused_bytes: u64,
    /// Paths and sizes of the largest files, largest first.
    pub largest: Vec<(Vec<u8>, u64)>,
    /// Directories that are rarely meant to be packed.
    pub suspicious: Vec<SuspiciousDir>,
    /// Name of the ignore file, if it excludes everything but the Dockerfile and itself.
    pub all_excluded_by: Option<Vec<u8>>,
}

/// A directory that is usually excluded by an ignore file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuspiciousDir {
    pub path: Vec<u8>,
    pub files: u64,
    pub bytes: u64,
}

const LARGEST: usize = 5;

/// Names of directories that tools fill: version control, dependencies, caches, build output.
pub const RARELY_PACKED: [&str; 16] = [
    ".git",
    ".hg",
    ".svn",
    "node_modules",
    "target",
    ".venv",
    "venv",
    "__pycache__",
    ".mypy_cache",
    ".pytest_cache",
    ".tox",
    ".cache",
    ".gradle",
    ".terraform",
    ".next",
    ".idea",
];

impl PackSummary {
    pub fn of(tree: &WalkedTree) -> Self {
        let all_excluded_by = tree.ignore_file.clone().filter(|_| tree.all_excluded);
        let mut summary = Self { all_excluded_by, ..Self::default() };
        for entry in &tree.entries {
            match entry.kind {
                FileKind::Directory => summary.dirs += 1,
                FileKind::File(()) => summary.files += 1,
                FileKind::Symlink(_) | FileKind::HardLink(_) => summary.links += 1,
                FileKind::Special(never) => match never {},
            }
            summary.bytes += entry.size;
            let smallest = summary.largest.last().map_or(0, |(_, size)| *size);
            if entry.size > smallest || (entry.size > 0 && summary.largest.len() < LARGEST) {
                let at = summary.largest.partition_point(|(_, size)| *size >= entry.size);
                summary.largest.insert(at, (entry.path.clone(), entry.size));
                summary.largest.truncate(LARGEST);
            }
            // Of nested directories of this kind only the outermost is listed, with the counts of everything below it.
            let inside = |dir: &SuspiciousDir| {
                entry.path.strip_prefix(dir.path.as_slice()).is_some_and(|r| r.starts_with(b"/"))
            };
            match summary.suspicious.last_mut().filter(|dir| inside(dir)) {
                Some(dir) => {
                    dir.files += u64::from(entry.kind == FileKind::File(()));
                    dir.bytes += entry.size;
                }
                None if entry.is_dir()
                    && RARELY_PACKED.iter().any(|name| name.as_bytes() == entry.name()) =>
                {
                    summary.suspicious.push(SuspiciousDir { path: entry.path.clone(), files: 0, bytes: 0 });
                }
                None => {}
            }
        }
        summary
    }
}
