//! Tests of upgraded connections.

use super::super::frames::{CLOSE_TO_CLIENT, CLOSE_TO_INSTANCE};
use super::*;

const ASK: &[u8] = b"GET /chat HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCH: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// Switches protocols, sends a hello frame together with the head, then echoes bytes.
async fn switches(mut stream: TcpStream, _: usize) {
    let asked = read_until(&mut stream, "\r\n\r\n").await;
    assert!(asked.contains("upgrade: websocket\r\n") && asked.contains("connection: upgrade\r\n"), "{asked}");
    stream.write_all(&[SWITCH, b"\x81\x02hi"].concat()).await.unwrap();
    let mut buffer = [0; 4096];
    while let Ok(read) = stream.read(&mut buffer).await {
        if read == 0 || stream.write_all(&buffer[..read]).await.is_err() {
            return;
        }
        if buffer[..read].ends_with(&CLOSE_TO_INSTANCE) {
            return;
        }
    }
}

async fn switched(scene: &Scene) -> TcpStream {
    let mut stream = scene.connect().await;
    stream.write_all(ASK).await.unwrap();
    let answer = read_until(&mut stream, "\u{2}hi").await;
    assert!(answer.starts_with("HTTP/1.1 101") && answer.contains("sec-websocket-accept"), "{answer}");
    stream
}

async fn rest(stream: &mut TcpStream) -> Vec<u8> {
    let mut rest = Vec::new();
    tokio::time::timeout(LONG, stream.read_to_end(&mut rest)).await.expect("an end").unwrap();
    rest
}

#[tokio::test]
async fn bytes_pass_both_ways_after_a_switch() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::scripted(switches).await;
    scene.route(Some(web.address));
    let mut stream = switched(&scene).await;
    for word in ["one", "two", "three"] {
        stream.write_all(word.as_bytes()).await.unwrap();
        read_until(&mut stream, word).await;
    }
    stream.shutdown().await.unwrap();
    assert!(rest(&mut stream).await.is_empty());
}

#[tokio::test]
async fn a_websocket_lives_until_the_drain_limit_and_is_closed_with_1001() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::scripted(switches).await;
    scene.route(Some(web.address));
    let mut stream = switched(&scene).await;
    scene.route(None);
    let talk = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.write_all(b"\x81\x80\0\0\0\0").await.unwrap();
        rest(&mut stream).await
    };
    let (left, cut) = tokio::join!(talk, scene.ingress.drain(web.address, Duration::from_millis(400)));
    assert_eq!(cut, 1);
    // The data sent while draining was echoed, followed by the close frame.
    assert_eq!(left, [b"\x81\x80\0\0\0\0", &CLOSE_TO_CLIENT[..]].concat());
}

#[tokio::test]
async fn within_a_frame_nothing_is_put_in() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::scripted(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(&[SWITCH, b"\x81\x02hi\x81\x05abc"].concat()).await.unwrap();
        tokio::time::sleep(LONG).await;
    })
    .await;
    scene.route(Some(web.address));
    let mut stream = switched(&scene).await;
    scene.route(None);
    assert_eq!(scene.ingress.drain(web.address, Duration::from_millis(200)).await, 1);
    let left = rest(&mut stream).await;
    assert!(left.is_empty() || b"\x81\x05abc".ends_with(&left), "{left:?}");
}

#[tokio::test]
async fn the_daemons_end_closes_websockets_at_once() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::scripted(switches).await;
    scene.route(Some(web.address));
    let mut stream = switched(&scene).await;
    scene.stop.cancel();
    assert_eq!(rest(&mut stream).await, CLOSE_TO_CLIENT);
    tokio::time::timeout(LONG, scene.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_upgraded_connection_on_which_nothing_moves_is_closed() {
    let options = Options { upgrade_idle_timeout: Duration::from_millis(200), ..Options::default() };
    let scene = Scene::new(options).await;
    let web = Instance::scripted(switches).await;
    scene.route(Some(web.address));
    let mut stream = switched(&scene).await;
    assert!(rest(&mut stream).await.is_empty());
}

#[tokio::test]
async fn an_instance_may_decline_to_switch_and_may_not_switch_unasked() {
    let scene = Scene::new(Options::default()).await;
    let web = Instance::serving(echo).await;
    scene.route(Some(web.address));
    let mut stream = scene.connect().await;
    stream.write_all(ASK).await.unwrap();
    assert!(read_until(&mut stream, "end of request").await.starts_with("HTTP/1.1 200"));
    let web = Instance::scripted(|mut stream, _| async move {
        read_until(&mut stream, "\r\n\r\n").await;
        stream.write_all(SWITCH).await.unwrap();
        tokio::time::sleep(LONG).await;
    })
    .await;
    scene.route(Some(web.address));
    assert_eq!(status(&scene.get("/").await), "502");
}
