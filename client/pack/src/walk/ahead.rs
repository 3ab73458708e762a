//! Directories listed by several threads, taken in the order of the walk.
//!
//! ```text
//! walk       take(root) .. take(a) .. take(a/b) ..       in order; lists what nobody has begun, and what is
//!                                                        to come while another is at what it needs
//! helpers    list a, list a/b, list a/c, list d ..       the newest wish first, which is nearly that order
//! ```
//!
//! Listing a directory asks for those in it. What is held is bounded: helpers rest while much waits for the
//! walk, and a directory stays open only as long as those in it are to be opened. What goes wrong waits for
//! the walk like any listing, so the error that is seen is the first in its order.

use std::mem;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::directory::{Child, Content, Selection, Wish};
use crate::workers::locked;

/// Names that may wait.
const AHEAD: usize = 8_000;
/// A listing counts as so many names more, for a directory may be open for its sake.
const DIRECTORY: usize = 40;

/// Content of a directory; what it wished for has been asked.
pub(super) type Listed = rustix::io::Result<Vec<Child>>;

pub(super) struct Listings<'a> {
    selection: &'a Selection<'a>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Slots with a wish, the newest last; some may have been taken meanwhile.
    wishes: Vec<usize>,
    /// Names that wait, by the count of [`weight`].
    ahead: usize,
    /// Threads that rest.
    resting: usize,
    over: bool,
}

enum Slot {
    Free,
    Wish(Box<Wish>),
    Running,
    Ready(Listed),
}

impl<'a> Listings<'a> {
    pub(super) fn new(selection: &'a Selection<'a>) -> Self {
        Self { selection, state: Mutex::default(), changed: Condvar::new() }
    }

    pub(super) fn ask(&self, wish: Wish) -> usize {
        locked(&self.state).ask(Box::new(wish))
    }

    /// The content of a directory that was asked for; once only.
    pub(super) fn take(&self, slot: usize) -> Listed {
        let mut state = locked(&self.state);
        while !state.over {
            match mem::replace(&mut state.slots[slot], Slot::Running) {
                Slot::Wish(wish) => {
                    drop(state);
                    self.run(slot, &wish);
                    state = locked(&self.state);
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
        // A helper panicked, and so will whoever waits for its end.
        Err(Errno::CANCELED)
    }

    /// Lists what is asked for, until [`end`](Self::end).
    pub(super) fn help(&self) {
        let _guard = EndOnPanic(self);
        let mut state = locked(&self.state);
        while !state.over {
            state = self.one(state);
        }
    }

    /// Lets the helpers go.
    pub(super) fn end(&self) {
        locked(&self.state).over = true;
        self.changed.notify_all();
    }

    /// Lists the directory that was asked for last, or waits for a change.
    fn one<'s>(&'s self, mut state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        match state.next() {
            Some((slot, wish)) => {
                drop(state);
                self.run(slot, &wish);
                locked(&self.state)
            }
            None => {
                state.resting += 1;
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.resting -= 1;
                state
            }
        }
    }

    fn run(&self, slot: usize, wish: &Wish) {
        let mut listed = wish.list(self.selection);
        let mut state = locked(&self.state);
        if let Ok(children) = &mut listed {
            state.ask_all(children);
        }
        state.ahead += weight(&listed);
        state.slots[slot] = Slot::Ready(listed);
        self.wake(&state);
    }

    fn wake(&self, state: &State) {
        if state.resting > 0 {
            self.changed.notify_all();
        }
    }
}

fn weight(listed: &Listed) -> usize {
    DIRECTORY + listed.as_ref().map_or(0, Vec::len)
}

impl State {
    fn ask(&mut self, wish: Box<Wish>) -> usize {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::Free);
            self.slots.len() - 1
        });
        self.slots[slot] = Slot::Wish(wish);
        self.wishes.push(slot);
        slot
    }

    fn ask_all(&mut self, children: &mut [Child]) {
        // Backwards: the first directory is the one that is needed first.
        for child in children.iter_mut().rev() {
            if let Content::Wish(wish) = mem::replace(&mut child.content, Content::None) {
                let pruned = wish.pruned;
                child.content = Content::Asked { slot: self.ask(wish), pruned };
            }
        }
    }

    /// The newest wish, unless enough waits already.
    fn next(&mut self) -> Option<(usize, Box<Wish>)> {
        while self.ahead < AHEAD {
            let slot = self.wishes.pop()?;
            match mem::replace(&mut self.slots[slot], Slot::Running) {
                Slot::Wish(wish) => return Some((slot, wish)),
                taken => self.slots[slot] = taken,
            }
        }
        None
    }
}

/// The walk must not wait for what a helper that panicked had begun.
struct EndOnPanic<'l, 'a>(&'l Listings<'a>);

impl Drop for EndOnPanic<'_, '_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end();
        }
    }
}
