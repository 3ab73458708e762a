//! What the end-to-end tests and the benchmarks stand on.
//!
//! - [`binaries`]: finds `hearthd` and `hearth`, and builds them when they are missing or old.
//! - [`daemon`]: a real daemon in a directory of its own, with everything it leaves behind checked.
//! - [`runner`]: runs groups of cases that share a daemon, with a limit for each.
//! - [`sources`], [`image`], [`filesystem`]: trees that go into builds, and what came out, read without code of ours.
//! - [`http`], [`grpc`], [`skopeo`], [`buildctl`]: the other side of ports.
//! - [`containerd`], [`terminal`]: a containerd and a terminal of the test's own.
//! - [`scripted`], [`small_image`]: servers that misbehave as told, and a registry of images made by hand.
//! - [`service`], [`traffic`]: images that services are started from, and requests to them.
//! - [`process`], [`leftovers`], [`network`], [`step_network`]: commands with a time limit, and what must not outlive a test.
//! - [`world`]: machines that a build's steps may or may not reach.
//! - [`remains`]: what there is of a daemon's instances, everywhere.
//!
//! Everything here panics on failure, with what was expected and what came: it runs in tests only.
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
pub mod process;
pub mod remains;
pub mod runner;
pub mod scripted;
pub mod service;
pub mod skopeo;
pub mod small_image;
pub mod sources;
pub mod step_network;
pub mod terminal;
pub mod traffic;
pub mod wait;
pub mod world;
