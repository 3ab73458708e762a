//! Deploys: images of the room that run as its services.
//!
//! [`Service::start`] compares what runs with what shall run, and gives a [`Handle`] for everything else. `merge`
//! makes the next revision from a request, `plan` says what is to be done, `reconcile` has one loop per service that
//! does it, `steps` are the single steps, `health` looks from outside whether an instance serves, `progress` tells
//! what happens.
//!
//! # Numbers
//!
//! A new instance is probed after 10, 20, 40 ms and so on up to every second, and has 60 s for its first healthy
//! answer; where another one serves it then has to stay healthy for 2 s before it takes the traffic. After that it is
//! probed every 10 s, each probe has 5 s, and 3 failures in a row make it unhealthy: it is replaced. An instance that
//! ends is started again after 100 ms, doubled with each end up to 30 s, and after 100 ms again when it was healthy for
//! a minute. An instance that goes has 30 s for its requests in flight, and 10 s from its stop signal to SIGKILL.
//!
//! # What an instance finds in its environment
//!
//! Beside what the service's user set, and never over it:
//!
//! | name | value |
//! |---|---|
//! | `HEARTH_ADDR`, `MESHAGENT_API_URL` | where this daemon is reached from inside, `http://address:port` |
//! | `HEARTH_ROOM`, `MESHAGENT_ROOM` | the room's name |
//! | `HEARTH_SERVICE` | the service's name |
//! | `HEARTH_REVISION` | the revision's number |

mod backoff;
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
mod plan;
pub mod port;
mod progress;
mod reconcile;
mod routes;
mod secrets;
mod service;
mod share;
mod start;
mod steps;
mod submit;
mod tokens;
mod view;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
pub(crate) mod tests;

pub use images::RoomServiceImages;
pub use log_files::LogFiles;
pub use merge::MergeError;
pub use progress::DeployEvents;
pub use service::{By, DeployError, Handle, Options, Permits, Ports, Service, StartError};
