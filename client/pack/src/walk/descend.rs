use std::collections::HashMap;
use std::collections::hash_map;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::Errno;

use super::{Entry, EntryKind, WalkError, failed, shown};
use crate::identity::FileStamp;
use crate::ignore::{Filter, FilterWalk, Patterns, Visit};

/// A directory whose names are being gone through.
struct Level {
    fd: OwnedFd,
    prefix: Vec<u8>,
    names: std::vec::IntoIter<Vec<u8>>,
    /// Excluded as a whole; entered only for the sake of paths that are kept all the same.
    pruned: bool,
    /// This directory's own entry, as long as a pruned directory is not listed.
    pending: Option<Entry>,
}

/// Lists everything below `root` that `patterns` do not exclude, and all of `keep`.
pub(super) fn list(
    root: &OwnedFd,
    patterns: Option<Patterns>,
    keep: &[Vec<u8>],
) -> Result<Vec<Entry>, WalkError> {
    let filter = Filter::from_patterns(None, patterns.filter(|list| !list.is_empty()));
    let mut lister = Lister {
        rules: filter.walk(),
        keep,
        filtered: !filter.is_empty(),
        entries: Vec::new(),
        linked: HashMap::new(),
    };
    // The position belongs to the open file, and an earlier walk may have moved it.
    rustix::fs::seek(root, SeekFrom::Start(0)).map_err(failed("cannot list the directory", b"."))?;
    let fd = root.try_clone().map_err(|source| WalkError::Read {
        path: ".".to_owned(),
        action: "cannot open",
        source,
    })?;
    let names = names(&fd).map_err(failed("cannot list the directory", b"."))?;
    let mut levels = vec![Level { fd, prefix: Vec::new(), names, pruned: false, pending: None }];
    while let Some(level) = levels.last_mut() {
        match level.names.next() {
            None => {
                levels.pop();
            }
            Some(name) => {
                if let Some(deeper) = lister.visit(&mut levels, &name)? {
                    levels.push(deeper);
                }
            }
        }
    }
    Ok(lister.entries)
}

struct Lister<'a> {
    rules: FilterWalk<'a, Option<Entry>>,
    keep: &'a [Vec<u8>],
    filtered: bool,
    entries: Vec<Entry>,
    /// First path of each file that has several names.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

impl Lister<'_> {
    /// Lists one name of the innermost directory; answers with the directory to go into next.
    fn visit(&mut self, levels: &mut [Level], name: &[u8]) -> Result<Option<Level>, WalkError> {
        let Some(level) = levels.last() else { return Ok(None) };
        let path = [&level.prefix, name].concat();
        let pruned = level.pruned;
        let stat = rustix::fs::statat(&level.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("cannot read its metadata", &path))?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        let is_dir = file_type == FileType::Directory;
        let mut entry = Entry {
            path,
            kind: EntryKind::Dir,
            mode: stat.st_mode & 0o7777,
            size: 0,
            stamp: FileStamp::of(&stat),
            sparse: stat.st_blocks.cast_unsigned().saturating_mul(512) < stat.st_size.cast_unsigned(),
        };

        let visit = if pruned {
            Visit::Prune
        } else {
            let token = (is_dir && self.filtered).then(|| entry.clone());
            self.rules.visit(&entry.path, is_dir, token)
        };
        let prune = matches!(visit, Visit::Prune);
        let kept_anyway = !visit.is_kept() && self.keep.contains(&entry.path);
        let shown_here = visit.is_kept() || kept_anyway;
        if shown_here {
            entry.kind = self.kind(level.fd.as_fd(), name, &entry, file_type, stat.st_nlink > 1)?;
            if entry.kind == EntryKind::File {
                entry.size = stat.st_size.try_into().unwrap_or_default();
            }
            let late = match visit {
                Visit::Keep { late } => late,
                _ => self.rules.show_above(),
            };
            self.entries.extend(late.into_iter().flatten());
            self.entries.extend(levels.iter_mut().filter_map(|level| level.pending.take()));
            self.entries.push(entry.clone());
        }
        let Some(level) = levels.last() else { return Ok(None) };
        if !is_dir || (prune && !self.leads_to_kept(&entry.path)) {
            return Ok(None);
        }
        let listed = open_dir(level.fd.as_fd(), name).and_then(|fd| Ok((names(&fd)?, fd)));
        let (names, fd) = match listed {
            // Nothing was asked of a directory that the rules exclude.
            Err(Errno::ACCESS) if !shown_here && !prune => return Ok(None),
            other => other.map_err(failed("cannot list the directory", &entry.path))?,
        };
        let mut prefix = entry.path.clone();
        prefix.push(b'/');
        let pending = (prune && !kept_anyway).then_some(entry);
        Ok(Some(Level { fd, prefix, names, pruned: prune, pending }))
    }

    fn leads_to_kept(&self, dir: &[u8]) -> bool {
        self.keep.iter().any(|path| path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/")))
    }

    fn kind(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        entry: &Entry,
        file_type: FileType,
        has_links: bool,
    ) -> Result<EntryKind, WalkError> {
        let special = |kind| Err(WalkError::Special { path: shown(&entry.path), kind });
        match file_type {
            FileType::Directory => Ok(EntryKind::Dir),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new())
                    .map_err(failed("cannot read the link", &entry.path))?;
                Ok(EntryKind::Symlink { target: target.into_bytes() })
            }
            FileType::RegularFile if has_links => {
                match self.linked.entry((entry.stamp.device, entry.stamp.inode)) {
                    hash_map::Entry::Occupied(first) => Ok(EntryKind::Hardlink { to: first.get().clone() }),
                    hash_map::Entry::Vacant(free) => {
                        free.insert(entry.path.clone());
                        Ok(EntryKind::File)
                    }
                }
            }
            FileType::RegularFile => Ok(EntryKind::File),
            FileType::Socket => special("socket"),
            FileType::Fifo => special("fifo"),
            FileType::BlockDevice | FileType::CharacterDevice => special("device"),
            FileType::Unknown => special("file of unknown kind"),
        }
    }
}

pub(super) fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// The names in a directory, sorted by bytes. Read from its start, once.
fn names(dir: &OwnedFd) -> rustix::io::Result<std::vec::IntoIter<Vec<u8>>> {
    let mut names = Vec::new();
    let mut buffer = [std::mem::MaybeUninit::uninit(); 16 * 1024];
    let mut listing = RawDir::new(dir, &mut buffer);
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names.into_iter())
}
