//! Lists directories in advance of the walk, see [`crate::prefetch`].

use std::mem;

use rustix::io::Errno;

use super::directory::{Child, Content, Selection, Wish};
use crate::ahead::{Ahead, Work};

/// Maximum weight of waiting listings: each name has weight 1.
pub(super) const AHEAD: usize = 8_000;
/// Additional weight of each listing, because it may keep a directory open: a directory stays open while the
/// directories in it are still to be opened.
const DIRECTORY: usize = 40;

/// Children of a directory, after the directories among them have been requested.
pub(super) type Listed = rustix::io::Result<Vec<Child>>;

impl Work for Selection<'_> {
    type Wish = Wish;
    type Done = Listed;

    fn work(&self, wish: &Wish, ahead: &Ahead<'_, Self>) -> Listed {
        let mut children = wish.list(self)?;
        let (mut wishes, mut places) = (Vec::new(), Vec::new());
        for (place, child) in children.iter_mut().enumerate() {
            if let Content::Wish(wish) = mem::replace(&mut child.content, Content::None) {
                places.push((place, wish.pruned));
                wishes.push(*wish);
            }
        }
        for (slot, (place, pruned)) in ahead.ask_all(wishes).into_iter().zip(places) {
            children[place].content = Content::Asked { slot, pruned };
        }
        Ok(children)
    }

    fn weight(listed: &Listed) -> usize {
        DIRECTORY + listed.as_ref().map_or(0, Vec::len)
    }

    fn lost() -> Listed {
        // The panic is propagated when the thread is joined.
        Err(Errno::CANCELED)
    }
}
