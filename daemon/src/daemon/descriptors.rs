//! Division of the open file limit among connections, so that the daemon's own work and the unix socket always have
//! some.

use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::ConnectionsConfig as Wanted;
use crate::connections::ConnectionLimits;

/// Maximum limit that is requested: children inherit it, and some programs iterate over all descriptor numbers below
/// it.
const MAX_OPEN_FILES: u64 = 65_536;
/// File descriptors for the database, content, uploads, builds and children; never more than a quarter of the limit.
const RESERVED_FILES: usize = 4096;
/// Time after which a connection that has not sent a request yet is closed.
const FIRST_REQUEST_LIMIT: Duration = Duration::from_secs(15);

/// Connection limits by listener.
#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionShares {
    pub(super) api: ConnectionLimits,
    pub(super) socket: ConnectionLimits,
    pub(super) ingress: ConnectionLimits,
}

/// Raises the limit of open files as far as needed and permitted, and divides it.
pub(super) fn divide_descriptors(wanted: &Wanted) -> ConnectionShares {
    let open_files = raise_file_limit();
    let shares = connection_shares(wanted, open_files);
    if shares.api.total < wanted.api || shares.ingress.total < wanted.ingress {
        tracing::warn!(
            open_files,
            api = shares.api.total,
            ingress = shares.ingress.total,
            "reduced the limits of connections, because the limit of open files (LimitNOFILE) is too low for them"
        );
    }
    shares
}

fn raise_file_limit() -> usize {
    let limit = getrlimit(Resource::Nofile);
    let hard = limit.maximum.unwrap_or(MAX_OPEN_FILES);
    let soft = limit.current.unwrap_or(MAX_OPEN_FILES);
    let wanted = soft.max(hard.min(MAX_OPEN_FILES));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum });
    let open_files = match raised {
        Ok(()) => wanted,
        Err(error) => {
            tracing::warn!(%error, limit = soft, "failed to raise the limit of open files");
            soft
        }
    };
    usize::try_from(open_files).unwrap_or(usize::MAX)
}

fn connection_shares(wanted: &Wanted, open_files: usize) -> ConnectionShares {
    let own = RESERVED_FILES.min(open_files / 4);
    let socket = wanted.socket.min(open_files / 8);
    let left = open_files.saturating_sub(own + socket);
    // Each ingress connection needs a second one to an instance.
    let needed = wanted.api.saturating_add(wanted.ingress.saturating_mul(2)).max(1);
    let scaled = |count: usize| match needed > left {
        true => (count as u128 * left as u128 / needed as u128).max(1) as usize,
        false => count,
    };
    let limits = |total, per_peer| ConnectionLimits {
        total,
        per_peer,
        unadmitted_timeout: FIRST_REQUEST_LIMIT.min(Duration::from_secs(wanted.idle_seconds)),
        idle_timeout: Duration::from_secs(wanted.idle_seconds),
    };
    ConnectionShares {
        api: limits(scaled(wanted.api), scaled(wanted.api_per_peer)),
        socket: limits(socket, wanted.socket_per_user),
        ingress: limits(scaled(wanted.ingress), scaled(wanted.ingress_per_peer)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn all_connections_together_leave_files_for_the_daemon() {
        let wanted = Config::default().connections;
        for open_files in [256, 1024, 4096, 20_000, 65_536] {
            let ConnectionShares { api, socket, ingress } = connection_shares(&wanted, open_files);
            let used = api.total + socket.total + 2 * ingress.total;
            assert!(used + (open_files / 4).min(RESERVED_FILES) <= open_files + 3, "{open_files}: {used}");
            assert!(api.per_peer <= api.total.div_ceil(2) && ingress.per_peer <= ingress.total.div_ceil(2));
        }
        let enough = connection_shares(&wanted, 65_536);
        assert_eq!((enough.api.total, enough.ingress.total), (wanted.api, wanted.ingress));
    }
}
