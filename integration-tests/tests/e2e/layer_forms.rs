//! Compression of the layers of built images. It depends on the base and on the flags of the build only, and never on
//! what the builder has met before: the same build gives the same digest in any room.

use std::collections::BTreeMap;
use std::path::Path;

use integration_tests::daemon::{Daemon, Options};
use integration_tests::image::Image;
use integration_tests::lone_cases;
use integration_tests::runner::Group;
use integration_tests::skopeo::skopeo;
use integration_tests::sources::Tree;

const FORMS: [(&str, &str); 4] = [
    ("gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
    ("zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
    ("estargz", "application/vnd.oci.image.layer.v1.tar+gzip"),
    ("none", "application/vnd.oci.image.layer.v1.tar"),
];

pub fn group() -> Group {
    Group::new(
        "layer_forms",
        lone_cases![layers_are_the_same_in_whatever_order_the_room_meets_bases_and_compressions],
    )
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn layer<'i>(image: &'i Image, at: usize, field: &str) -> &'i str {
    image.manifest["layers"][at][field].as_str().unwrap()
}

fn layers_are_the_same_in_whatever_order_the_room_meets_bases_and_compressions() {
    let work = tempfile::tempdir().unwrap();
    let base = work.path().join("base");
    Tree::new().file("etc/base", "base").write(&base);
    let mut forward = FORMS.to_vec();
    let first = digests(&base, work.path(), &["zstd", "gzip"], &forward);
    forward.reverse();
    let second = digests(&base, work.path(), &["gzip", "zstd"], &forward);
    assert_eq!(first, second);
    assert_eq!(first.len(), 8);
}

/// Builds on the base in each of its forms with each compression, in this order, in a room of its own. Returns the
/// digests of the images.
fn digests(
    base: &Path,
    work: &Path,
    bases: &[&str],
    compressions: &[(&str, &str)],
) -> BTreeMap<String, String> {
    let daemon = Daemon::start(Options::room(&format!("forms-{}-first", bases[0])));
    let mut digests = BTreeMap::new();
    for form in bases {
        let name = format!("base:{form}");
        daemon.hearth_ok(&["pack", text(base), "--tag", &name, "--compression", form]);
        let context = work.join(format!("on-{form}"));
        let dockerfile = format!("FROM room.meshagent.com/{name}\nCOPY new /new\n");
        Tree::new().dockerfile(&dockerfile).file("new", "new").write(&context);
        let base_image = daemon.image(&name);
        for (compression, media_type) in compressions {
            let tag = format!("on-{form}:{compression}");
            let mut arguments =
                vec!["build", text(&context), "--tag", &tag, "--build-arg", "SOURCE_DATE_EPOCH=0"];
            if *compression != "gzip" {
                arguments.extend(["--compression", compression]);
            }
            let digest = daemon.hearth_ok(&arguments).line().to_owned();
            let image = daemon.image(&tag);
            assert_eq!(image.digest, digest);
            for field in ["digest", "mediaType"] {
                assert_eq!(layer(&image, 0, field), layer(&base_image, 0, field), "base of {tag}");
            }
            assert_eq!(layer(&image, 1, "mediaType"), *media_type, "{tag}");
            let toc = &image.manifest["layers"][1]["annotations"]["containerd.io/snapshot/stargz/toc.digest"];
            assert_eq!(toc.is_string(), *compression == "estargz", "{tag}: {}", image.manifest);
            assert_eq!((image.file("etc/base").as_str(), image.file("new").as_str()), ("base", "new"));
            digests.insert(tag, digest);
        }
        if *form == "gzip" {
            let archive = daemon.directory().join("docker.tar");
            let from = format!("docker://{}/on-gzip:gzip", daemon.listen());
            let to = format!("docker-archive:{}:on-gzip:1", archive.display());
            let credentials = format!("any:{}", daemon.token());
            skopeo(&["copy", "--src-tls-verify=false", "--src-creds", &credentials, &from, &to])
                .expect_code(0);
        }
    }
    digests
}
