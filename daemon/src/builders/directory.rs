//! Directories of the managed builders.
//!
//! ```text
//! <state>/builders/
//!   3f9a01c7/            one directory for each trust domain, named by a short hash because socket paths are short
//!     builder.json       trust domain, time of last use, disk usage
//!     ...                files of buildkitd
//!   removed-3f9a01c7-1/  being removed
//! ```
//!
//! A directory without a record, or one that was being removed, is removed at the next start.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::model::trust::TrustDomain;
use crate::supervise::leftover;

const RECORD: &str = "builder.json";
const REMOVED: &str = "removed-";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct BuilderRecord {
    pub(super) domain: TrustDomain,
    pub(super) last_used: Timestamp,
    #[serde(default)]
    /// Disk usage in bytes when it was last measured.
    pub(super) disk: u64,
    /// The builder was not stopped cleanly: a killed daemon may have left processes and mounts.
    #[serde(default)]
    pub(super) running: bool,
}

impl BuilderRecord {
    /// Replaces the record in a builder's directory.
    pub(super) fn store(&self, directory: &Path) -> io::Result<()> {
        let new = directory.join("builder.json.new");
        fs::write(&new, serde_json::to_vec(self).map_err(io::Error::other)?)?;
        fs::rename(new, directory.join(RECORD))
    }
}

/// Directories of the builders, by trust domain.
#[derive(Debug)]
pub(super) struct BuilderDirectories {
    root: PathBuf,
    names_by_domain: BTreeMap<TrustDomain, String>,
    removals: u32,
}

impl BuilderDirectories {
    /// Reads the directories that earlier runs of the daemon left. The single builder of versions before trust domains
    /// becomes the builder of the domain `local`.
    pub(super) fn open(state: &Path) -> io::Result<(Self, Vec<BuilderRecord>)> {
        let root = state.join("builders");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        let mut found = Self { root: root.canonicalize()?, names_by_domain: BTreeMap::new(), removals: 0 };
        let mut records = found.read_records()?;
        let single = state.join("buildkit");
        let local = TrustDomain::local();
        if single.is_dir() && !found.names_by_domain.contains_key(&local) {
            let last_used = fs::metadata(&single)?.modified().ok().and_then(|time| time.try_into().ok());
            let record = BuilderRecord {
                last_used: last_used.unwrap_or_else(Timestamp::now),
                domain: local,
                disk: 0,
                running: true,
            };
            record.store(&single)?;
            let name = found.new_name(&record.domain);
            fs::rename(&single, found.root.join(&name))?;
            tracing::info!(builder.domain = %record.domain, "adopted the builder of an earlier version");
            found.names_by_domain.insert(record.domain.clone(), name);
            records.push(record);
        }
        Ok((found, records))
    }

    fn read_records(&mut self) -> io::Result<Vec<BuilderRecord>> {
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let record = fs::read(entry.path().join(RECORD));
            match record.ok().and_then(|text| serde_json::from_slice::<BuilderRecord>(&text).ok()) {
                Some(record)
                    if !name.starts_with(REMOVED) && !self.names_by_domain.contains_key(&record.domain) =>
                {
                    self.names_by_domain.insert(record.domain.clone(), name);
                    records.push(record);
                }
                _ => {}
            }
        }
        Ok(records)
    }

    /// Returns the directories that belong to no builder.
    pub(super) fn orphaned_directories(&self) -> io::Result<Vec<PathBuf>> {
        let mut strays = Vec::new();
        for entry in fs::read_dir(&self.root)? {
            let entry = entry?;
            let known = entry
                .file_name()
                .to_str()
                .is_some_and(|name| self.names_by_domain.values().any(|own| own == name));
            if !known && entry.file_type()?.is_dir() {
                strays.push(entry.path());
            }
        }
        Ok(strays)
    }

    /// Returns the directory of a domain's builder, which may not exist yet. No two domains share a name.
    pub(super) fn path_of(&mut self, domain: &TrustDomain) -> PathBuf {
        let name = self.names_by_domain.get(domain).cloned().unwrap_or_else(|| {
            let name = self.new_name(domain);
            self.names_by_domain.insert(domain.clone(), name.clone());
            name
        });
        self.root.join(name)
    }

    fn new_name(&self, domain: &TrustDomain) -> String {
        let name = |number: u32| {
            let hash = Sha256::digest(format!("{domain}\n{number}"));
            hex::encode(&hash[..4])
        };
        let is_free = |name: &String| {
            !self.names_by_domain.values().any(|taken| taken == name) && !self.root.join(name).exists()
        };
        (0..).map(name).find(is_free).unwrap_or_default()
    }

    /// Renames the directory of a stopped builder for removal. Returns the new path, which the caller must remove.
    pub(super) fn detach(&mut self, domain: &TrustDomain) -> io::Result<Option<PathBuf>> {
        let Some(name) = self.names_by_domain.remove(domain) else { return Ok(None) };
        let from = self.root.join(&name);
        let to = loop {
            self.removals += 1;
            let to = self.root.join(format!("{REMOVED}{name}-{}", self.removals));
            if !to.exists() {
                break to;
            }
        };
        match fs::rename(from, &to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            renamed => renamed.map(|()| Some(to)),
        }
    }
}

/// Removes a directory tree, without following mounts. Blocking; a large cache takes long.
pub(super) fn remove_directory(directory: &Path) -> io::Result<()> {
    leftover::unmount_below(directory)?;
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn domain(name: &str) -> TrustDomain {
        name.parse().unwrap()
    }

    fn record(name: &str) -> BuilderRecord {
        BuilderRecord {
            domain: domain(name),
            last_used: Timestamp::from_second(7).unwrap(),
            disk: 9,
            running: false,
        }
    }

    #[test]
    fn a_builder_is_found_again_and_what_was_half_made_or_half_removed_is_a_stray() {
        let state = tempfile::tempdir().unwrap();
        let (mut directories, none) = BuilderDirectories::open(state.path()).unwrap();
        assert_eq!(none, []);
        for name in ["a", "b", "half"] {
            fs::create_dir(directories.path_of(&domain(name))).unwrap();
        }
        record("a").store(&directories.path_of(&domain("a"))).unwrap();
        record("b").store(&directories.path_of(&domain("b"))).unwrap();
        let removed = directories.detach(&domain("b")).unwrap().unwrap();
        assert!(removed.join(RECORD).exists());

        let place = directories.path_of(&domain("a"));
        let (mut again, found) = BuilderDirectories::open(state.path()).unwrap();
        assert_eq!(found, [record("a")]);
        assert_eq!(again.path_of(&domain("a")), place);
        assert_eq!(again.orphaned_directories().unwrap().len(), 2);
        for stray in again.orphaned_directories().unwrap() {
            remove_directory(&stray).unwrap();
        }
        assert_eq!(again.orphaned_directories().unwrap(), Vec::<PathBuf>::new());
    }

    #[test]
    fn two_domains_never_have_one_directory() {
        let state = tempfile::tempdir().unwrap();
        let (mut directories, _) = BuilderDirectories::open(state.path()).unwrap();
        let name = directories.new_name(&domain("a"));
        // Another domain whose hash has the same prefix.
        directories.names_by_domain.insert(domain("other"), name.clone());
        assert!(!directories.path_of(&domain("a")).ends_with(&name));
    }

    #[test]
    fn the_builder_of_an_earlier_version_is_taken_over_once() {
        let state = tempfile::tempdir().unwrap();
        let single = state.path().join("buildkit");
        fs::create_dir_all(single.join("data")).unwrap();
        fs::write(single.join("data/x"), "cache").unwrap();
        let (mut directories, found) = BuilderDirectories::open(state.path()).unwrap();
        assert_eq!(found.len(), 1);
        let place = directories.path_of(&TrustDomain::local());
        assert_eq!(fs::read_to_string(place.join("data/x")).unwrap(), "cache");
        assert!(!single.exists());
        // A directory that appears later is not adopted.
        fs::create_dir(&single).unwrap();
        assert_eq!(BuilderDirectories::open(state.path()).unwrap().1.len(), 1);
        assert!(single.exists());
    }

    #[test]
    fn removal_follows_no_link() {
        let state = tempfile::tempdir().unwrap();
        let kept = state.path().join("kept");
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        let gone = state.path().join("gone");
        fs::create_dir(&gone).unwrap();
        std::os::unix::fs::symlink(&kept, gone.join("link")).unwrap();
        remove_directory(&gone).unwrap();
        assert!(kept.join("file").exists() && !gone.exists());
    }
}
