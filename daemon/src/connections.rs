//! Connections of peers: bounded in all and for each peer, and closed when nobody uses them.
//!
//! ```text
//! admit --> held --(begin, end)*--> dropped
//!   |         '-- told to close: unused for too long, or another peer needs its place
//!   '--> crowded: no connection can be closed for this one
//! ```
//!
//! When there is no place, the connection that makes one is the longest unused one of the peer that holds most. One
//! that is in use by somebody who has shown who they are is never closed for another.

mod table;

use parking_lot::{Mutex, MutexGuard};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use table::Table;

/// Between two looks for connections that nobody uses.
const SWEEP: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Connections of all peers together.
    pub total: usize,
    /// Connections of one peer.
    pub per_peer: usize,
    /// A connection that has served nobody yet is closed after this long without a request.
    pub unknown: Duration,
    /// A connection that has served a request is closed after this long without another one.
    pub idle: Duration,
}

/// Whose share of the connections one counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionPeer {
    Address(IpAddr),
    /// Stands for many, whom it counts itself: it has no share of its own.
    Proxy(IpAddr),
    /// A user of this machine, on a unix socket.
    User(u32),
}

/// No connection can be closed for a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Crowded {
    #[error("{limit} connections of this peer are open and in use, which is the most")]
    Peer { limit: usize },
    #[error("{limit} connections are open and in use, which is the most")]
    All { limit: usize },
    /// A connection could make room, but as many as may do so at a time are still being closed.
    #[error("{limit} connections are being closed to make room, which is the most at a time")]
    Closing { limit: usize },
}

/// The connections of one or more listeners; cheap to clone.
#[derive(Clone)]
pub struct Connections(Arc<Shared>);

struct Shared {
    limits: ConnectionLimits,
    opened: Instant,
    table: Mutex<Table>,
    ended: Notify,
}

/// How a connection is used.
struct Usage {
    requests: AtomicUsize,
    opened: Instant,
    /// When the last request ended, or the connection was opened: milliseconds since the table was made.
    used: AtomicU64,
    known: AtomicBool,
    closing: CancellationToken,
}

/// A place among the connections, which is free again when this is dropped.
pub struct Held {
    shared: Arc<Shared>,
    used: ConnectionUse,
    peer: ConnectionPeer,
    number: u64,
}

/// Says that a connection is used; cheap to clone. It does not hold the connection's place.
#[derive(Clone)]
pub struct ConnectionUse(Arc<Usage>);

/// A request for which a connection is in use, until this is dropped.
pub struct InUse(ConnectionUse);

impl ConnectionPeer {
    /// Whoever has one address of IPv6 has the 64 bits behind it too.
    pub fn of(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
            address @ IpAddr::V4(_) => address,
        })
    }

    const fn has_share(self) -> bool {
        !matches!(self, Self::Proxy(_))
    }
}

impl Connections {
    pub fn new(limits: ConnectionLimits) -> Self {
        let limits =
            ConnectionLimits { total: limits.total.max(1), per_peer: limits.per_peer.max(1), ..limits };
        let (opened, table, ended) = (Instant::now(), Mutex::default(), Notify::new());
        Self(Arc::new(Shared { limits, opened, table, ended }))
    }

    /// Gives a new connection a place. It is told to close by its own token, which `stop` cancels too.
    pub fn admit(&self, peer: ConnectionPeer, stop: &CancellationToken) -> Result<Held, Crowded> {
        let usage = Arc::new(Usage {
            requests: AtomicUsize::new(0),
            opened: self.0.opened,
            used: AtomicU64::new(milliseconds_since(self.0.opened)),
            known: AtomicBool::new(false),
            closing: stop.child_token(),
        });
        let mut table = self.0.table();
        table.make_room(peer, &self.0.limits)?;
        let number = table.insert(peer, Arc::clone(&usage));
        drop(table);
        Ok(Held { shared: Arc::clone(&self.0), used: ConnectionUse(usage), peer, number })
    }

    /// Like [`admit`](Self::admit), but waits for up to `limit` while other connections are being closed.
    pub async fn admit_within(
        &self,
        limit: Duration,
        peer: ConnectionPeer,
        stop: &CancellationToken,
    ) -> Result<Held, Crowded> {
        let end = tokio::time::Instant::now() + limit;
        loop {
            let ended = self.0.ended.notified();
            let crowded = match self.admit(peer, stop) {
                Err(crowded @ Crowded::Closing { .. }) => crowded,
                admitted => return admitted,
            };
            if tokio::time::timeout_at(end, ended).await.is_err() {
                return Err(crowded);
            }
        }
    }

    /// Tells connections to close that have been unused for too long. See [`sweep_loop`](Self::sweep_loop).
    pub fn sweep(&self) {
        let (now, limits) = (milliseconds_since(self.0.opened), &self.0.limits);
        self.0.table().each(|usage| {
            let limit = if usage.known.load(Ordering::Relaxed) { limits.idle } else { limits.unknown };
            let unused = now.saturating_sub(usage.used.load(Ordering::Relaxed));
            if usage.is_unused() && u128::from(unused) >= limit.as_millis() {
                usage.closing.cancel();
            }
        });
    }

    /// Sweeps until `stop`.
    pub async fn sweep_loop(self, stop: CancellationToken) {
        let mut pause = tokio::time::interval(SWEEP);
        while stop.run_until_cancelled(pause.tick()).await.is_some() {
            self.sweep();
        }
    }

    pub fn count(&self) -> usize {
        self.0.table().count()
    }

    /// Returns when no connection is open.
    pub async fn all_ended(&self) {
        loop {
            let ended = self.0.ended.notified();
            if self.count() == 0 {
                return;
            }
            ended.await;
        }
    }
}

impl Shared {
    fn table(&self) -> MutexGuard<'_, Table> {
        // Every change under the lock is one insertion or removal: a panic leaves it whole.
        self.table.lock()
    }
}

fn milliseconds_since(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Usage {
    fn is_unused(&self) -> bool {
        self.requests.load(Ordering::Relaxed) == 0
    }

    /// Whether the connection may be closed for another one.
    fn may_go(&self) -> bool {
        self.is_unused() || !self.known.load(Ordering::Relaxed)
    }
}

impl Held {
    /// Cancelled when the connection is to close.
    pub fn closing(&self) -> &CancellationToken {
        &self.used.0.closing
    }

    pub const fn used(&self) -> &ConnectionUse {
        &self.used
    }
}

impl ConnectionUse {
    /// A request has come.
    pub fn begin(&self) -> InUse {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        InUse(self.clone())
    }

    /// Whoever sent a request has shown that they may: the connection is not closed for others while it is in use.
    pub fn is_known(&self) {
        if !self.0.known.load(Ordering::Relaxed) {
            self.0.known.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        let ConnectionUse(usage) = &self.0;
        usage.used.store(milliseconds_since(usage.opened), Ordering::Relaxed);
        usage.requests.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.table().remove(self.peer, self.number);
        self.shared.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests;
