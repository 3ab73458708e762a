//! Builds: accepted, queued, run one task each, and ended for good.

pub mod port;
