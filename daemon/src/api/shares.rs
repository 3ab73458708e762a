//! Limits on the daemon's resources for each caller: concurrent requests, and memory for data that is being received.
//!
//! Memory follows the rule of a shared buffer with dynamic thresholds (Choudhury and Hahne, 1998): a caller may
//! hold as much as is left free. A single caller gets half of the memory, and however many there are, some is
//! left for the next one.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareLimits {
    /// Maximum number of concurrent requests of one caller.
    pub requests: usize,
    /// Maximum number of bytes that are received and not yet handled, for all requests together.
    pub receiving: u64,
}

/// Refusal of a request: the caller has the maximum number of concurrent requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{limit} requests of this caller are under way, which is the most")]
pub struct TooManyRequests {
    pub limit: usize,
}

/// The shares of all callers; cheap to clone.
#[derive(Clone)]
pub struct CallerShares(Arc<CallerSharesState>);

struct CallerSharesState {
    limits: ShareLimits,
    held: Mutex<SharesInUse>,
    freed: Notify,
}

#[derive(Default)]
struct SharesInUse {
    bytes: u64,
    callers: HashMap<String, CallerUsage>,
}

#[derive(Default)]
struct CallerUsage {
    requests: usize,
    bytes: u64,
}

/// A running request and the memory that it holds. Dropping it releases both.
pub struct RequestShare {
    shared: Arc<CallerSharesState>,
    caller: String,
    bytes: Mutex<u64>,
}

impl CallerShares {
    pub fn new(limits: ShareLimits) -> Self {
        Self(Arc::new(CallerSharesState { limits, held: Mutex::default(), freed: Notify::new() }))
    }

    /// Registers a running request of a caller.
    pub fn begin(&self, caller: &str) -> Result<RequestShare, TooManyRequests> {
        let mut held = self.0.held();
        let own = held.callers.entry(caller.to_owned()).or_default();
        if own.requests >= self.0.limits.requests {
            return Err(TooManyRequests { limit: self.0.limits.requests });
        }
        own.requests += 1;
        drop(held);
        Ok(RequestShare { shared: Arc::clone(&self.0), caller: caller.to_owned(), bytes: Mutex::new(0) })
    }

    #[cfg(test)]
    fn receiving(&self) -> u64 {
        self.0.held().bytes
    }
}

impl CallerSharesState {
    fn held(&self) -> MutexGuard<'_, SharesInUse> {
        // A panic while the lock is held leaves the sums consistent: every change only adds or subtracts.
        self.held.lock()
    }
}

impl RequestShare {
    /// Takes memory for received data. Returns false if the caller already holds as much as is free.
    pub fn grow(&self, more: u64) -> bool {
        let mut held = self.shared.held();
        let SharesInUse { bytes, callers } = &mut *held;
        let own = callers.entry(self.caller.clone()).or_default();
        let free = self.shared.limits.receiving.saturating_sub(bytes.saturating_add(more));
        if own.bytes.saturating_add(more) > free {
            return false;
        }
        *bytes += more;
        own.bytes += more;
        *self.own() += more;
        true
    }

    /// Like [`grow`](Self::grow), but waits until there is enough memory.
    pub async fn grow_when_free(&self, more: u64) {
        loop {
            let freed = self.shared.freed.notified();
            if self.grow(more) {
                return;
            }
            freed.await;
        }
    }

    /// Releases memory, at most as much as the request holds.
    pub fn shrink(&self, less: u64) {
        let less = {
            let mut own = self.own();
            let less = less.min(*own);
            *own -= less;
            less
        };
        if less > 0 {
            self.give_back(less, 0);
        }
    }

    fn own(&self) -> MutexGuard<'_, u64> {
        self.bytes.lock()
    }

    fn give_back(&self, less: u64, requests: usize) {
        let mut held = self.shared.held();
        held.bytes = held.bytes.saturating_sub(less);
        if let Some(own) = held.callers.get_mut(&self.caller) {
            own.bytes = own.bytes.saturating_sub(less);
            own.requests = own.requests.saturating_sub(requests);
            if own.requests == 0 {
                held.callers.remove(&self.caller);
            }
        }
        drop(held);
        if less > 0 {
            self.shared.freed.notify_waiters();
        }
    }
}

impl Drop for RequestShare {
    fn drop(&mut self) {
        let all = *self.own();
        self.give_back(all, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shares(requests: usize, receiving: u64) -> CallerShares {
        CallerShares::new(ShareLimits { requests, receiving })
    }

    #[test]
    fn a_caller_has_so_many_requests_and_others_have_theirs() {
        let shares = shares(2, 100);
        let held: Vec<_> = (0..2).map(|_| shares.begin("a").unwrap()).collect();
        assert_eq!(shares.begin("a").err(), Some(TooManyRequests { limit: 2 }));
        shares.begin("b").unwrap();
        drop(held);
        shares.begin("a").unwrap();
        assert!(shares.0.held().callers.is_empty(), "nobody is remembered who has nothing under way");
    }

    #[test]
    fn one_caller_alone_gets_half_of_the_memory_and_there_is_some_for_the_next() {
        let shares = shares(10, 1000);
        let (first, second) = (shares.begin("a").unwrap(), shares.begin("a").unwrap());
        assert!(first.grow(300) && second.grow(200));
        assert!(!first.grow(1) && !second.grow(1));
        let other = shares.begin("b").unwrap();
        assert!(other.grow(250) && !other.grow(1));
        drop(first);
        assert!(second.grow(100));
        assert_eq!(shares.receiving(), 550);
    }

    #[tokio::test]
    async fn whoever_waits_goes_on_when_memory_is_free() {
        let shares = shares(10, 100);
        let (first, second) = (shares.begin("a").unwrap(), shares.begin("a").unwrap());
        assert!(first.grow(50));
        let waiting = crate::task::spawn("grow", async move { second.grow_when_free(50).await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        first.shrink(50);
        waiting.await.unwrap();
        assert_eq!(shares.receiving(), 0, "what the second held went with it");
    }

    proptest! {
        #[test]
        fn something_is_always_left_for_a_newcomer(
            asked in proptest::collection::vec((0u8..5, 1u64..200), 1..200),
        ) {
            let shares = shares(usize::MAX, 1 << 10);
            let mut held = Vec::new();
            for (caller, bytes) in asked {
                let share = shares.begin(&format!("c{caller}")).unwrap();
                if share.grow(bytes) {
                    held.push(share);
                }
                prop_assert!(shares.receiving() < 1 << 10);
            }
            // Each caller leaves at least as much as it holds: five leave a part in 2^5.
            let newcomer = shares.begin("new").unwrap();
            prop_assert!(newcomer.grow((1 << 10) / 32 / 2));
        }
    }
}
