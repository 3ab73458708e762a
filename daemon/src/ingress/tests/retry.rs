//! Tests of instances that are missing, or close connections at a bad moment.

use super::instance::nobody;
use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// Answers the first request of the first connection, then reads a second one there and closes without an answer.
async fn closes_on_the_second(mut stream: TcpStream, number: usize) {
    read_until(&mut stream, "\r\n\r\n").await;
    stream.write_all(OK).await.unwrap();
    if number == 0 {
        read_until(&mut stream, "\r\n\r\n").await;
        return;
    }
    read_until(&mut stream, "\r\n\r\n").await;
    stream.write_all(OK).await.unwrap();
}

async fn second_answer(method: &str, body: &str) -> (String, usize) {
    let scene = Scene::new(Options { workers: 1, ..Options::default() }).await;
    let web = Instance::scripted(closes_on_the_second).await;
    scene.route(Some(web.address));
    assert_eq!(status(&scene.get("/").await), "200");
    let answer = scene
        .ask(&format!(
            "{method} / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
        .await;
    (answer, web.connections())
}

#[tokio::test]
async fn a_request_that_meets_a_closing_kept_connection_is_sent_once_more() {
    let (answer, connections) = second_answer("GET", "").await;
    assert_eq!((status(&answer), connections), ("200", 2), "{answer}");
    let (answer, connections) = second_answer("PUT", "small").await;
    assert_eq!((status(&answer), connections), ("200", 2), "{answer}");
}

#[tokio::test]
async fn a_request_that_may_have_had_an_effect_is_not_sent_twice() {
    let (answer, connections) = second_answer("POST", "pay").await;
    assert_eq!((status(&answer), connections), ("502", 1), "{answer}");
    assert!(answer.contains("no_answer") && answer.contains(r#""retryable":false"#), "{answer}");
}

#[tokio::test]
async fn a_connection_that_was_closed_while_it_was_kept_costs_no_request() {
    let scene = Scene::new(Options { workers: 1, ..Options::default() }).await;
    let web = Instance::scripted(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(OK).await.unwrap();
    })
    .await;
    scene.route(Some(web.address));
    for _ in 0..10 {
        let answer = scene
            .ask("POST / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx")
            .await;
        assert_eq!(status(&answer), "200", "{answer}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_request_waits_for_an_instance_that_is_about_to_listen() {
    let scene = Scene::new(Options::default()).await;
    let address = nobody().await;
    scene.route(Some(address));
    let asked = scene.get("/");
    let started = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        Instance::at(address, |mut stream, _| async move {
            read_until(&mut stream, "\r\n\r\n").await;
            stream.write_all(OK).await.unwrap();
        })
        .await
    };
    let (answer, _web) = tokio::join!(asked, started);
    assert_eq!(status(&answer), "200", "{answer}");
}

#[tokio::test]
async fn a_request_waits_for_a_route_to_a_healthy_instance() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::serving(echo).await;
    scene.route(None);
    let routed = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        scene.route(Some(web.address));
    };
    let (answer, ()) = tokio::join!(scene.get("/"), routed);
    assert_eq!(status(&answer), "200", "{answer}");
}

#[tokio::test]
async fn after_the_limit_the_client_gets_the_reason() {
    let scene = Scene::new(Options { hold_timeout: Duration::from_millis(200), ..Options::default() }).await;
    scene.route(None);
    let none = scene.get("/").await;
    assert_eq!(status(&none), "503");
    assert!(none.contains("no_instance") && none.contains("retry-after"), "{none}");
    scene.route(Some(nobody().await));
    let refused = scene.get("/").await;
    assert_eq!(status(&refused), "502");
    assert!(refused.contains("instance_unreachable"), "{refused}");
}

#[tokio::test]
async fn an_instance_that_dies_or_speaks_something_else_is_a_502() {
    let scene = Scene::new(Options::default()).await;
    for said in [&b""[..], b"SSH-2.0-x\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Le"] {
        let web = Instance::scripted(move |mut stream, _| async move {
            read_until(&mut stream, "\r\n\r\n").await;
            stream.write_all(said).await.unwrap();
        })
        .await;
        scene.route(Some(web.address));
        let answer = scene.get("/").await;
        assert_eq!(status(&answer), "502", "{said:?}: {answer}");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_made_to_look_whole() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::scripted(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n").await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    })
    .await;
    scene.route(Some(web.address));
    let answer = scene.get("/").await;
    assert!(answer.contains("ok") && !answer.ends_with("0\r\n\r\n"), "{answer}");
}
