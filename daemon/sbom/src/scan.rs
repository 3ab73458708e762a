//! Scan of a tree: which files are read, and how each is.

use std::collections::HashSet;
use std::io;

use crate::package::PackageList;
use crate::purl::Distribution;
use crate::{apk, dpkg, elf, language, programs, rpm};

/// Maximum size in bytes of a database that is read.
const MAX_DATABASE_BYTES: u64 = 256 << 20;
/// Maximum size in bytes of a file that describes one package.
const MAX_DOCUMENT_BYTES: u64 = 4 << 20;
/// Maximum number of bytes that one scan reads of databases and documents.
const MAX_READ_BYTES: u64 = 1 << 30;
/// Maximum number of programs that one scan looks into.
const MAX_PROGRAMS: usize = 2000;

/// A regular file of the tree.
pub trait FileContent {
    fn size(&self) -> u64;
    /// Fills the buffer from an offset on, as far as the file reaches. Returns 0 at its end only.
    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize>;
}

/// What a file of the tree is to the scan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRole {
    /// Names of the distribution: it is added before all others.
    OsRelease,
    Dpkg,
    DpkgFiles,
    Apk,
    Rpm,
    /// A database of rpm in a form that is not read.
    OldRpm,
    Python,
    Npm,
    CargoLock,
    /// A program, which is looked into if no package owns it.
    Program,
}

impl FileRole {
    /// Returns the role of a file by its path, without a leading slash, and its mode.
    pub fn of(path: &[u8], mode: u32) -> Option<Self> {
        let (directory, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        let in_rpm = matches!(directory, b"var/lib/rpm" | b"usr/lib/sysimage/rpm");
        match (directory, name) {
            (b"etc" | b"usr/lib", b"os-release") => Some(Self::OsRelease),
            (b"var/lib/dpkg", b"status") => Some(Self::Dpkg),
            (b"var/lib/dpkg/status.d", name) if !name.ends_with(b".md5sums") => Some(Self::Dpkg),
            (b"var/lib/dpkg/info", name) if name.ends_with(b".list") => Some(Self::DpkgFiles),
            (b"lib/apk/db" | b"usr/lib/apk/db", b"installed") => Some(Self::Apk),
            (_, b"rpmdb.sqlite") if in_rpm => Some(Self::Rpm),
            (_, b"Packages" | b"Packages.db") if in_rpm => Some(Self::OldRpm),
            (directory, b"METADATA") if directory.ends_with(b".dist-info") => Some(Self::Python),
            (directory, b"PKG-INFO") if directory.ends_with(b".egg-info") => Some(Self::Python),
            (_, name) if name.ends_with(b".egg-info") => Some(Self::Python),
            (directory, b"package.json") if is_npm_package(directory) => Some(Self::Npm),
            (_, b"Cargo.lock") => Some(Self::CargoLock),
            _ => (mode & 0o111 != 0).then_some(Self::Program),
        }
    }
}

/// Reports whether a directory is `node_modules/NAME` or `node_modules/@SCOPE/NAME`.
fn is_npm_package(directory: &[u8]) -> bool {
    let mut parts = directory.rsplit(|byte| *byte == b'/').skip(1);
    match parts.next() {
        Some(b"node_modules") => true,
        Some(scope) if scope.starts_with(b"@") => parts.next() == Some(b"node_modules"),
        _ => false,
    }
}

/// Packages found so far, and the files that they own.
#[derive(Debug, Default)]
pub struct PackageScan {
    list: PackageList,
    distribution: Distribution,
    owned: HashSet<Vec<u8>>,
    read_bytes: u64,
    programs: usize,
}

impl PackageScan {
    /// Reads a file, which is not a program. Files with [`FileRole::OsRelease`] come first.
    pub fn add(&mut self, role: FileRole, path: &[u8], file: &dyn FileContent) -> io::Result<()> {
        let shown = String::from_utf8_lossy(path).into_owned();
        let limit = match role {
            FileRole::Dpkg | FileRole::Apk | FileRole::Rpm => MAX_DATABASE_BYTES,
            _ => MAX_DOCUMENT_BYTES,
        };
        if role == FileRole::OldRpm {
            self.list.note(format!(
                "the rpm database `{shown}` has a form that is not read: only rpmdb.sqlite is"
            ));
            return Ok(());
        }
        if file.size() > limit || self.read_bytes + file.size() > MAX_READ_BYTES {
            self.list
                .note(format!("`{shown}` was not read: it is too large, or too much was read before it"));
            return Ok(());
        }
        self.read_bytes += file.size();
        let bytes = elf::bytes_at(file, 0, limit)?;
        let Self { list, distribution, owned, .. } = self;
        match role {
            FileRole::OsRelease => *distribution = Distribution::parse(&bytes),
            FileRole::Dpkg => dpkg::read(&bytes, &shown, distribution, list),
            FileRole::DpkgFiles => owned.extend(dpkg::owned(&bytes).map(merged)),
            FileRole::Apk => {
                apk::read(&bytes, &shown, distribution, list);
                owned.extend(apk::owned(&bytes).iter().map(|path| merged(path)));
            }
            FileRole::Rpm => {
                let paths = rpm::read(&bytes, &shown, distribution, list);
                owned.extend(paths.iter().map(|path| merged(path)));
            }
            FileRole::Python => language::read_python(&bytes, &shown, list),
            FileRole::Npm => language::read_npm(&bytes, &shown, list),
            FileRole::CargoLock => language::read_cargo_lock(&bytes, &shown, list),
            FileRole::OldRpm | FileRole::Program => {}
        }
        Ok(())
    }

    /// Looks into a program, after everything else was added.
    pub fn add_program(&mut self, path: &[u8], file: &dyn FileContent) -> io::Result<()> {
        if self.owned.contains(&merged(path)) {
            return Ok(());
        }
        self.programs += 1;
        if self.programs > MAX_PROGRAMS {
            self.list.note(format!("only {MAX_PROGRAMS} programs were looked into"));
            return Ok(());
        }
        programs::read(file, &String::from_utf8_lossy(path), &mut self.list)
    }

    pub fn finish(self) -> PackageList {
        self.list
    }
}

/// Returns the path in a tree whose `bin`, `sbin` and `lib` are links to those of `usr`: packages name either.
fn merged(path: &[u8]) -> Vec<u8> {
    let is_moved = [&b"bin/"[..], b"sbin/", b"lib/", b"lib64/"].iter().any(|top| path.starts_with(top));
    if is_moved { [b"usr/", path].concat() } else { path.to_vec() }
}

#[cfg(test)]
pub(crate) mod tests;
