//! Directories of the union, listed ahead of the walk that needs them.
//!
//! ```text
//! walk     ask(top) .. take(top) .. take(a) .. take(a/b) ..      in order; lists itself what nobody has begun
//! helpers            list a, list a/b, list a/c, list d ..       the newest wish first, which is nearly that order
//! ```
//!
//! Listing a directory asks for its subdirectories. Helpers rest while more than [`AHEAD`] entries wait
//! for the walk, so what is held does not grow with the tree.

use std::mem;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::bounds::Bounds;
use super::directory::child_path;
use super::{Child, Children, Found, Origin, Tree, bare, below};
use crate::context::ContextError;
use crate::context::port::{EntryKind, Xattr};

/// Entries that may wait.
const AHEAD: usize = 8_000;
/// What a directory that waits counts beside its entries.
const DIRECTORY: usize = 8;
/// Directories are held open for those in them down to this depth: there are about as many open at once as the tree
/// is deep.
const HELD_DEPTH: usize = 64;

/// A directory to list.
pub(super) struct Wish {
    /// Absolute, without `/` at its start.
    pub path: Vec<u8>,
    /// Whether a layer has it.
    pub backed: bool,
    /// Mounts with targets strictly below it.
    pub mounts: Vec<u32>,
    /// The directory that it is in, and its mount.
    pub above: Option<(u32, Arc<OwnedFd>)>,
}

/// A directory's content, sorted by name.
pub(super) struct Listed {
    pub children: Vec<Child>,
    /// For each directory among the children, in order: what to take its content by. None for one that is not
    /// looked into, and where its path is too long.
    pub directories: Vec<Option<usize>>,
    /// Of the directory itself.
    pub xattrs: Vec<Xattr>,
}

/// Listings under way.
pub(super) struct Listings<'t> {
    tree: &'t Tree,
    /// Of the context.
    top: &'t [u8],
    bounds: &'t Bounds<'t>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots with a wish, the newest last; some may have been taken meanwhile.
    wishes: Vec<usize>,
    /// What waits, see [`weight`].
    ahead: usize,
    /// Threads that wait for a change.
    resting: usize,
    over: bool,
}

enum Slot {
    Free,
    Wish(Wish),
    Running,
    Ready(Result<Listed, ContextError>),
}

impl<'t> Listings<'t> {
    pub(super) fn new(tree: &'t Tree, top: &'t [u8], bounds: &'t Bounds<'t>) -> Self {
        Self { tree, top, bounds, state: Mutex::default(), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ask(&self, wish: Wish) -> usize {
        self.lock().ask(wish)
    }

    /// The content of a directory that was asked for; once only.
    pub(super) fn take(&self, slot: usize) -> Result<Listed, ContextError> {
        let mut state = self.lock();
        loop {
            match mem::replace(&mut state.slots[slot], Slot::Running) {
                Slot::Wish(wish) => {
                    drop(state);
                    self.run(slot, &wish);
                    state = self.lock();
                }
                Slot::Ready(listed) => {
                    state.slots[slot] = Slot::Free;
                    state.free.push(slot);
                    state.ahead -= weight(&listed);
                    self.wake(&state);
                    return listed;
                }
                Slot::Running | Slot::Free => state = self.one(state),
            }
        }
    }

    /// Lists what is asked for, until [`end`](Self::end).
    pub(super) fn help(&self) {
        let mut state = self.lock();
        while !state.over {
            state = self.one(state);
        }
    }

    /// Lists the directory that was asked for last, or waits for a change.
    fn one<'s>(&'s self, mut state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        if let Some((slot, wish)) = state.next() {
            drop(state);
            self.run(slot, &wish);
            return self.lock();
        }
        state.resting += 1;
        state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        state.resting -= 1;
        state
    }

    fn wake(&self, state: &State) {
        if state.resting > 0 {
            self.changed.notify_all();
        }
    }

    /// Lets the helpers go.
    pub(super) fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    fn run(&self, slot: usize, wish: &Wish) {
        // Whoever waits for this slot is told also when listing panics.
        let mut answer = Answer { listings: self, slot, result: Err(ContextError::Ending) };
        answer.result = self.tree.list(wish).map(|Children { children, xattrs, directory }| {
            let directories = self.ask_all(wish, &children, directory.as_ref());
            Listed { children, directories, xattrs }
        });
    }

    fn ask_all(
        &self,
        wish: &Wish,
        children: &[Child],
        directory: Option<&Arc<OwnedFd>>,
    ) -> Vec<Option<usize>> {
        let is_deep = wish.path.iter().filter(|&&byte| byte == b'/').count() >= HELD_DEPTH;
        let directory = directory.filter(|_| !is_deep);
        let directories = children.iter().filter(|child| child.found.kind == EntryKind::Directory);
        let wishes: Vec<Option<Wish>> = directories
            .map(|child| {
                let path = child_path(&wish.path, &child.name).ok()?;
                if below(self.top, &path).is_some_and(|inside| !self.bounds.hold(inside)) {
                    return None;
                }
                let mounts = if wish.mounts.is_empty() { Vec::new() } else { self.tree.mounts_below(&path) };
                let backed = child.found.origin != Origin::Made || self.tree.is_mounted(&path);
                let above = match child.found.origin {
                    Origin::Disk { mount, .. } => directory.map(|directory| (mount, Arc::clone(directory))),
                    _ => None,
                };
                Some(Wish { path, backed, mounts, above })
            })
            .collect();
        if wishes.is_empty() {
            return Vec::new();
        }
        let mut state = self.lock();
        // Backwards: the first directory is the one that is needed first.
        let mut slots: Vec<Option<usize>> =
            wishes.into_iter().rev().map(|wish| Some(state.ask(wish?))).collect();
        slots.reverse();
        self.wake(&state);
        slots
    }
}

fn weight(listed: &Result<Listed, ContextError>) -> usize {
    DIRECTORY + listed.as_ref().map_or(0, |listed| listed.children.len())
}

impl State {
    /// The newest wish, unless enough waits already.
    fn next(&mut self) -> Option<(usize, Wish)> {
        while self.ahead < AHEAD {
            let slot = self.wishes.pop()?;
            match mem::replace(&mut self.slots[slot], Slot::Running) {
                Slot::Wish(wish) => return Some((slot, wish)),
                taken => self.slots[slot] = taken,
            }
        }
        None
    }

    fn ask(&mut self, wish: Wish) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            self.slots.len() - 1
        });
        self.slots[slot] = Slot::Wish(wish);
        self.wishes.push(slot);
        slot
    }
}

/// Hands a result over when it is dropped.
struct Answer<'l, 't> {
    listings: &'l Listings<'t>,
    slot: usize,
    result: Result<Listed, ContextError>,
}

impl Drop for Answer<'_, '_> {
    fn drop(&mut self) {
        let result = mem::replace(&mut self.result, Err(ContextError::Ending));
        let mut state = self.listings.lock();
        state.ahead += weight(&result);
        state.slots[self.slot] = Slot::Ready(result);
        self.listings.wake(&state);
    }
}

impl Tree {
    /// What a directory of the union holds, in order.
    fn list(&self, wish: &Wish) -> Result<Children, ContextError> {
        let mut listed = match self.covering(&wish.path) {
            Some((mount, inside)) if wish.backed => {
                // Only where the directory above is of the same mount is it the one that this is in; the root of a
                // mount has no name there.
                let above = wish.above.as_ref().filter(|(of, _)| *of == mount);
                self.children(mount, inside, above.map(|(_, directory)| &**directory), &wish.path)?
            }
            _ => Children::default(),
        };
        let children = &mut listed.children;
        children.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        for &mount in &wish.mounts {
            let target = bare(&self.mounts[mount as usize].target);
            let rest = below(&wish.path, target).unwrap_or_default();
            let name = rest.split(|&byte| byte == b'/').next().unwrap_or_default();
            let place = children.binary_search_by(|child| child.name.as_ref().cmp(name));
            let found = if name.len() == rest.len() {
                self.mount_root(mount)?
            } else {
                match place {
                    // The parent of a target: a directory stays what it is, anything else makes room for one.
                    Ok(index) if children[index].found.kind == EntryKind::Directory => continue,
                    _ => Found::made_directory(),
                }
            };
            match place {
                Ok(index) => children[index].found = found,
                Err(index) => children.insert(index, Child { name: name.into(), found }),
            }
        }
        Ok(listed)
    }
}
