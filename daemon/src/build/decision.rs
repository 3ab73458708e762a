//! How a build ends is decided once, and the first to decide wins.
//!
//! Cancelling, the time limit, the daemon's end, a fault and publishing all meet here: a build whose
//! cancellation was accepted cannot publish, and one that has begun to publish cannot be cancelled.

use std::sync::atomic::{AtomicU8, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Verdict {
    Cancel = 1,
    TimeLimit,
    /// The daemon ends; the build is left for its next run.
    Drain,
    Fault,
    Publish,
}

#[derive(Debug, Default)]
pub struct Decision(AtomicU8);

impl Decision {
    /// Decides, unless that has been done, and says what stands.
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
