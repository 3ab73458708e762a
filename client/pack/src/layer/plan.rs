//! Where a layer is cut into frames, each read and compressed for itself. The cuts depend on the entries
//! alone, never on threads or time, for they show in the compressed bytes.
//!
//! A frame ends when it holds about [`FRAME`] bytes. Files of up to that size are never cut, so that each
//! is opened once and a reader finds it whole in one frame; larger ones are cut to fill frames exactly.

use crate::layer::header::{BLOCK, padding};
use crate::walk::{Entry, EntryKind};

/// Bytes of tar in a frame. Smaller frames cost ratio, larger ones more to read a file from the middle.
pub(super) const FRAME: u64 = 1 << 20;

/// A place in the list of entries: before the header of an entry, or behind some of its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Place {
    pub(super) index: usize,
    pub(super) inside: Option<u64>,
}

/// What one frame holds: from one place up to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    pub(super) from: Place,
    pub(super) to: Place,
    /// Whether the end of the archive follows.
    pub(super) last: bool,
}

/// The cuts of a list of entries; at least one.
pub(super) struct Cuts<'a> {
    entries: &'a [Entry],
    at: Place,
    done: bool,
}

impl<'a> Cuts<'a> {
    pub(super) fn of(entries: &'a [Entry]) -> Self {
        Self { entries, at: Place::default(), done: false }
    }
}

impl Iterator for Cuts<'_> {
    type Item = Cut;

    fn next(&mut self) -> Option<Cut> {
        if self.done {
            return None;
        }
        let from = self.at;
        let mut used = 0;
        while let Some(entry) = self.entries.get(self.at.index).filter(|_| used < FRAME) {
            let before = match self.at.inside {
                Some(before) => before,
                None => {
                    used += header_size(entry);
                    0
                }
            };
            let left = entry.size - before;
            let room = FRAME.saturating_sub(used);
            // A frame that is full with the header alone would make no progress inside the file.
            if entry.size > FRAME && left > room && room > 0 {
                self.at.inside = Some(before + room);
                used = FRAME;
            } else if entry.size > FRAME && left > room {
                self.at.inside = Some(before);
            } else {
                used += left + padding(entry.size) as u64;
                self.at = Place { index: self.at.index + 1, inside: None };
            }
        }
        self.done = self.at.index == self.entries.len();
        Some(Cut { from, to: self.at, last: self.done })
    }
}

/// About what the header takes; attributes are not known before the file is opened.
fn header_size(entry: &Entry) -> u64 {
    let long = |text: &[u8]| if text.len() > 100 { 2 * BLOCK + text.len() } else { 0 };
    let link: &[u8] = match &entry.kind {
        EntryKind::Symlink { target } => target,
        EntryKind::Hardlink { to } => to,
        EntryKind::Dir | EntryKind::File => b"",
    };
    (BLOCK + long(&entry.path) + long(link)) as u64
}
