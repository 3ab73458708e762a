use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io::Read;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};

use hearth_oci::sha256;
use proptest::prelude::*;

use super::*;
use crate::archive::{ArchiveError, ArchiveSink, read};
use crate::base::{BaseError, BaseImage};
use crate::layer::Compression;
use crate::walk::IgnoreRules;

/// Content of a layer under one name, read by another tar implementation.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    kind: tar::EntryType,
    mode: u32,
    link: Option<Vec<u8>>,
    content: Vec<u8>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

#[derive(Default)]
struct Blobs(BTreeMap<Digest, Vec<u8>>);

impl ArchiveSink for Blobs {
    fn blob(&mut self, digest: &Digest, size: u64, content: &mut dyn Read) -> io::Result<()> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        assert_eq!(bytes.len() as u64, size);
        self.0.insert(*digest, bytes);
        Ok(())
    }
}

fn options() -> PackOptions {
    PackOptions::default()
}

fn packed(dir: &Path, options: &PackOptions) -> PackedImage {
    pack(dir, options, &mut |_| {}).unwrap()
}

fn archive(packed: &PackedImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    packed.write_archive(&mut bytes).unwrap();
    assert_eq!(bytes.len() as u64, packed.archive_size());
    bytes
}

fn layer_of(packed: &PackedImage) -> Vec<(Vec<u8>, Seen)> {
    let mut blobs = Blobs::default();
    read(archive(packed).as_slice(), &mut blobs).unwrap();
    let blob = blobs.0[&packed.layer.digest].as_slice();
    let bytes = match packed.layer.compression {
        Compression::Zstd => zstd::decode_all(blob).unwrap(),
        Compression::Gzip => {
            let mut bytes = Vec::new();
            flate2::read::GzDecoder::new(blob).read_to_end(&mut bytes).unwrap();
            bytes
        }
        Compression::None => blob.to_vec(),
    };
    assert_eq!(sha256(&bytes), packed.layer.diff_id);
    assert_eq!(bytes.len() as u64, packed.layer.uncompressed_size);
    let mut seen = Vec::new();
    for entry in tar::Archive::new(bytes.as_slice()).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut xattrs = BTreeMap::new();
        for record in entry.pax_extensions().unwrap().into_iter().flatten() {
            let record = record.unwrap();
            if let Some(name) = record.key().unwrap().strip_prefix("SCHILY.xattr.") {
                xattrs.insert(name.to_owned(), record.value_bytes().to_owned());
            }
        }
        let header = entry.header();
        assert_eq!((header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()), (0, 0, 0));
        assert_eq!((header.username_bytes(), header.groupname_bytes()), (Some(&b""[..]), Some(&b""[..])));
        let (kind, mode) = (header.entry_type(), header.mode().unwrap());
        let path = entry.path_bytes().into_owned();
        let link = entry.link_name_bytes().map(|link| link.into_owned());
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        seen.push((path, Seen { kind, mode, link, content, xattrs }));
    }
    seen
}

fn name(bytes: &[u8]) -> OsString {
    OsString::from_vec(bytes.to_vec())
}

#[test]
fn names_modes_links_and_empty_directories_survive_a_round_trip() {
    let dir = tempfile::tempdir().unwrap();
    let at = |path: &[u8]| dir.path().join(name(path));
    fs::create_dir(at(b"empty")).unwrap();
    fs::set_permissions(at(b"empty"), Permissions::from_mode(0o1777)).unwrap();
    fs::write(at(b"plain"), "text").unwrap();
    fs::set_permissions(at(b"plain"), Permissions::from_mode(0o640)).unwrap();
    fs::write(at(b"setuid"), [0u8; 513]).unwrap();
    fs::set_permissions(at(b"setuid"), Permissions::from_mode(0o6755)).unwrap();
    fs::write(at(b"caf\xe9"), "").unwrap();
    let long = vec![b'n'; 255];
    fs::write(at(&long), "long").unwrap();
    let deep: Vec<u8> = b"deep/".iter().copied().chain("0123456789/".repeat(30).into_bytes()).collect();
    fs::create_dir_all(at(&deep)).unwrap();
    let deep_file = [&deep[..], b"\xff\xfe"].concat();
    fs::write(at(&deep_file), "bottom").unwrap();
    fs::hard_link(at(&deep_file), at(b"hard")).unwrap();
    symlink("../nowhere", at(b"dangling")).unwrap();
    let target = "t/".repeat(100);
    symlink(&target, at(b"long-link")).unwrap();

    let seen: BTreeMap<_, _> = layer_of(&packed(dir.path(), &options())).into_iter().collect();
    let mode = |path: &[u8]| seen[path].mode;
    assert_eq!(mode(b"empty/"), 0o1777);
    assert_eq!((mode(b"plain"), seen[&b"plain"[..]].content.as_slice()), (0o640, &b"text"[..]));
    assert_eq!((mode(b"setuid"), seen[&b"setuid"[..]].content.len()), (0o6755, 513));
    assert!(seen.contains_key(&b"caf\xe9"[..]));
    assert_eq!(seen[&long].content, b"long");
    assert_eq!(seen[&deep_file].content, b"bottom");
    assert!(seen.contains_key(&deep), "the directory with a path of more than 256 bytes");
    assert_eq!(seen[&b"hard"[..]].kind, tar::EntryType::Link);
    assert_eq!(seen[&b"hard"[..]].link.as_deref(), Some(&deep_file[..]));
    assert_eq!(seen[&b"dangling"[..]].link.as_deref(), Some(&b"../nowhere"[..]));
    assert_eq!(seen[&b"long-link"[..]].link.as_deref(), Some(target.as_bytes()));
}

#[test]
fn user_attributes_and_capabilities_survive_and_others_stay_behind() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    xattr::set(&file, "user.note", &[0, b'=', 255]).expect("a file system that keeps user attributes");
    xattr::set(dir.path().join("file"), "user.empty", b"").unwrap();
    xattr::set(&file, "user.large", &vec![7; 1000]).unwrap();
    fs::create_dir(dir.path().join("dir")).unwrap();
    xattr::set(dir.path().join("dir"), "user.on.dir", b"d").unwrap();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let privileged = xattr::set(&file, "security.capability", &capability).is_ok();
    let _ = xattr::set(&file, "trusted.mine", b"1");

    let seen: BTreeMap<_, _> = layer_of(&packed(dir.path(), &options())).into_iter().collect();
    let xattrs = &seen[&b"file"[..]].xattrs;
    assert_eq!(xattrs["user.note"], [0, b'=', 255]);
    assert_eq!(xattrs["user.empty"], b"");
    assert_eq!(xattrs["user.large"], [7; 1000]);
    assert_eq!(xattrs.get("security.capability").is_some(), privileged);
    assert!(!xattrs.contains_key("trusted.mine"));
    assert_eq!(seen[&b"dir/"[..]].xattrs["user.on.dir"], b"d");
}

#[test]
fn a_sparse_file_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("sparse")).unwrap();
    file.set_len(3 << 20).unwrap();
    std::os::unix::fs::FileExt::write_at(&file, b"end", (3 << 20) - 3).unwrap();
    let seen = layer_of(&packed(dir.path(), &options()));
    let mut expected = vec![0; 3 << 20];
    expected[(3 << 20) - 3..].copy_from_slice(b"end");
    assert!(seen[0].1.content == expected);
}

#[test]
fn a_whiteout_name_is_refused_by_its_path() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/.wh.x"), "").unwrap();
    let error = pack(dir.path(), &options(), &mut |_| {}).unwrap_err().to_string();
    assert!(error.starts_with("sub/.wh.x: a name that starts with `.wh.`"), "{error}");
}

#[test]
fn flags_land_in_the_config_and_a_bad_one_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = options();
    options.config = ConfigFlags {
        entrypoint: Some(vec!["/app".to_owned()]),
        cmd: Some(vec!["serve".to_owned()]),
        env: vec!["A=1".to_owned(), "B=x=y".to_owned(), "A=2".to_owned()],
        workdir: Some("/srv/./app/".to_owned()),
        user: Some("1000:1000".to_owned()),
        labels: vec!["k=v".to_owned(), "bare=".to_owned()],
        expose: vec!["8080".to_owned(), "53/udp".to_owned()],
        volumes: vec!["/data".to_owned()],
    };
    let packed = packed(dir.path(), &options);
    let json = String::from_utf8(packed.image.config_bytes.clone()).unwrap();
    let run = concat!(
        r#""config":{"User":"1000:1000","ExposedPorts":{"53/udp":{},"8080/tcp":{}},"Env":["A=2","B=x=y"],"#,
        r#""Entrypoint":["/app"],"Cmd":["serve"],"Volumes":{"/data":{}},"WorkingDir":"/srv/app","#,
        r#""Labels":{"bare":"","k":"v"}}"#
    );
    assert!(json.contains(run), "{json}");
    assert!(json.starts_with(r#"{"created":"1970-01-01T00:00:00Z","architecture":"amd64","os":"linux","#));

    for (flag, bad) in [
        ("--expose", ConfigFlags { expose: vec!["0".to_owned()], ..Default::default() }),
        ("--env", ConfigFlags { env: vec!["NOPE".to_owned()], ..Default::default() }),
        ("--workdir", ConfigFlags { workdir: Some("rel".to_owned()), ..Default::default() }),
        ("--label", ConfigFlags { labels: vec!["x".to_owned()], ..Default::default() }),
        ("--volume", ConfigFlags { volumes: vec!["rel".to_owned()], ..Default::default() }),
    ] {
        let mut options = self::options();
        options.config = bad;
        let error = pack(dir.path(), &options, &mut |_| {}).unwrap_err().to_string();
        assert!(error.starts_with(flag), "{error}");
    }
}

#[test]
fn a_base_in_an_archive_comes_first_and_its_config_is_inherited() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("base-file"), "base").unwrap();
    let mut below = options();
    below.platform = "arm64/v8".parse().unwrap();
    below.config.env = vec!["PATH=/bin".to_owned(), "KEEP=1".to_owned()];
    below.config.entrypoint = Some(vec!["/old".to_owned()]);
    below.config.cmd = Some(vec!["old".to_owned()]);
    below.layer.compression = Compression::Gzip;
    let below = packed(dir.path(), &below);
    let file = dir.path().join("base.tar");
    below.write_to_file(&file).unwrap();

    let error = BaseImage::from_archive(&file, &DeclaredPlatform::default(), None).unwrap_err();
    assert!(matches!(error, BaseError::Archive(ArchiveError::NoPlatform { .. })), "{error}");
    assert!(error.to_string().contains("linux/arm64"), "{error}");

    let top = tempfile::tempdir().unwrap();
    fs::write(top.path().join("top-file"), "top").unwrap();
    let mut options = options();
    options.base = Some(BaseImage::from_archive(&file, &"arm64".parse().unwrap(), None).unwrap());
    options.config.env = vec!["PATH=/usr/bin".to_owned()];
    options.config.entrypoint = Some(vec!["/new".to_owned()]);
    options.tag = Some(Reference::parse_tag("my-app:dev").unwrap());
    options.docker = true;
    let image = packed(top.path(), &options);
    assert_eq!(image.config().platform.architecture, "arm64");
    assert_eq!(image.config().config.env, ["PATH=/usr/bin", "KEEP=1"]);
    assert_eq!(image.config().config.entrypoint.as_deref(), Some(&["/new".to_owned()][..]));
    assert_eq!(image.config().config.cmd, None, "a new entrypoint drops the base's command");
    assert_eq!(image.config().rootfs.diff_ids, [below.layer.diff_id, image.layer.diff_id]);
    assert_eq!(image.config().history.len(), 2);
    let digests: Vec<_> = image.manifest().layers.iter().map(|layer| layer.digest).collect();
    assert_eq!(digests, [below.layer.digest, image.layer.digest]);

    let bytes = archive(&image);
    let mut blobs = Blobs::default();
    let index = read(bytes.as_slice(), &mut blobs).unwrap().index;
    assert_eq!(index.manifests, [image.descriptor().clone()]);
    assert_eq!(index.manifests[0].annotations["org.opencontainers.image.ref.name"], "my-app:dev");
    assert_eq!(blobs.0.len(), 4);
    let names: Vec<_> = tar::Archive::new(bytes.as_slice())
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap().path().unwrap().display().to_string())
        .collect();
    assert_eq!(names[..3], ["oci-layout", "index.json", "manifest.json"]);
    for blob in image.blobs() {
        let mut content = Vec::new();
        image.open_blob(&blob.digest).unwrap().read_to_end(&mut content).unwrap();
        assert_eq!((sha256(&content), content.len() as u64), (blob.digest, blob.size));
    }
}

#[test]
fn a_base_that_changed_since_it_was_verified_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "base").unwrap();
    let mut options = options();
    options.layer.compression = Compression::None;
    let below = packed(dir.path(), &options);
    let file = dir.path().join("base.tar");
    below.write_to_file(&file).unwrap();
    let mut options = self::options();
    options.base = Some(BaseImage::from_archive(&file, &DeclaredPlatform::default(), None).unwrap());
    let top = tempfile::tempdir().unwrap();
    let image = packed(top.path(), &options);
    let mut bytes = fs::read(&file).unwrap();
    let at = bytes.windows(4).rposition(|window| window == b"base").unwrap();
    bytes[at] = b'B';
    fs::write(&file, bytes).unwrap();
    let out = top.path().join("out.tar");
    let error = image.write_to_file(&out).unwrap_err().to_string();
    assert!(error.contains("is damaged"), "{error}");
    assert_eq!(fs::read_dir(top.path()).unwrap().count(), 0, "no partial file");
}

#[test]
fn a_file_is_written_whole_and_equals_what_is_sent() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), vec![1; 100_000]).unwrap();
    let image = packed(dir.path(), &options());
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("image.tar");
    image.write_to_file(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), archive(&image));
    assert!(image.write_to_file(&out.path().join("no/such/dir.tar")).is_err());
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1);
}

#[test]
fn the_summary_counts_and_points_at_what_is_seldom_meant() {
    let dir = tempfile::tempdir().unwrap();
    for size in 1..=7u8 {
        fs::write(dir.path().join(format!("f{size}")), vec![0; usize::from(size)]).unwrap();
    }
    fs::create_dir_all(dir.path().join("app/node_modules/m/node_modules")).unwrap();
    fs::write(dir.path().join("app/node_modules/m/index.js"), [0; 3]).unwrap();
    let summary = packed(dir.path(), &options()).summary;
    assert_eq!((summary.files, summary.dirs, summary.bytes), (8, 4, 31));
    let largest: Vec<_> = summary.largest.iter().map(|(_, size)| *size).collect();
    assert_eq!(largest, [7, 6, 5, 4, 3]);
    assert_eq!(summary.suspicious.len(), 1);
    let found = &summary.suspicious[0];
    assert_eq!((found.path.as_slice(), found.files, found.bytes), (&b"app/node_modules"[..], 1, 3));
}

/// Random tree: path and content, `None` for a directory.
fn trees() -> impl Strategy<Value = BTreeMap<Vec<Vec<u8>>, Option<Vec<u8>>>> {
    let byte = prop_oneof![Just(b'a'), Just(b'-'), Just(b'.'), Just(b' '), Just(0xff), Just(b'z')];
    let name = prop::collection::vec(byte, 1..6)
        .prop_filter("a name", |name| !matches!(name.as_slice(), b"." | b".."));
    let path = prop::collection::vec(name, 1..4);
    let content = prop::option::of(prop::collection::vec(any::<u8>(), 0..2000));
    prop::collection::btree_map(path, content, 0..12)
}

fn make(dir: &Path, tree: &BTreeMap<Vec<Vec<u8>>, Option<Vec<u8>>>, reverse: bool) {
    let mut all: Vec<_> = tree.iter().collect();
    if reverse {
        all.reverse();
    }
    // A path that is also the directory of another is a directory.
    let is_dir =
        |path: &[Vec<u8>]| tree.keys().any(|other| other.len() > path.len() && other.starts_with(path));
    for (path, content) in all {
        let full = path.iter().fold(dir.to_owned(), |dir, part| dir.join(OsStr::from_bytes(part)));
        match content {
            Some(content) if !is_dir(path) => {
                fs::create_dir_all(full.parent().unwrap()).unwrap();
                fs::write(full, content).unwrap();
            }
            _ => fs::create_dir_all(full).unwrap(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..Default::default() })]

    #[test]
    fn the_same_tree_gives_the_same_digest_wherever_and_whenever_it_is_made(
        tree in trees(), time in 0u32..2_000_000_000, workers in 1u32..5,
    ) {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap());
        make(one.path(), &tree, false);
        make(two.path(), &tree, true);
        let mut options = options();
        options.walk.rules = IgnoreRules::Nothing;
        let first = packed(one.path(), &options);
        for entry in crate::walk::walk(two.path(), &options.walk).unwrap().entries {
            let path = two.path().join(OsStr::from_bytes(&entry.path));
            let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(u64::from(time));
            File::open(&path).unwrap().set_modified(time).unwrap();
            // Without privileges the owner does not change; with them, the owner must not matter.
            let _ = std::os::unix::fs::chown(&path, Some(12345), Some(54321));
        }
        options.layer.workers = Some(workers);
        let second = packed(two.path(), &options);
        prop_assert_eq!(first.digest(), second.digest());
        prop_assert_eq!(archive(&first), archive(&second));
    }

    #[test]
    fn every_tree_reads_back_as_it_was(tree in trees()) {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), &tree, false);
        let mut options = options();
        options.walk.rules = IgnoreRules::Nothing;
        let seen: BTreeMap<_, _> = layer_of(&packed(dir.path(), &options)).into_iter().collect();
        for (path, content) in &tree {
            let path = path.join(&b'/');
            match (seen.get(&path), content) {
                (Some(file), Some(content)) => prop_assert_eq!(&file.content, content),
                (Some(_), None) => prop_assert!(false, "a directory became a file"),
                (None, _) => prop_assert!(seen.contains_key(&[&path[..], b"/"].concat())),
            }
        }
    }

    // The other implementation treats a newline as the end of a PAX record; the tests of headers cover names with
    // newlines.
    #[test]
    fn modes_links_and_attributes_read_back_as_they_were(
        tree in trees(), mode in 0u32..0o10000, target in prop::collection::vec(11u8..255, 1..200),
        value in prop::collection::vec(11u8..=255, 0..300), compression in 0..3usize,
    ) {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        make(dir.path(), &tree, false);
        // These names never occur in a random tree.
        fs::write(dir.path().join("FILE"), "content").unwrap();
        fs::hard_link(dir.path().join("FILE"), dir.path().join("OTHER")).unwrap();
        symlink(OsStr::from_bytes(&target), dir.path().join("LINK")).unwrap();
        xattr::set(dir.path().join("FILE"), "user.value", &value).unwrap();
        // The owner must be able to read the file if the test does not run as root.
        let mode = mode | 0o400;
        fs::set_permissions(dir.path().join("FILE"), Permissions::from_mode(mode)).unwrap();
        let mut options = options();
        options.walk.rules = IgnoreRules::Nothing;
        options.layer.compression = [Compression::Zstd, Compression::Gzip, Compression::None][compression];
        let seen: BTreeMap<_, _> = layer_of(&packed(dir.path(), &options)).into_iter().collect();
        let file = &seen[&b"FILE"[..]];
        prop_assert_eq!((file.mode, file.content.as_slice()), (mode, &b"content"[..]));
        prop_assert_eq!(&file.xattrs["user.value"], &value);
        prop_assert_eq!(seen[&b"OTHER"[..]].link.as_deref(), Some(&b"FILE"[..]));
        prop_assert_eq!(seen[&b"LINK"[..]].link.as_deref(), Some(target.as_slice()));
    }
}

#[test]
fn an_archive_in_its_own_directory_is_the_same_each_time() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("out")).unwrap();
    fs::write(dir.path().join("file"), "content").unwrap();
    for cache in [None, Some(dir.path().join("cache"))] {
        let output = dir.path().join("out/app.tar");
        let options = PackOptions { output: Some(output.clone()), cache, ..options() };
        let mut archives = Vec::new();
        for _ in 0..3 {
            packed(dir.path(), &options).write_to_file(&output).unwrap();
            archives.push(fs::read(&output).unwrap());
        }
        assert!(archives.iter().all(|archive| *archive == archives[0]));
        let seen: Vec<_> =
            layer_of(&packed(dir.path(), &options)).into_iter().map(|(path, _)| path).collect();
        assert_eq!(seen, [&b"file"[..], b"out/"]);
        fs::remove_file(&output).unwrap();
    }
}

#[test]
fn an_archive_without_a_tag_has_the_name_latest() {
    let dir = tempfile::tempdir().unwrap();
    for (tag, names) in [
        (None, [Some("latest"), None]),
        (Some("room.meshagent.com/a:1"), [Some("room.meshagent.com/a:1"), Some("room.meshagent.com/a:1")]),
    ] {
        let options = PackOptions { tag: tag.map(|tag| Reference::parse_tag(tag).unwrap()), ..options() };
        let read = read(archive(&packed(dir.path(), &options)).as_slice(), &mut Blobs::default()).unwrap();
        let annotations = &read.index.manifests[0].annotations;
        let keys = [hearth_oci::REF_NAME_ANNOTATION, hearth_oci::IMAGE_NAME_ANNOTATION];
        assert_eq!(keys.map(|key| annotations.get(key).map(String::as_str)), names);
    }
}
