//! List of the packages of a built image: its files are read from the layers, which are not unpacked.

use std::io;

use hearth_sbom::{FileContent, FileRole, PackageList, PackageScan};

use crate::context::{FileKind, ImageTree};

/// A regular file of an image.
struct ImageFile<'t> {
    tree: &'t ImageTree,
    node: u32,
}

impl FileContent for ImageFile<'_> {
    fn size(&self) -> u64 {
        self.tree.stat(self.node).size
    }

    fn read_at(&self, buffer: &mut [u8], at: u64) -> io::Result<usize> {
        self.tree.read_at(self.node, buffer, at)
    }
}

struct FoundFile {
    role: FileRole,
    path: Vec<u8>,
    node: u32,
}

/// Lists the packages of an image. Blocking.
pub(super) fn packages(tree: &ImageTree) -> io::Result<PackageList> {
    let mut files = Vec::new();
    let mut pending = vec![(Vec::new(), ImageTree::ROOT)];
    while let Some((path, directory)) = pending.pop() {
        for (name, node) in tree.children(directory) {
            let mut path = path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name);
            let stat = tree.stat(node);
            match stat.kind {
                FileKind::Directory => pending.push((path, node)),
                FileKind::File(_) => {
                    let role = FileRole::of(&path, stat.mode);
                    files.extend(role.map(|role| FoundFile { role, path, node }));
                }
                FileKind::Symlink(_) | FileKind::HardLink(_) | FileKind::Special(_) => {}
            }
        }
    }
    // A database says which programs are looked into, and the distribution how packages are named.
    let order = |file: &FoundFile| match file.role {
        FileRole::OsRelease => 0,
        FileRole::Program => 2,
        _ => 1,
    };
    files.sort_by(|a, b| (order(a), &a.path).cmp(&(order(b), &b.path)));
    let mut scan = PackageScan::default();
    for FoundFile { role, path, node } in files {
        let file = ImageFile { tree, node };
        match role {
            FileRole::Program => scan.add_program(&path, &file)?,
            role => scan.add(role, &path, &file)?,
        }
    }
    Ok(scan.finish())
}
