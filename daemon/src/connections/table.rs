//! Table of the open connections, and the choice of the one to close.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{ConnectionLimitReached, ConnectionLimits, ConnectionPeer, ConnectionState};

/// Maximum number of connections that were asked to make room and are still open. They do not count towards the limits.
const MAX_CLOSING: usize = 64;

#[derive(Default)]
pub(super) struct ConnectionTable {
    peers: HashMap<ConnectionPeer, Vec<(u64, Arc<ConnectionState>)>>,
    /// Number of connections in `peers`.
    counted: usize,
    closing: usize,
    next: u64,
}

impl ConnectionTable {
    pub(super) const fn count(&self) -> usize {
        self.counted + self.closing
    }

    pub(super) fn for_each(&self, tell: impl FnMut(&ConnectionState)) {
        self.peers.values().flatten().map(|(_, usage)| &**usage).for_each(tell);
    }

    /// Makes room for one more connection of `peer`, by closing another one if needed.
    pub(super) fn make_room(
        &mut self,
        peer: ConnectionPeer,
        limits: &ConnectionLimits,
    ) -> Result<(), ConnectionLimitReached> {
        let own = self.peers.get(&peer).map_or(0, Vec::len);
        if peer.has_share() && own >= limits.per_peer {
            let evicted = self.peers.get(&peer).and_then(|held| longest_unused(held));
            return self.evict(peer, evicted, ConnectionLimitReached::Peer { limit: limits.per_peer });
        }
        if self.counted < limits.total {
            return Ok(());
        }
        // Candidates: peers with more connections than this one, and this one. No peer loses a part of its
        // share to another.
        let mut evicted: Option<(usize, ConnectionPeer, usize)> = None;
        for (holder, held) in &self.peers {
            let is_larger = evicted.is_none_or(|(most, ..)| held.len() > most);
            if is_larger
                && (held.len() > own || *holder == peer)
                && let Some(index) = longest_unused(held)
            {
                evicted = Some((held.len(), *holder, index));
            }
        }
        let (holder, index) = evicted.map_or((peer, None), |(_, holder, index)| (holder, Some(index)));
        self.evict(holder, index, ConnectionLimitReached::All { limit: limits.total })
    }

    /// Asks a connection to close and stops counting it. Without an index, the new connection is refused with
    /// `crowded`.
    fn evict(
        &mut self,
        peer: ConnectionPeer,
        index: Option<usize>,
        crowded: ConnectionLimitReached,
    ) -> Result<(), ConnectionLimitReached> {
        let Entry::Occupied(mut held) = self.peers.entry(peer) else { return Err(crowded) };
        let index = index.filter(|index| *index < held.get().len()).ok_or(crowded)?;
        if self.closing >= MAX_CLOSING {
            return Err(ConnectionLimitReached::Closing { limit: MAX_CLOSING });
        }
        let (_, usage) = held.get_mut().swap_remove(index);
        if held.get().is_empty() {
            held.remove();
        }
        usage.closing.cancel();
        self.counted -= 1;
        self.closing += 1;
        Ok(())
    }

    pub(super) fn insert(&mut self, peer: ConnectionPeer, usage: Arc<ConnectionState>) -> u64 {
        self.next += 1;
        self.peers.entry(peer).or_default().push((self.next, usage));
        self.counted += 1;
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
            self.counted -= 1;
        } else {
            self.closing = self.closing.saturating_sub(1);
        }
    }
}

/// Index of the connection that has been unused for longest, among those that may be closed; connections
/// without an admitted request first.
fn longest_unused(held: &[(u64, Arc<ConnectionState>)]) -> Option<usize> {
    let since = |usage: &ConnectionState| {
        (usage.admitted.load(Ordering::Relaxed), usage.last_used_ms.load(Ordering::Relaxed))
    };
    let open = held
        .iter()
        .enumerate()
        .filter(|(_, (_, usage))| usage.may_be_closed() && !usage.closing.is_cancelled());
    open.min_by_key(|(_, (number, usage))| (since(usage), *number)).map(|(index, _)| index)
}
