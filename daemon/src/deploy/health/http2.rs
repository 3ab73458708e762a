//! Probes of ports that speak only HTTP/2, with prior knowledge.
//!
//! The path [`GRPC_HEALTH`] is asked as gRPC defines it (`grpc.health.v1.Health/Check` for the whole server); all other
//! paths are requested with GET. Without a path, `/` may be answered in any way that HTTP/2 knows, such as a reset of
//! the stream.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use super::MAX_BODY;
use crate::model::deploy::ProbeAnswer;

/// Path of gRPC's standard health check.
const GRPC_HEALTH: &str = "/grpc.health.v1.Health/Check";
/// A gRPC message of no bytes: not compressed, and its length.
const EMPTY_MESSAGE: [u8; 5] = [0; 5];
/// Answer of the health check: field 1 (status) is 1 (SERVING).
const SERVING: [u8; 7] = [0, 0, 0, 0, 2, 0x08, 1];

/// Asks a port for a path.
pub(super) async fn exchange(address: SocketAddr, host: &str, path: &str) -> std::io::Result<ProbeAnswer> {
    let stream = TcpStream::connect(address).await?;
    let asks_grpc = path == GRPC_HEALTH;
    let request =
        Request::builder().uri(format!("http://{host}{path}")).header(header::USER_AGENT, "hearth-probe");
    let request = if asks_grpc {
        let request = request.method(Method::POST).header(header::CONTENT_TYPE, "application/grpc");
        request.header(header::TE, "trailers").body(Full::new(Bytes::from_static(&EMPTY_MESSAGE)))
    } else {
        request.body(Full::default())
    };
    let request = request.map_err(std::io::Error::other)?;
    let handshake = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(std::io::Error::other)?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let (head, body) = response.into_parts();
        let status = head.headers.get("grpc-status").cloned();
        // What does not arrive is not shown.
        let body = Limited::new(body, MAX_BODY).collect().await.ok();
        let trailers = body.as_ref().and_then(|body| body.trailers()).cloned().unwrap_or_default();
        let status = status.or_else(|| trailers.get("grpc-status").cloned());
        let body = body.map(|body| body.to_bytes()).unwrap_or_default();
        Ok::<_, hyper::Error>((head, status, body))
    };
    // The answer is complete before its connection ends; without an answer, the error of both is the same.
    let answer = tokio::select! {
        biased;
        answer = answer => answer,
        ended = connection => match ended {
            Ok(()) => return Ok(ProbeAnswer::Closed),
            Err(error) => Err(error),
        },
    };
    let (head, grpc_status, body) = match answer {
        Ok(answer) => answer,
        Err(error) => return failed(&error),
    };
    if asks_grpc {
        let status = grpc_status.as_ref().and_then(|status| status.to_str().ok()).unwrap_or("none");
        if status != "0" || *body != SERVING {
            let state =
                if status == "0" { "it is not serving".to_owned() } else { format!("grpc-status {status}") };
            return Ok(ProbeAnswer::Failed(format!("gRPC health check: {state}")));
        }
        return Ok(ProbeAnswer::Http { status: 200, location: None, body: "SERVING".to_owned() });
    }
    let location = head.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let location = location.map(|text| text.chars().take(300).collect());
    Ok(ProbeAnswer::Http { status: head.status.as_u16(), location, body: super::shown_body(&body) })
}

/// Returns the answer of a failed exchange. A reset of the stream is an answer of HTTP/2 too.
fn failed(error: &hyper::Error) -> std::io::Result<ProbeAnswer> {
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<h2::Error>());
    match source {
        Some(source) if source.is_reset() => Ok(ProbeAnswer::Other),
        Some(source) if source.is_io() => match source.get_io() {
            Some(io) if io.kind() == std::io::ErrorKind::BrokenPipe => Ok(ProbeAnswer::Closed),
            Some(io) => Err(io.kind().into()),
            None => Ok(ProbeAnswer::Closed),
        },
        _ => Ok(ProbeAnswer::Failed("what it answers is not HTTP/2".to_owned())),
    }
}
