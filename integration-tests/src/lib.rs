//! Harness of the end-to-end tests and the benchmarks.
//!
//! - [`binaries`]: finds `hearthd` and `hearth`, and builds them when they are missing or old.
//! - [`daemon`]: a real daemon in a directory of its own, with a check for everything that it leaves behind.
//! - [`runner`]: runs groups of cases that share a daemon, with a time limit for each.
//! - [`sources`], [`image`], [`filesystem`]: trees that go into builds, and readers of the results without code of
//!   Hearth.
//! - [`http`], [`grpc`], [`skopeo`], [`buildctl`]: clients of the daemon and of its buildkitd.
//! - [`containerd`], [`terminal`]: a containerd and a terminal that belong to the test.
//! - [`shell_session`]: a person's commands in an interactive shell, and what the screen shows.
//! - [`scripted`], [`small_image`]: servers with scripted misbehaviour, and a registry of hand-made images.
//! - [`service`], [`traffic`]: images that services are started from, and requests to them.
//! - [`process`], [`leftovers`], [`network`], [`step_network`]: commands with a time limit, and checks for what must
//!   not outlive a test.
//! - [`world`]: hosts that a build's steps may or may not reach.
//! - [`soak`]: random builds of several callers while the daemon and its builders are killed.
//! - [`option_usage`]: the table of options and of the cases that use them.
//! - [`remains`]: inventory of everything that exists for a daemon's instances.
//!
//! Every function here panics on failure, with the expected and the actual result: it runs in tests only.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test fails by panicking, and the runner reports on the terminal"
)]

pub mod binaries;
pub mod buildctl;
pub mod containerd;
pub mod daemon;
pub mod filesystem;
pub mod frames;
pub mod grpc;
pub mod http;
pub mod image;
pub mod leftovers;
pub mod network;
pub mod option_usage;
pub mod process;
pub mod remains;
pub mod runner;
pub mod scripted;
pub mod service;
pub mod shell_session;
pub mod skopeo;
pub mod small_image;
pub mod soak;
pub mod sources;
pub mod step_network;
pub mod terminal;
pub mod traffic;
pub mod wait;
pub mod world;
