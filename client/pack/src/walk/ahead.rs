//! Directories listed ahead of the walk, see [`crate::ahead`].

use std::mem;

use rustix::io::Errno;

use super::directory::{Child, Content, Selection, Wish};
use crate::ahead::{Ahead, Work};

/// Names that may wait.
pub(super) const AHEAD: usize = 8_000;
/// A listing counts as so many names more, for a directory may be open for its sake: it stays open only as long as
/// those in it are to be opened.
const DIRECTORY: usize = 40;

/// Content of a directory; what it wished for has been asked.
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
        // The thread's panic goes on when it is joined.
        Err(Errno::CANCELED)
    }
}
