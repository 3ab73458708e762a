//! Running calls, each with the token that it was admitted with: a call is ended when its token becomes invalid.
//!
//! ```text
//! begin --> running --token revoked, expired, its key or service gone--> ended
//!              '------RunningCall dropped--> forgotten
//! ```

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use super::AccessError;

/// Part of a call that must end with the call even while nobody polls it.
pub trait CallResource: Send + Sync {
    fn end(&self, why: &AccessError);
}

/// All running calls. Their number is bounded by the limits on connections and on callers.
#[derive(Clone, Default)]
pub(super) struct RunningCalls(Arc<Mutex<CallTable>>);

#[derive(Default)]
struct CallTable {
    next: u64,
    calls: HashMap<u64, Arc<CallState>>,
}

struct CallState {
    token: String,
    ended: CancellationToken,
    reason: OnceLock<AccessError>,
    resources: Mutex<Vec<Weak<dyn CallResource>>>,
}

/// A running call. Dropping it removes the call from the table.
pub struct RunningCall {
    number: u64,
    calls: RunningCalls,
    end: Arc<CallState>,
}

impl RunningCalls {
    pub(super) fn begin(&self, token: String) -> RunningCall {
        let (ended, why, held) = (CancellationToken::new(), OnceLock::new(), Mutex::default());
        let end = Arc::new(CallState { token, ended, reason: why, resources: held });
        let mut table = self.table();
        let number = table.next;
        table.next += 1;
        table.calls.insert(number, Arc::clone(&end));
        drop(table);
        RunningCall { number, calls: self.clone(), end }
    }

    /// Ends the calls whose token is no longer valid, and returns their number.
    pub(super) fn end_invalid(&self, verify: impl Fn(&str) -> Result<(), AccessError>) -> usize {
        let all: Vec<_> = self.table().calls.values().cloned().collect();
        let mut count = 0;
        for call in all.into_iter().filter(|call| !call.ended.is_cancelled()) {
            if let Err(why) = verify(&call.token) {
                call.end(why);
                count += 1;
            }
        }
        count
    }

    fn table(&self) -> MutexGuard<'_, CallTable> {
        // A panic while the lock is held leaves the table consistent: every change is complete by itself.
        self.0.lock()
    }
}

impl CallState {
    fn end(&self, why: AccessError) {
        let why = self.reason.get_or_init(|| why);
        self.ended.cancel();
        let held = std::mem::take(&mut *self.resources.lock());
        held.iter().filter_map(Weak::upgrade).for_each(|part| part.end(why));
    }
}

impl RunningCall {
    /// Waits until the call's token is no longer valid, and returns the reason.
    pub async fn ended(&self) -> AccessError {
        self.end.ended.cancelled().await;
        self.why()
    }

    /// Attaches a part that ends with the call; if the call has already ended, the part is ended at once.
    pub fn attach(&self, part: Weak<dyn CallResource>) {
        let mut held = self.end.resources.lock();
        if !self.end.ended.is_cancelled() {
            held.push(part);
            return;
        }
        drop(held);
        if let Some(part) = part.upgrade() {
            part.end(&self.why());
        }
    }

    fn why(&self) -> AccessError {
        self.end.reason.get().cloned().unwrap_or(AccessError::Missing)
    }
}

impl Drop for RunningCall {
    fn drop(&mut self) {
        self.calls.table().calls.remove(&self.number);
    }
}
