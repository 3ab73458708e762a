//! Division of a layer into frames that are read and compressed separately. It affects the compressed bytes, so it
//! depends only on the entries and never on threads or time.
//!
//! A frame ends when it has about [`FRAME_SIZE`] bytes. Files of up to that size are never split, so that each is
//! opened once and is in a single frame for readers. Larger files are split to fill frames exactly.

use crate::file_kind::FileKind;
use crate::layer::header::{TAR_BLOCK, padding};
use crate::walk::WalkEntry;

/// Tar bytes in a frame. Smaller frames compress less well; larger ones make it more expensive to read a file from
/// the middle.
pub(super) const FRAME_SIZE: u64 = 1 << 20;

/// Position in the list of entries: before the header of an entry, or `inside` bytes into its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct EntryPosition {
    pub(super) index: usize,
    pub(super) inside: Option<u64>,
}

/// Range of the list of entries that one frame contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FrameRange {
    pub(super) from: EntryPosition,
    pub(super) to: EntryPosition,
    /// True for the last frame, which is followed by the end of the archive.
    pub(super) last: bool,
}

/// Iterator over the frames of a list of entries. There is at least one.
pub(super) struct FrameRanges<'a> {
    entries: &'a [WalkEntry],
    at: EntryPosition,
    done: bool,
}

impl<'a> FrameRanges<'a> {
    pub(super) fn of(entries: &'a [WalkEntry]) -> Self {
        Self { entries, at: EntryPosition::default(), done: false }
    }
}

impl Iterator for FrameRanges<'_> {
    type Item = FrameRange;

    fn next(&mut self) -> Option<FrameRange> {
        if self.done {
            return None;
        }
        let from = self.at;
        let mut used = 0;
        while let Some(entry) = self.entries.get(self.at.index).filter(|_| used < FRAME_SIZE) {
            let before = match self.at.inside {
                Some(before) => before,
                None => {
                    used += header_size(entry);
                    0
                }
            };
            let left = entry.size - before;
            let room = FRAME_SIZE.saturating_sub(used);
            // If the header alone fills the frame, the content of the file begins in the next one.
            if entry.size > FRAME_SIZE && left > room && room > 0 {
                self.at.inside = Some(before + room);
                used = FRAME_SIZE;
            } else if entry.size > FRAME_SIZE && left > room {
                self.at.inside = Some(before);
            } else {
                used += left + padding(entry.size) as u64;
                self.at = EntryPosition { index: self.at.index + 1, inside: None };
            }
        }
        self.done = self.at.index == self.entries.len();
        Some(FrameRange { from, to: self.at, last: self.done })
    }
}

/// Returns the approximate size of the header: attributes are not known before the file is opened.
fn header_size(entry: &WalkEntry) -> u64 {
    let long = |text: &[u8]| if text.len() > 100 { 2 * TAR_BLOCK + text.len() } else { 0 };
    let link: &[u8] = match &entry.kind {
        FileKind::Symlink(target) => target,
        FileKind::HardLink(to) => to,
        FileKind::Directory | FileKind::File(()) => b"",
        FileKind::Special(never) => match *never {},
    };
    (TAR_BLOCK + long(&entry.path) + long(link)) as u64
}
