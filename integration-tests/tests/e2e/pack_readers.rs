//! Packed archives in programs that are independent of Hearth: each unpacks one, and the result is compared with the
//! source entry by entry.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::containerd::Containerd;
use integration_tests::daemon::Daemon;
use integration_tests::process;
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::skopeo::skopeo;
use integration_tests::sources::noise;
use integration_tests::wait::seconds;

const TAG: &str = "room.meshagent.com/readers:1";

pub fn group() -> Group {
    Group::new(
        "pack_readers",
        shared_cases![
            umoci_unpacks_what_was_packed,
            containerd_imports_and_unpacks_what_was_packed,
            buildkit_builds_on_what_was_packed,
            tar_and_the_decompressors_read_the_layer,
            an_archive_without_a_tag_is_imported_as_latest,
            an_archive_with_two_names_of_one_image_loads_and_is_a_base,
        ],
    )
}

/// Writes one of every kind of entry that a pack keeps.
fn write_tree(dir: &Path) {
    let at = |name: &[u8]| dir.join(OsStr::from_bytes(name));
    let deep = "d".repeat(120);
    fs::create_dir_all(dir.join(format!("{deep}/{deep}/{deep}"))).unwrap();
    fs::write(dir.join(format!("{deep}/{deep}/{deep}/file")), "deep").unwrap();
    fs::create_dir_all(dir.join("sub/empty")).unwrap();
    fs::write(dir.join("plain"), "text\n").unwrap();
    fs::hard_link(dir.join("plain"), dir.join("sub/second-name")).unwrap();
    fs::write(dir.join("run"), "#!/bin/sh\n").unwrap();
    for (name, mode) in [("run", 0o755), ("sub/empty", 0o1777), ("plain", 0o640)] {
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    for (name, mode) in [("setuid", 0o4755), ("setgid", 0o2711)] {
        fs::write(dir.join(name), name).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    symlink("plain", dir.join("link")).unwrap();
    symlink("no/such", dir.join("dangling")).unwrap();
    symlink("t/".repeat(100), dir.join("long-link")).unwrap();
    fs::write(at(b"caf\xe9"), "not UTF-8").unwrap();
    fs::write(at(b"two\nlines"), "newline").unwrap();
    fs::write(at(&[b'n'; 255]), "long name").unwrap();
    // Several frames, and a file that begins in the middle of one.
    fs::write(dir.join("large"), noise(17, 5_000_000)).unwrap();
    let sparse = fs::File::create(dir.join("sparse")).unwrap();
    sparse.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"end", (3 << 20) - 3).unwrap();
    xattr::set(dir.join("plain"), "user.note", &[0, b'=', 255]).unwrap();
    xattr::set(dir.join("sub"), "user.of.dir", b"d").unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    xattr::set(dir.join("run"), "security.capability", &capability).unwrap();
}

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    mode: u32,
    content: Vec<u8>,
    /// First name of the same file.
    same_as: PathBuf,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Returns everything below a directory that a pack promises to keep.
fn seen(root: &Path, with_xattrs: bool) -> BTreeMap<PathBuf, Seen> {
    let mut found = BTreeMap::new();
    let mut first_names = BTreeMap::new();
    let mut pending = vec![root.to_owned()];
    while let Some(dir) = pending.pop() {
        let mut paths: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        for path in paths {
            let name = path.strip_prefix(root).unwrap().to_owned();
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_vec()
            } else if meta.is_dir() {
                pending.push(path.clone());
                Vec::new()
            } else {
                fs::read(&path).unwrap()
            };
            let mut xattrs = BTreeMap::new();
            for attribute in xattr::list(&path).unwrap().filter(|_| with_xattrs) {
                let value = xattr::get(&path, &attribute).unwrap().unwrap();
                let attribute = attribute.into_vec();
                if attribute.starts_with(b"user.") || attribute == b"security.capability" {
                    xattrs.insert(attribute, value);
                }
            }
            let same_as = first_names.entry(meta.ino()).or_insert_with(|| name.clone()).clone();
            found.insert(name, Seen { mode: meta.mode(), content, same_as, xattrs });
        }
    }
    found
}

#[track_caller]
fn assert_same(tree: &Path, unpacked: &Path, with_xattrs: bool) {
    let (expected, found) = (seen(tree, with_xattrs), seen(unpacked, with_xattrs));
    let names = |seen: &BTreeMap<PathBuf, Seen>| seen.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&expected), names(&found));
    for (path, expected) in &expected {
        let found = &found[path];
        assert!(expected.content == found.content, "content of {}", path.display());
        let shown = |seen: &Seen| (format!("{:o}", seen.mode), seen.same_as.clone(), seen.xattrs.clone());
        assert_eq!(shown(expected), shown(found), "{}", path.display());
    }
}

struct Work {
    dir: tempfile::TempDir,
}

impl Work {
    fn new(daemon: &Daemon) -> Self {
        let dir = tempfile::tempdir_in(daemon.directory()).unwrap();
        write_tree(&dir.path().join("tree"));
        Self { dir }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    /// Packs the tree; returns the archive and the image's digest.
    fn pack(&self, daemon: &Daemon, compression: &str) -> (String, String) {
        let archive = self.text(&format!("{compression}.tar"));
        let (tree, options) = (self.text("tree"), ["--tag", TAG, "--compression", compression]);
        let output = daemon.hearth_ok(&[&["pack", &tree, "-o", &archive], &options[..]].concat());
        (archive, output.line().to_owned())
    }

    /// Unpacks the archive as an image layout; returns the directory.
    fn layout(&self, archive: &str) -> PathBuf {
        let layout = PathBuf::from(format!("{archive}.layout"));
        fs::create_dir(&layout).unwrap();
        let mut tar = Command::new("tar");
        process::run(tar.args(["-xf", archive, "-C"]).arg(&layout), seconds(60)).expect_code(0);
        layout
    }
}

fn umoci_unpacks_what_was_packed(daemon: &Daemon) {
    let work = Work::new(daemon);
    // umoci supports zstd from version 0.5 on; Debian 12 has 0.4.
    for compression in ["gzip", "none"] {
        let (archive, _) = work.pack(daemon, compression);
        let layout = work.text(&format!("layout-{compression}"));
        skopeo(&["copy", &format!("oci-archive:{archive}"), &format!("oci:{layout}:x")]).expect_code(0);
        let bundle = work.at(&format!("bundle-{compression}"));
        let mut umoci = Command::new("umoci");
        umoci.args(["unpack", "--image", &format!("{layout}:x")]).arg(&bundle);
        process::run(&mut umoci, seconds(120)).expect_code(0);
        assert_same(&work.at("tree"), &bundle.join("rootfs"), true);
    }
}

fn containerd_imports_and_unpacks_what_was_packed(daemon: &Daemon) {
    let work = Work::new(daemon);
    let containerd = Containerd::start(&work.at("containerd"));
    for compression in ["zstd", "gzip", "none"] {
        let (archive, digest) = work.pack(daemon, compression);
        let mount = work.text(&format!("mount-{compression}"));
        fs::create_dir(&mount).unwrap();
        containerd.ctr(&["images", "import", "--snapshotter", "native", &archive]);
        let images = containerd.ctr(&["images", "list"]);
        assert!(images.stdout.contains(TAG) && images.stdout.contains(&digest), "{images}");
        containerd.ctr(&["images", "mount", "--snapshotter", "native", TAG, &mount]);
        assert_same(&work.at("tree"), Path::new(&mount), true);
        containerd.ctr(&["images", "unmount", &mount]);
        containerd.ctr(&["images", "remove", "--sync", TAG]);
    }
}

fn buildkit_builds_on_what_was_packed(daemon: &Daemon) {
    let work = Work::new(daemon);
    daemon.put(
        "wake-buildkit",
        &integration_tests::sources::Tree::new().dockerfile("FROM scratch\nCOPY . /\n"),
    );
    daemon.build_ok("wake-buildkit:1", "wake-buildkit", &[]);
    let socket = daemon.buildkit_socket().expect("the socket of the managed buildkitd");
    let context = work.at("context");
    fs::create_dir(&context).unwrap();
    fs::write(context.join("Dockerfile"), "FROM packed\n").unwrap();
    for compression in ["zstd", "gzip", "none"] {
        let (archive, digest) = work.pack(daemon, compression);
        let layout = work.layout(&archive);
        let out = work.at(&format!("out-{compression}"));
        let mut buildctl = Command::new("buildctl");
        buildctl.args([
            "--addr",
            &format!("unix://{}", socket.display()),
            "build",
            "--frontend",
            "dockerfile.v0",
        ]);
        for local in ["context", "dockerfile"] {
            buildctl.args(["--local", &format!("{local}={}", context.display())]);
        }
        buildctl.args(["--oci-layout", &format!("packed={}", layout.display())]);
        buildctl.args(["--opt", &format!("context:packed=oci-layout://packed@{digest}")]);
        buildctl.args(["--output", &format!("type=tar,dest={}.tar", out.display())]);
        process::run(&mut buildctl, seconds(120)).expect_code(0);
        fs::create_dir(&out).unwrap();
        let mut tar = Command::new("tar");
        tar.args(["--xattrs", "--xattrs-include=*", "-xpf"]).arg(format!("{}.tar", out.display()));
        process::run(tar.arg("-C").arg(&out), seconds(60)).expect_code(0);
        assert_same(&work.at("tree"), &out, true);
    }
}

fn tar_and_the_decompressors_read_the_layer(daemon: &Daemon) {
    let work = Work::new(daemon);
    for (compression, decompressor) in [("zstd", Some("zstd")), ("gzip", Some("gzip")), ("none", None)] {
        let (archive, _) = work.pack(daemon, compression);
        let layout = work.layout(&archive);
        let image = integration_tests::image::Image::from_layout(&layout);
        let digest = image.manifest["layers"][0]["digest"].as_str().unwrap();
        let blob = layout.join("blobs/sha256").join(digest.strip_prefix("sha256:").unwrap());
        if let Some(program) = decompressor {
            process::run(Command::new(program).arg("--test").arg(&blob), seconds(60)).expect_code(0);
        }
        let out = work.at(&format!("unpacked-{compression}"));
        fs::create_dir(&out).unwrap();
        let mut tar = Command::new("tar");
        if let Some(program) = decompressor {
            tar.args(["-I", program]);
        }
        tar.args(["--xattrs", "--xattrs-include=*", "-xpf"]).arg(&blob).arg("-C").arg(&out);
        process::run(&mut tar, seconds(60)).expect_code(0);
        assert_same(&work.at("tree"), &out, true);
    }
}

fn an_archive_without_a_tag_is_imported_as_latest(daemon: &Daemon) {
    let work = Work::new(daemon);
    let archive = work.text("untagged.tar");
    let output = daemon.hearth_ok(&["pack", &work.text("tree"), "-o", &archive]);
    let containerd = Containerd::start(&work.at("containerd"));
    containerd.ctr(&["images", "import", "--no-unpack", "--base-name", "untagged", &archive]);
    let images = containerd.ctr(&["images", "list"]);
    assert!(images.stdout.contains("untagged:latest") && images.stdout.contains(output.line()), "{images}");
    let mut umoci = Command::new("umoci");
    umoci.arg("list").arg("--layout").arg(work.layout(&archive));
    let tags = process::run(&mut umoci, seconds(60));
    assert_eq!(tags.expect_code(0).stdout.trim(), "latest");
}

fn an_archive_with_two_names_of_one_image_loads_and_is_a_base(daemon: &Daemon) {
    let work = Work::new(daemon);
    let (archive, digest) = work.pack(daemon, "gzip");
    let containerd = Containerd::start(&work.at("containerd"));
    containerd.ctr(&["images", "import", "--no-unpack", &archive]);
    let second = "room.meshagent.com/readers:2";
    containerd.ctr(&["images", "tag", TAG, second]);
    let both = work.text("both.tar");
    containerd.ctr(&["images", "export", &both, TAG, second]);
    let loaded = daemon.hearth_ok(&["images", "load", &both, "--tag", "two-names:1"]);
    assert_eq!(loaded.line(), digest);
    let (base, output) = (format!("oci-archive:{both}"), work.text("on-both.tar"));
    daemon.hearth_ok(&["pack", &work.text("tree"), "-o", &output, "--base", &base]);
}
