//! Trees that were committed, one file each, by owner and digest.
//!
//! ```text
//! <root>/<owner>/<64 digits>      the list as `hearth_pack::listing` writes it; its mtime is its last use
//! <root>/<owner>/new-<random>     being written
//! ```
//!
//! A file whose list has another digest than its name counts as not there.

use std::collections::HashSet;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hearth_pack::identity::{ContentHash, TreeDigest};
use hearth_pack::listing::{Listing, ListingLimits};

use super::store::OwnerKey;

#[derive(Clone, Debug)]
pub(super) struct Trees {
    directory: PathBuf,
    limits: ListingLimits,
}

impl Trees {
    pub(super) fn open(directory: &Path, limits: ListingLimits) -> io::Result<Self> {
        make_directory(directory)?;
        for owner in fs::read_dir(directory)? {
            for entry in fs::read_dir(owner?.path())? {
                let path = entry?.path();
                if is_unfinished(&path) {
                    fs::remove_file(path)?;
                }
            }
        }
        Ok(Self { directory: directory.to_owned(), limits })
    }

    fn path(&self, owner: &OwnerKey, tree: &TreeDigest) -> PathBuf {
        self.directory.join(owner.hex()).join(hex(tree))
    }

    /// Keeps a tree; durable when this returns.
    pub(super) fn put(&self, owner: &OwnerKey, listing: &Listing) -> io::Result<()> {
        let path = self.path(owner, &listing.digest());
        let directory = self.directory.join(owner.hex());
        make_directory(&directory)?;
        let draft = directory.join(format!("new-{:016x}", rand::random::<u64>()));
        let written = write_new(&draft, listing.bytes()).and_then(|()| fs::rename(&draft, &path));
        if let Err(error) = written {
            let _ = fs::remove_file(&draft);
            return Err(error);
        }
        File::open(&directory)?.sync_all()?;
        File::open(&self.directory)?.sync_all()
    }

    /// A tree of this owner; it counts as used now.
    pub(super) fn get(&self, owner: &OwnerKey, tree: &TreeDigest) -> io::Result<Option<Listing>> {
        let mut file = match File::open(self.path(owner, tree)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let length = file.metadata()?.len();
        if length > self.limits.bytes as u64 {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        file.read_to_end(&mut bytes)?;
        file.set_times(FileTimes::new().set_modified(SystemTime::now()))?;
        match Listing::parse(&bytes, self.limits) {
            Ok(listing) if listing.digest() == *tree => Ok(Some(listing)),
            _ => {
                tracing::warn!(%tree, "the list of a tree is damaged; it counts as not there");
                Ok(None)
            }
        }
    }

    /// Removes trees that are not in use and were not for `keep`; gives the contents of those that stay.
    pub(super) fn sweep(
        &self,
        in_use: &HashSet<(OwnerKey, TreeDigest)>,
        keep: Duration,
    ) -> io::Result<(HashSet<ContentHash>, usize)> {
        let in_use: HashSet<PathBuf> = in_use.iter().map(|(owner, tree)| self.path(owner, tree)).collect();
        let (mut live, mut removed) = (HashSet::new(), 0);
        for owner in fs::read_dir(&self.directory)? {
            for entry in fs::read_dir(owner?.path())? {
                let path = entry?.path();
                let age = fs::metadata(&path)?.modified()?.elapsed().unwrap_or_default();
                if age >= keep && !in_use.contains(&path) {
                    fs::remove_file(&path)?;
                    removed += 1;
                } else if !is_unfinished(&path) {
                    // A tree that cannot be read keeps nothing, and counts as not there.
                    if let Ok(listing) = Listing::parse(&fs::read(&path)?, self.limits) {
                        live.extend(listing.entries().filter_map(|entry| Some(entry.content()?.0)));
                    }
                }
            }
        }
        Ok((live, removed))
    }
}

fn is_unfinished(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with("new-"))
}

fn hex(tree: &TreeDigest) -> String {
    tree.as_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}
