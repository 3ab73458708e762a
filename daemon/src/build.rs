//! Builds: accepted, queued, run as one task each, and recorded with a final state.
//!
//! [`Service::start`] restores the builds that an earlier run of the daemon left and returns a [`Handle`] for all
//! other operations. `admission` decides which build may run, `driver` runs one build from its spec to its outcome,
//! `publisher` numbers and stores its events, `watch` and `text` read them back.

mod admission;
mod credentials;
mod decision;
mod dockerfile;
mod driver;
#[cfg(test)]
mod fake;
mod log;
mod mask;
pub mod port;
mod presence;
mod publisher;
mod recovery;
mod retention;
mod rooms;
mod service;
mod submit;
#[cfg(test)]
mod tests;
mod text;
mod watch;

pub use admission::{Deny, Limits};
pub use credentials::{RegistryAccess, RegistryCredential};
pub use rooms::RoomContexts;
pub use service::{BuildError, Handle, Options, Ports, Service, StartError};
pub use submit::{SubmitBuild, SubmitError, Submitted};
pub use text::{LogQuery, LogText};
pub use watch::Events;
