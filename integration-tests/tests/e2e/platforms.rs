//! Builds for several platforms: an index with an image for each, annotations, and what needs an emulator.

use integration_tests::daemon::{BASE, Daemon};
use integration_tests::runner::Group;
use integration_tests::service::page;
use integration_tests::shared_cases;
use integration_tests::skopeo::skopeo;
use integration_tests::sources::{Tree, base_tree};
use serde_json::Value;

pub fn group() -> Group {
    Group::new(
        "platforms",
        shared_cases![
            an_index_has_an_image_for_each_platform_in_the_order_given,
            layers_of_each_platform_keep_the_form_that_they_have_in_the_base,
            an_index_is_deployed_listed_and_pulled_by_platform,
            a_step_that_cannot_run_is_named_before_anything_runs,
            annotations_stand_in_the_pushed_documents,
        ],
    )
}

/// Returns a document of the registry, as another client reads it.
#[track_caller]
fn raw(daemon: &Daemon, name: &str) -> Value {
    let credentials = format!("any:{}", daemon.token());
    let image = format!("docker://{}/{name}", daemon.listen());
    skopeo(&["inspect", "--raw", "--tls-verify=false", "--creds", &credentials, &image]).json()
}

/// Returns the platforms of an index in their order.
fn platforms(index: &Value) -> Vec<String> {
    let manifests = index["manifests"].as_array().expect("an index");
    let platform = |child: &Value| {
        let platform = &child["platform"];
        format!("{}/{}", platform["os"].as_str().unwrap(), platform["architecture"].as_str().unwrap())
    };
    manifests.iter().map(platform).collect()
}

/// Returns the manifest of one image of an index.
#[track_caller]
fn child(daemon: &Daemon, name: &str, index: &Value, at: usize) -> Value {
    let digest = index["manifests"][at]["digest"].as_str().unwrap();
    raw(daemon, &format!("{}@{digest}", name.split(':').next().unwrap()))
}

fn an_index_has_an_image_for_each_platform_in_the_order_given(daemon: &Daemon) {
    let dockerfile =
        "FROM scratch AS files\nARG TARGETARCH\nCOPY file-$TARGETARCH /file\nFROM files\nCOPY all /\n";
    let tree = Tree::new().dockerfile(dockerfile).file("all", "a");
    daemon.put("order", &tree.file("file-amd64", "intel").file("file-arm64", "arm"));
    let digest = daemon.build_ok("order:1", "order", &["--platform", "linux/arm64,linux/amd64"]);
    assert_eq!(daemon.tag_digest("order", "1"), Some(digest));
    let index = raw(daemon, "order:1");
    assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
    assert_eq!(platforms(&index), ["linux/arm64", "linux/amd64"]);
    let other =
        daemon.build_ok("order:2", "order", &["--platform", "linux/amd64", "--platform", "linux/arm64"]);
    assert_eq!(platforms(&raw(daemon, "order:2")), ["linux/amd64", "linux/arm64"], "{other}");
    // One platform makes no index.
    daemon.build_ok("order:arm", "order", &["--platform", "linux/arm64"]);
    let single = daemon.image("order:arm");
    assert_eq!((single.file("file"), &single.config["architecture"]), ("arm".to_owned(), &"arm64".into()));
    assert!(raw(daemon, "order:arm")["config"].is_object());
    let twice = daemon.build("order:3", "order", &["--platform", "linux/arm64,linux/arm64/v8"]);
    twice.expect_code(2).says(&["twice", "linux/arm64"]);
}

fn layers_of_each_platform_keep_the_form_that_they_have_in_the_base(daemon: &Daemon) {
    let base = "FROM scratch\nARG TARGETARCH\nCOPY base-$TARGETARCH /base\n";
    let tree = Tree::new().dockerfile(base).file("base-amd64", "base of intel");
    daemon.put("forms/base", &tree.file("base-arm64", "base of arm"));
    let both = ["--platform", "linux/amd64,linux/arm64"];
    daemon.build_ok("forms-base:gzip", "forms/base", &both);
    daemon.build_ok("forms-base:zstd", "forms/base", &[&both[..], &["--compression", "zstd"]].concat());
    for (form, other) in [("gzip", "zstd"), ("zstd", "gzip")] {
        let dockerfile = format!("FROM room.meshagent.com/forms-base:{form}\nCOPY new /new\n");
        daemon.put("forms/app", &Tree::new().dockerfile(&dockerfile).file("new", "new"));
        let tag = format!("forms-app:on-{form}");
        daemon.build_ok(&tag, "forms/app", &[&both[..], &["--compression", other]].concat());
        let (base_index, index) = (raw(daemon, &format!("forms-base:{form}")), raw(daemon, &tag));
        for at in 0..2 {
            let (below, image) =
                (child(daemon, "forms-base", &base_index, at), child(daemon, &tag, &index, at));
            assert_eq!(image["layers"][0], below["layers"][0], "{tag}");
            assert!(image["layers"][1]["mediaType"].as_str().unwrap().ends_with(other), "{tag}: {image}");
        }
    }
}

fn an_index_is_deployed_listed_and_pulled_by_platform(daemon: &Daemon) {
    daemon.base_image();
    let tree = base_tree();
    daemon.hearth_ok(&["pack", tree.to_str().unwrap(), "--arch", "arm64", "--tag", "base-arm64:1"]);
    daemon.hearth_ok(&["images", "tag", BASE, "base-amd64:1"]);
    let dockerfile = "ARG TARGETARCH\nFROM room.meshagent.com/base-$TARGETARCH:1\nARG TARGETARCH\n\
                      COPY page-$TARGETARCH /site/index.html\nEXPOSE 8000\n\
                      CMD [\"httpd\", \"-f\", \"-p\", \"8000\", \"-h\", \"/site\"]\n";
    let tree = Tree::new().dockerfile(dockerfile);
    daemon.put("web", &tree.file("page-amd64", "from intel\n").file("page-arm64", "from arm\n"));
    let digest = daemon.build_ok("multi/web:1", "web", &["--platform", "linux/arm64,linux/amd64"]);
    daemon.hearth_ok(&["deploy", "--tag", "multi/web:1", "--domain", "multi.test", "--public"]);
    assert_eq!(page(daemon, "multi.test"), "from intel\n");
    let list = daemon.hearth_ok(&["images", "list", "--json"]);
    assert!(list.stdout.contains(&digest), "{list}");
    let shown = daemon.hearth_ok(&["images", "inspect", "multi/web:1"]);
    assert!(shown.stdout.contains("image.index") && shown.stdout.contains("linux/amd64"), "{shown}");
    for (architecture, text) in [("arm64", "from arm\n"), ("amd64", "from intel\n")] {
        let credentials = format!("any:{}", daemon.token());
        let from = format!("docker://{}/multi/web:1", daemon.listen());
        let layout = daemon.directory().join(format!("pulled-{architecture}"));
        let to = format!("oci:{}:x", layout.display());
        let choice = ["--override-arch", architecture, "copy", "--src-tls-verify=false", "--src-creds"];
        skopeo(&[&choice[..], &[&credentials, &from, &to]].concat()).expect_code(0);
        assert_eq!(integration_tests::image::Image::from_layout(&layout).file("site/index.html"), text);
    }
}

fn a_step_that_cannot_run_is_named_before_anything_runs(daemon: &Daemon) {
    daemon.base_image();
    // BuildKit knows no emulator for this architecture, whatever is installed.
    let tree = base_tree();
    daemon.hearth_ok(&["pack", tree.to_str().unwrap(), "--arch", "mips", "--tag", "base-mips:1"]);
    daemon.hearth_ok(&["images", "tag", BASE, "cross-amd64:1"]);
    daemon.hearth_ok(&["images", "tag", "base-mips:1", "cross-mips:1"]);
    let dockerfile = "ARG TARGETARCH\nFROM room.meshagent.com/cross-$TARGETARCH:1\nCOPY file /file\n\
                      RUN cat /file\n";
    daemon.put("cross", &Tree::new().dockerfile(dockerfile).file("file", "x"));
    let both = ["--platform", "linux/amd64,linux/mips", "--progress", "plain"];
    let failed = daemon.build("cross:1", "cross", &both);
    failed.expect_code(1).says(&["line 4", "linux/mips", "qemu-user-static"]);
    assert!(!failed.stderr.contains("[linux/"), "no step runs\n{failed}");
    // A step of the builder's platform prepares what the image of the other one has.
    let dockerfile = format!(
        "FROM --platform=$BUILDPLATFORM {BASE} AS made\nARG TARGETARCH\nRUN echo for $TARGETARCH > /made\n\
         FROM scratch\nCOPY --from=made /made /made\n"
    );
    daemon.put("cross/made", &Tree::new().dockerfile(&dockerfile));
    daemon.build_ok("cross:2", "cross/made", &both[..2]);
    assert_eq!(platforms(&raw(daemon, "cross:2")), ["linux/amd64", "linux/mips"]);
    daemon.build_ok("cross:mips", "cross/made", &["--platform", "linux/mips"]);
    assert_eq!(daemon.image("cross:mips").file("made"), "for mips\n");
}

fn annotations_stand_in_the_pushed_documents(daemon: &Daemon) {
    daemon.put("notes", &Tree::new().dockerfile("FROM scratch\nCOPY a /a\n").file("a", "a"));
    let told = daemon.directory().join("notes.json");
    let annotations = [
        "--annotation",
        "all=1",
        "--annotation",
        "manifest[linux/arm64],index:some=2",
        "--annotation",
        "manifest-descriptor[linux/arm64]:entry=3",
        "--annotation",
        "index-descriptor:result=4",
        "--metadata-file",
        told.to_str().unwrap(),
    ];
    daemon.build_ok(
        "notes:1",
        "notes",
        &[&["--platform", "linux/amd64,linux/arm64"], &annotations[..]].concat(),
    );
    let index = raw(daemon, "notes:1");
    assert_eq!(index["annotations"], serde_json::json!({"some": "2"}));
    assert_eq!(index["manifests"][0]["annotations"], Value::Null);
    assert_eq!(index["manifests"][1]["annotations"], serde_json::json!({"entry": "3"}));
    let (intel, arm) = (child(daemon, "notes:1", &index, 0), child(daemon, "notes:1", &index, 1));
    assert_eq!(intel["annotations"], serde_json::json!({"all": "1"}));
    assert_eq!(arm["annotations"], serde_json::json!({"all": "1", "some": "2"}));
    let told: Value = serde_json::from_slice(&std::fs::read(&told).unwrap()).unwrap();
    assert_eq!(told["descriptor"]["annotations"], serde_json::json!({"result": "4"}), "{told}");
    assert_eq!(told["descriptor"]["digest"], told["digest"]);
    daemon.build_ok(
        "notes:2",
        "notes",
        &["--annotation", "one=1", "--annotation", "manifest-descriptor:two=2"],
    );
    assert_eq!(raw(daemon, "notes:2")["annotations"], serde_json::json!({"one": "1"}));
    for (annotation, word) in [("index:a=b", "index"), ("layer:a=b", "scope"), ("a", "=")] {
        daemon.build("notes:3", "notes", &["--annotation", annotation]).expect_code(2).says(&[word]);
    }
}
