use super::*;
use crate::deploy::tests::spec;
use crate::task;

/// Answers one connection with these bytes, and holds it open or closes it.
async fn app(answer: &'static [u8], holds: bool) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(task::spawn("app", async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 1024];
        let _ = stream.read(&mut request).await;
        stream.write_all(answer).await.unwrap();
        if holds {
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
    }));
    address
}

fn question(address: SocketAddr, path: Option<&str>) -> HealthProbe {
    let mut spec = spec(address.port());
    spec.health.path = path.map(str::to_owned);
    spec.health.timeout = Duration::from_millis(500);
    HealthProbe::for_service(&spec, "web", "127.0.0.1".parse().unwrap()).unwrap()
}

async fn ask(answer: &'static [u8], path: Option<&str>) -> ProbeResult {
    question(app(answer, false).await, path).probe(&InstanceId::random()).await
}

#[tokio::test]
async fn without_a_path_anything_but_a_server_error_is_healthy() {
    assert!(ask(b"HTTP/1.1 200 OK\r\n\r\nhi", None).await.healthy);
    assert!(ask(b"HTTP/1.1 404 Not Found\r\n\r\n", None).await.healthy);
    assert!(ask(b"-ERR unknown command\r\n", None).await.healthy);
    assert!(!ask(b"HTTP/1.1 500 Oh\r\n\r\n", None).await.healthy);
    let closed = ask(b"", None).await;
    assert_eq!((closed.healthy, closed.answer), (false, ProbeAnswer::Closed));
}

#[tokio::test]
async fn with_a_path_status_location_and_body_decide_and_are_kept() {
    assert!(ask(b"HTTP/1.1 204 No Content\r\n\r\n", Some("/up")).await.healthy);
    assert!(ask(b"HTTP/1.1 302 Found\r\nLocation: /login\r\n\r\n", Some("/up")).await.healthy);
    let denied =
        ask(b"HTTP/1.0 401 No\r\nlocation:  /login \r\n\r\nwho are\r\n\x1b[31myou?", Some("/up")).await;
    assert!(!denied.healthy);
    let ProbeAnswer::Http { status: 401, location: Some(location), body } = &denied.answer else {
        panic!("{denied}");
    };
    assert_eq!((location.as_str(), body.as_str()), ("/login", "who are   [31myou?"));
    assert!(denied.target.ends_with("/up"), "{}", denied.target);
    assert!(!ask(b"-ERR\r\n", Some("/up")).await.healthy);
}

#[tokio::test]
async fn an_app_that_keeps_the_connection_open_is_judged_by_its_status() {
    let address = app(b"HTTP/1.1 404 Not Found\r\nContent-Length: 9\r\n\r\nnot found", true).await;
    let result = question(address, None).probe(&InstanceId::random()).await;
    assert!(result.healthy, "{result}");
}

#[tokio::test]
async fn silence_and_a_closed_port_are_distinguished() {
    let silent = question(app(b"", true).await, None).probe(&InstanceId::random()).await;
    assert_eq!((silent.healthy, silent.answer), (false, ProbeAnswer::Timeout));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let refused = question(address, None).probe(&InstanceId::random()).await;
    assert_eq!((refused.healthy, refused.answer), (false, ProbeAnswer::Refused));
}

#[test]
fn the_published_port_is_asked_and_a_path_asks_an_http_port() {
    let mut spec = spec(80);
    spec.ports.insert(0, ServicePort { number: 9, kind: PortKind::Tcp, published: false });
    assert_eq!(probed_port(&spec).unwrap().number, 80);
    spec.ports[1].published = false;
    assert_eq!(probed_port(&spec).unwrap().number, 9);
    spec.health.path = Some("/".to_owned());
    assert_eq!(probed_port(&spec).unwrap().number, 80);
    spec.ports.clear();
    assert!(probed_port(&spec).is_none());
}

#[test]
fn only_failures_in_a_row_make_a_healthy_instance_unhealthy() {
    let check = HealthCheck::default();
    let result = |healthy| ProbeResult { healthy, ..running_process_result(&InstanceId::random()) };
    let mut judge = HealthTracker::new(InstanceHealth::Unproven { since: Timestamp::UNIX_EPOCH });
    for _ in 0..10 {
        judge.record(&result(false), &check);
    }
    assert!(matches!(judge.health, InstanceHealth::Unproven { .. }));
    for healthy in [true, false, false, true, false, false] {
        judge.record(&result(healthy), &check);
        assert!(matches!(judge.health, InstanceHealth::Healthy { .. }));
    }
    judge.record(&result(false), &check);
    assert_eq!(judge.health, InstanceHealth::Unhealthy);
    judge.record(&result(true), &check);
    assert!(matches!(judge.health, InstanceHealth::Healthy { .. }));
}

#[test]
fn first_probes_come_after_10_20_40_ms_up_to_a_second() {
    let check = HealthCheck::default();
    let judge = HealthTracker::new(InstanceHealth::Unproven { since: Timestamp::UNIX_EPOCH });
    let pauses: Vec<u128> = (0..9).map(|probes| judge.pause(probes, &check).as_millis()).collect();
    assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
}

/// Serves HTTP/2 on each connection: `/up` is 204, gRPC's health check answers with this state, all else is reset.
async fn http2_app(state: u8) -> SocketAddr {
    use bytes::Bytes;
    use http::{HeaderMap, Response, StatusCode};
    use http_body_util::{BodyExt as _, Full};
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(task::spawn("app", async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let service =
                hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| async move {
                    match request.uri().path() {
                        "/up" => {
                            let body =
                                Full::<Bytes>::default().with_trailers(std::future::ready(None)).boxed();
                            let mut response = Response::new(body);
                            *response.status_mut() = StatusCode::NO_CONTENT;
                            Ok(response)
                        }
                        "/grpc.health.v1.Health/Check" if request.method() == "POST" => {
                            let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, state]);
                            let trailers = HeaderMap::from_iter([(
                                "grpc-status".parse().unwrap(),
                                "0".parse().unwrap(),
                            )]);
                            let trailers = std::future::ready(Some(Ok(trailers)));
                            Ok(Response::new(Full::new(message).with_trailers(trailers).boxed()))
                        }
                        _ => Err("reset"),
                    }
                });
            let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service);
            drop(task::spawn("app connection", async move { drop(served.await) }));
        }
    }));
    address
}

#[tokio::test]
async fn a_port_of_http2_is_asked_over_http2_and_grpc_by_its_own_health_check() {
    let ask = async |address: SocketAddr, path: Option<&str>| {
        let mut probe = question(address, path);
        probe.kind = PortKind::H2c;
        probe.probe(&InstanceId::random()).await
    };
    let serving = http2_app(1).await;
    let check = Some("/grpc.health.v1.Health/Check");
    for (path, healthy) in [(None, true), (Some("/up"), true), (Some("/other"), false), (check, true)] {
        let result = ask(serving, path).await;
        assert_eq!(result.healthy, healthy, "{path:?}: {result}");
    }
    let result = ask(http2_app(2).await, check).await;
    assert!(!result.healthy && result.to_string().contains("not serving"), "{result}");
    let other = ask(app(b"HTTP/1.1 400 Bad Request\r\n\r\n", false).await, None).await;
    assert!(!other.healthy && other.to_string().contains("not HTTP/2"), "{other}");
    let nobody = "127.0.0.1:1".parse().unwrap();
    assert_eq!(ask(nobody, None).await.answer, ProbeAnswer::Refused);
}
