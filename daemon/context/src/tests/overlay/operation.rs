//! Operations on a tree and their results, in a form common to all implementations.

use std::collections::BTreeMap;
use std::fmt;

use proptest::prelude::*;
use rustix::io::Errno;

use hearth_overlay::union::RenameMode;

#[derive(Clone, Debug)]
pub enum Operation {
    MakeDirectory(Path, u32),
    Create(Path, u32, Vec<u8>),
    Fifo(Path),
    Symlink(Path, Vec<u8>),
    Link(Path, Path),
    Write(Path, u64, Vec<u8>),
    Truncate(Path, u64),
    Unlink(Path),
    RemoveDirectory(Path),
    Rename(Path, Path, RenameMode),
    Mode(Path, u32),
    Owner(Path, u32, u32),
    SetXattr(Path, u8, Vec<u8>),
    RemoveXattr(Path, u8),
    /// Opens a file for reading and writing, and keeps it open under a number.
    Hold(u8, Path),
    WriteHeld(u8, u64, Vec<u8>),
    ReadHeld(u8),
    Drop(u8),
    /// Close and open everything again, as after a kill of the daemon.
    Reopen,
}

/// Names from the root on; never empty.
#[derive(Clone, PartialEq, Eq)]
pub struct Path(pub Vec<&'static [u8]>);

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|name| write!(f, "/{}", name.escape_ascii()))
    }
}

impl Path {
    pub fn split(&self) -> (&[&'static [u8]], &'static [u8]) {
        let (name, above) = self.0.split_last().unwrap();
        (above, name)
    }
}

/// Bytes that an operation returned, if it reads.
pub type Outcome = Result<Vec<u8>, Errno>;

pub trait Target {
    fn apply(&mut self, operation: &Operation) -> Outcome;
    /// Returns all entries by path.
    fn tree(&mut self) -> BTreeMap<Vec<u8>, Entry>;
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: char,
    pub mode: u32,
    pub owner: (u32, u32),
    /// Content of a file, or target of a symbolic link.
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// First path in the tree of the same file, and its link count.
    pub same_as: Vec<u8>,
    pub links: u32,
}

/// Few names, so that operations conflict; some of them must not be special.
const NAMES: [&[u8]; 5] = [b"a", b"b", b"dir", b".wh.a", b"\xff\n"];

pub fn path() -> impl Strategy<Value = Path> {
    let name = prop_oneof![6 => Just(0usize), 4 => Just(1), 4 => Just(2), 1 => Just(3), 1 => Just(4)];
    prop::collection::vec(name, 1..4)
        .prop_map(|names| Path(names.into_iter().map(|name| NAMES[name]).collect()))
}

fn mode() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0o755), Just(0o644), Just(0o600), Just(0o4755), Just(0o2755), Just(0o1777), Just(0)]
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..12)
}

/// Generates the operations that fill a lower tree: only those that create entries.
pub fn making() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => (path(), mode()).prop_map(|(path, mode)| Operation::MakeDirectory(path, mode)),
        5 => (path(), mode(), bytes()).prop_map(|(path, mode, bytes)| Operation::Create(path, mode, bytes)),
        1 => path().prop_map(Operation::Fifo),
        1 => (path(), path()).prop_map(|(path, to)| Operation::Symlink(path, to.0.join(&b'/'))),
        2 => (path(), path()).prop_map(|(from, to)| Operation::Link(from, to)),
        1 => (path(), 1u32..3, 1u32..3).prop_map(|(path, uid, gid)| Operation::Owner(path, uid, gid)),
        1 => (path(), 0u8..2, bytes()).prop_map(|(path, name, value)| Operation::SetXattr(path, name, value)),
    ]
}

pub fn anything() -> impl Strategy<Value = Operation> {
    let rename = prop_oneof![
        4 => Just(RenameMode::Replace),
        1 => Just(RenameMode::NoReplace),
        1 => Just(RenameMode::Exchange)
    ];
    prop_oneof![
        8 => making(),
        3 => (path(), 0u64..20, bytes()).prop_map(|(path, at, bytes)| Operation::Write(path, at, bytes)),
        1 => (path(), 0u64..20).prop_map(|(path, size)| Operation::Truncate(path, size)),
        4 => path().prop_map(Operation::Unlink),
        3 => path().prop_map(Operation::RemoveDirectory),
        8 => (path(), path(), rename).prop_map(|(from, to, mode)| Operation::Rename(from, to, mode)),
        2 => (path(), mode()).prop_map(|(path, mode)| Operation::Mode(path, mode)),
        1 => (path(), 0u8..2).prop_map(|(path, name)| Operation::RemoveXattr(path, name)),
        2 => (0u8..3, path()).prop_map(|(slot, path)| Operation::Hold(slot, path)),
        2 => (0u8..3, 0u64..20, bytes()).prop_map(|(slot, at, bytes)| Operation::WriteHeld(slot, at, bytes)),
        2 => (0u8..3).prop_map(Operation::ReadHeld),
        1 => (0u8..3).prop_map(Operation::Drop),
        1 => Just(Operation::Reopen),
    ]
}

pub fn xattr_name(number: u8) -> Vec<u8> {
    format!("user.test{number}").into_bytes()
}
