//! A builder as it is shown.

use jiff::Timestamp;

use super::trust::TrustDomain;

/// How one builder stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuilderStatus {
    /// None for a builder of somebody else's, which serves several domains.
    pub domain: Option<TrustDomain>,
    /// Where a builder of somebody else's listens.
    pub address: Option<String>,
    pub state: BuilderState,
    /// Version when ready; why not, when it should run and is not.
    pub detail: String,
    /// Bytes of its cache, when they were last measured.
    pub disk: u64,
    pub last_used: Option<Timestamp>,
    /// Builds that use it now.
    pub builds: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuilderState {
    Ready,
    /// It should run, and does not answer.
    NotReady,
    /// Only its cache is there; the next build starts it.
    Stopped,
}

impl BuilderState {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::NotReady => "not_ready",
            Self::Stopped => "stopped",
        }
    }
}
