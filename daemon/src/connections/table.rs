//! Table of the open connections, and the choice of the one to close.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{ConnectionLimits, ConnectionPeer, Crowded, Usage};

/// Maximum number of connections that were asked to make room and are still open. They do not count towards the limits.
const MOST_LEAVING: usize = 64;

#[derive(Default)]
pub(super) struct Table {
    peers: HashMap<ConnectionPeer, Vec<(u64, Arc<Usage>)>>,
    /// Number of connections in `peers`.
    staying: usize,
    leaving: usize,
    next: u64,
}

impl Table {
    pub(super) const fn count(&self) -> usize {
        self.staying + self.leaving
    }

    pub(super) fn each(&self, tell: impl FnMut(&Usage)) {
        self.peers.values().flatten().map(|(_, usage)| &**usage).for_each(tell);
    }

    /// Makes room for one more connection of `peer`, by closing another one if needed.
    pub(super) fn make_room(
        &mut self,
        peer: ConnectionPeer,
        limits: &ConnectionLimits,
    ) -> Result<(), Crowded> {
        let own = self.peers.get(&peer).map_or(0, Vec::len);
        if peer.has_share() && own >= limits.per_peer {
            let goes = self.peers.get(&peer).and_then(|held| longest_unused(held));
            return self.take_out(peer, goes, Crowded::Peer { limit: limits.per_peer });
        }
        if self.staying < limits.total {
            return Ok(());
        }
        // Candidates: peers with more connections than this one, and this one. No peer loses a part of its
        // share to another.
        let mut goes: Option<(usize, ConnectionPeer, usize)> = None;
        for (holder, held) in &self.peers {
            let more = goes.is_none_or(|(most, ..)| held.len() > most);
            if more
                && (held.len() > own || *holder == peer)
                && let Some(index) = longest_unused(held)
            {
                goes = Some((held.len(), *holder, index));
            }
        }
        let (holder, index) = goes.map_or((peer, None), |(_, holder, index)| (holder, Some(index)));
        self.take_out(holder, index, Crowded::All { limit: limits.total })
    }

    /// Asks a connection to close and stops counting it. Without an index, the new connection is refused with
    /// `crowded`.
    fn take_out(
        &mut self,
        peer: ConnectionPeer,
        index: Option<usize>,
        crowded: Crowded,
    ) -> Result<(), Crowded> {
        let Entry::Occupied(mut held) = self.peers.entry(peer) else { return Err(crowded) };
        let index = index.filter(|index| *index < held.get().len()).ok_or(crowded)?;
        if self.leaving >= MOST_LEAVING {
            return Err(Crowded::Closing { limit: MOST_LEAVING });
        }
        let (_, usage) = held.get_mut().swap_remove(index);
        if held.get().is_empty() {
            held.remove();
        }
        usage.closing.cancel();
        self.staying -= 1;
        self.leaving += 1;
        Ok(())
    }

    pub(super) fn insert(&mut self, peer: ConnectionPeer, usage: Arc<Usage>) -> u64 {
        self.next += 1;
        self.peers.entry(peer).or_default().push((self.next, usage));
        self.staying += 1;
        self.next
    }

    pub(super) fn remove(&mut self, peer: ConnectionPeer, number: u64) {
        if let Entry::Occupied(mut held) = self.peers.entry(peer)
            && let Some(index) = held.get().iter().position(|(other, _)| *other == number)
        {
            held.get_mut().swap_remove(index);
            if held.get().is_empty() {
                held.remove();
            }
            self.staying -= 1;
        } else {
            self.leaving = self.leaving.saturating_sub(1);
        }
    }
}

/// Index of the connection that has been unused for longest, among those that may be closed; connections
/// without an admitted request first.
fn longest_unused(held: &[(u64, Arc<Usage>)]) -> Option<usize> {
    let since = |usage: &Usage| (usage.known.load(Ordering::Relaxed), usage.used.load(Ordering::Relaxed));
    let open =
        held.iter().enumerate().filter(|(_, (_, usage))| usage.may_go() && !usage.closing.is_cancelled());
    open.min_by_key(|(_, (number, usage))| (since(usage), *number)).map(|(index, _)| index)
}
