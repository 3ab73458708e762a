//! Deletion, and that no name is left dangling.

use serde_json::json;

use crate::room::{INDEX, describe, room, text};

#[tokio::test]
async fn a_deleted_tag_leaves_its_manifest_and_a_deleted_manifest_takes_its_tags() {
    let room = room().await;
    let client = room.all();
    let image = client.put_image("a", "1", "layer").await;
    client.put_image("a", "2", "layer").await;
    let by_digest = format!("/v2/a/manifests/{}", text(&image, "digest"));
    client.send("DELETE", "/v2/a/manifests/1").await.expect(202);
    client.send("GET", "/v2/a/manifests/1").await.refused(404, "MANIFEST_UNKNOWN");
    client.send("DELETE", "/v2/a/manifests/1").await.refused(404, "MANIFEST_UNKNOWN");
    client.send("GET", &by_digest).await.expect(200);
    client.send("DELETE", &by_digest).await.expect(202);
    for path in [by_digest.as_str(), "/v2/a/manifests/2"] {
        client.send("GET", path).await.refused(404, "MANIFEST_UNKNOWN");
    }
    client.send("DELETE", &by_digest).await.refused(404, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn what_something_else_needs_is_not_deleted() {
    let room = room().await;
    let client = room.all();
    let image = client.put_image("a", "1", "layer").await;
    let layer = client.put_blob("a", b"layer").await;
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [image]});
    client.put_json("a", "all", INDEX, &index).await.expect(201);

    let blob = format!("/v2/a/blobs/{}", text(&layer, "digest"));
    let manifest = format!("/v2/a/manifests/{}", text(&image, "digest"));
    let top = describe(INDEX, &index);
    assert!(client.send("DELETE", &blob).await.refused(405, "UNSUPPORTED").contains(text(&image, "digest")));
    assert!(
        client.send("DELETE", &manifest).await.refused(405, "UNSUPPORTED").contains(text(&top, "digest"))
    );
    for path in [format!("/v2/a/manifests/{}", text(&top, "digest")), manifest, blob.clone()] {
        client.send("DELETE", &path).await.expect(202);
    }
    client.send("GET", &blob).await.refused(404, "BLOB_UNKNOWN");
    client.send("DELETE", &blob).await.refused(404, "BLOB_UNKNOWN");
    // The same content in another repository is unaffected.
    client.put_image("b", "1", "layer").await;
    client.send("GET", &blob.replace("/v2/a/", "/v2/b/")).await.expect(200);
}
