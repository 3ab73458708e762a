//! Tests of the ingress on real sockets, between real clients and scripted instances.

mod http2;
mod instance;
mod limits;
mod retry;
mod stream;
mod swap;
mod upgrade;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::model::service::ServiceDomain;
use instance::{Instance, echo};

/// Longer than any step of these tests; a test that waits for it has failed.
const LONG: Duration = Duration::from_secs(20);

/// A running ingress.
struct Scene {
    ingress: Arc<Ingress>,
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Scene {
    async fn new(options: Options) -> Self {
        Self::with_tls(options, None).await
    }

    async fn with_tls(options: Options, tls: Option<Arc<TlsTerminator>>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let access = TokenAuthority::open("r", &directory.path().join("secret")).unwrap();
        let ingress = Arc::new(Ingress::new(options, Arc::new(access)).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let serving = Arc::clone(&ingress).serve(listener, tls, stop.clone(), Duration::from_secs(2));
        let serving = crate::task::spawn("ingress", serving);
        Self { ingress, address, stop, serving, _directory: directory }
    }

    /// Routes `a.example` to an instance.
    fn route(&self, backend: Option<SocketAddr>) {
        self.ingress.set_routes(vec![route("a.example", backend, false)]);
    }

    fn route_privately(&self, backend: SocketAddr) {
        self.ingress.set_routes(vec![route("a.example", Some(backend), true)]);
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes on a new connection, and returns everything that is received until it closes.
    async fn ask(&self, bytes: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        tokio::time::timeout(LONG, stream.read_to_end(&mut answer)).await.expect("an end").unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// Waits until the route's instance has this number of requests in flight.
    async fn until_in_flight(&self, count: usize) {
        let waiting = async {
            while self.ingress.traffic().first().is_none_or(|traffic| traffic.in_flight != count) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, waiting).await.expect("requests in flight");
    }

    async fn get(&self, path: &str) -> String {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n")).await
    }
}

fn route(domain: &str, backend: Option<SocketAddr>, private: bool) -> DomainRoute {
    let domain: ServiceDomain = domain.parse().unwrap();
    DomainRoute { domain, service: "web".parse().unwrap(), revision: 1, backend, http2: false, private }
}

/// Reads until the received data ends with, or contains, `wanted`.
async fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut seen = Vec::new();
    let reading = async {
        let mut buffer = [0; 4096];
        while !seen.windows(wanted.len()).any(|window| window == wanted.as_bytes()) {
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(read > 0, "ended after {:?}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&buffer[..read]);
        }
    };
    tokio::time::timeout(LONG, reading).await.expect("the bytes in time");
    String::from_utf8_lossy(&seen).into_owned()
}

fn status(answer: &str) -> &str {
    answer.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap_or(answer)
}

#[tokio::test]
async fn a_request_reaches_the_instance_of_its_host_as_from_a_proxy() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::serving(echo).await;
    scene.route(Some(web.address));
    let answer = scene
        .ask(
            "GET /x?y=1 HTTP/1.1\r\nHost: A.Example:99\r\nX-Forwarded-For: 1.1.1.1\r\nX-Mine: 2\r\n\
             Connection: close, x-mine\r\n\r\n",
        )
        .await;
    assert_eq!(status(&answer), "200", "{answer}");
    for line in [
        "GET /x?y=1 HTTP/1.1\n",
        "host: A.Example:99\n",
        "x-forwarded-for: 127.0.0.1\n",
        "x-forwarded-proto: http\n",
        "x-forwarded-host: A.Example:99\n",
    ] {
        assert!(answer.contains(line), "{line}: {answer}");
    }
    assert!(!answer.contains("x-mine") && !answer.contains("1.1.1.1"), "{answer}");
    let absolute =
        scene.ask("GET http://a.example/z HTTP/1.1\r\nHost: b.example\r\nConnection: close\r\n\r\n").await;
    assert!(absolute.contains("GET /z HTTP/1.1\n") && absolute.contains("host: a.example\n"), "{absolute}");
}

#[tokio::test]
async fn a_kept_connection_carries_one_request_after_the_other() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::serving(echo).await;
    scene.route(Some(web.address));
    let mut stream = scene.connect().await;
    for number in 0..20 {
        stream
            .write_all(format!("GET /{number} HTTP/1.1\r\nHost: a.example\r\n\r\n").as_bytes())
            .await
            .unwrap();
        let echoed = read_until(&mut stream, "end of request\n").await;
        assert!(echoed.contains(&format!("GET /{number} HTTP/1.1\n")), "{echoed}");
    }
    assert_eq!(web.connections(), 1, "the connection to the instance is kept too");
}

#[tokio::test]
async fn an_unknown_host_is_reported_and_a_malformed_one_refused() {
    let scene = Scene::new(Options::default()).await;
    scene.route(None);
    let unknown = scene.ask("GET / HTTP/1.1\r\nHost: <b>\r\nConnection: close\r\n\r\n").await;
    assert_eq!(status(&unknown), "404");
    assert!(unknown.contains("unknown_host"), "{unknown}");
    for request in [
        "GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\nConnection: close\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a.example:x\r\nConnection: close\r\n\r\n",
    ] {
        assert_eq!(status(&scene.ask(request).await), "400", "{request}");
    }
    let tunnel = scene.ask("CONNECT a.example:80 HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n");
    assert_eq!(status(&tunnel.await), "405");
}

#[tokio::test]
async fn a_private_route_asks_for_a_token_and_the_service_never_sees_it() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::serving(echo).await;
    scene.route_privately(web.address);
    let refused = scene.get("/").await;
    assert_eq!(status(&refused), "401");
    assert!(refused.contains("www-authenticate: Bearer"), "{refused}");
    assert_eq!(web.connections(), 0);
    let (token, _) = scene.ingress.access.mint("ann", "{}", LONG).unwrap();
    for header in [format!("Authorization: Bearer {token}"), format!("Cookie: a=1; hearth_token={token}")] {
        let answer = scene
            .ask(&format!("GET / HTTP/1.1\r\nHost: a.example\r\n{header}\r\nConnection: close\r\n\r\n"))
            .await;
        assert_eq!(status(&answer), "200", "{answer}");
        assert!(!answer.contains(&token) && !answer.contains("hearth_token"), "{answer}");
        assert_eq!(header.starts_with("Cookie"), answer.contains("cookie: a=1\n"), "{answer}");
    }
}

/// Requests with ambiguous framing reach the instance with a single framing, or not at all.
#[tokio::test]
async fn a_request_cannot_be_smuggled_past() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::serving(echo).await;
    scene.route(Some(web.address));
    let both = scene
        .ask(
            "POST /first HTTP/1.1\r\nHost: a.example\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
             0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n",
        )
        .await;
    assert!(both.contains("POST /first") && !both.contains("content-length: 4\n"), "{both}");
    assert!(!both.contains("/smuggled"), "what follows such a request is not read: {both}");
    for (headers, expected) in [
        ("Content-Length: 1\r\nContent-Length: 2", "400"),
        ("Content-Length: +1", "400"),
        ("Transfer-Encoding: xchunked", "400"),
        ("Transfer-Encoding: chunked, identity", "400"),
        ("Transfer-Encoding: gzip, chunked", "501"),
        ("Transfer-Encoding : chunked", "400"),
        ("X: a\r\n folded", "400"),
    ] {
        let request =
            format!("POST / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n{headers}\r\n\r\n0\r\n\r\n");
        assert_eq!(status(&scene.ask(&request).await), expected, "{headers}");
    }
}

#[tokio::test]
async fn the_end_waits_for_requests_in_flight_and_takes_no_new_ones() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::scripted(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    })
    .await;
    scene.route(Some(web.address));
    let mut stream = scene.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
    scene.until_in_flight(1).await;
    scene.stop.cancel();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.ends_with("ok"), "{answer}");
    tokio::time::timeout(LONG, scene.serving).await.unwrap().unwrap();
    assert!(TcpStream::connect(scene.address).await.is_err());
}
