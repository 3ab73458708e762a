//! The registry's HTTP API on a loopback port, over real files and a real database, driven by plain
//! HTTP and by skopeo. Who calls is decided by a small layer that stands for the token check.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a test that cannot run here says so")]

mod access;
mod deleting;
mod listing;
mod manifests;
mod room;
mod skopeo;
mod uploads;
