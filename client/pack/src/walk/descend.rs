//! Walks a tree: takes directory listings in walk order, and keeps the chain of directories that are being walked.

use std::collections::HashMap;
use std::collections::hash_map;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;

use super::directory::{ChildListing, DirectoryChild, DirectoryRequest, NameMetadata, WalkSelection};
use super::prefetch::MAX_WAITING_WEIGHT;
use super::{WalkEntry, WalkError, WalkKind, display_path, failed};
use crate::file_kind::FileKind;
use crate::ignore::DirectoryMatch;
use crate::prefetch::PrefetchQueue;
use crate::workers;

/// A directory that is being walked.
struct DirectoryLevel {
    names: std::vec::IntoIter<DirectoryChild>,
    /// Entry of this directory while it is not listed.
    pending: Option<WalkEntry>,
}

/// Lists everything below `root` that belongs to the selection, and reports whether the filter hides anything.
/// `written` holds paths below `root` that packing writes.
pub(super) fn list(
    root: &OwnedFd,
    selection: &WalkSelection<'_>,
    written: Vec<Vec<u8>>,
) -> Result<(Vec<WalkEntry>, bool), WalkError> {
    // The read position belongs to the open file, and an earlier walk may have moved it.
    rustix::fs::seek(root, SeekFrom::Start(0)).map_err(failed("cannot list the directory", b"."))?;
    let above = root.try_clone().map_err(|source| WalkError::Read {
        path: ".".to_owned(),
        action: "cannot open",
        source,
    })?;
    let listings = PrefetchQueue::new(selection, MAX_WAITING_WEIGHT);
    let wish = DirectoryRequest {
        above: Arc::new(above),
        path: Vec::new(),
        matched: DirectoryMatch::default(),
        pruned: false,
        written,
    };
    let root = listings.request(wish);
    std::thread::scope(|scope| {
        let _end = listings.stop_guard();
        // This thread runs requests, too, hence one helper less.
        workers::start_helpers(scope, workers::worker_count(None) - 1, "walk", || listings.run_helper());
        let mut lister = TreeLister {
            listings: &listings,
            entries: Vec::new(),
            linked: HashMap::new(),
            any_hidden: false,
        };
        lister.run(root)?;
        Ok((lister.entries, lister.any_hidden))
    })
}

struct TreeLister<'a> {
    listings: &'a PrefetchQueue<'a, WalkSelection<'a>>,
    entries: Vec<WalkEntry>,
    /// First path of each file that has several names, by device and inode.
    linked: HashMap<(u64, u64), Vec<u8>>,
    /// True if the filter hides a name.
    any_hidden: bool,
}

impl TreeLister<'_> {
    fn run(&mut self, root: usize) -> Result<(), WalkError> {
        let names = self.listings.take(root).map_err(failed("cannot list the directory", b"."))?;
        let mut levels = vec![DirectoryLevel { names: names.into_iter(), pending: None }];
        while let Some(level) = levels.last_mut() {
            match level.names.next() {
                None => {
                    levels.pop();
                }
                Some(child) => {
                    if let Some(deeper) = self.visit(&mut levels, child)? {
                        levels.push(deeper);
                    }
                }
            }
        }
        Ok(())
    }

    /// Lists one name of the innermost directory. Returns the directory to walk next, if the name is one.
    fn visit(
        &mut self,
        levels: &mut [DirectoryLevel],
        child: DirectoryChild,
    ) -> Result<Option<DirectoryLevel>, WalkError> {
        let DirectoryChild { path, found, is_shown, content } = child;
        let found = found.map_err(failed("cannot read its metadata", &path))?;
        self.any_hidden |= !is_shown;
        let (file_type, size) = (found.file_type, found.stamp.size);
        let mut entry = WalkEntry {
            path,
            kind: FileKind::Directory,
            mode: found.mode,
            size: 0,
            stamp: found.stamp,
            sparse: found.sparse,
        };
        // A directory that is not listed now is listed as soon as something below it is.
        let mut pending = None;
        let asked = match content {
            ChildListing::Requested { slot, pruned } => Some((slot, pruned, entry.path.clone())),
            ChildListing::None | ChildListing::Unrequested(_) => None,
        };
        if is_shown {
            entry.kind = self.kind(&entry, found)?;
            if entry.kind == FileKind::File(()) {
                entry.size = size;
            }
            self.entries.extend(levels.iter_mut().filter_map(|level| level.pending.take()));
            self.entries.push(entry);
        } else if file_type == FileType::Directory {
            pending = Some(entry);
        }
        let Some((slot, pruned, dir)) = asked else { return Ok(None) };
        match self.listings.take(slot) {
            Ok(names) => Ok(Some(DirectoryLevel { names: names.into_iter(), pending })),
            // An excluded directory that cannot be read is no error.
            Err(Errno::ACCESS) if !is_shown && !pruned => Ok(None),
            Err(errno) => Err(failed("cannot list the directory", &dir)(errno)),
        }
    }

    fn kind(&mut self, entry: &WalkEntry, found: NameMetadata) -> Result<WalkKind, WalkError> {
        let special = |kind| Err(WalkError::Special { path: display_path(&entry.path), kind });
        match found.file_type {
            FileType::Directory => Ok(FileKind::Directory),
            FileType::Symlink => {
                let target = found.target.unwrap_or(Err(Errno::INVAL));
                let target = target.map_err(failed("cannot read the link", &entry.path))?;
                Ok(FileKind::Symlink(target))
            }
            FileType::RegularFile if found.is_linked => {
                match self.linked.entry((entry.stamp.device, entry.stamp.inode)) {
                    hash_map::Entry::Occupied(first) => Ok(FileKind::HardLink(first.get().clone())),
                    hash_map::Entry::Vacant(free) => {
                        free.insert(entry.path.clone());
                        Ok(FileKind::File(()))
                    }
                }
            }
            FileType::RegularFile => Ok(FileKind::File(())),
            FileType::Socket => special("socket"),
            FileType::Fifo => special("fifo"),
            FileType::BlockDevice | FileType::CharacterDevice => special("device"),
            FileType::Unknown => special("file of unknown kind"),
        }
    }
}
