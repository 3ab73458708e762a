//! An instance that receives requests: its requests in flight, and its kept connections.
//!
//! ```text
//! routed --retire--> retired: no request enters; those in flight continue --drain limit--> aborted
//! ```
//!
//! A request reads the route table and then enters its backend. In between, the route may have been switched
//! and the backend drained. Entering a retired backend therefore fails, and the request reads the table again.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustix::net::Shutdown;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::http2_upstream::Http2Sender;
use super::upstream::UpstreamConnection;

/// Time limit for aborted requests to end.
const CUT_LIMIT: Duration = Duration::from_secs(1);

pub(super) struct Backend {
    pub(super) address: SocketAddr,
    in_flight: AtomicUsize,
    retired: AtomicBool,
    /// Notified when the last request has left a retired backend.
    empty: Notify,
    /// Ends upgraded connections when cancelled.
    cut: CancellationToken,
    /// Kept connections of each worker: a connection wakes the thread on which it was created.
    idle_upstreams: Vec<Mutex<Vec<IdleUpstream>>>,
    /// Connection of each worker to an instance that speaks HTTP/2.
    http2: Vec<Mutex<Option<Http2Sender>>>,
    sockets: Arc<SocketTable>,
}

struct IdleUpstream {
    upstream: Box<UpstreamConnection>,
    since: Instant,
}

/// A request that counts as in flight until this is dropped.
pub(super) struct InFlight {
    backend: Arc<Backend>,
    worker: usize,
}

/// Sockets of the open connections, so that they can be shut down while they are in use.
#[derive(Default)]
struct SocketTable {
    open: Mutex<(u64, HashMap<u64, OwnedFd>)>,
}

/// Registration of a connection's socket, until this is dropped.
pub(super) struct OpenSocket {
    sockets: Arc<SocketTable>,
    number: u64,
}

impl Backend {
    pub(super) fn new(address: SocketAddr, workers: usize) -> Self {
        Self {
            address,
            in_flight: AtomicUsize::new(0),
            retired: AtomicBool::new(false),
            empty: Notify::new(),
            cut: CancellationToken::new(),
            idle_upstreams: std::iter::repeat_with(Mutex::default).take(workers).collect(),
            http2: std::iter::repeat_with(Mutex::default).take(workers).collect(),
            sockets: Arc::default(),
        }
    }

    /// Begins a request on a worker. `None` if the backend has been retired.
    pub(super) fn enter(self: &Arc<Self>, worker: usize) -> Option<InFlight> {
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let entered = InFlight { backend: Arc::clone(self), worker };
        // The order is: count, then check. Retiring does the opposite, so at least one of both sees the other.
        (!self.retired.load(Ordering::SeqCst)).then_some(entered)
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    pub(super) fn is_retired(&self) -> bool {
        self.retired.load(Ordering::SeqCst)
    }

    /// Stops new requests from entering, and closes the kept connections.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        self.idle_upstreams.iter().for_each(|kept| kept.lock().clear());
        self.http2.iter().for_each(|shared| drop(shared.lock().take()));
    }

    /// Waits until nothing is in flight, for at most `limit`, and then aborts the rest. Returns the number of
    /// aborted requests.
    pub(super) async fn drain(&self, limit: Duration) -> usize {
        self.retire();
        if tokio::time::timeout(limit, self.wait_until_empty()).await.is_ok() {
            return 0;
        }
        let left = self.in_flight();
        self.cut.cancel();
        self.sockets.shut_down();
        if tokio::time::timeout(CUT_LIMIT, self.wait_until_empty()).await.is_err() {
            tracing::warn!(backend = %self.address, left = self.in_flight(), "failed to end aborted requests in time");
        }
        left
    }

    async fn wait_until_empty(&self) {
        loop {
            let emptied = self.empty.notified();
            if self.in_flight() == 0 {
                return;
            }
            emptied.await;
        }
    }

    /// Closes the kept connections of a worker that are too old, and those that the instance has closed.
    pub(super) fn sweep(&self, worker: usize, idle: Duration) {
        if let Some(kept) = self.idle_upstreams.get(worker) {
            kept.lock().retain_mut(|kept| kept.since.elapsed() < idle && kept.upstream.is_reusable());
        }
        if let Some(shared) = self.http2.get(worker) {
            shared.lock().take_if(|sender| sender.is_closed());
        }
    }

    pub(super) fn register(&self, stream: &TcpStream) -> std::io::Result<OpenSocket> {
        let second = stream.as_fd().try_clone_to_owned()?;
        let mut open = self.sockets.open.lock();
        open.0 += 1;
        let number = open.0;
        open.1.insert(number, second);
        Ok(OpenSocket { sockets: Arc::clone(&self.sockets), number })
    }
}

impl SocketTable {
    fn shut_down(&self) {
        for socket in self.open.lock().1.values() {
            // Fails for a socket that the other side has just closed, which is harmless.
            if let Err(error) = rustix::net::shutdown(socket, Shutdown::Both) {
                tracing::debug!(%error, "failed to shut down a connection to an instance");
            }
        }
    }
}

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.sockets.open.lock().1.remove(&self.number);
    }
}

impl InFlight {
    pub(super) fn backend(&self) -> &Arc<Backend> {
        &self.backend
    }

    fn idle_upstreams(&self) -> Option<MutexGuard<'_, Vec<IdleUpstream>>> {
        self.backend.idle_upstreams.get(self.worker).map(Mutex::lock)
    }

    /// Takes the most recently used connection of this worker, unless it has been idle for longer than `idle`.
    pub(super) fn take_kept(&self, idle: Duration) -> Option<Box<UpstreamConnection>> {
        let kept = self.idle_upstreams()?.pop()?;
        // The remaining ones are older still; the sweep closes them.
        (kept.since.elapsed() < idle).then_some(kept.upstream)
    }

    /// Keeps a connection for the next request, if it can be reused and fewer than `room` are kept.
    pub(super) fn keep(&self, mut upstream: Box<UpstreamConnection>, room: usize) {
        if !upstream.is_reusable() {
            return;
        }
        if let Some(mut kept) = self.idle_upstreams()
            && kept.len() < room
            && !self.backend.is_retired()
        {
            kept.push(IdleUpstream { upstream, since: Instant::now() });
        }
    }

    /// Returns the connection of this worker to an instance that speaks HTTP/2.
    pub(super) fn shared_http2(&self) -> Option<Http2Sender> {
        self.backend.http2.get(self.worker)?.lock().clone().filter(|sender| !sender.is_closed())
    }

    pub(super) fn share_http2(&self, sender: Http2Sender) {
        if let Some(shared) = self.backend.http2.get(self.worker)
            && !self.backend.is_retired()
        {
            *shared.lock() = Some(sender);
        }
    }

    pub(super) fn cut(&self) -> &CancellationToken {
        &self.backend.cut
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.backend.in_flight.fetch_sub(1, Ordering::SeqCst) == 1 && self.backend.is_retired() {
            self.backend.empty.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend() -> Arc<Backend> {
        Arc::new(Backend::new("127.0.0.1:1".parse().unwrap(), 1))
    }

    #[tokio::test]
    async fn a_drain_ends_with_the_last_request_in_flight() {
        let backend = backend();
        let first = backend.enter(0).unwrap();
        let second = backend.enter(0).unwrap();
        let draining = backend.drain(Duration::from_secs(60));
        tokio::pin!(draining);
        assert!(futures::poll!(&mut draining).is_pending());
        assert!(backend.enter(0).is_none(), "nothing enters a retired backend");
        drop(first);
        assert!(futures::poll!(&mut draining).is_pending());
        drop(second);
        assert_eq!(draining.await, 0);
    }

    #[tokio::test]
    async fn a_drain_reports_how_many_requests_it_cut() {
        let backend = backend();
        let entered = backend.enter(0).unwrap();
        let cut = entered.cut().clone();
        let left = crate::task::spawn("exchange", async move {
            entered.cut().cancelled().await;
            drop(entered);
        });
        assert_eq!(backend.drain(Duration::from_millis(50)).await, 1);
        left.await.unwrap();
        assert!(cut.is_cancelled());
        assert_eq!(backend.in_flight(), 0);
    }
}
