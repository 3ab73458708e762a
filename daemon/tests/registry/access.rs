//! Authorization of the registry.

use crate::room::{MANIFEST, room, text};

#[tokio::test]
async fn without_a_caller_every_path_asks_for_a_token() {
    let room = room().await;
    for path in
        ["/v2/", "/v2", "/v2/_catalog", "/v2/a/tags/list", "/v2/NOT-A-NAME/tags/list", "/v2/nothing/here"]
    {
        let answer = room.client("").send("GET", path).await;
        assert_eq!(answer.header("www-authenticate"), "Basic realm=\"hearth\"", "{path}");
        assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0", "{path}");
        answer.refused(401, "UNAUTHORIZED");
    }
    let answer = room.client("nobody").send("GET", "/v2/").await.expect(200);
    assert_eq!(answer.header("docker-distribution-api-version"), "registry/2.0");
}

#[tokio::test]
async fn a_caller_may_do_what_is_granted_and_nothing_else() {
    let room = room().await;
    let image = room.all().put_image("team/app", "1", "layer").await;
    let blob = room.all().put_blob("team/app", b"loose").await;
    let (blob, digest) = (text(&blob, "digest"), text(&image, "digest"));
    let cases: Vec<(&str, String, &[&str])> = vec![
        ("GET", "manifests/1".to_owned(), &["reader"]),
        ("GET", format!("manifests/{digest}"), &["reader"]),
        ("HEAD", "manifests/1".to_owned(), &["reader", "writer"]),
        ("GET", format!("blobs/{blob}"), &["reader"]),
        ("HEAD", format!("blobs/{blob}"), &["reader", "writer"]),
        ("GET", format!("referrers/{digest}"), &["reader"]),
        ("GET", "tags/list".to_owned(), &["lister"]),
        ("POST", "blobs/uploads/".to_owned(), &["writer"]),
        ("GET", "blobs/uploads/0123".to_owned(), &["writer"]),
        ("PUT", "manifests/2".to_owned(), &["writer"]),
        ("PUT", "manifests/-bad".to_owned(), &["writer"]),
        ("DELETE", "manifests/1".to_owned(), &["writer"]),
        ("DELETE", format!("blobs/{blob}"), &["writer"]),
    ];
    for (method, rest, allowed) in cases {
        for caller in ["nobody", "reader", "lister", "writer"] {
            let answer = room.client(caller).send(method, &format!("/v2/team/app/{rest}")).await;
            let may = allowed.contains(&caller);
            assert_eq!(answer.status != 403, may, "{caller}: {method} {rest}: {answer:?}");
            // The grant covers `team/` only, whether or not other content exists.
            room.client(caller).send(method, &format!("/v2/other/{rest}")).await.expect(403);
        }
    }
    room.client("reader").send("DELETE", "/v2/team/app/manifests/2").await.refused(403, "DENIED");
}

#[tokio::test]
async fn a_blob_is_read_only_through_a_repository_that_has_it() {
    let room = room().await;
    let blob = room.all().put_blob("secret/app", b"not yours").await;
    let digest = text(&blob, "digest");
    for method in ["GET", "HEAD"] {
        room.client("reader").send(method, &format!("/v2/team/app/blobs/{digest}")).await.expect(404);
    }
    // A manifest that names the blob does not open it either.
    let config = room.all().put_blob("team/app", b"{}").await;
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [blob]});
    let message = room
        .client("writer")
        .put_json("team/app", "1", MANIFEST, &manifest)
        .await
        .refused(400, "MANIFEST_BLOB_UNKNOWN");
    assert!(message.contains(digest), "{message}");
    // A manifest of another repository cannot be read by its digest either.
    let image = room.all().put_image("secret/app", "1", "x").await;
    let path = format!("/v2/team/app/manifests/{}", text(&image, "digest"));
    room.client("reader").send("GET", &path).await.refused(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn a_mount_needs_the_right_to_pull_from_the_source() {
    let room = room().await;
    let blob = room.all().put_blob("secret/app", b"not yours").await;
    let digest = text(&blob, "digest");
    let path = format!("/v2/team/app/blobs/uploads/?mount={digest}&from=secret/app");
    // Even its existence is hidden: the answer is the one for an unknown blob.
    room.client("writer").send("POST", &path).await.expect(202);
    room.client("reader").send("HEAD", &format!("/v2/team/app/blobs/{digest}")).await.expect(404);
    for from in ["", "&from=", "&from=NO", "&from=team/none"] {
        let path = format!("/v2/team/app/blobs/uploads/?mount={digest}{from}");
        room.all().send("POST", &path).await.expect(202);
    }
    let answer = room.all().send("POST", &path).await.expect(201);
    assert_eq!(answer.header("docker-content-digest"), digest);
    assert_eq!(answer.header("location"), format!("/v2/team/app/blobs/{digest}"));
    room.client("reader").send("GET", &format!("/v2/team/app/blobs/{digest}")).await.expect(200);
}

#[tokio::test]
async fn an_upload_belongs_to_its_caller_and_its_repository() {
    let room = room().await;
    let location = room.client("writer").begin("team/app").await;
    let elsewhere = location.replace("team/app", "team/other");
    for (caller, path) in [("all", &location), ("writer", &elsewhere)] {
        for method in ["GET", "PATCH", "DELETE"] {
            room.client(caller).send(method, path).await.refused_or_empty(404);
        }
        let put = format!("{path}?digest={}", crate::room::digest(b""));
        room.client(caller).send("PUT", &put).await.refused(404, "BLOB_UPLOAD_UNKNOWN");
    }
    room.client("writer").send("GET", &location).await.expect(204);
}

impl crate::room::Answer {
    #[track_caller]
    fn refused_or_empty(self, status: u16) {
        let answer = self.expect(status);
        assert!(answer.body.is_empty() || answer.json()["errors"][0]["code"] == "BLOB_UPLOAD_UNKNOWN");
    }
}
