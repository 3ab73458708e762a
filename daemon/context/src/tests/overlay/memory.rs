//! A tree in memory with the rules of POSIX.

use std::collections::BTreeMap;

use hearth_overlay::union::RenameMode;
use rustix::io::Errno;

use super::operation::{Entry, Operation, Outcome, Path, Target, xattr_name};

pub struct Memory {
    inodes: Vec<Inode>,
    held: BTreeMap<u8, usize>,
}

#[derive(Clone)]
struct Inode {
    kind: char,
    mode: u32,
    owner: (u32, u32),
    content: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    names: BTreeMap<Vec<u8>, usize>,
}

const ROOT: usize = 0;

impl Inode {
    fn new(kind: char, mode: u32, content: &[u8]) -> Self {
        let (xattrs, names) = (BTreeMap::new(), BTreeMap::new());
        Self { kind, mode, owner: (0, 0), content: content.to_vec(), xattrs, names }
    }
}

impl Memory {
    pub fn new() -> Self {
        Self { inodes: vec![Inode::new('d', 0o755, b"")], held: BTreeMap::new() }
    }

    fn directory(&self, names: &[&[u8]]) -> Result<usize, Errno> {
        let mut current = ROOT;
        for name in names {
            current = *self.inodes[current].names.get(*name).ok_or(Errno::NOENT)?;
            match self.inodes[current].kind {
                'd' => {}
                'l' => return Err(Errno::LOOP),
                _ => return Err(Errno::NOTDIR),
            }
        }
        Ok(current)
    }

    fn place(&self, path: &Path) -> Result<(usize, Vec<u8>, Option<usize>), Errno> {
        let (above, name) = path.split();
        let directory = self.directory(above)?;
        Ok((directory, name.to_vec(), self.inodes[directory].names.get(name).copied()))
    }

    fn find(&self, path: &Path) -> Result<usize, Errno> {
        self.place(path)?.2.ok_or(Errno::NOENT)
    }

    fn regular(&self, path: &Path) -> Result<usize, Errno> {
        let inode = self.find(path)?;
        match self.inodes[inode].kind {
            'f' => Ok(inode),
            'd' => Err(Errno::ISDIR),
            'l' => Err(Errno::LOOP),
            _ => Err(Errno::NXIO),
        }
    }

    fn make(&mut self, path: &Path, mut inode: Inode) -> Outcome {
        let (directory, name, there) = self.place(path)?;
        if there.is_some() {
            return Err(Errno::EXIST);
        }
        let above = &self.inodes[directory];
        if above.mode & 0o2000 != 0 {
            inode.owner.1 = above.owner.1;
            if inode.kind == 'd' {
                inode.mode |= 0o2000;
            }
        }
        self.inodes.push(inode);
        let number = self.inodes.len() - 1;
        self.inodes[directory].names.insert(name, number);
        Ok(Vec::new())
    }

    fn is_below(&self, directory: usize, top: usize) -> bool {
        directory == top || self.inodes[top].names.values().any(|child| self.is_below(directory, *child))
    }

    fn rename(&mut self, from: &Path, to: &Path, mode: RenameMode) -> Outcome {
        let (old_directory, old_name, old) = self.place(from)?;
        let (new_directory, new_name, new) = self.place(to)?;
        let old = old.ok_or(Errno::NOENT)?;
        match (mode, new) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT),
            _ => {}
        }
        if self.is_below(new_directory, old) {
            return Err(Errno::INVAL);
        }
        if let Some(new) = new {
            if self.is_below(old_directory, new) {
                return Err(if mode == RenameMode::Exchange { Errno::INVAL } else { Errno::NOTEMPTY });
            }
            if new == old {
                return Ok(Vec::new());
            }
            if mode == RenameMode::Exchange {
                self.inodes[old_directory].names.insert(old_name, new);
                self.inodes[new_directory].names.insert(new_name, old);
                return Ok(Vec::new());
            }
            match (self.inodes[old].kind == 'd', self.inodes[new].kind == 'd') {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                (true, true) if !self.inodes[new].names.is_empty() => return Err(Errno::NOTEMPTY),
                _ => {}
            }
        }
        self.inodes[old_directory].names.remove(&old_name);
        self.inodes[new_directory].names.insert(new_name, old);
        Ok(Vec::new())
    }

    fn write(&mut self, inode: usize, at: u64, bytes: &[u8]) -> Outcome {
        let content = &mut self.inodes[inode].content;
        let at = at as usize;
        if !bytes.is_empty() {
            content.resize(content.len().max(at + bytes.len()), 0);
            content[at..at + bytes.len()].copy_from_slice(bytes);
        }
        Ok(Vec::new())
    }

    fn count(&self, inode: usize) -> u32 {
        self.inodes
            .iter()
            .flat_map(|directory| directory.names.values())
            .filter(|named| **named == inode)
            .count() as u32
    }

    fn walk(&self, directory: usize, path: &[u8], found: &mut Vec<(Vec<u8>, usize)>) {
        for (name, &inode) in &self.inodes[directory].names {
            let path = if path.is_empty() { name.clone() } else { [path, b"/", name].concat() };
            found.push((path.clone(), inode));
            self.walk(inode, &path, found);
        }
    }
}

impl Target for Memory {
    fn apply(&mut self, operation: &Operation) -> Outcome {
        match operation {
            Operation::MakeDirectory(path, mode) => self.make(path, Inode::new('d', *mode, b"")),
            Operation::Create(path, mode, content) => self.make(path, Inode::new('f', *mode, content)),
            Operation::Fifo(path) => self.make(path, Inode::new('p', 0o644, b"")),
            Operation::Symlink(path, target) => self.make(path, Inode::new('l', 0o777, target)),
            Operation::Link(from, to) => {
                let inode = self.find(from)?;
                let (directory, name, there) = self.place(to)?;
                if there.is_some() {
                    return Err(Errno::EXIST);
                }
                if self.inodes[inode].kind == 'd' {
                    return Err(Errno::PERM);
                }
                self.inodes[directory].names.insert(name, inode);
                Ok(Vec::new())
            }
            Operation::Write(path, at, bytes) => {
                let inode = self.regular(path)?;
                self.write(inode, *at, bytes)
            }
            Operation::Truncate(path, size) => {
                let inode = self.regular(path)?;
                self.inodes[inode].content.resize(*size as usize, 0);
                Ok(Vec::new())
            }
            Operation::Unlink(path) => {
                let (directory, name, there) = self.place(path)?;
                if self.inodes[there.ok_or(Errno::NOENT)?].kind == 'd' {
                    return Err(Errno::ISDIR);
                }
                self.inodes[directory].names.remove(&name);
                Ok(Vec::new())
            }
            Operation::RemoveDirectory(path) => {
                let (directory, name, there) = self.place(path)?;
                let inode = &self.inodes[there.ok_or(Errno::NOENT)?];
                if inode.kind != 'd' {
                    return Err(Errno::NOTDIR);
                }
                if !inode.names.is_empty() {
                    return Err(Errno::NOTEMPTY);
                }
                self.inodes[directory].names.remove(&name);
                Ok(Vec::new())
            }
            Operation::Rename(from, to, mode) => self.rename(from, to, *mode),
            Operation::Mode(path, mode) => {
                let inode = self.find(path)?;
                if self.inodes[inode].kind == 'l' {
                    return Err(Errno::OPNOTSUPP);
                }
                self.inodes[inode].mode = *mode;
                Ok(Vec::new())
            }
            Operation::Owner(path, uid, gid) => {
                let inode = self.find(path)?;
                let inode = &mut self.inodes[inode];
                inode.owner = (*uid, *gid);
                if inode.kind != 'd' && inode.kind != 'l' {
                    inode.mode &= !0o4000;
                    if inode.mode & 0o10 != 0 {
                        inode.mode &= !0o2000;
                    }
                }
                Ok(Vec::new())
            }
            Operation::SetXattr(path, name, value) => {
                let inode = self.find(path)?;
                if !matches!(self.inodes[inode].kind, 'f' | 'd') {
                    return Err(Errno::PERM);
                }
                self.inodes[inode].xattrs.insert(xattr_name(*name), value.clone());
                Ok(Vec::new())
            }
            Operation::RemoveXattr(path, name) => {
                let inode = self.find(path)?;
                if !matches!(self.inodes[inode].kind, 'f' | 'd') {
                    return Err(Errno::PERM);
                }
                let removed = self.inodes[inode].xattrs.remove(&xattr_name(*name));
                removed.map(|_| Vec::new()).ok_or(Errno::NODATA)
            }
            Operation::Hold(slot, path) => {
                let inode = self.regular(path)?;
                self.held.insert(*slot, inode);
                Ok(Vec::new())
            }
            Operation::WriteHeld(slot, at, bytes) => match self.held.get(slot) {
                Some(&inode) => self.write(inode, *at, bytes),
                None => Err(Errno::BADF),
            },
            Operation::ReadHeld(slot) => {
                self.held.get(slot).map(|&inode| self.inodes[inode].content.clone()).ok_or(Errno::BADF)
            }
            Operation::Drop(slot) => {
                self.held.remove(slot);
                Ok(Vec::new())
            }
            Operation::Reopen => {
                self.held.clear();
                Ok(Vec::new())
            }
        }
    }

    fn tree(&mut self) -> BTreeMap<Vec<u8>, Entry> {
        let mut found = Vec::new();
        self.walk(ROOT, b"", &mut found);
        found.sort();
        let entry = |(path, number): &(Vec<u8>, usize)| {
            let inode = &self.inodes[*number];
            let same_as = found.iter().find(|(_, other)| other == number).unwrap().0.clone();
            let entry = Entry {
                kind: inode.kind,
                mode: inode.mode,
                owner: inode.owner,
                content: inode.content.clone(),
                xattrs: inode.xattrs.clone(),
                same_as,
                links: if inode.kind == 'd' { 1 } else { self.count(*number) },
            };
            (path.clone(), entry)
        };
        found.iter().map(entry).collect()
    }
}
