//! Test instances: an HTTP server with a handler, or a script for each connection.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::task;

pub(super) struct Instance {
    pub(super) address: SocketAddr,
    connections: Arc<AtomicUsize>,
    stop: CancellationToken,
    accepting: JoinHandle<()>,
}

impl Instance {
    pub(super) async fn serving<F, B>(
        handler: impl Fn(Request<Incoming>) -> F + Copy + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<B>> + Send + 'static,
        B: Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
    {
        Self::scripted(move |stream, _| async move {
            let service =
                service_fn(move |request| async move { Ok::<_, Infallible>(handler(request).await) });
            // A client that disconnects is not a failure of the instance.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        })
        .await
    }

    /// Runs `script` on each connection, with the number of the connection, from 0.
    pub(super) async fn scripted<F>(script: impl Fn(TcpStream, usize) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::at(SocketAddr::from(([127, 0, 0, 1], 0)), script).await
    }

    pub(super) async fn at<F>(
        address: SocketAddr,
        script: impl Fn(TcpStream, usize) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let stop = CancellationToken::new();
        let (count, stopped) = (Arc::clone(&connections), stop.clone());
        let accepting = task::spawn("instance", async move {
            while let Some(accepted) = stopped.run_until_cancelled(listener.accept()).await {
                let (stream, _) = accepted.unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst);
                let (serving, stopped) = (script(stream, number), stopped.clone());
                task::spawn("instance connection", async move { stopped.run_until_cancelled(serving).await });
            }
        });
        Self { address, connections, stop, accepting }
    }

    /// Returns the number of accepted connections.
    pub(super) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Stops as if it were killed: its listener and all its connections close.
    pub(super) async fn kill(self) {
        self.stop.cancel();
        self.accepting.await.unwrap();
    }
}

/// Returns an address where no process listens.
pub(super) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Answers with the request as received, including its body and trailers.
pub(super) async fn echo(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let mut text = format!("{} {} {:?}\n", head.method, head.uri, head.version);
    let mut line = |name: &str, value: &[u8]| {
        text.push_str(&format!("{name}: {}\n", String::from_utf8_lossy(value)));
    };
    for (name, value) in &head.headers {
        line(name.as_str(), value.as_bytes());
    }
    let body = body.collect().await.unwrap();
    for (name, value) in body.trailers().into_iter().flatten() {
        line(&format!("trailer {name}"), value.as_bytes());
    }
    line("body", &body.to_bytes());
    text.push_str("end of request\n");
    Response::new(Full::new(Bytes::from(text)))
}
