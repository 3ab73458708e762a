//! Builds: accepted, queued, run as one task each, and recorded with a final state.
//!
//! [`Service::start`] restores the builds that an earlier run of the daemon left and returns a [`Handle`] for all
//! other operations. `admission` decides which build may run, `driver` runs one build from its spec to its outcome,
//! `publisher` numbers and stores its events, `watch` and `text` read them back.

mod admission;
mod attach;
mod credentials;
mod dockerfile;
mod driver;
mod estimate;
mod event_log;
#[cfg(test)]
mod fake;
mod idempotency;
mod log_text;
mod mask;
mod packages;
pub mod port;
mod presence;
mod provenance;
mod prune;
mod publisher;
mod recipe;
mod recovery;
mod retention;
mod room_secrets;
mod rooms;
mod service;
mod submit;
#[cfg(test)]
mod tests;
mod verdict;
mod watch;
mod why;

pub use admission::{AdmissionError, AdmissionLimits, QueuePlace};
pub use credentials::{RegistryAccess, RegistryCredentialMinter};
pub use log_text::{BuildLogQuery, BuildLogText, damage_text};
pub use prune::PruneBuilds;
pub use recipe::checked_definition;
pub use rooms::RoomContexts;
pub use service::{BuildError, BuildPorts, Handle, Options, Service, StartError};
pub use submit::{SubmitBuild, SubmitError, SubmittedBuild};
pub use watch::BuildEventStream;
pub use why::{BuildExplanation, ExplainedStep};
