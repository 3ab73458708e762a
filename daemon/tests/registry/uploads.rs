//! Uploads of blobs: pieces, interruptions, limits.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hearthd::registry::UploadLimits;

use crate::room::{As, Room, digest, noise, room, room_at, room_with};

/// Sends the head of a request and part of its body, and breaks the connection.
fn break_off(client: As<'_>, method: &str, path: &str, declared: usize, part: &[u8]) {
    let mut stream = TcpStream::connect(client.room.address).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: {}\r\ncontent-length: {declared}\r\n\r\n",
        client.authorization()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(part).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // The server has noticed the end once it answers or closes.
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let _ = stream.read(&mut [0; 512]);
}

async fn assert_blob(client: As<'_>, repository: &str, content: &[u8]) {
    let answer = client.send("GET", &format!("/v2/{repository}/blobs/{}", digest(content))).await.expect(200);
    assert!(answer.body == content, "{} bytes for {}", answer.body.len(), content.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_was_cut_off_goes_on_where_it_stopped() {
    let room = room().await;
    let client = room.all();
    let content = noise(1, 3_500_000);
    let location = client.begin("a/b").await;
    break_off(client, "PATCH", &location, content.len(), &content[..2_000_000]);
    let answer = client.send("GET", &location).await.expect(204);
    assert_eq!(answer.header("range"), "0-1999999");
    let rest = &content[2_000_000..];
    // Neither a gap nor a repetition is accepted.
    for wrong in ["2000001-3499999", "0-1499999"] {
        let patch = client.send_with("PATCH", &location, &[("content-range", wrong)], rest.to_vec()).await;
        assert_eq!(patch.header("range"), "0-1999999");
        patch.refused(416, "BLOB_UPLOAD_INVALID");
    }
    let range = format!("2000000-{}", content.len() - 1);
    let patch = client.send_with("PATCH", &location, &[("content-range", &range)], rest.to_vec()).await;
    assert_eq!(patch.expect(202).header("range"), format!("0-{}", content.len() - 1));
    client.send("PUT", &format!("{location}?digest={}", digest(&content))).await.expect(201);
    assert_blob(client, "a/b", &content).await;
    client.send("GET", &location).await.expect(404);
    assert_eq!(room.files("uploads"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_piece_that_was_cut_off_is_no_blob_and_can_be_sent_again() {
    let room = room().await;
    let client = room.all();
    let content = noise(2, 100_000);
    let location = client.begin("a").await;
    let put = format!("{location}?digest={}", digest(&content));
    break_off(client, "PUT", &put, content.len(), &content[..60_000]);
    client.send("HEAD", &format!("/v2/a/blobs/{}", digest(&content))).await.expect(404);
    assert_eq!(room.files("blobs"), 0);
    let range = [("content-range", "60000-99999")];
    client.send_with("PUT", &put, &range, content[60_000..].to_vec()).await.expect(201);
    assert_blob(client, "a", &content).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_post_that_was_cut_off_leaves_nothing() {
    let room = room().await;
    let content = noise(3, 3_000_000);
    let path = format!("/v2/a/blobs/uploads/?digest={}", digest(&content));
    break_off(room.all(), "POST", &path, content.len(), &content[..2_500_000]);
    wait_for(|| room.files("uploads") == 0).await;
    assert_eq!(room.files("blobs"), 0);
    room.all().send_with("POST", &path, &[], content.clone()).await.expect(201);
    assert_blob(room.all(), "a", &content).await;
}

#[tokio::test]
async fn content_with_another_digest_is_refused_and_leaves_nothing() {
    let room = room().await;
    let client = room.all();
    let other = digest(b"other");
    let location = client.begin("a").await;
    let answer = client.send_with("PUT", &format!("{location}?digest={other}"), &[], "content").await;
    let message = answer.refused(400, "DIGEST_INVALID");
    assert!(message.contains(&other) && message.contains(&digest(b"content")), "{message}");
    client.send("GET", &location).await.expect(404);
    let post = format!("/v2/a/blobs/uploads/?digest={other}");
    client.send_with("POST", &post, &[], "content").await.refused(400, "DIGEST_INVALID");
    for bad in ["", "?digest=", "?digest=sha512:00", "?digest=sha256:0A"] {
        let location = client.begin("a").await;
        client.send_with("PUT", &format!("{location}{bad}"), &[], "x").await.refused(400, "DIGEST_INVALID");
        client.send("DELETE", &location).await.expect(204);
    }
    assert_eq!((room.files("blobs"), room.files("uploads")), (0, 0));
}

#[tokio::test]
async fn a_body_without_a_length_is_taken_as_it_streams() {
    let room = room().await;
    let content = noise(4, 5_000_000);
    let pieces: Vec<_> =
        content.chunks(70_001).map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece))).collect();
    let location = room.all().begin("a").await;
    let body = Body::from_stream(futures::stream::iter(pieces));
    room.all().send_with("PATCH", &location, &[], body).await.expect(202);
    room.all().send("PUT", &format!("{location}?digest={}", digest(&content))).await.expect(201);
    assert_blob(room.all(), "a", &content).await;
}

#[tokio::test]
async fn open_uploads_are_bounded_and_idle_ones_go() {
    let limits = UploadLimits {
        total: 3,
        per_caller: 2,
        idle_timeout: Duration::from_millis(50),
        ..Default::default()
    };
    let room = room_with(limits).await;
    let first = room.client("writer").begin("team/a").await;
    room.client("writer").begin("team/a").await;
    let refused = room.client("writer").send("POST", "/v2/team/a/blobs/uploads/").await;
    assert!(!refused.header("retry-after").is_empty());
    refused.refused(429, "TOOMANYREQUESTS");
    room.all().begin("team/a").await;
    room.client("third").send("POST", "/v2/team/a/blobs/uploads/").await.expect(429);
    assert_eq!(room.files("uploads"), 3);
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert_eq!(room.registry.expire_uploads().await, 3);
    assert_eq!(room.files("uploads"), 0);
    room.client("writer").send("GET", &first).await.expect(404);
    room.client("writer").begin("team/a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_stalls_is_given_up_and_may_be_resumed() {
    let limits = UploadLimits { stall_timeout: Duration::from_millis(200), ..Default::default() };
    let room = room_with(limits).await;
    let location = room.all().begin("a").await;
    let pieces = futures::stream::unfold(0, |sent| async move {
        if sent > 0 {
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        Some((Ok::<_, std::io::Error>(Bytes::from_static(b"begun")), sent + 1))
    });
    let answer = room.all().send_with("PATCH", &location, &[], Body::from_stream(pieces)).await;
    answer.refused(408, "BLOB_UPLOAD_INVALID");
    let status = room.all().send("GET", &location).await.expect(204);
    assert_eq!(status.header("range"), "0-4");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pushes_of_the_same_blob_at_once_all_succeed() {
    let room = room().await;
    let content = noise(5, 1_500_000);
    let pushes = (0..12).map(|at| {
        let (room, content) = (&room, &content);
        async move { room.all().put_blob(&format!("a/{}", at % 3), content).await }
    });
    futures::future::join_all(pushes).await;
    assert_eq!((room.files("blobs"), room.files("uploads")), (1, 0));
    assert_blob(room.all(), "a/2", &content).await;
}

/// File system of its own, of a few megabytes.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"]).arg(at).status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_said_and_nothing_of_the_upload_stays() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("registry");
    let Some(_disk) = SmallDisk::mount(&root) else {
        eprintln!("skipped: a file system cannot be mounted here");
        return;
    };
    let room = room_at(directory, root, UploadLimits::default()).await;
    let client = room.all();
    let large = noise(6, 6_000_000);
    for round in 0..2 {
        let location = client.begin("a").await;
        let message =
            client.send_with("PATCH", &location, &[], large.clone()).await.refused(507, "UNAVAILABLE");
        assert!(message.contains("no space"), "{round}: {message}");
        client.send("GET", &location).await.expect(404);
        assert_eq!((room.files("blobs"), room.files("uploads")), (0, 0), "{round}");
    }
    let post = format!("/v2/a/blobs/uploads/?digest={}", digest(&large));
    client.send_with("POST", &post, &[], large).await.refused(507, "UNAVAILABLE");
    client.put_blob("a", &noise(7, 1_000_000)).await;
}

async fn wait_for(condition: impl Fn() -> bool) {
    for _ in 0..200 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("it did not come to be");
}

/// The client speaks HTTP/2 from the first byte, as on gRPC's port.
#[tokio::test(flavor = "multi_thread")]
async fn http_2_serves_as_well() {
    use http_body_util::BodyExt as _;
    use hyper_util::client::legacy::Client;
    use hyper_util::rt::TokioExecutor;

    let room: Room = room().await;
    let content = noise(8, 2_500_000);
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Body>();
    let uri = format!("http://{}/v2/a/blobs", room.address);
    let authorization = room.all().authorization();
    let request = |method: &str, path: String, body: Body| {
        let request =
            http::Request::builder().method(method).uri(path).header("authorization", &authorization);
        client.request(request.body(body).unwrap())
    };
    let post = format!("{uri}/uploads/?digest={}", digest(&content));
    assert_eq!(request("POST", post, content.clone().into()).await.unwrap().status(), 201);
    let answer = request("GET", format!("{uri}/{}", digest(&content)), Body::empty()).await.unwrap();
    assert_eq!(answer.version(), http::Version::HTTP_2);
    assert!(answer.into_body().collect().await.unwrap().to_bytes() == content);
}
