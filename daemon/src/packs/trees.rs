//! Committed trees: one file for each, by owner and digest.
//!
//! ```text
//! <root>/<owner>/<64 digits>      the sealed listing (`hearth_pack::listing`); its mtime is the time of its last use
//! <root>/<owner>/new-<random>     a file that is still being written
//! ```
//!
//! A file whose listing does not have the digest in its name is treated as missing.

use std::collections::HashSet;
use std::fs::{self, File, FileTimes, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use hearth_pack::identity::{ContentHash, TreeDigest};
use hearth_pack::listing::{ListingLimits, TreeListing};

use super::store::{AppendError, OwnerKey};

/// Maximum size of all listings of one owner, in bytes. A listing of 58,000 entries has about 8 MB.
const MAX_OWNER_BYTES: u64 = 2 << 30;
/// Maximum number of trees of one owner that no build uses.
const MAX_IDLE_TREES: usize = 32;

/// Directory of stored trees.
#[derive(Clone, Debug)]
pub(super) struct TreeStore {
    directory: PathBuf,
    limits: ListingLimits,
}

impl TreeStore {
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

    /// Stores a tree. It is durable when this call returns.
    pub(super) fn put(&self, owner: &OwnerKey, listing: &TreeListing) -> Result<(), AppendError> {
        let path = self.path(owner, &listing.digest());
        let directory = self.directory.join(owner.hex());
        make_directory(&directory)?;
        let mut used = listing.bytes().len() as u64;
        for entry in fs::read_dir(&directory)? {
            used += entry?.metadata().map(|metadata| metadata.len()).unwrap_or_default();
        }
        if used > MAX_OWNER_BYTES {
            return Err(AppendError::OwnerQuota { limit: MAX_OWNER_BYTES });
        }
        let draft = directory.join(format!("new-{:016x}", rand::random::<u64>()));
        let written = write_new(&draft, listing).and_then(|()| fs::rename(&draft, &path));
        if let Err(error) = written {
            let _ = fs::remove_file(&draft);
            return Err(error.into());
        }
        File::open(&directory)?.sync_all()?;
        Ok(File::open(&self.directory)?.sync_all()?)
    }

    /// Sets the time of a tree's last use to now, if the tree exists.
    pub(super) fn touch(&self, owner: &OwnerKey, tree: &TreeDigest) -> io::Result<()> {
        match File::open(self.path(owner, tree)) {
            Ok(file) => file.set_times(FileTimes::new().set_modified(SystemTime::now())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Returns a tree of this owner and sets the time of its last use to now.
    pub(super) fn get(&self, owner: &OwnerKey, tree: &TreeDigest) -> io::Result<Option<TreeListing>> {
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
        match self.read_listing(bytes) {
            Some(listing) if listing.digest() == *tree => Ok(Some(listing)),
            _ => {
                tracing::warn!(tree.digest = %tree, "found a damaged tree listing; treating it as missing");
                Ok(None)
            }
        }
    }

    /// Reads a listing with or without a seal: earlier releases wrote none.
    fn read_listing(&self, bytes: Vec<u8>) -> Option<TreeListing> {
        TreeListing::unseal(bytes).or_else(|bytes| TreeListing::parse(&bytes, self.limits)).ok()
    }

    /// Removes trees that are not in use: those last used longer ago than `keep` returns for the name of their
    /// owner's directory, and all but the latest [`MAX_IDLE_TREES`] of one owner. Returns the content hashes of the
    /// remaining trees and the number of removed trees.
    pub(super) fn sweep(
        &self,
        in_use: &HashSet<(OwnerKey, TreeDigest)>,
        keep: impl Fn(&str) -> Duration,
    ) -> io::Result<(HashSet<ContentHash>, usize)> {
        let in_use: HashSet<PathBuf> = in_use.iter().map(|(owner, tree)| self.path(owner, tree)).collect();
        let (mut live, mut removed) = (HashSet::new(), 0);
        for owner in fs::read_dir(&self.directory)? {
            let owner = owner?;
            let keep = keep(&owner.file_name().to_string_lossy());
            let mut trees = Vec::new();
            for entry in fs::read_dir(owner.path())? {
                let path = entry?.path();
                trees.push((fs::metadata(&path)?.modified()?.elapsed().unwrap_or_default(), path));
            }
            trees.sort_unstable();
            let mut idle = 0;
            for (age, path) in trees {
                let is_idle = !in_use.contains(&path) && !is_unfinished(&path);
                idle += usize::from(is_idle);
                if is_idle && (age >= keep || idle > MAX_IDLE_TREES) {
                    fs::remove_file(&path)?;
                    removed += 1;
                } else if !is_unfinished(&path) {
                    // A tree that cannot be read is treated as missing, so it retains no content.
                    if let Some(listing) = self.read_listing(fs::read(&path)?) {
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

fn write_new(path: &Path, listing: &TreeListing) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(listing.bytes())?;
    file.write_all(&listing.seal())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use hearth_pack::FileKind;
    use hearth_pack::identity::{HashedContent, TreeNode};
    use hearth_pack::listing::ListingWriter;

    use super::*;

    fn listing(name: &str) -> TreeListing {
        let mut writer = ListingWriter::new(ListingLimits::default());
        let kind = FileKind::File(HashedContent { size: 1, hash: ContentHash::of(name.as_bytes()) });
        writer.push(&TreeNode { path: name.as_bytes(), mode: 0o644, kind, xattrs: &[] }).unwrap();
        writer.finish().unwrap()
    }

    #[test]
    fn a_tree_comes_back_to_its_owner_only_and_a_damaged_one_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let trees = TreeStore::open(directory.path(), ListingLimits::default()).unwrap();
        let (ann, bob, tree) = (OwnerKey::of("ann"), OwnerKey::of("bob"), listing("a"));
        trees.put(&ann, &tree).unwrap();
        assert_eq!(trees.get(&ann, &tree.digest()).unwrap().unwrap().digest(), tree.digest());
        assert!(trees.get(&bob, &tree.digest()).unwrap().is_none());
        let path = trees.path(&ann, &tree.digest());
        // A listing without a seal is parsed and verified as a whole.
        fs::write(&path, tree.bytes()).unwrap();
        assert!(trees.get(&ann, &tree.digest()).unwrap().is_some());
        let other = listing("b");
        for wrong in [other.bytes().to_vec(), [other.bytes(), &other.seal()].concat(), b"f".to_vec()] {
            fs::write(&path, wrong).unwrap();
            assert!(trees.get(&ann, &tree.digest()).unwrap().is_none());
        }
        fs::write(path.with_file_name("new-1"), "half").unwrap();
        TreeStore::open(directory.path(), ListingLimits::default()).unwrap();
        assert!(!path.with_file_name("new-1").exists());
    }

    #[test]
    fn of_many_trees_of_one_owner_the_latest_and_those_in_use_stay() {
        let directory = tempfile::tempdir().unwrap();
        let trees = TreeStore::open(directory.path(), ListingLimits::default()).unwrap();
        let ann = OwnerKey::of("ann");
        let all: Vec<TreeListing> =
            (0..MAX_IDLE_TREES + 3).map(|number| listing(&format!("f{number}"))).collect();
        for (number, tree) in all.iter().enumerate() {
            trees.put(&ann, tree).unwrap();
            let used = SystemTime::now() - Duration::from_secs(1000 - number as u64);
            let file = File::options().write(true).open(trees.path(&ann, &tree.digest())).unwrap();
            file.set_times(FileTimes::new().set_modified(used)).unwrap();
        }
        let in_use = HashSet::from([(ann, all[0].digest())]);
        let (live, removed) = trees.sweep(&in_use, |_| Duration::from_secs(3600)).unwrap();
        assert_eq!((removed, live.len()), (2, MAX_IDLE_TREES + 1));
        for (number, tree) in all.iter().enumerate() {
            assert_eq!(trees.get(&ann, &tree.digest()).unwrap().is_some(), !(1..3).contains(&number));
        }
    }
}
