//! HTTP side of the proxy: `CONNECT` for https, requests in absolute form for http.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{
    CONNECTION, EXPECT, HOST, HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER,
    TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use url::Host;

use super::dial::{DialError, IdleStream, dial};
use super::upstream::dial_through;
use super::{GitProxyBuilder, GitProxyBuilders, GitRefusal};
use crate::fetch_policy::FetchPolicy;
use crate::task;

/// Maximum number of connections to the proxy, over all builders.
const MAX_CONNECTIONS: usize = 512;
/// Time limit for reading a request head, also of the next request on a connection.
const HEAD_LIMIT: Duration = Duration::from_secs(15);
const MAX_HEAD: usize = 32 << 10;

type ProxyBody = BoxBody<Bytes, hyper::Error>;

/// Configuration for forwarding requests.
pub(super) struct GitProxyForwarding {
    pub(super) policy: FetchPolicy,
    pub(super) operator_proxies: Matcher,
}

pub(super) async fn serve(listener: TcpListener, way: GitProxyForwarding, builders: Arc<GitProxyBuilders>) {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let way = Arc::new(way);
    loop {
        // The semaphore is never closed.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "failed to accept a git proxy connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (way, builders) = (Arc::clone(&way), Arc::clone(&builders));
        task::spawn("git-proxy-connection", async move {
            let service = service_fn(|request| {
                let (way, builders) = (Arc::clone(&way), Arc::clone(&builders));
                async move { Ok::<_, Infallible>(handle_request(&way, &builders, request).await) }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT).max_buf_size(MAX_HEAD);
            let connection = http.serve_connection(TokioIo::new(stream), service).with_upgrades();
            if let Err(error) = connection.await {
                tracing::debug!(%error, "git proxy connection ended early");
            }
            drop(permit);
        });
    }
}

async fn handle_request(
    way: &GitProxyForwarding,
    builders: &GitProxyBuilders,
    request: Request<Incoming>,
) -> Response<ProxyBody> {
    let given = request.headers().get(PROXY_AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some(builder) = given.and_then(|given| builders.find(given)) else {
        let mut answer = text(StatusCode::PROXY_AUTHENTICATION_REQUIRED, "this proxy is for builders only");
        let challenge = HeaderValue::from_static("Basic realm=\"hearth\"");
        answer.headers_mut().insert(PROXY_AUTHENTICATE, challenge);
        return answer;
    };
    let Some((host, port)) = target(request.method(), request.uri()) else {
        return text(
            StatusCode::BAD_REQUEST,
            "expected CONNECT with a host and a port, or a request for an http URL",
        );
    };
    let Ok(permit) = Arc::clone(&builder.connections).try_acquire_owned() else {
        return text(StatusCode::SERVICE_UNAVAILABLE, "this builder has too many connections");
    };
    let tunnels = request.method() == Method::CONNECT;
    let scheme = if tunnels { "https" } else { "http" };
    let Ok(target) = format!("{scheme}://{host}:{port}/").parse::<Uri>() else {
        return text(StatusCode::BAD_REQUEST, "the host is not valid in a URL");
    };
    let proxy = way.operator_proxies.intercept(&target);
    let dialed = match &proxy {
        Some(proxy) => dial_through(proxy, &way.policy, &host, target, tunnels).await,
        None => dial(&way.policy, &host, port).await,
    };
    let stream = match dialed {
        Ok(stream) => stream,
        Err(error) => return refused(&builder, port, &error),
    };
    if tunnels {
        return tunnel(request, stream, permit);
    }
    match forward(request, stream, permit, proxy.as_ref()).await {
        Ok(answer) => answer,
        Err(error) => text(StatusCode::BAD_GATEWAY, &format!("`{host}` did not answer: {error}")),
    }
}

/// Returns the destination of a request.
fn target(method: &Method, uri: &Uri) -> Option<(Host<String>, u16)> {
    let authority: &Authority = uri.authority()?;
    let port = match (method, uri.scheme()) {
        (&Method::CONNECT, _) => authority.port_u16()?,
        (_, Some(scheme)) if *scheme == Scheme::HTTP => match authority.port() {
            Some(port) => port.as_str().parse().ok()?,
            None => 80,
        },
        _ => return None,
    };
    Some((Host::parse(authority.host()).ok()?, port))
}

fn refused(builder: &GitProxyBuilder, port: u16, error: &DialError) -> Response<ProxyBody> {
    let (host, address) = match error {
        DialError::Name(host) => (host, None),
        DialError::Address(host, address) => (host, Some(*address)),
        DialError::Unreachable(..) => return text(StatusCode::BAD_GATEWAY, &error.to_string()),
    };
    builder.record_refusal(GitRefusal { host: host.clone(), port, address, at: Instant::now() });
    text(StatusCode::FORBIDDEN, &error.to_string())
}

fn tunnel(
    request: Request<Incoming>,
    mut stream: IdleStream,
    permit: OwnedSemaphorePermit,
) -> Response<ProxyBody> {
    task::spawn("git-proxy-tunnel", async move {
        let moved = match hyper::upgrade::on(request).await {
            Ok(upgraded) => {
                let copied = tokio::io::copy_bidirectional(&mut TokioIo::new(upgraded), &mut stream).await;
                copied.map(drop).map_err(|error| error.to_string())
            }
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = moved {
            tracing::debug!(error, "git proxy tunnel ended early");
        }
        drop(permit);
    });
    Response::new(empty())
}

async fn forward(
    request: Request<Incoming>,
    stream: IdleStream,
    permit: OwnedSemaphorePermit,
    proxy: Option<&Intercept>,
) -> Result<Response<ProxyBody>, hyper::Error> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    task::spawn("git-proxy-request", async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "git proxy request ended early");
        }
        drop(permit);
    });
    let (mut head, body) = request.into_parts();
    let authority = head.uri.authority().map(|authority| host_and_port(authority.as_str()).to_owned());
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    head.uri = match (proxy, &authority) {
        // The whole URL, without credentials before the host.
        (Some(_), Some(authority)) => format!("http://{authority}{path}").parse().unwrap_or(head.uri),
        _ => Uri::from(path),
    };
    remove_hop_headers(&mut head.headers);
    if let Some(authorization) = proxy.and_then(Intercept::basic_auth) {
        head.headers.insert(PROXY_AUTHORIZATION, authorization.clone());
    }
    if let Some(host) = authority.and_then(|authority| HeaderValue::from_str(&authority).ok()) {
        head.headers.insert(HOST, host);
    }
    let mut answer = sender.send_request(Request::from_parts(head, body)).await?;
    remove_hop_headers(answer.headers_mut());
    Ok(answer.map(BodyExt::boxed))
}

fn host_and_port(authority: &str) -> &str {
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

fn remove_hop_headers(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    let always = [CONNECTION, EXPECT, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, UPGRADE];
    let unregistered = ["keep-alive", "proxy-connection"].map(HeaderName::from_static);
    for name in named.into_iter().chain(always).chain([TRANSFER_ENCODING]).chain(unregistered) {
        headers.remove(name);
    }
}

fn text(status: StatusCode, text: &str) -> Response<ProxyBody> {
    let body = Full::new(Bytes::from(format!("{text}\n"))).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    answer
}

fn empty() -> ProxyBody {
    Full::new(Bytes::new()).map_err(|never| match never {}).boxed()
}
