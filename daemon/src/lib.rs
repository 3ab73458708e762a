//! hearthd: the image builder of a room.
//!
//! Dependencies have one direction: `main` builds [`daemon::Daemon`] from [`config`]; requests enter through [`api`],
//! are validated there, and are passed to the handles of [`build`], [`deploy`], [`image`], [`secrets`] and [`context`];
//! adapters ([`builders`] over [`buildkit`], [`containerd`], [`network`], [`ingress`], [`registry`], [`store`])
//! implement those modules' ports. `tests/arrows.rs` reads the `use crate::` lines and fails on a wrong direction.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start threads where they need them"))]

pub mod access;
pub mod api;
pub mod audit;
pub mod build;
pub mod builders;
pub mod buildkit;
pub mod capability;
pub mod config;
pub mod connections;
pub mod containerd;
pub mod control_group;
pub mod daemon;
pub mod database;
pub mod deploy;
pub mod disk;
pub mod downloads;
pub mod fetch_policy;
pub mod git_proxy;
pub mod image;
pub mod ingress;
pub mod instance_log;
pub mod keyed_semaphore;
pub mod netlink;
pub mod network;
pub mod packs;
pub mod registry;
pub mod secrets;
pub mod shutdown;
pub mod store;
pub mod supervise;
pub mod telemetry;

pub use hearth_context as context;
pub use hearth_model as model;
pub use hearth_task as task;
