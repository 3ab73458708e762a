//! Deploys: images of the room that run as its services.
//!
//! [`Service::start`] reconciles the running instances with the stored services and returns a [`Handle`] for everything
//! else. `merge` builds the next revision from a request, `plan` computes the next actions, `reconcile` runs one loop
//! per service that executes them, `steps` holds the long-running actions, `health` probes instances from outside their
//! containers, and `progress` publishes the events of a deploy.
//!
//! # Numbers
//!
//! A new instance is probed after 10, 20, 40 ms and so on up to every second, and has 60 s for its first healthy
//! answer. Where another instance serves the traffic, the new one then has to stay healthy for 2 s before it receives
//! the traffic. After that it is probed every 10 s with a timeout of 5 s per probe; 3 failures in a row make it
//! unhealthy and it is replaced. An instance that exits is started again after 100 ms, doubled with each exit up to 30
//! s, and after 100 ms again once it was healthy for a minute. An instance that is replaced has 30 s for its requests
//! in flight, and 10 s from its stop signal to SIGKILL.
//!
//! # Environment variables of an instance
//!
//! The daemon adds these variables; a value that the user of the service set takes precedence:
//!
//! | name | value |
//! |---|---|
//! | `HEARTH_ADDR`, `MESHAGENT_API_URL` | address of this daemon for instances, `http://address:port` |
//! | `HEARTH_ROOM`, `MESHAGENT_ROOM` | the room's name |
//! | `HEARTH_SERVICE` | the service's name |
//! | `HEARTH_REVISION` | the revision's number |

mod backoff;
mod context;
mod entries;
mod entry;
mod env;
mod failure;
mod forecast;
mod health;
mod images;
mod listening;
mod log_files;
mod logs;
mod merge;
pub mod mounts;
mod options;
mod plan;
pub mod port;
mod progress;
mod reconcile;
mod routes;
mod secrets;
mod service;
mod service_logs;
mod share;
mod startup;
mod steps;
mod submit;
mod tokens;
mod tracked_instance;
mod view;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
pub(crate) mod tests;

pub use images::RoomServiceImages;
pub use log_files::LogFiles;
pub use logs::ServiceLogLines;
pub use merge::MergeError;
pub use options::{DeployDependencies, Options};
pub use progress::DeployEvents;
pub use service::{Actor, CallerPermissions, DeployError, DeployStartError, Handle, Service};
