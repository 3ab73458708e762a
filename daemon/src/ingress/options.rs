//! Settings and limits of the ingress.

use std::time::Duration;

use crate::connections::ConnectionLimits;
use crate::model::{AddressBlock, CertificateFiles};

#[derive(Clone, Debug)]
pub struct Options {
    /// Time limit from a connection's start, or the end of its last request, to the end of a request head.
    pub head_timeout: Duration,
    /// Time limit from the end of the client's request to the first byte of the answer.
    pub first_byte_timeout: Duration,
    /// Time limit for one attempt to connect to an instance.
    pub connect_timeout: Duration,
    /// Time limit for which a request waits until an instance accepts connections.
    pub hold_timeout: Duration,
    /// Idle time after which an upgraded connection is closed.
    pub upgrade_idle_timeout: Duration,
    /// Time for which an unused connection to an instance is kept for the next request.
    pub kept_idle_timeout: Duration,
    /// Number of threads that serve connections.
    pub workers: usize,
    /// Maximum number of kept connections to one instance, for each worker.
    pub max_kept_connections: usize,
    /// Limits on the connections of clients.
    pub connections: ConnectionLimits,
    pub max_head_bytes: usize,
    /// Proxies whose `X-Forwarded-*` headers are trusted. Those of other clients are replaced.
    pub trusted_proxies: Vec<AddressBlock>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            head_timeout: Duration::from_secs(30),
            first_byte_timeout: Duration::from_secs(60),
            connect_timeout: Duration::from_secs(2),
            hold_timeout: Duration::from_secs(3),
            upgrade_idle_timeout: Duration::from_secs(10 * 60),
            kept_idle_timeout: Duration::from_secs(60),
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            max_kept_connections: 64,
            connections: ConnectionLimits {
                total: 10_000,
                per_peer: 2_500,
                unadmitted_timeout: Duration::from_secs(30),
                idle_timeout: Duration::from_secs(300),
            },
            max_head_bytes: 64 * 1024,
            trusted_proxies: Vec::new(),
        }
    }
}

/// Source of the certificates for TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsSource {
    /// Pairs of PEM files, certificate chain and key. The name that the client asks for selects the pair; the
    /// first one is for all other names. Changed files are reloaded.
    Files(Vec<CertificateFiles>),
    /// Generated at start for `localhost`; for development only.
    SelfSigned,
}
