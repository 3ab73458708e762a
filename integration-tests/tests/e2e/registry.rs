//! `/v2/`: the requirements of the OCI distribution spec, checked with skopeo and with plain HTTP.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use integration_tests::daemon::Daemon;
use integration_tests::http::{ANY_MANIFEST, Answer, Request};
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::skopeo::skopeo;
use integration_tests::sources::{Tree, noise, sha256};
use integration_tests::wait::seconds;
use serde_json::json;

pub fn group() -> Group {
    Group::new(
        "registry",
        shared_cases![
            skopeo_pushes_and_pulls_with_a_basic_token,
            a_blob_in_one_piece_in_chunks_and_in_a_single_post,
            an_upload_reports_its_progress,
            a_chunk_out_of_order_is_refused,
            an_upload_can_be_dropped,
            a_blob_with_a_wrong_digest_is_refused,
            an_upload_that_breaks_off_leaves_no_blob,
            a_blob_is_mounted_from_another_repository,
            a_blob_is_read_only_through_repositories_that_have_it,
            ranges_of_a_blob_are_served,
            a_damaged_blob_is_not_served_and_can_be_sent_again,
            a_manifest_that_names_missing_blobs_is_refused,
            a_manifest_with_a_wrong_digest_or_no_json_is_refused,
            an_image_without_layers_is_taken,
            an_index_lists_blobs_beside_manifests,
            a_refused_token_is_named_to_clients_of_the_registry,
            a_refusal_before_the_end_of_a_body_announces_that_the_connection_closes,
            tags_are_listed_in_pages,
            what_is_not_there_has_the_spec_codes,
            wrong_names_are_refused,
        ],
    )
}

/// One repository of the daemon's registry, with the token that has every grant.
struct Repository<'a> {
    address: String,
    token: &'a str,
    name: String,
}

impl<'a> Repository<'a> {
    fn new(daemon: &'a Daemon, name: &str) -> Self {
        Self { address: daemon.listen(), token: daemon.token(), name: name.to_owned() }
    }

    fn request(&self, method: &str, rest: &str) -> Request {
        Request::new(method, &format!("/v2/{}/{rest}", self.name)).bearer(self.token)
    }

    fn send(&self, request: &Request) -> Answer {
        request.send(&self.address)
    }

    fn follow(&self, method: &str, location: &str) -> Request {
        Request::new(method, location).bearer(self.token)
    }

    /// Opens an upload; returns its location.
    #[track_caller]
    fn open(&self) -> String {
        let answer = self.send(&self.request("POST", "blobs/uploads/"));
        answer.expect(202);
        answer.header("location").expect("a location").to_owned()
    }

    #[track_caller]
    fn put_blob(&self, content: &[u8]) -> String {
        let digest = sha256(content);
        let answer = self.finish(&self.open(), content, &digest);
        assert_eq!(answer.expect(201).header("docker-content-digest"), Some(digest.as_str()));
        digest
    }

    fn finish(&self, location: &str, content: &[u8], digest: &str) -> Answer {
        let mark = if location.contains('?') { '&' } else { '?' };
        let request = self.follow("PUT", &format!("{location}{mark}digest={digest}"));
        self.send(&request.header("content-type", "application/octet-stream").body(content))
    }

    fn head_blob(&self, digest: &str) -> u16 {
        self.send(&self.request("HEAD", &format!("blobs/{digest}"))).status
    }

    fn put_manifest(&self, reference: &str, manifest: &serde_json::Value) -> Answer {
        let request = self.request("PUT", &format!("manifests/{reference}"));
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        self.send(&request.header("content-type", media_type).body(manifest.to_string()))
    }

    /// Uploads a config and a layer; returns a manifest of them.
    fn manifest(&self) -> serde_json::Value {
        let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
        let layer = noise(31, 1000);
        let (config_digest, layer_digest) = (self.put_blob(config), self.put_blob(&layer));
        manifest(&config_digest, config.len(), &json!([descriptor(&layer_digest, layer.len())]))
    }
}

fn descriptor(digest: &str, size: usize) -> serde_json::Value {
    json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": size})
}

fn manifest(config: &str, size: usize, layers: &serde_json::Value) -> serde_json::Value {
    json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": size},
        "layers": layers,
    })
}

fn skopeo_pushes_and_pulls_with_a_basic_token(daemon: &Daemon) {
    let work = tempfile::tempdir_in(daemon.directory()).unwrap();
    let (tree, archive) = (work.path().join("tree"), work.path().join("app.tar"));
    Tree::new().file("pushed", "by skopeo").write(&tree);
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    daemon.hearth_ok(&["pack", &path(&tree), "-o", &path(&archive)]);
    let target = format!("docker://{}/pushed/by-skopeo:1", daemon.listen());
    let credentials = format!("anyone:{}", daemon.token());
    let source = format!("oci-archive:{}", path(&archive));
    for round in 1..=2 {
        let push =
            skopeo(&["copy", "--dest-tls-verify=false", "--dest-creds", &credentials, &source, &target]);
        assert_eq!(push.code, 0, "push {round}\n{push}");
    }
    assert_eq!(daemon.image("pushed/by-skopeo:1").file("pushed"), "by skopeo");
    // Inside the room, the pushed image is like any other.
    daemon.put(
        "on-pushed",
        &Tree::new().dockerfile("FROM room.meshagent.com/pushed/by-skopeo:1\nCOPY x /\n").file("x", ""),
    );
    daemon.build_ok("on-pushed:1", "on-pushed", &[]);
    assert!(daemon.image("on-pushed:1").has("pushed"));
}

fn a_blob_in_one_piece_in_chunks_and_in_a_single_post(daemon: &Daemon) {
    let repository = Repository::new(daemon, "uploads/ways");
    let get = |digest: &str| {
        repository.send(&repository.request("GET", &format!("blobs/{digest}"))).expect(200).clone()
    };

    let whole = noise(41, 300_000);
    let digest = repository.put_blob(&whole);
    assert!(get(&digest).body == whole);

    let content = noise(42, 250_000);
    let mut location = repository.open();
    for (at, piece) in content.chunks(100_000).enumerate() {
        let range = format!("{}-{}", at * 100_000, at * 100_000 + piece.len() - 1);
        let patch = repository.follow("PATCH", &location).header("content-type", "application/octet-stream");
        let answer = repository.send(&patch.header("content-range", &range).body(piece));
        answer.expect(202);
        assert_eq!(answer.header("range"), Some(format!("0-{}", at * 100_000 + piece.len() - 1).as_str()));
        location = answer.header("location").unwrap().to_owned();
    }
    let digest = sha256(&content);
    repository.finish(&location, &[], &digest).expect(201);
    assert!(get(&digest).body == content);

    let content = noise(43, 5000);
    let digest = sha256(&content);
    let post = repository.request("POST", &format!("blobs/uploads/?digest={digest}"));
    let answer =
        repository.send(&post.header("content-type", "application/octet-stream").body(content.clone()));
    // A registry may decline the single-request upload with 202; then the upload continues as usual.
    if answer.status == 202 {
        repository.finish(answer.header("location").unwrap(), &content, &digest).expect(201);
    } else {
        answer.expect(201);
    }
    assert!(get(&digest).body == content);
}

fn an_upload_reports_its_progress(daemon: &Daemon) {
    let repository = Repository::new(daemon, "uploads/status");
    let location = repository.open();
    let patch = repository.follow("PATCH", &location).header("content-type", "application/octet-stream");
    let answer = repository.send(&patch.body(noise(44, 1234)));
    let location = answer.expect(202).header("location").unwrap().to_owned();
    let answer = repository.send(&repository.follow("GET", &location));
    assert_eq!(answer.expect(204).header("range"), Some("0-1233"));
}

fn a_chunk_out_of_order_is_refused(daemon: &Daemon) {
    let repository = Repository::new(daemon, "uploads/order");
    let location = repository.open();
    let patch = repository.follow("PATCH", &location).header("content-range", "100-199");
    repository
        .send(&patch.header("content-type", "application/octet-stream").body(noise(45, 100)))
        .expect(416);
}

fn an_upload_can_be_dropped(daemon: &Daemon) {
    let repository = Repository::new(daemon, "uploads/dropped");
    let location = repository.open();
    repository.send(&repository.follow("DELETE", &location)).expect(204);
    let answer = repository.send(&repository.follow("GET", &location));
    assert_eq!(answer.expect(404).registry_code(), "BLOB_UPLOAD_UNKNOWN");
}

fn a_blob_with_a_wrong_digest_is_refused(daemon: &Daemon) {
    let repository = Repository::new(daemon, "uploads/wrong");
    let (content, other) = (noise(46, 5000), sha256(b"something else"));
    let answer = repository.finish(&repository.open(), &content, &other);
    assert_eq!(answer.expect(400).registry_code(), "DIGEST_INVALID");
    assert_eq!((repository.head_blob(&other), repository.head_blob(&sha256(&content))), (404, 404));
    for malformed in ["sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", "nonsense", ""] {
        let answer = repository.finish(&repository.open(), &content, malformed);
        assert_eq!(answer.expect(400).registry_code(), "DIGEST_INVALID", "{malformed}");
    }
}

fn an_upload_that_breaks_off_leaves_no_blob(daemon: &Daemon) {
    let repository = Repository::new(daemon, "uploads/broken");
    let content = noise(47, 400_000);
    let digest = sha256(&content);
    let location = repository.open();
    let mark = if location.contains('?') { '&' } else { '?' };
    let put = repository.follow("PUT", &format!("{location}{mark}digest={digest}"));
    let put = put
        .header("content-type", "application/octet-stream")
        .body(&content[..200_000])
        .declare_length(400_000);
    if let Ok(answer) = put.try_send(&repository.address) {
        assert!(answer.status >= 400, "{answer:?}");
    }
    assert_eq!(repository.head_blob(&digest), 404);
    repository.put_blob(&content);
}

fn a_blob_is_mounted_from_another_repository(daemon: &Daemon) {
    let (from, to) = (Repository::new(daemon, "mounted/from"), Repository::new(daemon, "mounted/to"));
    let digest = from.put_blob(&noise(48, 70_000));
    assert_eq!(to.head_blob(&digest), 404);
    let answer = to.send(&to.request("POST", &format!("blobs/uploads/?mount={digest}&from=mounted/from")));
    assert_eq!(answer.expect(201).header("docker-content-digest"), Some(digest.as_str()));
    assert_eq!(to.head_blob(&digest), 200);
    // A blob that the other repository does not have opens an upload.
    let unknown = sha256(b"unknown");
    let answer = to.send(&to.request("POST", &format!("blobs/uploads/?mount={unknown}&from=mounted/from")));
    assert!(answer.expect(202).header("location").is_some());
}

fn a_blob_is_read_only_through_repositories_that_have_it(daemon: &Daemon) {
    let digest = Repository::new(daemon, "private/a").put_blob(&noise(49, 6000));
    assert_eq!(Repository::new(daemon, "private/b").head_blob(&digest), 404);
    assert_eq!(Repository::new(daemon, "private/a").head_blob(&digest), 200);
}

fn ranges_of_a_blob_are_served(daemon: &Daemon) {
    let repository = Repository::new(daemon, "ranges");
    let content = noise(50, 100_000);
    let digest = repository.put_blob(&content);
    let get = |range: &str| {
        repository.send(&repository.request("GET", &format!("blobs/{digest}")).header("range", range))
    };
    let answer = get("bytes=10-19");
    assert_eq!(answer.expect(206).body, content[10..20]);
    assert_eq!(answer.header("content-range"), Some("bytes 10-19/100000"));
    assert!(get("bytes=99990-").expect(206).body == content[99_990..]);
    assert!(get("bytes=-7").expect(206).body == content[99_993..]);
    assert!(get("bytes=50-200000").expect(206).body == content[50..]);
    get("bytes=100000-").expect(416);
    let head = repository.send(&repository.request("HEAD", &format!("blobs/{digest}")));
    assert_eq!(head.expect(200).header("content-length"), Some("100000"));
}

fn a_damaged_blob_is_not_served_and_can_be_sent_again(daemon: &Daemon) {
    let repository = Repository::new(daemon, "damaged");
    let blobs = daemon.directory().join("state/registry/blobs/sha256");
    let damage = |digest: &str| {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let path = blobs.join(&hex[..2]).join(hex);
        let file = std::fs::File::options().write(true).open(path).unwrap();
        let size = file.metadata().unwrap().len();
        std::os::unix::fs::FileExt::write_all_at(&file, b"damage", size / 2).unwrap();
    };
    assert!(daemon.hearth_ok(&["doctor", "--verify"]).stdout.contains(", 0 damaged"));
    for (seed, size, range) in [(60, 5000, None), (61, 3 << 20, None), (62, 3 << 20, Some("bytes=0-9"))] {
        let content = noise(seed, size);
        let digest = repository.put_blob(&content);
        let get = || {
            let request = repository.request("GET", &format!("blobs/{digest}"));
            range.map_or(request, |range| {
                repository.request("GET", &format!("blobs/{digest}")).header("range", range)
            })
        };
        damage(&digest);
        // A large blob is hashed while it is sent, and the connection ends before its last bytes.
        if let Ok(answer) = get().try_send(&daemon.listen()) {
            assert!(answer.status == 404 || answer.body.len() < size && range.is_none(), "{}", answer.status);
        }
        assert_eq!(repository.head_blob(&digest), 404);
        let doctor = daemon.hearth_ok(&["doctor"]);
        assert!(doctor.stdout.contains("1 damaged blob in quarantine"), "{doctor}");
        assert_eq!(repository.put_blob(&content), digest);
        assert!(get().send(&daemon.listen()).status < 300);
    }
    // Nobody asks for this one.
    let digest = repository.put_blob(&noise(63, 5000));
    damage(&digest);
    let found = daemon.hearth(&["doctor", "--verify", "--json"]);
    let found = found.expect_code(1).json();
    assert_eq!(found["verified"]["quarantined"], json!([digest]), "{found}");
    repository.put_blob(&noise(63, 5000));
    daemon.hearth_ok(&["doctor", "--verify"]);
    let metrics = Request::new("GET", "/metrics").bearer(daemon.token()).send(&daemon.listen()).text();
    assert!(metrics.contains("hearth_registry_damaged_blobs_total 4"), "{metrics}");
}

fn a_manifest_that_names_missing_blobs_is_refused(daemon: &Daemon) {
    let repository = Repository::new(daemon, "missing");
    let config = br#"{"architecture":"amd64","os":"linux"}"#;
    let config_digest = repository.put_blob(config);
    let absent = sha256(b"absent");
    let answer = repository
        .put_manifest("1", &manifest(&config_digest, config.len(), &json!([descriptor(&absent, 6)])));
    assert!(matches!(answer.status, 400 | 404), "{answer:?}");
    assert_eq!(answer.registry_code(), "MANIFEST_BLOB_UNKNOWN");
    assert!(answer.text().contains(&absent), "the answer names the blob: {answer:?}");
    assert_eq!(daemon.tag_digest("missing", "1"), None);
    let answer = repository.put_manifest("1", &manifest(&absent, 6, &json!([])));
    assert_eq!(answer.registry_code(), "MANIFEST_BLOB_UNKNOWN");
}

/// BuildKit lists layers and its own config in the index of a cache (`image-manifest=false`).
fn an_index_lists_blobs_beside_manifests(daemon: &Daemon) {
    let repository = Repository::new(daemon, "buildcache");
    let (layer, config) = (noise(32, 1000), b"{}");
    let entry = |digest: &str, size: usize, media_type: &str| json!({"mediaType": media_type, "digest": digest, "size": size});
    let put = |entries: serde_json::Value| {
        let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
        let request = repository.request("PUT", "manifests/cache");
        let media_type = "application/vnd.oci.image.index.v1+json";
        repository.send(&request.header("content-type", media_type).body(index))
    };
    let entries = json!([
        entry(&repository.put_blob(&layer), layer.len(), "application/vnd.oci.image.layer.v1.tar+gzip"),
        entry(&repository.put_blob(config), config.len(), "application/vnd.buildkit.cacheconfig.v0"),
    ]);
    put(entries.clone()).expect(201);
    let get = repository.request("GET", "manifests/cache").header("accept", ANY_MANIFEST);
    assert_eq!(repository.send(&get).expect(200).json()["manifests"], entries);
    let absent = json!([entry(&sha256(b"absent"), 6, "application/vnd.buildkit.cacheconfig.v0")]);
    assert_eq!(put(absent).registry_code(), "MANIFEST_BLOB_UNKNOWN");
}

fn a_refused_token_is_named_to_clients_of_the_registry(daemon: &Daemon) {
    let expired = daemon.mint(&["--name", "late", "--scope", "full", "--ttl", "1s"]);
    std::thread::sleep(seconds(2));
    for (token, reason, words) in [
        (expired.as_str(), "token_expired", "the token of `late` expired"),
        ("x.y.z", "token_invalid", "not a participant token"),
    ] {
        let answer = Request::new("GET", "/v2/").basic("anyone", token).send(&daemon.listen());
        let error = &answer.expect(401).json()["errors"][0];
        assert_eq!((&error["code"], &error["detail"]["reason"]), (&json!("UNAUTHORIZED"), &json!(reason)));
        assert!(error["message"].as_str().is_some_and(|message| message.contains(words)), "{error}");
        let challenge = answer.header("www-authenticate").unwrap_or_default();
        assert!(challenge.starts_with("Basic realm=\"hearth\", error=\"invalid_token\""), "{challenge}");
        assert_eq!(answer.header("docker-distribution-api-version"), Some("registry/2.0"));
    }
}

fn a_refusal_before_the_end_of_a_body_announces_that_the_connection_closes(daemon: &Daemon) {
    let mut connection = TcpStream::connect(daemon.listen()).unwrap();
    connection.set_read_timeout(Some(seconds(10))).unwrap();
    let mut head_after = |request: &str| {
        connection.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            connection.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap().to_ascii_lowercase()
    };
    // A request without a body leaves the connection open for the next one.
    let head = head_after("HEAD /v2/ HTTP/1.1\r\nhost: room\r\n\r\n");
    assert!(head.starts_with("http/1.1 401") && !head.contains("connection: close"), "{head}");
    let put = "PUT /v2/a/blobs/uploads/b HTTP/1.1\r\nhost: room\r\ncontent-length: 1000000\r\n\r\nbegin";
    let head = head_after(put);
    assert!(head.starts_with("http/1.1 401") && head.contains("connection: close"), "{head}");
}

fn a_manifest_with_a_wrong_digest_or_no_json_is_refused(daemon: &Daemon) {
    let repository = Repository::new(daemon, "manifests");
    let manifest = repository.manifest();
    let digest = sha256(manifest.to_string().as_bytes());
    let answer = repository.put_manifest(&sha256(b"other"), &manifest);
    assert_eq!(answer.expect(400).registry_code(), "DIGEST_INVALID");
    repository.put_manifest(&digest, &manifest).expect(201);
    let answer = repository.put_manifest("stable", &manifest);
    assert_eq!(answer.expect(201).header("docker-content-digest"), Some(digest.as_str()));
    for reference in [digest.as_str(), "stable"] {
        let get = repository.request("GET", &format!("manifests/{reference}")).header("accept", ANY_MANIFEST);
        let answer = repository.send(&get);
        assert_eq!(answer.expect(200).text(), manifest.to_string(), "served as it was pushed");
        assert_eq!(answer.header("content-type"), Some("application/vnd.oci.image.manifest.v1+json"));
    }
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    for body in ["", "{", "[]", "{\"schemaVersion\": 2}"] {
        let put = repository.request("PUT", "manifests/bad").header("content-type", media_type).body(body);
        assert_eq!(repository.send(&put).expect(400).registry_code(), "MANIFEST_INVALID", "{body:?}");
    }
    assert_eq!(daemon.tag_digest("manifests", "bad"), None);
}

fn an_image_without_layers_is_taken(daemon: &Daemon) {
    let repository = Repository::new(daemon, "no-layers");
    let config =
        br#"{"architecture":"amd64","os":"linux","history":null,"rootfs":{"type":"layers","diff_ids":null}}"#;
    let digest = repository.put_blob(config);
    repository.put_manifest("1", &manifest(&digest, config.len(), &serde_json::Value::Null)).expect(201);
    daemon.put("no-layers", &Tree::new().dockerfile("FROM scratch\nLABEL a=b\n"));
    daemon.build_ok("no-layers:2", "no-layers", &[]);
    assert!(daemon.tag_digest("no-layers", "2").is_some());
}

fn tags_are_listed_in_pages(daemon: &Daemon) {
    let repository = Repository::new(daemon, "paged");
    let manifest = repository.manifest();
    let tags = ["a", "b", "c", "d", "e"];
    for tag in tags.iter().rev() {
        repository.put_manifest(tag, &manifest).expect(201);
    }
    let all = repository.send(&repository.request("GET", "tags/list"));
    assert_eq!(all.expect(200).json(), json!({"name": "paged", "tags": tags}));
    let (mut seen, mut next) = (Vec::new(), Some("/v2/paged/tags/list?n=2".to_owned()));
    while let Some(path) = next {
        let answer = repository.send(&repository.follow("GET", &path));
        let page: Vec<String> = serde_json::from_value(answer.expect(200).json()["tags"].clone()).unwrap();
        assert!(page.len() <= 2, "{page:?}");
        seen.extend(page);
        next = answer.header("link").map(|link| link.split(['<', '>']).nth(1).unwrap().to_owned());
        assert!(seen.len() <= 5, "{seen:?}");
    }
    assert_eq!(seen, tags);
    let rest = repository.send(&repository.request("GET", "tags/list?n=100000000&last=c"));
    assert_eq!(rest.expect(200).json()["tags"], json!(["d", "e"]));
}

fn what_is_not_there_has_the_spec_codes(daemon: &Daemon) {
    let repository = Repository::new(daemon, "codes");
    repository.put_manifest("1", &repository.manifest()).expect(201);
    let unknown = sha256(b"unknown");
    for (path, code) in [
        (format!("blobs/{unknown}"), "BLOB_UNKNOWN"),
        (format!("manifests/{unknown}"), "MANIFEST_UNKNOWN"),
        ("manifests/none".to_owned(), "MANIFEST_UNKNOWN"),
    ] {
        assert_eq!(
            repository.send(&repository.request("GET", &path)).expect(404).registry_code(),
            code,
            "{path}"
        );
    }
    let nobody = Repository::new(daemon, "no/such/repository");
    let answer = nobody.send(&nobody.request("GET", "tags/list"));
    assert_eq!(answer.expect(404).registry_code(), "NAME_UNKNOWN");
    let answer = Request::new("GET", "/v2/").bearer(daemon.token()).send(&daemon.listen());
    assert_eq!(answer.expect(200).header("docker-distribution-api-version"), Some("registry/2.0"));
}

fn wrong_names_are_refused(daemon: &Daemon) {
    for name in ["Upper", "a//b", "-a", "a..b", "a/../b"] {
        let answer = Repository::new(daemon, name);
        let answer = answer.send(&answer.request("POST", "blobs/uploads/"));
        assert!(matches!(answer.status, 400 | 404), "{name}: {answer:?}");
    }
    let repository = Repository::new(daemon, "names");
    let manifest = repository.manifest();
    for tag in [".dot", "a%20b", "-dash"] {
        let answer = repository.put_manifest(tag, &manifest);
        assert!(matches!(answer.status, 400 | 404), "{tag}: {answer:?}");
    }
}
