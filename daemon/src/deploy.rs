//! Deploys: images of the room that run as its services.
//!
//! [`Service::start`] compares what runs with what shall run, and gives a [`Handle`] for everything else. `merge`
//! makes the next revision from a request, `plan` says what is to be done, `reconcile` has one loop per service that
//! does it, `steps` are the single steps, `health` looks from outside whether an instance serves, `progress` tells
//! what happens.
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
mod logs;
mod merge;
mod plan;
pub mod port;
mod progress;
mod reconcile;
mod routes;
mod service;
mod start;
mod steps;
mod submit;
mod tokens;
mod view;

#[cfg(test)]
mod fake;
#[cfg(test)]
pub(crate) mod tests;

pub use images::RoomServiceImages;
pub use merge::MergeError;
pub use progress::DeployEvents;
pub use service::{DeployError, Handle, Options, Ports, Service, StartError};
