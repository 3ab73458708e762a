//! The client of Hearth.
//!
//! - [`client`]: a typed client of `hearth.v1`, over a unix socket or TCP.
//! - [`rooms`]: which room a command speaks to, and with which token.
//! - [`progress`]: how the events of builds and deploys are shown.
//! - [`cli`]: the commands of `hearth`, one file each; [`exit`] decides how the process ends.

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
