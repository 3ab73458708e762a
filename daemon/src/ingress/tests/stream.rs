//! Tests of bodies that are streamed in both directions, at the reader's pace.

use std::sync::atomic::AtomicUsize;

use super::*;

const CHUNK: usize = 64 * 1024;
const LARGE: usize = 100 * 1024 * 1024;
/// More bytes than all buffers between two ends together, and far fewer than a large body.
const BUFFERED: usize = 24 * 1024 * 1024;

static SENT: AtomicUsize = AtomicUsize::new(0);

async fn sends_much(mut stream: TcpStream, _: usize) {
    read_until(&mut stream, "\r\n\r\n").await;
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = vec![7; CHUNK];
    for _ in 0..LARGE / CHUNK {
        if stream.write_all(&chunk).await.is_err() {
            return;
        }
        SENT.fetch_add(CHUNK, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn a_large_answer_waits_for_its_reader_and_arrives_whole() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::scripted(sends_much).await;
    scene.route(Some(web.address));
    let mut stream = scene.connect().await;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ahead = SENT.load(Ordering::SeqCst);
    assert!(ahead < BUFFERED, "{ahead} bytes were taken in for a client that reads nothing");
    let mut received = 0;
    let mut buffer = vec![0; CHUNK];
    loop {
        let read = tokio::time::timeout(LONG, stream.read(&mut buffer)).await.unwrap().unwrap();
        if read == 0 {
            break;
        }
        received += read;
    }
    assert!((LARGE..LARGE + 1000).contains(&received), "{received}");
}

#[tokio::test]
async fn a_large_upload_waits_for_its_instance_and_arrives_whole() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::scripted(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut left = LARGE;
        let mut buffer = vec![0; CHUNK];
        // The first bytes may have come with the head.
        while left > CHUNK {
            left -= stream.read(&mut buffer).await.unwrap();
        }
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Left: {left}\r\n\r\nok");
        stream.write_all(answer.as_bytes()).await.unwrap();
        // Unread data would make the kernel reset the connection.
        while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
    })
    .await;
    scene.route(Some(web.address));
    let mut stream = scene.connect().await;
    let head =
        format!("POST / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\nContent-Length: {LARGE}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = vec![7; CHUNK];
    let mut sent = 0;
    while sent < LARGE {
        let written = stream.write_all(&chunk);
        if tokio::time::timeout(Duration::from_millis(500), written).await.is_err() {
            break;
        }
        sent += CHUNK;
    }
    assert!(sent < BUFFERED, "{sent} bytes were taken in for an instance that reads nothing");
}

#[tokio::test]
async fn an_answer_is_passed_on_as_it_comes() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::scripted(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream
            .write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n",
            )
            .await
            .unwrap();
        for number in 0..3 {
            stream.write_all(format!("7\r\ndata: {number}\r\n").as_bytes()).await.unwrap();
            read_until(&mut stream, "next").await;
        }
    })
    .await;
    scene.route(Some(web.address));
    let mut stream = scene.connect().await;
    let head = "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    for number in 0..3 {
        // Each event arrives before the instance gets the data that it waits for: both directions stream at the
        // same time.
        read_until(&mut stream, &format!("data: {number}")).await;
        stream.write_all(b"4\r\nnext\r\n").await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_waits_for_100_is_told_to_continue_once_it_is_let_through() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::serving(echo).await;
    scene.route(Some(web.address));
    let head = "POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
    let mut stream = scene.connect().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(read_until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 100"));
    stream.write_all(b"hi").await.unwrap();
    let answer = read_until(&mut stream, "end of request").await;
    assert!(answer.contains("body: hi\n") && !answer.contains("expect"), "{answer}");
    scene.route_privately(web.address);
    let mut stream = scene.connect().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    assert!(read_until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 401"));
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::serving(echo).await;
    scene.route(Some(web.address));
    let answer = scene
        .ask(
            "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\
             Connection: close\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 7\r\n\r\n",
        )
        .await;
    assert!(answer.contains("trailer x-sum: 7\n") && answer.contains("body: hi\n"), "{answer}");
    let web = Instance::scripted(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream
            .write_all(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n2\r\nhi\r\n0\r\nx-sum: 8\r\n\r\n",
            )
            .await
            .unwrap();
    })
    .await;
    scene.route(Some(web.address));
    let answer =
        scene.ask("GET / HTTP/1.1\r\nHost: a.example\r\nTE: trailers\r\nConnection: close, te\r\n\r\n").await;
    assert!(answer.contains("x-sum: 8\r\n"), "{answer}");
}

#[tokio::test]
async fn the_bytes_before_a_cut_are_delivered() {
    for head in ["Content-Length: 100000", "Transfer-Encoding: chunked"] {
        let scene = Scene::new(Options::default()).await;
        let web = Instance::scripted(move |mut stream, _| async move {
            read_until(&mut stream, "\r\n\r\n").await;
            let chunk = if head.starts_with('C') { String::new() } else { "1388\r\n".to_owned() };
            let answer = format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{chunk}{}", "a".repeat(5000));
            stream.write_all(answer.as_bytes()).await.unwrap();
        })
        .await;
        scene.route(Some(web.address));
        let answer = scene.ask("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        assert_eq!(body.matches('a').count(), 5000, "{head}: {answer}");
        assert!(!answer.ends_with("0\r\n\r\n"), "{head}: the cut is not an end");
    }
}
