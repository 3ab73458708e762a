//! HTTP/2 from clients, with prior knowledge and within TLS.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use super::*;
use crate::model::CertificateFiles;
use crate::task;

async fn text(response: Response<Incoming>) -> String {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

async fn http2_client<S>(stream: S) -> http2::SendRequest<Full<Bytes>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    task::spawn("client", async move {
        // The task ends when its sender is dropped.
        let _ = connection.await;
    });
    sender
}

fn request(uri: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method("PUT")
        .uri(uri)
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Full::new(Bytes::from_static(b"body")))
        .unwrap()
}

#[tokio::test]
async fn prior_knowledge_is_enough_and_streams_run_side_by_side() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::serving(echo).await;
    scene.route(Some(web.address));
    let sender = http2_client(scene.connect().await).await;
    let asked = (0..50).map(|number| {
        let mut sender = sender.clone();
        async move {
            sender.ready().await.unwrap();
            text(sender.send_request(request(&format!("http://a.example/{number}"))).await.unwrap()).await
        }
    });
    for (number, echoed) in futures::future::join_all(asked).await.into_iter().enumerate() {
        assert!(echoed.starts_with(&format!("PUT /{number} HTTP/1.1\n")), "{echoed}");
        assert!(echoed.contains("host: a.example\n") && echoed.contains("cookie: a=1; b=2\n"), "{echoed}");
        assert!(echoed.contains("body: body\n"), "{echoed}");
    }
}

fn connector(certificate: &std::path::Path, protocol: &str) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn within_tls_both_versions_are_offered_and_the_service_sees_https() {
    let directory = tempfile::tempdir().unwrap();
    let files =
        CertificateFiles { certificate: directory.path().join("a.crt"), key: directory.path().join("a.key") };
    let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    std::fs::write(&files.certificate, made.cert.pem()).unwrap();
    std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
    let tls = TlsTerminator::open(TlsSource::Files(vec![files.clone()])).unwrap();
    let scene = Scene::with_tls(Options::default(), Some(Arc::new(tls))).await;
    let web = Instance::serving(echo).await;
    scene.route(Some(web.address));
    let name = ServerName::try_from("a.example").unwrap();

    let second =
        connector(&files.certificate, "h2").connect(name.clone(), scene.connect().await).await.unwrap();
    assert_eq!(second.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let mut sender = http2_client(second).await;
    let echoed = text(sender.send_request(request("https://a.example/2")).await.unwrap()).await;
    assert!(echoed.contains("x-forwarded-proto: https\n"), "{echoed}");

    let first = connector(&files.certificate, "http/1.1").connect(name, scene.connect().await).await.unwrap();
    let (mut sender, connection) = http1::handshake(TokioIo::new(first)).await.unwrap();
    task::spawn("client", async move {
        // The task ends when its sender is dropped.
        let _ = connection.await;
    });
    let asked = Request::get("/1").header("host", "a.example").body(Full::<Bytes>::default()).unwrap();
    let echoed = text(sender.send_request(asked).await.unwrap()).await;
    assert!(
        echoed.contains("GET /1 HTTP/1.1\n") && echoed.contains("x-forwarded-proto: https\n"),
        "{echoed}"
    );
}

#[tokio::test]
async fn a_client_without_tls_gets_nothing_where_tls_is_spoken() {
    let tls = TlsTerminator::open(TlsSource::SelfSigned).unwrap();
    let scene = Scene::with_tls(Options::default(), Some(Arc::new(tls))).await;
    let answer = scene.get("/").await;
    assert!(!answer.contains("HTTP"), "{answer}");
}

/// An instance that speaks only HTTP/2. It answers with the request's version, host and body, in two pieces and with a
/// trailer that no header announces.
async fn http2_instance() -> Instance {
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use hyper::service::service_fn;

    Instance::scripted(|stream, _| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            let host = request.uri().authority().map(ToString::to_string).unwrap_or_default();
            let line = format!("{} {:?} {host} ", request.method(), request.version());
            let body = request.into_body().collect().await?;
            let sent = body.trailers().and_then(|trailers| trailers.get("x-sent")).cloned();
            let trailers = http::HeaderMap::from_iter([
                (http::HeaderName::from_static("grpc-status"), http::HeaderValue::from_static("0")),
                (
                    http::HeaderName::from_static("x-sent"),
                    sent.unwrap_or(http::HeaderValue::from_static("none")),
                ),
            ]);
            let frames =
                [Frame::data(Bytes::from(line)), Frame::data(body.to_bytes()), Frame::trailers(trailers)];
            let frames = futures::stream::iter(frames.map(Ok::<_, hyper::Error>));
            Ok::<_, hyper::Error>(Response::new(StreamBody::new(frames)))
        });
        let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        // A client that disconnects is not a failure of the instance.
        let _ = server.serve_connection(TokioIo::new(stream), service).await;
    })
    .await
}

fn route_http2(scene: &Scene, address: SocketAddr) {
    scene.ingress.set_routes(vec![DomainRoute { http2: true, ..route("a.example", Some(address), false) }]);
}

#[tokio::test]
async fn an_instance_that_speaks_only_http2_is_reached_and_its_trailers_pass_unannounced() {
    let scene = Scene::new(Options::default()).await;
    let web = http2_instance().await;
    route_http2(&scene, web.address);
    let mut sender = http2_client(scene.connect().await).await;
    for number in 0..20 {
        let mut request = request(&format!("http://a.example/{number}"));
        *request.method_mut() = if number % 2 == 0 { http::Method::POST } else { http::Method::PUT };
        let response = sender.send_request(request).await.unwrap();
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
        let text = String::from_utf8(body.to_bytes().to_vec()).unwrap();
        assert!(text.ends_with("HTTP/2.0 a.example body"), "{text}");
    }
    assert_eq!(web.connections(), 1, "one connection carries all");
    let answer = scene.get("/").await;
    assert!(answer.contains("GET HTTP/2.0 a.example "), "a client of HTTP/1.1 reaches it too: {answer}");
    web.kill().await;
    let gone = scene.get("/").await;
    assert_eq!(status(&gone), "502", "{gone}");
    let web = http2_instance().await;
    route_http2(&scene, web.address);
    assert_eq!(status(&scene.get("/").await), "200");
    assert_eq!(scene.ingress.drain(web.address, Duration::from_secs(5)).await, 0);
}
