//! Lists directories in advance of the walk, see [`crate::prefetch`].

use std::mem;

use rustix::io::Errno;

use super::directory::{ChildListing, DirectoryChild, DirectoryRequest, WalkSelection};
use crate::prefetch::{PrefetchQueue, PrefetchWork};

/// Maximum weight of waiting listings: each name has weight 1.
pub(super) const MAX_WAITING_WEIGHT: usize = 8_000;
/// Additional weight of each listing, because it may keep a directory open: a directory stays open while the
/// directories in it are still to be opened.
const LISTING_WEIGHT: usize = 40;

/// Children of a directory, after the directories among them have been requested.
pub(super) type ChildrenResult = rustix::io::Result<Vec<DirectoryChild>>;

impl PrefetchWork for WalkSelection<'_> {
    type Request = DirectoryRequest;
    type Output = ChildrenResult;

    fn run_request(&self, wish: &DirectoryRequest, ahead: &PrefetchQueue<'_, Self>) -> ChildrenResult {
        let mut children = wish.list(self)?;
        let (mut wishes, mut requested) = (Vec::new(), Vec::new());
        for (index, child) in children.iter_mut().enumerate() {
            if let ChildListing::Unrequested(wish) = mem::replace(&mut child.content, ChildListing::None) {
                requested.push((index, wish.pruned));
                wishes.push(*wish);
            }
        }
        for (slot, (index, pruned)) in ahead.request_all(wishes).into_iter().zip(requested) {
            children[index].content = ChildListing::Requested { slot, pruned };
        }
        Ok(children)
    }

    fn weight(listed: &ChildrenResult) -> usize {
        LISTING_WEIGHT + listed.as_ref().map_or(0, Vec::len)
    }

    fn after_panic() -> ChildrenResult {
        // The panic is propagated when the thread is joined.
        Err(Errno::CANCELED)
    }
}
