//! The containerd adapter against the real containerd and runc of this machine.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "tests fail by panicking, and show what they measured"
)]

mod exec;
mod faults;
mod fixture;
mod images;
mod mounts;
mod running;
