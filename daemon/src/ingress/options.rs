//! What can be set of the ingress, and its limits.

use std::time::Duration;

use crate::connections::ConnectionLimits;
use crate::model::{AddressBlock, CertificateFiles};

#[derive(Clone, Debug)]
pub struct Options {
    /// From a connection's start, or the end of its last request, to the end of a request's head.
    pub head: Duration,
    /// From the end of what a client sends to the first byte of the answer.
    pub first_byte: Duration,
    /// For one attempt to connect to an instance.
    pub connect: Duration,
    /// How long a request waits for an instance that takes connections.
    pub hold: Duration,
    /// An upgraded connection on which nothing moves for this long is closed.
    pub upgrade_idle: Duration,
    /// A connection to an instance is kept this long for the next request.
    pub kept_idle: Duration,
    /// Threads that serve connections.
    pub workers: usize,
    /// Connections to one instance that each of them keeps.
    pub kept: usize,
    /// Connections of clients.
    pub connections: ConnectionLimits,
    pub max_head_bytes: usize,
    /// Proxies whose `X-Forwarded-*` is believed. Everybody else's is replaced.
    pub trusted_proxies: Vec<AddressBlock>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            head: Duration::from_secs(30),
            first_byte: Duration::from_secs(60),
            connect: Duration::from_secs(2),
            hold: Duration::from_secs(3),
            upgrade_idle: Duration::from_secs(10 * 60),
            kept_idle: Duration::from_secs(60),
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            kept: 64,
            connections: ConnectionLimits {
                total: 10_000,
                per_peer: 2_500,
                unknown: Duration::from_secs(30),
                idle: Duration::from_secs(300),
            },
            max_head_bytes: 64 * 1024,
            trusted_proxies: Vec::new(),
        }
    }
}

/// Where certificates for TLS come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsSource {
    /// Pairs of PEM files, certificate chain and key. Which one is shown depends on the name that the
    /// client asks for; the first is for all others. Read again when they change.
    Files(Vec<CertificateFiles>),
    /// Made at the start, for `localhost`: for development only.
    SelfSigned,
}
