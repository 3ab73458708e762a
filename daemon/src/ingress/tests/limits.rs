//! Tests of slow clients and instances, and of limits.

use super::*;
use crate::connections::ConnectionLimits;

fn short() -> Options {
    Options {
        head_timeout: Duration::from_millis(300),
        first_byte_timeout: Duration::from_millis(300),
        ..Options::default()
    }
}

#[tokio::test]
async fn a_head_that_comes_byte_by_byte_is_cut_at_its_limit() {
    let scene = Scene::new(short()).await;
    scene.route(None);
    for start in ["GET / HTTP/1.1\r\nHost: a.example\r\nX: ", "PRI * HT"] {
        let mut stream = scene.connect().await;
        stream.write_all(start.as_bytes()).await.unwrap();
        let begun = std::time::Instant::now();
        let dripping = async {
            // Ends with an error once the other end has closed.
            while stream.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if start.starts_with("PRI") {
            let mut rest = Vec::new();
            let mut quiet = scene.connect().await;
            quiet.write_all(start.as_bytes()).await.unwrap();
            // The kernel decides whether this is an end or a reset.
            let _ = tokio::time::timeout(LONG, quiet.read_to_end(&mut rest)).await.expect("cut");
        } else {
            tokio::time::timeout(LONG, dripping).await.expect("cut");
        }
        assert!(begun.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed() {
    let scene = Scene::new(short()).await;
    let mut idle = scene.connect().await;
    assert_eq!(tokio::time::timeout(LONG, idle.read(&mut [0])).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_head_that_is_too_large_is_431() {
    let scene = Scene::new(Options::default()).await;
    let large = "x".repeat(70_000);
    let mut stream = scene.connect().await;
    let request = format!("GET / HTTP/1.1\r\nHost: a.example\r\nX: {large}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    assert!(read_until(&mut stream, "\r\n").await.starts_with("HTTP/1.1 431"));
}

#[tokio::test]
async fn an_instance_that_does_not_answer_is_a_504() {
    let scene = Scene::new(short()).await;
    let web = Instance::scripted(|stream, _| async move {
        tokio::time::sleep(LONG).await;
        drop(stream);
    })
    .await;
    scene.route(Some(web.address));
    let answer = scene.get("/").await;
    assert_eq!(status(&answer), "504", "{answer}");
    assert!(answer.contains("answer_timeout"), "{answer}");
}

#[tokio::test]
async fn an_upload_that_takes_longer_than_the_limit_goes_on_while_it_moves() {
    let scene = Scene::new(short()).await;
    let web = Instance::serving(echo).await;
    scene.route(Some(web.address));
    let mut stream = scene.connect().await;
    stream
        .write_all(
            b"POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
        )
        .await
        .unwrap();
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.write_all(b"1\r\nx\r\n").await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    assert!(read_until(&mut stream, "end of request").await.contains("body: xxxxxxxx\n"));
}

fn places(total: usize, per_peer: usize) -> Options {
    let options = Options::default();
    Options { connections: ConnectionLimits { total, per_peer, ..options.connections }, ..options }
}

#[tokio::test]
async fn a_connection_that_nobody_uses_makes_room_for_one_more() {
    let scene = Scene::new(places(1, 1)).await;
    let web = Instance::serving(echo).await;
    scene.route(Some(web.address));
    let mut first = scene.connect().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(status(&scene.get("/").await), "200");
    assert_eq!(tokio::time::timeout(LONG, first.read(&mut [0])).await.unwrap().unwrap(), 0);
}

#[tokio::test]
async fn a_connection_beyond_the_limit_gets_a_refusal() {
    let scene = Scene::new(places(5, 1)).await;
    let web = Instance::scripted(|stream, _| async move {
        tokio::time::sleep(LONG).await;
        drop(stream);
    })
    .await;
    scene.route(Some(web.address));
    let mut busy = scene.connect().await;
    busy.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let answer = scene.get("/").await;
    assert_eq!(status(&answer), "503", "{answer}");
    assert!(
        answer.contains("too_many_connections") && answer.to_lowercase().contains("retry-after"),
        "{answer}"
    );
}

/// Returns this number of header fields with 20 bytes each, line ends included.
fn fields(count: usize) -> String {
    (0..count).map(|number| format!("x-{number:05}: 123456789\r\n")).collect()
}

#[tokio::test]
async fn heads_are_limited_by_bytes_and_not_by_their_number_of_fields() {
    let scene = Scene::new(Options::default()).await;
    // The server of the other tests has a limit of fields.
    let web = Instance::scripted(|mut stream, _| async move {
        let head = read_until(&mut stream, "\r\n\r\n").await;
        let answer = format!("HTTP/1.1 200 OK\r\n\r\nfields: {}", head.matches("123456789\r\n").count());
        stream.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    scene.route(Some(web.address));
    let request =
        |count| format!("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n{}\r\n", fields(count));
    let answer = scene.ask(&request(3000)).await;
    assert!(answer.contains("fields: 3000"), "{answer}");
    let answer = scene.ask(&request(3300)).await;
    assert_eq!(status(&answer), "431", "{answer}");
    assert!(answer.contains("request_head_too_large") && answer.contains("64 KiB"), "{answer}");
    assert_eq!(status(&scene.ask(&request(9000)).await), "431");

    for (count, expected) in [(2000, "200"), (6200, "200"), (7000, "502")] {
        let web = Instance::scripted(move |mut stream, _| async move {
            read_until(&mut stream, "\r\n\r\n").await;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n{}\r\nok", fields(count));
            stream.write_all(head.as_bytes()).await.unwrap();
        })
        .await;
        scene.route(Some(web.address));
        let answer = scene.get("/").await;
        assert_eq!(status(&answer), expected, "{count}");
        if expected == "502" {
            assert!(answer.contains("answer_head_too_large") && answer.contains("service web"), "{answer}");
        }
    }
}
