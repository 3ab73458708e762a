//! The registry's HTTP API on a loopback port, over real files and a real database, driven by plain
//! HTTP and by skopeo. Who calls is decided by a small layer that stands for the token check.

mod access;
mod deleting;
mod listing;
mod manifests;
mod room;
mod skopeo;
mod uploads;
