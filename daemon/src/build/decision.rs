//! Set-once decision about how a build ends: the first decision stands.
//!
//! Cancellation, the time limit, the shutdown of the daemon, faults and publishing all decide here. A build whose
//! cancellation was accepted therefore cannot publish, and one that has begun to publish cannot be cancelled.

use std::sync::atomic::{AtomicU8, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    Cancel = 1,
    TimeLimit,
    /// The daemon shuts down; the build stays queued for its next run.
    Drain,
    Fault,
    Publish,
}

#[derive(Debug, Default)]
pub struct Decision(AtomicU8);

impl Decision {
    /// Records `verdict` unless another one is recorded, and returns the recorded one.
    pub fn settle(&self, verdict: Verdict) -> Verdict {
        match self.0.compare_exchange(0, verdict as u8, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => verdict,
            Err(earlier) => match earlier {
                1 => Verdict::Cancel,
                2 => Verdict::TimeLimit,
                3 => Verdict::Drain,
                4 => Verdict::Fault,
                _ => Verdict::Publish,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_decision_stands() {
        let all = [Verdict::Cancel, Verdict::TimeLimit, Verdict::Drain, Verdict::Fault, Verdict::Publish];
        for first in all {
            let decision = Decision::default();
            assert_eq!(decision.settle(first), first);
            for later in all {
                assert_eq!(decision.settle(later), first);
            }
        }
    }
}
