//! Builder status as shown to users.

use jiff::Timestamp;

use super::trust::TrustDomain;

/// Status of one builder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuilderStatus {
    /// Trust domain that the builder serves; `None` for an external builder, which serves several domains.
    pub domain: Option<TrustDomain>,
    /// Address of an external builder.
    pub address: Option<String>,
    pub state: BuilderState,
    /// Version if ready; otherwise the reason why it is not running although it should be.
    pub detail: String,
    /// Size of its cache in bytes, as last measured.
    pub disk: u64,
    pub last_used: Option<Timestamp>,
    /// Number of builds that use it now.
    pub builds: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BuilderState {
    Ready,
    /// The builder should run, but does not answer.
    NotReady,
    /// The builder is stopped: its cache exists, and the next build starts it.
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
