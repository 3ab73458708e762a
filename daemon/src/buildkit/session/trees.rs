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

use super::super::Address;
use super::Session;
use super::files::{ServedTree, Source};
use crate::context::port::{ContextFiles, SessionName, Unwatched};

/// Time for which an idle session stays open, so that the next build of the same tree finds it.
const LINGER: Duration = Duration::from_secs(120);
/// Maximum number of idle sessions.
const MOST_IDLE: usize = 16;
/// Maximum time that BuildKit takes to unregister a session that the daemon closed.
const REST: Duration = Duration::from_secs(2);
/// Maximum number of closed ids before those older than [`REOPEN_DELAY`] are dropped.
const MOST_CLOSED: usize = 1000;

/// The open tree sessions of one BuildKit.
pub(in crate::buildkit) struct TreeSessions {
    address: Address,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slots: HashMap<String, Slot>,
    closed: HashMap<String, Instant>,
}

struct Slot {
    open: Arc<tokio::sync::Mutex<Option<Session>>>,
    tree: ServedTree,
    leases: usize,
    idle_since: Instant,
}

/// The parts of a slot that opening its session needs.
type Held = (Arc<tokio::sync::Mutex<Option<Session>>>, ServedTree);

/// Lease on the sessions of one build's trees; they stay open while it exists.
pub(in crate::buildkit) struct Lease {
    sessions: Arc<TreeSessions>,
    ids: Vec<String>,
}

impl TreeSessions {
    pub(in crate::buildkit) fn new(address: Address) -> Self {
        Self { address, state: Mutex::default() }
    }

    /// Leases the sessions that a build needs, and opens those that are not open yet.
    pub(in crate::buildkit) async fn lease(self: &Arc<Self>, files: &ContextFiles) -> Result<Lease, Status> {
        let context = Source { tree: Arc::clone(&files.context), watch: Arc::clone(&files.watch) };
        let dockerfile = Source { tree: Arc::clone(&files.dockerfile), watch: Arc::new(Unwatched) };
        let mut lease = Lease { sessions: Arc::clone(self), ids: Vec::new() };
        let context = lease.hold(&files.context_session, "context", context);
        let dockerfile = lease.hold(&files.dockerfile_session, "dockerfile", dockerfile);
        futures::try_join!(
            self.serve(context, &files.context_session),
            self.serve(dockerfile, &files.dockerfile_session),
        )?;
        Ok(lease)
    }

    async fn serve(&self, (slot, tree): Held, name: &SessionName) -> Result<(), Status> {
        let mut open = slot.lock().await;
        if open.as_ref().is_some_and(|session| !session.is_over()) {
            return Ok(());
        }
        *open = None;
        let closed = self.state.lock().closed.get(&name.id).copied();
        if let Some(closed) = closed {
            sleep(REST.saturating_sub(closed.elapsed())).await;
        }
        *open = Some(Session::tree(&self.address, name, tree).await?);
        Ok(())
    }

    /// Closes every session, also those of running builds. Called when the daemon shuts down.
    pub(in crate::buildkit) fn close_all(&self) {
        self.state.lock().slots.clear();
    }

    /// Closes sessions that were idle for too long, and those that are too many.
    pub(in crate::buildkit) fn close_idle(&self) {
        let mut state = self.state.lock();
        let idle = state.slots.iter().filter(|(_, slot)| slot.leases == 0);
        let mut idle: Vec<(Instant, String)> = idle.map(|(id, slot)| (slot.idle_since, id.clone())).collect();
        idle.sort_unstable_by_key(|(since, _)| std::cmp::Reverse(*since));
        for (place, (since, id)) in idle.into_iter().enumerate() {
            if place >= MOST_IDLE || since.elapsed() > LINGER {
                state.slots.remove(&id);
                state.closed.insert(id, Instant::now());
            }
        }
        if state.closed.len() > MOST_CLOSED {
            state.closed.retain(|_, closed| closed.elapsed() < REST);
        }
    }
}

impl Lease {
    fn hold(&mut self, name: &SessionName, dir: &'static str, source: Source) -> Held {
        let mut state = self.sessions.state.lock();
        let slot = state.slots.entry(name.id.clone()).or_insert_with(|| Slot {
            open: Arc::default(),
            tree: ServedTree::new(dir),
            leases: 0,
            idle_since: Instant::now(),
        });
        slot.leases += 1;
        let (held, before) = ((Arc::clone(&slot.open), slot.tree.clone()), slot.tree.put(Some(source)));
        drop(state);
        drop(before);
        self.ids.push(name.id.clone());
        held
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut unused = Vec::new();
        let mut state = self.sessions.state.lock();
        for id in &self.ids {
            if let Some(slot) = state.slots.get_mut(id) {
                slot.leases -= 1;
                slot.idle_since = Instant::now();
                if slot.leases == 0 {
                    unused.push(slot.tree.put(None));
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
