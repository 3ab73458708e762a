//! Access to the tree one path at a time, for callers that do not need a whole scan: they list a directory,
//! or serve files that may change meanwhile.
//!
//! Nothing is cached here: each answer reflects the layers at that moment.

use std::collections::BTreeMap;

use hearth_model::MountTarget;
use hearth_overlay::attr::FileAttributes;
use hearth_overlay::lower::{EntryStat, FileIdentity, LowerFile, LowerTree};
use rustix::fs::FileType;
use rustix::io::Errno;

use super::{ContextTree, bare, below, joined, open_content};
use crate::ContextError;

/// A path without symbolic links, and its entry.
pub type LocatedEntry = (Box<[u8]>, EntryStat);

impl LowerTree for ContextTree {
    fn stat(&self, path: &[u8]) -> Result<Option<EntryStat>, Errno> {
        let found = match self.deepest_mount(path) {
            Some((mount, inside)) => self.layer(mount).stat(mount, inside)?,
            None => None,
        };
        let is_directory = found.as_ref().is_some_and(|seen| seen.attr.kind == FileType::Directory);
        if !is_directory && (path.is_empty() || !self.mounts_below(path).is_empty()) {
            return Ok(Some(synthetic()));
        }
        Ok(found)
    }

    fn list_directory(&self, path: &[u8]) -> Result<BTreeMap<Box<[u8]>, EntryStat>, Errno> {
        let mut children = match self.deepest_mount(path) {
            Some((mount, inside)) => self.layer(mount).list(mount, inside)?,
            None => BTreeMap::new(),
        };
        for mount in self.mounts_below(path) {
            let target = bare(&self.mounts[mount as usize].target);
            let rest = below(path, target).unwrap_or_default();
            let name = rest.split(|&byte| byte == b'/').next().unwrap_or_default();
            match self.stat(&joined(path, name))? {
                Some(seen) => children.insert(name.into(), seen),
                None => children.remove(name),
            };
        }
        Ok(children)
    }

    fn link_target(&self, path: &[u8]) -> Result<Box<[u8]>, Errno> {
        let (mount, inside) = self.deepest_mount(path).ok_or(Errno::NOENT)?;
        self.layer(mount).link_target(inside)
    }

    fn open_content(&self, path: &[u8]) -> Result<LowerFile, Errno> {
        let (mount, inside) = self.deepest_mount(path).ok_or(Errno::NOENT)?;
        open_content(self.layer(mount), inside)
    }

    fn xattr(&self, path: &[u8], name: &[u8]) -> Result<Vec<u8>, Errno> {
        let Some((mount, inside)) = self.deepest_mount(path) else { return Err(Errno::NODATA) };
        self.layer(mount).xattr(inside, name)
    }

    fn xattr_names(&self, path: &[u8]) -> Result<Vec<u8>, Errno> {
        let Some((mount, inside)) = self.deepest_mount(path) else { return Ok(Vec::new()) };
        self.layer(mount).xattr_names(inside)
    }

    fn is_immutable(&self) -> bool {
        !self.mounts.iter().any(|mounted| mounted.layer.as_directory().is_some())
    }

    fn mount_name(&self, mount: u32) -> String {
        self.mount_target(mount).to_string()
    }
}

impl ContextTree {
    /// Resolves `path`, following symbolic links inside the tree, and returns the resolved path and its
    /// entry.
    pub fn resolve(&self, path: &[u8]) -> Result<Option<LocatedEntry>, ContextError> {
        let Some((canonical, _)) = super::resolve::resolve(self, path)? else { return Ok(None) };
        let seen = self.stat(&canonical).map_err(|errno| ContextError::at(&canonical, errno))?;
        Ok(seen.map(|seen| (canonical.into(), seen)))
    }

    /// Returns the directory that a context path names, following symbolic links inside the tree.
    pub fn directory_at(&self, path: &MountTarget) -> Result<Box<[u8]>, ContextError> {
        self.context_directory(path).map(|(canonical, _)| canonical.into())
    }

    /// Returns the target of a mount, by the mount number of a [`FileIdentity`].
    pub(crate) fn mount_target(&self, mount: u32) -> &MountTarget {
        &self.mounts[mount as usize].target
    }
}

const fn synthetic() -> EntryStat {
    EntryStat { attr: FileAttributes::SYNTHETIC_DIRECTORY, identity: FileIdentity::Synthetic }
}
