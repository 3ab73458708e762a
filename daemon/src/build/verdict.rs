//! Set-once decision about how a build ends: the first decision stands.
//!
//! Cancellation, the time limit, the shutdown of the daemon, faults and publishing all decide here. A build whose
//! cancellation was accepted therefore cannot publish, and one that has begun to publish cannot be cancelled.

use std::sync::atomic::{AtomicU8, Ordering};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BuildVerdict {
    Cancel = 1,
    TimeLimit,
    /// The daemon shuts down; the build stays queued for its next run.
    Drain,
    Fault,
    Publish,
}

#[derive(Debug, Default)]
pub struct VerdictCell(AtomicU8);

impl VerdictCell {
    /// Records `verdict` unless another one is recorded, and returns the recorded one.
    pub fn decide(&self, verdict: BuildVerdict) -> BuildVerdict {
        match self.0.compare_exchange(0, verdict as u8, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => verdict,
            Err(earlier) => match earlier {
                1 => BuildVerdict::Cancel,
                2 => BuildVerdict::TimeLimit,
                3 => BuildVerdict::Drain,
                4 => BuildVerdict::Fault,
                _ => BuildVerdict::Publish,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_decision_stands() {
        let all = [
            BuildVerdict::Cancel,
            BuildVerdict::TimeLimit,
            BuildVerdict::Drain,
            BuildVerdict::Fault,
            BuildVerdict::Publish,
        ];
        for first in all {
            let decision = VerdictCell::default();
            assert_eq!(decision.decide(first), first);
            for later in all {
                assert_eq!(decision.decide(later), first);
            }
        }
    }
}
