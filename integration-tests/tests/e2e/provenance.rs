//! What went into an image is attached to it, and other programs read it.

use integration_tests::daemon::{BASE, Daemon};
use integration_tests::http::Request;
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::sources::{Tree, sha256};
use serde_json::Value;

pub fn group() -> Group {
    Group::new(
        "provenance",
        shared_cases![a_built_image_says_what_went_into_it, an_image_without_provenance_says_so,],
    )
}

/// Returns a JSON document of `/v2/`.
#[track_caller]
fn document(daemon: &Daemon, path: &str) -> Value {
    let answer = Request::new("GET", path).bearer(daemon.token()).send(&daemon.listen());
    assert_eq!(answer.status, 200, "{path}");
    serde_json::from_slice(&answer.body).unwrap()
}

/// Returns the referrers of an image with the statements that they hold.
#[track_caller]
fn statements(daemon: &Daemon, repository: &str, digest: &str) -> Vec<(Value, Value)> {
    let index = document(daemon, &format!("/v2/{repository}/referrers/{digest}"));
    let read = |entry: &Value| {
        let manifest =
            document(daemon, &format!("/v2/{repository}/manifests/{}", entry["digest"].as_str().unwrap()));
        let blob = manifest["layers"][0]["digest"].as_str().unwrap();
        (manifest.clone(), document(daemon, &format!("/v2/{repository}/blobs/{blob}")))
    };
    index["manifests"].as_array().unwrap().iter().map(read).collect()
}

fn a_built_image_says_what_went_into_it(daemon: &Daemon) {
    daemon.base_image();
    let dockerfile = format!(
        "FROM {BASE}\nARG WORD\nCOPY a /a\nRUN --mount=type=secret,id=key test -s /run/secrets/key\n"
    );
    daemon.put("made", &Tree::new().dockerfile(&dockerfile).file("a", "x"));
    let file = tempfile::NamedTempFile::new().unwrap();
    let canary = "canary-provenance-7c1e93d0";
    std::fs::write(file.path(), canary).unwrap();
    let secret = format!("id=key,src={}", file.path().display());
    let more = ["--secret", &secret, "--build-arg", "WORD=quiet-argument", "--also-tag", "made-copy:2"];
    let digest = daemon.build_ok("made:1", "made", &more);

    // It goes with the image to every repository in which the image is tagged.
    daemon.hearth_ok(&["images", "tag", "made:1", "made-again:1"]);
    for repository in ["made", "made-copy", "made-again"] {
        let found = statements(daemon, repository, &digest);
        assert_eq!(found.len(), 1, "{repository}");
        let (manifest, statement) = &found[0];
        assert_eq!(manifest["artifactType"], "application/vnd.in-toto+json");
        assert_eq!(manifest["subject"]["digest"], digest);
        assert_eq!(statement["_type"], "https://in-toto.io/Statement/v1");
        assert_eq!(statement["predicateType"], "https://slsa.dev/provenance/v1");
        assert_eq!(statement["subject"][0]["digest"]["sha256"], digest["sha256:".len()..]);
        assert_eq!(statement["subject"][0]["name"], "pkg:docker/room.meshagent.com/made@1");
    }

    let shown = daemon.hearth_ok(&["images", "provenance", "made:1"]);
    let predicate = shown.json();
    let definition = &predicate["buildDefinition"];
    let dependencies = definition["resolvedDependencies"].as_array().unwrap();
    assert_eq!(dependencies[0]["uri"], "hearth:room-storage/made");
    assert_eq!(dependencies[0]["digest"]["hearthTreeBlake3"].as_str().unwrap().len(), 64);
    let base = &dependencies[1];
    assert!(base["uri"].as_str().unwrap().starts_with("pkg:docker/room.meshagent.com/busybox@test?"));
    let base_digest = daemon.tag_digest("busybox", "test").unwrap();
    assert_eq!(base["digest"]["sha256"], base_digest["sha256:".len()..]);
    let source = &definition["externalParameters"]["configSource"];
    assert_eq!(source["path"], "/context/Dockerfile");
    assert_eq!(source["digest"]["sha256"], sha256(dockerfile.as_bytes())["sha256:".len()..]);
    assert_eq!(definition["externalParameters"]["request"]["secrets"][0]["id"], "key");
    let version = predicate["runDetails"]["builder"]["version"]["buildkit"].as_str().unwrap();
    assert!(version.starts_with("v0."), "{version}");
    // The value of a secret is nowhere, and arguments are not told unless asked for.
    for hidden in [canary, "quiet-argument"] {
        assert!(!shown.stdout.contains(hidden), "{shown}");
    }

    // Another build of the same image adds its own statement, and only so many are kept.
    for _ in 0..5 {
        assert_eq!(daemon.build_ok("made:1", "made", &more), digest);
    }
    assert_eq!(statements(daemon, "made", &digest).len(), 4);
}

fn an_image_without_provenance_says_so(daemon: &Daemon) {
    let base = daemon.base_image();
    let output = daemon.hearth(&["images", "provenance", base, "--json"]);
    assert_eq!(output.expect_code(1).json()["error"]["code"], "attestation_not_found", "{output}");
}
