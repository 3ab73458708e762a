//! The client of Hearth.
//!
//! - [`client`]: a typed client of `hearth.v1`, over a unix socket or TCP.
//! - [`rooms`]: selection of the room that a command uses, and of its token.
//! - [`progress`]: display of the events of builds and deploys.
//! - [`cli`]: the commands of `hearth`, one file each. [`exit`] decides the exit code.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start threads where they need them"))]

pub mod cli;
pub mod client;
pub mod duration;
pub mod error;
pub mod exit;
pub mod interrupt;
mod lineage;
pub mod output;
pub mod progress;
pub mod rooms;
mod task;
mod terminal;
