//! The registry's HTTP API on a loopback port, over real files and a real database, driven by plain HTTP and by skopeo.
//! A small layer that replaces the token check decides who the caller is.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a test that cannot run here says so")]

mod access;
mod deleting;
mod listing;
mod manifests;
mod room;
mod skopeo;
mod uploads;
