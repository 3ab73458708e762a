//! Tree sessions: one for each version of a tree, shared by the builds that use it.
//!
//! ```text
//!          lease                       last lease dropped            IDLE_TIME over, or too many
//! (none) --------> open, leased n <-----------------------> open, idle --------------------> (none)
//!   ^                  | BuildKit ended it                       |
//!   '------------------'-----------------------------------------'   the next lease opens another
//! ```
//!
//! Builds provide the trees, and the last build that uses a tree removes it: an idle session holds no tree, because a
//! tree of 58,000 entries takes 16 MB, and only a build that leases the session requests its files.
//!
//! BuildKit uses a session's id as the version of its content, so the id of an open session is never given to a second
//! one. When two registrations share one id, the end of the first removes the second: an id that the daemon closed is
//! opened again only after [`REOPEN_DELAY`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::time::sleep;
use tonic::Status;

use super::super::BuildKitAddress;
use super::BuildKitSession;
use super::files::{ServedTree, TreeSource};
use crate::context::{ContextFiles, NoTransferWatch, SessionName};

/// Time for which an idle session stays open, so that the next build of the same tree finds it.
const IDLE_TIME: Duration = Duration::from_secs(120);
/// Maximum number of idle sessions.
const MAX_IDLE: usize = 16;
/// Maximum time that BuildKit takes to unregister a session that the daemon closed.
const REOPEN_DELAY: Duration = Duration::from_secs(2);
/// Maximum number of closed ids before those older than [`REOPEN_DELAY`] are dropped.
const MAX_CLOSED: usize = 1000;

/// The open tree sessions of one BuildKit.
pub(in crate::buildkit) struct TreeSessions {
    address: BuildKitAddress,
    state: Mutex<TreeSessionsState>,
}

#[derive(Default)]
struct TreeSessionsState {
    slots: HashMap<String, SessionSlot>,
    closed: HashMap<String, Instant>,
}

struct SessionSlot {
    session: Arc<tokio::sync::Mutex<Option<BuildKitSession>>>,
    tree: ServedTree,
    leases: usize,
    idle_since: Instant,
}

/// The parts of a slot that opening its session needs.
type SlotSession = (Arc<tokio::sync::Mutex<Option<BuildKitSession>>>, ServedTree);

/// Lease on the sessions of one build's trees; they stay open while it exists.
pub(in crate::buildkit) struct TreeLease {
    sessions: Arc<TreeSessions>,
    ids: Vec<String>,
}

impl TreeSessions {
    pub(in crate::buildkit) fn new(address: BuildKitAddress) -> Self {
        Self { address, state: Mutex::default() }
    }

    /// Leases the sessions that a build needs, and opens those that are not open yet.
    pub(in crate::buildkit) async fn lease(
        self: &Arc<Self>,
        files: &ContextFiles,
    ) -> Result<TreeLease, Status> {
        let context = TreeSource { tree: Arc::clone(&files.context), watch: Arc::clone(&files.watch) };
        let dockerfile = TreeSource { tree: Arc::clone(&files.dockerfile), watch: Arc::new(NoTransferWatch) };
        let mut lease = TreeLease { sessions: Arc::clone(self), ids: Vec::new() };
        let context = lease.lease_slot(&files.context_session, "context", context);
        let dockerfile = lease.lease_slot(&files.dockerfile_session, "dockerfile", dockerfile);
        futures::try_join!(
            self.ensure_open(context, &files.context_session),
            self.ensure_open(dockerfile, &files.dockerfile_session),
        )?;
        Ok(lease)
    }

    async fn ensure_open(&self, (slot, tree): SlotSession, name: &SessionName) -> Result<(), Status> {
        let mut open = slot.lock().await;
        if open.as_ref().is_some_and(|session| !session.is_closed()) {
            return Ok(());
        }
        *open = None;
        let closed = self.state.lock().closed.get(&name.id).copied();
        if let Some(closed) = closed {
            sleep(REOPEN_DELAY.saturating_sub(closed.elapsed())).await;
        }
        *open = Some(BuildKitSession::open_tree(&self.address, name, tree).await?);
        Ok(())
    }

    /// Closes every session, also those of running builds. Called when the daemon shuts down.
    pub(in crate::buildkit) fn close_all(&self) {
        self.state.lock().slots.clear();
    }

    /// Closes every session that no build uses.
    pub(in crate::buildkit) fn close_unused(&self) {
        self.close_idle_beyond(0);
    }

    /// Closes sessions that were idle for too long, and those that are too many.
    pub(in crate::buildkit) fn close_idle(&self) {
        self.close_idle_beyond(MAX_IDLE);
    }

    fn close_idle_beyond(&self, count: usize) {
        let mut state = self.state.lock();
        let idle = state.slots.iter().filter(|(_, slot)| slot.leases == 0);
        let mut idle: Vec<(Instant, String)> = idle.map(|(id, slot)| (slot.idle_since, id.clone())).collect();
        idle.sort_unstable_by_key(|(since, _)| std::cmp::Reverse(*since));
        for (place, (since, id)) in idle.into_iter().enumerate() {
            if place >= count || since.elapsed() > IDLE_TIME {
                state.slots.remove(&id);
                state.closed.insert(id, Instant::now());
            }
        }
        if state.closed.len() > MAX_CLOSED {
            state.closed.retain(|_, closed| closed.elapsed() < REOPEN_DELAY);
        }
    }
}

impl TreeLease {
    fn lease_slot(&mut self, name: &SessionName, dir: &'static str, source: TreeSource) -> SlotSession {
        let mut state = self.sessions.state.lock();
        let slot = state.slots.entry(name.id.clone()).or_insert_with(|| SessionSlot {
            session: Arc::default(),
            tree: ServedTree::new(dir),
            leases: 0,
            idle_since: Instant::now(),
        });
        slot.leases += 1;
        let (held, before) =
            ((Arc::clone(&slot.session), slot.tree.clone()), slot.tree.replace(Some(source)));
        drop(state);
        drop(before);
        self.ids.push(name.id.clone());
        held
    }
}

impl Drop for TreeLease {
    fn drop(&mut self) {
        let mut unused = Vec::new();
        let mut state = self.sessions.state.lock();
        for id in &self.ids {
            if let Some(slot) = state.slots.get_mut(id) {
                slot.leases -= 1;
                slot.idle_since = Instant::now();
                if slot.leases == 0 {
                    unused.push(slot.tree.replace(None));
                }
            }
        }
        drop(state);
        // Dropped outside of the lock, because large trees take long.
        drop(unused);
        self.sessions.close_idle();
    }
}

#[cfg(test)]
mod tests;
