//! The overlay without FUSE, called as the kernel calls it: with inode numbers and names.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use hearth_overlay::union::{CreateAttr, InodeEntry, OverlayFs, ROOT, SetAttr};
use rustix::fs::{FileType, XattrFlags};
use rustix::io::Errno;

use super::Place;
use super::operation::{Entry, Operation, Outcome, Path, Target, xattr_name};

pub struct Core<'p> {
    place: &'p Place,
    pub union: Arc<OverlayFs>,
    held: BTreeMap<u8, (u64, u64)>,
    /// Inodes that were looked up for the current operation.
    looked_up: Vec<u64>,
}

const ROOT_USER: CreateAttr = CreateAttr { uid: 0, gid: 0, mode: 0 };

impl<'p> Core<'p> {
    pub fn new(place: &'p Place) -> Self {
        Self { place, union: place.union(), held: BTreeMap::new(), looked_up: Vec::new() }
    }

    fn find_in(&mut self, parent: u64, name: &[u8]) -> Result<InodeEntry, Errno> {
        let found = self.union.lookup(parent, name)?;
        self.looked_up.push(found.inode);
        Ok(found)
    }

    fn directory(&mut self, names: &[&[u8]]) -> Result<u64, Errno> {
        let mut current = ROOT;
        for name in names {
            let found = self.find_in(current, name)?;
            match found.attr.kind {
                FileType::Directory => current = found.inode,
                FileType::Symlink => return Err(Errno::LOOP),
                _ => return Err(Errno::NOTDIR),
            }
        }
        Ok(current)
    }

    fn place(&mut self, path: &Path) -> Result<(u64, &'static [u8]), Errno> {
        let (above, name) = path.split();
        Ok((self.directory(above)?, name))
    }

    fn find(&mut self, path: &Path) -> Result<InodeEntry, Errno> {
        let (parent, name) = self.place(path)?;
        self.find_in(parent, name)
    }

    fn regular(&mut self, path: &Path) -> Result<u64, Errno> {
        let found = self.find(path)?;
        match found.attr.kind {
            FileType::RegularFile => Ok(found.inode),
            FileType::Directory => Err(Errno::ISDIR),
            FileType::Symlink => Err(Errno::LOOP),
            _ => Err(Errno::NXIO),
        }
    }

    fn made(&mut self, found: Result<InodeEntry, Errno>) -> Outcome {
        found.map(|found| {
            self.looked_up.push(found.inode);
            Vec::new()
        })
    }

    fn content(&self, inode: u64) -> Result<Vec<u8>, Errno> {
        let handle = self.union.open(inode, false)?.handle;
        let mut content = vec![0; 4096];
        let count = self.union.read(handle, &mut content, 0);
        self.union.release(handle);
        content.truncate(count?);
        Ok(content)
    }

    fn drop_held(&mut self, slot: u8) {
        if let Some((inode, handle)) = self.held.remove(&slot) {
            self.union.release(handle);
            self.union.forget(inode, 1);
        }
    }

    fn run(&mut self, operation: &Operation) -> Outcome {
        let union = Arc::clone(&self.union);
        let done = |()| Vec::new();
        match operation {
            Operation::MakeDirectory(path, mode) => {
                let (parent, name) = self.place(path)?;
                let made = union.make_directory(parent, name, &CreateAttr { mode: *mode, ..ROOT_USER });
                self.made(made)
            }
            Operation::Create(path, mode, content) => {
                let (parent, name) = self.place(path)?;
                let maker = CreateAttr { mode: *mode, ..ROOT_USER };
                let made = union.make_node(parent, name, FileType::RegularFile, &maker)?;
                self.looked_up.push(made.inode);
                let handle = union.open(made.inode, true)?.handle;
                let written = union.write(handle, content, 0);
                union.release(handle);
                written.map(done)
            }
            Operation::Fifo(path) => {
                let (parent, name) = self.place(path)?;
                let made =
                    union.make_node(parent, name, FileType::Fifo, &CreateAttr { mode: 0o644, ..ROOT_USER });
                self.made(made)
            }
            Operation::Symlink(path, target) => {
                let (parent, name) = self.place(path)?;
                let made = union.make_symlink(parent, name, target, &ROOT_USER);
                self.made(made)
            }
            Operation::Link(from, to) => {
                let found = self.find(from)?;
                let (parent, name) = self.place(to)?;
                let made = union.make_hard_link(found.inode, parent, name);
                self.made(made)
            }
            Operation::Write(path, at, bytes) => {
                let inode = self.regular(path)?;
                let handle = union.open(inode, true)?.handle;
                let written = union.write(handle, bytes, *at);
                union.release(handle);
                written.map(done)
            }
            Operation::Truncate(path, size) => {
                let inode = self.regular(path)?;
                union
                    .set_attr(inode, &SetAttr { size: Some(*size), ..SetAttr::default() })
                    .map(|_| Vec::new())
            }
            Operation::Unlink(path) => {
                let (parent, name) = self.place(path)?;
                // The kernel looks up what it removes.
                self.find_in(parent, name)?;
                union.unlink(parent, name).map(done)
            }
            Operation::RemoveDirectory(path) => {
                let (parent, name) = self.place(path)?;
                self.find_in(parent, name)?;
                union.remove_directory(parent, name).map(done)
            }
            Operation::Rename(from, to, mode) => {
                let (parent, name) = self.place(from)?;
                let (new_parent, new_name) = self.place(to)?;
                self.find_in(parent, name)?;
                let _known = self.find_in(new_parent, new_name);
                union.rename(parent, name, new_parent, new_name, *mode).map(done)
            }
            Operation::Mode(path, mode) => {
                let inode = self.find(path)?.inode;
                union
                    .set_attr(inode, &SetAttr { mode: Some(*mode), ..SetAttr::default() })
                    .map(|_| Vec::new())
            }
            Operation::Owner(path, uid, gid) => {
                let inode = self.find(path)?.inode;
                let change = SetAttr { uid: Some(*uid), gid: Some(*gid), ..SetAttr::default() };
                union.set_attr(inode, &change).map(|_| Vec::new())
            }
            Operation::SetXattr(path, number, value) => {
                let inode = self.find(path)?.inode;
                union.set_xattr(inode, &xattr_name(*number), value, XattrFlags::empty()).map(done)
            }
            Operation::RemoveXattr(path, number) => {
                let inode = self.find(path)?.inode;
                union.remove_xattr(inode, &xattr_name(*number)).map(done)
            }
            Operation::Hold(slot, path) => {
                let inode = self.regular(path)?;
                let handle = union.open(inode, true)?.handle;
                // An open file keeps its inode known.
                self.looked_up.retain(|known| *known != inode);
                self.drop_held(*slot);
                self.held.insert(*slot, (inode, handle));
                Ok(Vec::new())
            }
            Operation::WriteHeld(slot, at, bytes) => {
                let (_, handle) = *self.held.get(slot).ok_or(Errno::BADF)?;
                union.write(handle, bytes, *at).map(done)
            }
            Operation::ReadHeld(slot) => {
                let (_, handle) = *self.held.get(slot).ok_or(Errno::BADF)?;
                let mut content = vec![0; 4096];
                let count = union.read(handle, &mut content, 0)?;
                content.truncate(count);
                Ok(content)
            }
            Operation::Drop(slot) => {
                self.drop_held(*slot);
                Ok(Vec::new())
            }
            Operation::Reopen => {
                self.held.clear();
                self.looked_up.clear();
                self.union = self.place.union();
                Ok(Vec::new())
            }
        }
    }

    /// Closes everything, and checks that no inode except the root is known any more.
    pub fn close(mut self) {
        for slot in 0..3 {
            self.drop_held(slot);
        }
        assert_eq!(self.union.node_count(), 1, "nodes that nobody knows stay");
        let left = std::fs::read_dir(self.place.path("upper/work")).unwrap().count();
        assert_eq!(left, 0, "something is left in work/");
    }
}

impl Target for Core<'_> {
    fn apply(&mut self, operation: &Operation) -> Outcome {
        let outcome = self.run(operation);
        let union = Arc::clone(&self.union);
        for inode in std::mem::take(&mut self.looked_up) {
            union.forget(inode, 1);
        }
        outcome
    }

    fn tree(&mut self) -> BTreeMap<Vec<u8>, Entry> {
        let union = Arc::clone(&self.union);
        let mut entries = BTreeMap::new();
        let mut numbers = HashMap::new();
        let mut pending = vec![(Vec::new(), ROOT)];
        let mut known = Vec::new();
        while let Some((path, inode)) = pending.pop() {
            let listing = union.list(inode).unwrap();
            for (index, listed) in listing.entries().iter().enumerate() {
                let name = &listed.name;
                let child = if path.is_empty() { name.to_vec() } else { [&path[..], b"/", name].concat() };
                let found = union.lookup_listed(&listing, index).unwrap().unwrap();
                known.push(found.inode);
                assert_eq!(union.inode_number(listed), found.inode, "{}", child.escape_ascii());
                let mut asked = union.attr(found.inode).unwrap();
                // The file was read by another name since it was listed.
                asked.accessed = found.attr.accessed;
                assert_eq!(asked, found.attr, "{}", child.escape_ascii());
                let (kind, content) = match found.attr.kind {
                    FileType::Directory => {
                        pending.push((child.clone(), found.inode));
                        ('d', Vec::new())
                    }
                    FileType::RegularFile => ('f', self.content(found.inode).unwrap()),
                    FileType::Symlink => ('l', union.read_link(found.inode).unwrap().into_vec()),
                    FileType::Fifo => ('p', Vec::new()),
                    other => panic!("{} is a {other:?}", child.escape_ascii()),
                };
                if kind == 'f' {
                    assert_eq!(content.len() as u64, found.attr.size);
                }
                let names = union.xattr_names(found.inode).unwrap();
                let names = names.split(|&byte| byte == 0).filter(|name| !name.is_empty());
                let xattrs =
                    names.map(|name| (name.to_vec(), union.xattr(found.inode, name).unwrap())).collect();
                numbers.insert(child.clone(), found.inode);
                let entry = Entry {
                    kind,
                    mode: found.attr.mode,
                    owner: (found.attr.uid, found.attr.gid),
                    content,
                    xattrs,
                    same_as: Vec::new(),
                    links: found.attr.links,
                };
                entries.insert(child, entry);
            }
        }
        let mut first = HashMap::new();
        for (path, entry) in &mut entries {
            entry.same_as = first.entry(numbers[path]).or_insert_with(|| path.clone()).clone();
        }
        for inode in known {
            union.forget(inode, 1);
        }
        entries
    }
}
