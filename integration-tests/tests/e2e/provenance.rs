//! What went into an image is attached to it, and other programs read it.

use std::path::Path;
use std::process::Command;

use integration_tests::daemon::{BASE, Daemon, Options};
use integration_tests::http::{ANY_MANIFEST, Request};
use integration_tests::runner::Group;
use integration_tests::sources::{Tree, sha256};
use integration_tests::wait::seconds;
use integration_tests::{lone_cases, process, shared_cases};
use serde_json::Value;

/// Programs that `deploy/setup.sh --tests` installs.
const ORAS: &str = "/usr/local/lib/hearth-tests/oras/oras";
const SPDX_TOOLS: &str = "/var/cache/hearth-tests/venv/bin/pyspdxtools";

pub fn group() -> Group {
    Group::new(
        "provenance",
        shared_cases![
            a_built_image_says_what_went_into_it,
            an_image_without_provenance_says_so,
            packages_and_provenance_are_in_the_index_and_other_programs_read_them,
            provenance_can_be_left_out,
        ]
        .into_iter()
        .chain(lone_cases![statements_go_with_an_image_to_another_registry])
        .collect(),
    )
}

/// Returns a JSON document of `/v2/`.
#[track_caller]
fn document(daemon: &Daemon, path: &str) -> Value {
    let request = Request::new("GET", path).header("accept", ANY_MANIFEST).bearer(daemon.token());
    let answer = request.send(&daemon.listen());
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

fn packages_and_provenance_are_in_the_index_and_other_programs_read_them(daemon: &Daemon) {
    daemon.base_image();
    let status = "Package: libc6\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2.36-9\n\n\
                  Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n";
    let tree = Tree::new()
        .dockerfile(&format!(
            "FROM {BASE}\nARG WORD\nLABEL made=by-hand\nCOPY root /\nRUN rm /app/Cargo.lock\n"
        ))
        .file("root/usr/lib/os-release", "ID=debian\nVERSION_ID=\"12\"\n")
        .file("root/var/lib/dpkg/status", status)
        .file("root/app/node_modules/left-pad/package.json", r#"{"name": "left-pad", "version": "1.3.0"}"#)
        .file("root/app/Cargo.lock", "[[package]]\nname = \"removed\"\nversion = \"1.0.0\"\n")
        .file(
            "root/usr/lib/python3/site-packages/six-1.16.0.dist-info/METADATA",
            "Name: six\nVersion: 1.16.0\n\nx",
        );
    daemon.put("listed", &tree);
    let more = ["--provenance", "mode=max", "--sbom", "--build-arg", "WORD=loud-argument"];
    let digest = daemon.build_ok("listed:1", "listed", &more);

    // The index is as BuildKit writes it: the image, and after it the attestation of it.
    let index = document(daemon, &format!("/v2/listed/manifests/{digest}"));
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 2, "{index}");
    assert_eq!(entries[0]["platform"]["os"], "linux");
    assert_eq!(entries[1]["platform"]["os"], "unknown");
    let annotations = &entries[1]["annotations"];
    assert_eq!(annotations["vnd.docker.reference.type"], "attestation-manifest");
    assert_eq!(annotations["vnd.docker.reference.digest"], entries[0]["digest"]);
    let attestation =
        document(daemon, &format!("/v2/listed/manifests/{}", entries[1]["digest"].as_str().unwrap()));
    let kinds: Vec<&Value> = attestation["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| &layer["annotations"]["in-toto.io/predicate-type"])
        .collect();
    assert_eq!(kinds, ["https://slsa.dev/provenance/v1", "https://spdx.dev/Document"]);
    assert_eq!(daemon.image("listed:1").file("usr/lib/os-release").lines().next(), Some("ID=debian"));

    let provenance = daemon.hearth_ok(&["images", "provenance", "listed:1"]).json();
    let request = &provenance["buildDefinition"]["externalParameters"]["request"];
    assert_eq!(request["args"]["build-arg:WORD"], "loud-argument", "{provenance}");
    let packages = daemon.hearth_ok(&["images", "sbom", "listed:1"]);
    let purls: Vec<String> = packages.json()["packages"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|package| Some(package["externalRefs"][0]["referenceLocator"].as_str()?.to_owned()))
        .collect();
    assert_eq!(
        purls,
        [
            "pkg:deb/debian/libc6@2.36-9?arch=amd64&distro=debian-12",
            "pkg:npm/left-pad@1.3.0",
            "pkg:pypi/six@1.16.0"
        ]
    );

    // A validator of SPDX, and a client of referrers.
    for program in [ORAS, SPDX_TOOLS] {
        assert!(Path::new(program).exists(), "{program} is missing; run deploy/setup.sh --tests");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("listed.spdx.json");
    std::fs::write(&file, &packages.stdout).unwrap();
    process::run(Command::new(SPDX_TOOLS).arg("-i").arg(&file), seconds(60)).expect_code(0);
    let mut oras = Command::new(ORAS);
    oras.args([
        "discover",
        "--plain-http",
        "--username",
        "any",
        "--password",
        daemon.token(),
        "--format",
        "json",
    ]);
    oras.arg(format!("{}/listed:1", daemon.listen())).env("HOME", directory.path());
    let discovered = process::run(&mut oras, seconds(60));
    let found = discovered.expect_code(0).json()["manifests"].clone();
    let kind = |entry: &Value| entry["annotations"]["in-toto.io/predicate-type"].as_str().unwrap().to_owned();
    let mut kinds: Vec<String> = found.as_array().unwrap().iter().map(kind).collect();
    kinds.sort();
    assert_eq!(kinds, ["https://slsa.dev/provenance/v1", "https://spdx.dev/Document"]);
}

fn provenance_can_be_left_out(daemon: &Daemon) {
    daemon.base_image();
    daemon.put("silent", &Tree::new().dockerfile(&format!("FROM {BASE}\nCOPY Dockerfile /silent\n")));
    let digest = daemon.build_ok("silent:1", "silent", &["--provenance", "false"]);
    assert_eq!(statements(daemon, "silent", &digest).len(), 0);
    let refused = daemon.build("silent:1", "silent", &["--provenance", "mode=mid"]);
    refused.expect_code(2).says(&["mode=min", "mode=max"]);
    // Whoever may not read the image may not read what went into it.
    let token =
        daemon.mint(&["--name", "eve", "--scope", r#"{"containers": {"registry": {"pull": ["other"]}}}"#]);
    let mut eve = daemon.client();
    eve.args(["images", "provenance", "silent:1"]);
    eve.env("HEARTH_ADDR", format!("http://{}", daemon.listen())).env("HEARTH_TOKEN", &token);
    process::run(&mut eve, seconds(30)).expect_code(3);
}

fn statements_go_with_an_image_to_another_registry() {
    let other = Daemon::start(Options::room("provenance-o"));
    let room = Daemon::start(Options::room("provenance-r").registries(&[&other.listen()]));
    room.base_image();
    room.put("sent", &Tree::new().dockerfile(&format!("FROM {BASE}\nCOPY Dockerfile /sent\n")));
    let target = format!("{}/sent:1", other.listen());
    let credentials = format!("{},any,{}", other.listen(), other.token());
    let digest = room.build_ok(&target, "sent", &["--cred", &credentials]);
    let found = statements(&other, "sent", &digest);
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].1["predicateType"], "https://slsa.dev/provenance/v1");
}
