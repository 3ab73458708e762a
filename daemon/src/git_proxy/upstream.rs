//! Forwards git through the operator's own proxy, when the daemon's environment names one (`HTTPS_PROXY`,
//! `HTTP_PROXY`, `ALL_PROXY`, `NO_PROXY`). That proxy resolves the name and decides which addresses it connects to.

use std::error::Error;
use std::net::IpAddr;

use http::Uri;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::proxy::matcher::Intercept;
use tokio::time::timeout;
use tower::Service as _;
use url::Host;

use super::dial::{CONNECT_LIMIT, DialError, IdleStream};
use crate::fetch_policy::FetchPolicy;

/// Connects to the proxy for `target`, which is `scheme://host:port`. For https, it opens a tunnel to the target with
/// the proxy's `CONNECT`.
pub(super) async fn dial_through(
    proxy: &Intercept,
    policy: &FetchPolicy,
    host: &Host<String>,
    target: Uri,
    tunnels: bool,
) -> Result<IdleStream, DialError> {
    if !policy.allows_host(host) {
        return Err(match host {
            Host::Domain(name) => DialError::Name(name.clone()),
            Host::Ipv4(address) => DialError::Address(host.to_string(), IpAddr::V4(*address)),
            Host::Ipv6(address) => DialError::Address(host.to_string(), IpAddr::V6(*address)),
        });
    }
    let mut connector = HttpConnector::new();
    let unreachable = |reason: String| {
        DialError::Unreachable(host.to_string(), format!("through the configured proxy: {reason}"))
    };
    let connected = timeout(CONNECT_LIMIT, async {
        if !tunnels {
            return connector.call(proxy.uri().clone()).await.map_err(|error| unreachable(causes(&error)));
        }
        let mut tunnel = Tunnel::new(proxy.uri().clone(), connector);
        if let Some(authorization) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(authorization.clone());
        }
        tunnel.call(target).await.map_err(|error| unreachable(causes(&error)))
    });
    match connected.await {
        Ok(stream) => Ok(IdleStream::new(stream?.into_inner())),
        Err(_) => Err(unreachable("no answer in time".to_owned())),
    }
}

fn causes(error: &dyn Error) -> String {
    let (mut text, mut next) = (error.to_string(), error.source());
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
