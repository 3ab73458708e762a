//! Manifests: which ones are accepted, and the errors for others.

use serde_json::{Value, json};

use crate::room::{INDEX, MANIFEST, describe, digest, noise, room, text};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

#[tokio::test]
async fn a_manifest_comes_back_byte_for_byte_by_tag_and_by_digest() {
    let room = room().await;
    let client = room.all();
    let config = client.put_blob("a/b", b"{}").await;
    let loose =
        format!("{{ \"config\":{config},\n \"layers\" : null, \"schemaVersion\":2, \"unknown\": [1] }}\n");
    let headers = [("content-type", "application/vnd.oci.image.manifest.v1+json; charset=utf-8")];
    let put = client.send_with("PUT", "/v2/a/b/manifests/v1", &headers, loose.clone()).await.expect(201);
    let sum = digest(loose.as_bytes());
    assert_eq!(put.header("docker-content-digest"), sum);
    assert_eq!(put.header("location"), format!("/v2/a/b/manifests/{sum}"));
    for name in ["v1", &sum] {
        let path = format!("/v2/a/b/manifests/{name}");
        let got = client.send("GET", &path).await.expect(200);
        assert_eq!((got.body.as_ref(), got.header("content-type")), (loose.as_bytes(), MANIFEST));
        let head = client.send("HEAD", &path).await.expect(200);
        assert_eq!(
            (head.header("content-length"), head.header("docker-content-digest")),
            (loose.len().to_string().as_str(), sum.as_str())
        );
        let etag = got.header("etag").to_owned();
        client.send_with("GET", &path, &[("if-none-match", &etag)], "").await.expect(304);
    }
    // Pushing the same again, also by digest, changes nothing.
    client.send_with("PUT", &format!("/v2/a/b/manifests/{sum}"), &headers, loose).await.expect(201);
}

#[tokio::test]
async fn dockers_media_types_are_taken_and_kept() {
    let room = room().await;
    let client = room.all();
    let config = client.put_blob("a", b"{}").await;
    let image = json!({"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config, "layers": []});
    let child = describe(DOCKER_MANIFEST, &image);
    client.put_json("a", text(&child, "digest"), DOCKER_MANIFEST, &image).await.expect(201);
    let list = json!({"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [child]});
    client.put_json("a", "all", DOCKER_LIST, &list).await.expect(201);
    assert_eq!(client.send("GET", "/v2/a/manifests/all").await.header("content-type"), DOCKER_LIST);
}

#[tokio::test]
async fn what_is_wrong_with_a_manifest_is_named() {
    let room = room().await;
    let client = room.all();
    let config = client.put_blob("a", b"{}").await;
    let missing = json!({"mediaType": "x", "digest": digest(b"missing"), "size": 7});
    let wrong_size = json!({"mediaType": "x", "digest": text(&config, "digest"), "size": 3});
    let image =
        |config: &Value, layers: Value| json!({"schemaVersion": 2, "config": config, "layers": layers});
    let typed = |descriptor: &Value, media_type: &str| {
        let mut typed = descriptor.clone();
        typed["mediaType"] = json!(media_type);
        typed
    };
    let good = image(&config, json!([]));
    let cases = [
        (MANIFEST, image(&config, json!([missing])), "MANIFEST_BLOB_UNKNOWN", text(&missing, "digest")),
        (MANIFEST, image(&missing, json!([])), "MANIFEST_BLOB_UNKNOWN", text(&missing, "digest")),
        (MANIFEST, image(&wrong_size, json!([])), "MANIFEST_INVALID", "it has 2"),
        (MANIFEST, json!({"schemaVersion": 1}), "MANIFEST_INVALID", "schemaVersion"),
        (MANIFEST, json!("text"), "MANIFEST_INVALID", "not valid"),
        ("application/json", good.clone(), "MANIFEST_INVALID", "application/json"),
        ("", good.clone(), "MANIFEST_INVALID", "media type"),
        (
            INDEX,
            json!({"schemaVersion": 2, "manifests": [typed(&missing, MANIFEST)]}),
            "MANIFEST_BLOB_UNKNOWN",
            "names manifest",
        ),
    ];
    for (media_type, manifest, code, words) in cases {
        let message = client.put_json("a", "1", media_type, &manifest).await.refused(400, code);
        assert!(message.contains(words), "{message}");
    }
    // A blob is no manifest, so an index cannot name it as one.
    let index = |entry: Value| json!({"schemaVersion": 2, "manifests": [entry]});
    client
        .put_json("a", "1", INDEX, &index(typed(&config, MANIFEST)))
        .await
        .refused(400, "MANIFEST_BLOB_UNKNOWN");
    client.put_json("a", "blobs", INDEX, &index(typed(&config, "x"))).await.expect(201);
    client.put_json("a", &digest(b"other"), MANIFEST, &good).await.refused(400, "DIGEST_INVALID");
    client.put_json("a", "-no-tag", MANIFEST, &good).await.refused(400, "MANIFEST_INVALID");
    client.send("GET", "/v2/a/manifests/1").await.refused(404, "MANIFEST_UNKNOWN");
    client.send("GET", "/v2/a/manifests/-no-tag").await.refused(404, "MANIFEST_UNKNOWN");
    client.send("POST", "/v2/a/manifests/1").await.refused(405, "UNSUPPORTED");
}

#[tokio::test]
async fn a_manifest_above_four_megabytes_is_refused() {
    let room = room().await;
    let headers = [("content-type", MANIFEST)];
    let answer =
        room.all().send_with("PUT", "/v2/a/manifests/1", &headers, noise(1, 4 * 1024 * 1024 + 1)).await;
    answer.refused(413, "SIZE_INVALID");
}

#[tokio::test]
async fn referrers_of_a_manifest_are_found_by_their_subject() {
    let room = room().await;
    let client = room.all();
    let subject = client.put_image("a", "1", "layer").await;
    let path = format!("/v2/a/referrers/{}", text(&subject, "digest"));
    let none = client.send("GET", &path).await.expect(200);
    assert_eq!(none.header("content-type"), INDEX);
    assert_eq!(none.json()["manifests"], json!([]));
    let config = client.put_blob("a", b"{}").await;
    for kind in ["application/signature+json", "application/sbom"] {
        let referrer = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": kind, "config": config, "layers": null,
            "subject": subject, "annotations": {"about": kind},
        });
        let by_digest = describe(MANIFEST, &referrer);
        let put = client.put_json("a", text(&by_digest, "digest"), MANIFEST, &referrer).await.expect(201);
        assert_eq!(put.header("oci-subject"), text(&subject, "digest"));
    }
    let both = client.send("GET", &path).await.expect(200).json();
    assert_eq!(both["manifests"].as_array().unwrap().len(), 2);
    for filter in ["application/signature+json", "application%2Fsignature%2Bjson"] {
        let answer = client.send("GET", &format!("{path}?artifactType={filter}")).await.expect(200);
        assert_eq!(answer.header("oci-filters-applied"), "artifactType");
        let found = answer.json()["manifests"].clone();
        assert_eq!(found.as_array().unwrap().len(), 1, "{found}");
        assert_eq!(found[0]["artifactType"], "application/signature+json");
        assert_eq!(found[0]["annotations"]["about"], "application/signature+json");
    }
    // A manifest that nobody pushed may still have referrers.
    client.send("GET", &format!("/v2/none/referrers/{}", digest(b"x"))).await.expect(200);
}

#[tokio::test]
async fn parts_of_a_blob_are_served_with_its_length_and_digest() {
    let room = room().await;
    let client = room.all();
    let content = noise(2, 1_300_000);
    let blob = client.put_blob("a", &content).await;
    let path = format!("/v2/a/blobs/{}", text(&blob, "digest"));
    let head = client.send("HEAD", &path).await.expect(200);
    assert_eq!((head.header("content-length"), head.header("accept-ranges")), ("1300000", "bytes"));
    for (range, from, to) in
        [("bytes=0-0", 0, 1), ("bytes=600000-", 600_000, 1_300_000), ("bytes=-5", 1_299_995, 1_300_000)]
    {
        let answer = client.send_with("GET", &path, &[("range", range)], "").await.expect(206);
        assert!(answer.body == content[from..to], "{range}");
        assert_eq!(answer.header("content-range"), format!("bytes {from}-{}/1300000", to - 1));
        assert_eq!(answer.header("content-length"), (to - from).to_string());
    }
    let beyond = client.send_with("GET", &path, &[("range", "bytes=1300000-")], "").await;
    assert_eq!(beyond.header("content-range"), "bytes */1300000");
    beyond.refused(416, "SIZE_INVALID");
    let other = [("range", "bytes=0-9"), ("if-range", "\"sha256:other\"")];
    assert!(client.send_with("GET", &path, &other, "").await.expect(200).body == content);
    let whole = client.send("GET", &path).await.expect(200);
    client.send_with("GET", &path, &[("if-none-match", whole.header("etag"))], "").await.expect(304);
    let empty = client.put_blob("a", b"").await;
    let answer = client.send("GET", &format!("/v2/a/blobs/{}", text(&empty, "digest"))).await.expect(200);
    assert_eq!((answer.header("content-length"), answer.body.len()), ("0", 0));
}
