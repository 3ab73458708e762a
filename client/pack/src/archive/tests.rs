use std::io::{self, Read};

use hearth_oci::{
    DeclaredPlatform, Descriptor, Manifest, OCI_CONFIG_TYPE, OCI_MANIFEST_TYPE, OciIndex, sha256,
};
use hearth_value::Digest;
use tar::{EntryType, Header};

use super::*;

/// Sink that collects digests, and fails if it ever gets a complete blob with a wrong digest.
#[derive(Default)]
struct Sink {
    kept: Vec<Digest>,
    /// Makes the sink read nothing, as a sink may do that already has the blob.
    lazy: bool,
}

impl ArchiveSink for Sink {
    fn blob(&mut self, digest: &Digest, size: u64, content: &mut dyn Read) -> io::Result<()> {
        if !self.lazy {
            // Exactly the size is read, without reading the end.
            let mut bytes = Vec::new();
            content.take(size).read_to_end(&mut bytes)?;
            assert_eq!(bytes.len() as u64, size);
            assert_eq!(sha256(&bytes), *digest, "a damaged blob was handed out whole");
        }
        self.kept.push(*digest);
        Ok(())
    }
}

fn member_of(kind: EntryType, name: &str, size: u64, content: &[u8]) -> Vec<u8> {
    let mut header = Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn member(name: &str, content: &[u8]) -> Vec<u8> {
    member_of(EntryType::Regular, name, content.len() as u64, content)
}

fn blob(content: &[u8]) -> Vec<u8> {
    member(&format!("blobs/sha256/{}", sha256(content).hex()), content)
}

fn index() -> Vec<u8> {
    member("index.json", br#"{"schemaVersion":2,"manifests":null}"#)
}

const END: [u8; 1024] = [0; 1024];

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), END.to_vec()].concat()
}

fn read_all(archive: &[u8]) -> Result<ReadArchive, ArchiveError> {
    read(archive, &mut Sink::default())
}

#[test]
fn every_blob_goes_to_the_sink_and_the_rest_is_skipped() {
    let bytes = archive(&[
        member("./oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#),
        member_of(EntryType::Directory, "blobs/", 0, b""),
        member_of(EntryType::Directory, "blobs/sha256/", 0, b""),
        blob(b"one"),
        member("manifest.json", b"[]"),
        member("blobs/sha512/whatever", b"other"),
        blob(b""),
        index(),
    ]);
    let mut sink = Sink::default();
    let read = read(bytes.as_slice(), &mut sink).unwrap();
    assert_eq!(sink.kept, [sha256(b"one"), sha256(b"")]);
    assert_eq!((read.blobs, read.blob_bytes), (2, 3));
}

#[test]
fn a_truncated_archive_is_recognised_wherever_it_is_cut() {
    let members = [index(), blob(&[7; 1500]), blob(b"two")].concat();
    let whole = [members.as_slice(), &END].concat();
    assert!(read_all(&whole).is_ok());
    for cut in 0..members.len() + 512 {
        let error = read_all(&whole[..cut]).unwrap_err();
        assert!(matches!(error, ArchiveError::Truncated), "cut at {cut}: {error}");
    }
}

#[test]
fn a_damaged_blob_is_named_and_never_handed_out_whole() {
    let mut bytes = archive(&[index(), blob(&[7; 300_000])]);
    let at = bytes.len() - 2000;
    bytes[at] ^= 1;
    let expected = sha256(&[7; 300_000]);
    for lazy in [false, true] {
        let mut sink = Sink { lazy, ..Sink::default() };
        match read(bytes.as_slice(), &mut sink) {
            Err(ArchiveError::Mismatch { declared, .. }) => assert_eq!(declared, expected),
            other => panic!("{other:?}"),
        }
    }
    let empty = member(&format!("blobs/sha256/{}", expected.hex()), b"");
    let error = read_all(&archive(&[empty, index()])).unwrap_err();
    assert!(matches!(error, ArchiveError::Mismatch { .. }), "{error}");
}

#[test]
fn links_escapes_and_false_names_are_refused() {
    let name = format!("blobs/sha256/{}", sha256(b"x").hex());
    for hostile in [
        member_of(EntryType::Symlink, &name, 0, b""),
        member_of(EntryType::Link, &name, 0, b""),
        member_of(EntryType::Symlink, "index.json", 0, b""),
        member_of(EntryType::Fifo, "oci-layout", 0, b""),
        member("blobs/../../etc/passwd", b"x"),
        member("/etc/passwd", b"x"),
        member("blobs/sha256/ABC", b"x"),
        member(&format!("{name}.tmp"), b"x"),
        member_of(EntryType::GNUSparse, &name, 1, b"x"),
    ] {
        let error = read_all(&archive(&[hostile, index()])).unwrap_err();
        assert!(matches!(error, ArchiveError::Member { .. }), "{error}");
    }
    let twice = read_all(&archive(&[index(), index()])).unwrap_err();
    assert!(matches!(twice, ArchiveError::Member { .. }), "{twice}");
}

#[test]
fn declared_sizes_cost_no_memory() {
    let huge = |kind, name| member_of(kind, name, 1 << 62, b"x");
    let name = format!("blobs/sha256/{}", sha256(b"x").hex());
    for (hostile, truncated) in [
        (huge(EntryType::Regular, "index.json"), false),
        (huge(EntryType::Regular, "oci-layout"), false),
        (huge(EntryType::XHeader, "x"), false),
        (huge(EntryType::XGlobalHeader, "g"), false),
        (huge(EntryType::GNULongName, "L"), false),
        (huge(EntryType::GNULongLink, "K"), false),
        (huge(EntryType::Regular, &name), true),
        (huge(EntryType::Regular, "unknown"), true),
    ] {
        let error = read_all(&hostile).unwrap_err();
        assert_eq!(matches!(error, ArchiveError::Truncated), truncated, "{error}");
    }
}

#[test]
fn pax_and_long_names_are_understood_and_bad_ones_refused() {
    let name = format!("blobs/sha256/{}", sha256(b"abc").hex());
    let pax = |text: &[u8]| member_of(EntryType::XHeader, "x", text.len() as u64, text);
    let path = format!("{} path={name}\n", name.len() + 9);
    // The size in the header is wrong; the one in the PAX record is used.
    let sized = member_of(EntryType::Regular, "short", 0, b"abc");
    let bytes = archive(&[pax(path.as_bytes()), pax(b"9 size=3\n"), sized, index()]);
    assert_eq!(read_all(&bytes).unwrap().blobs, 1);
    let long = member_of(EntryType::GNULongName, "L", name.len() as u64 + 1, format!("{name}\0").as_bytes());
    assert_eq!(read_all(&archive(&[long, member("short", b"abc"), index()])).unwrap().blobs, 1);

    for bad in [
        &b"9 size=-\n"[..],
        b"9 size=3",
        b"99 size=3\n",
        b"0 \n",
        b"x size=3\n",
        b"29 size=18446744073709551615\n",
        b"30 size=99999999999999999999999\n",
        b"18446744073709551615 size=1\n",
    ] {
        let error = read_all(&archive(&[pax(bad), member("short", b"abc"), index()])).unwrap_err();
        assert!(matches!(error, ArchiveError::Header { .. }), "{bad:?}: {error}");
    }
    let escape = archive(&[pax(b"14 path=../xy\n"), member("index.json", b"{}"), index()]);
    assert!(matches!(read_all(&escape).unwrap_err(), ArchiveError::Member { .. }));
}

#[test]
fn what_is_no_oci_archive_says_what_it_is() {
    let docker = archive(&[member("manifest.json", b"[]"), member("abc/layer.tar", b"x")]);
    assert!(matches!(read_all(&docker).unwrap_err(), ArchiveError::DockerSave));
    assert!(matches!(read_all(&END).unwrap_err(), ArchiveError::NoIndex));
    let compressed = [&[0x1f, 0x8b][..], &[1; 2000]].concat();
    assert!(read_all(&compressed).unwrap_err().to_string().contains("gzip"));
    let text = "hello ".repeat(500);
    assert!(read_all(text.as_bytes()).unwrap_err().to_string().contains("not a tar"));
    let layout = member("oci-layout", br#"{"imageLayoutVersion":"2.0"}"#);
    assert!(matches!(read_all(&archive(&[layout, index()])).unwrap_err(), ArchiveError::Member { .. }));
    let json = archive(&[member("index.json", b"{")]);
    assert!(matches!(read_all(&json).unwrap_err(), ArchiveError::Json { .. }));
}

#[test]
fn a_failed_sink_is_distinguished_from_a_bad_archive() {
    struct Full;
    impl ArchiveSink for Full {
        fn blob(&mut self, _: &Digest, _: u64, _: &mut dyn Read) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }
    let error = read(archive(&[index(), blob(b"x")]).as_slice(), &mut Full).unwrap_err();
    assert!(matches!(error, ArchiveError::Sink { digest, .. } if digest == sha256(b"x")), "{error}");
}

/// Creates an archive in a file with the given index and blobs.
fn image_file(index: &OciIndex, blobs: &[Vec<u8>]) -> Result<ImageFile, ArchiveError> {
    let mut file = tempfile::tempfile().unwrap();
    let mut members: Vec<_> = blobs.iter().map(|content| blob(content)).collect();
    members.push(member("index.json", &serde_json::to_vec(index).unwrap()));
    io::Write::write_all(&mut file, &archive(&members)).unwrap();
    ImageFile::from_file(file)
}

fn described(media_type: &str, content: &[u8], platform: Option<&str>) -> Descriptor {
    let mut descriptor = Descriptor::new(media_type, sha256(content), content.len() as u64);
    descriptor.platform = platform.map(|platform| platform.parse().unwrap());
    descriptor
}

/// Returns a config and its manifest for a platform.
fn image(architecture: &str, variant: Option<&str>) -> (Vec<u8>, Vec<u8>) {
    let platform = DeclaredPlatform::linux(architecture, variant);
    let config = serde_json::to_vec(&hearth_oci::ImageConfig::new(platform)).unwrap();
    let manifest = Manifest::new(described(OCI_CONFIG_TYPE, &config, None), Vec::new());
    (config, serde_json::to_vec(&manifest).unwrap())
}

#[test]
fn the_image_for_a_platform_is_found_through_nested_indexes_and_configs() {
    let (amd, amd_manifest) = image("amd64", None);
    let (v6, v6_manifest) = image("arm", Some("v6"));
    let (v7, v7_manifest) = image("arm", Some("v7"));
    let inner = serde_json::to_vec(&OciIndex::new(vec![
        described(OCI_MANIFEST_TYPE, &v6_manifest, Some("arm/v6")),
        // This descriptor has no platform, but its config has.
        described(OCI_MANIFEST_TYPE, &v7_manifest, None),
        // This manifest is left out of the archive.
        described(OCI_MANIFEST_TYPE, b"gone", Some("s390x")),
    ]))
    .unwrap();
    let index = OciIndex::new(vec![
        described(hearth_oci::OCI_INDEX_TYPE, &inner, None),
        described(OCI_MANIFEST_TYPE, &amd_manifest, Some("amd64")),
    ]);
    let file =
        image_file(&index, &[amd, amd_manifest.clone(), v6, v6_manifest, v7, v7_manifest.clone(), inner])
            .unwrap();
    let digest = |platform: &str| file.manifest(&platform.parse().unwrap()).unwrap().0.digest;
    assert_eq!(digest("amd64"), sha256(&amd_manifest));
    assert_eq!(digest("arm/v7"), sha256(&v7_manifest));
    let error = file.manifest(&"s390x".parse().unwrap()).unwrap_err().to_string();
    assert!(error.ends_with("for linux/s390x; it has linux/amd64, linux/arm/v6, linux/arm/v7"), "{error}");
}

#[test]
fn wide_indexes_inside_indexes_are_looked_at_once() {
    let mut inner = OciIndex::new(Vec::new());
    let mut blobs = Vec::new();
    for _ in 0..8 {
        let bytes = serde_json::to_vec(&inner).unwrap();
        inner = OciIndex::new(vec![described(hearth_oci::OCI_INDEX_TYPE, &bytes, None); 1000]);
        blobs.push(bytes);
    }
    let file = image_file(&inner, &blobs).unwrap();
    assert!(matches!(file.manifest(&DeclaredPlatform::default()), Err(ArchiveError::NoPlatform { .. })));
}

/// Archive of `docker save` with one image of two layers, of which the second is named through a link.
fn docker_save(names: &[&str], damaged: bool) -> (Vec<u8>, [Digest; 3]) {
    let layers = [vec![1; 700], vec![2; 1500]];
    let mut config = hearth_oci::ImageConfig::new(DeclaredPlatform::linux("arm64", None));
    config.rootfs.diff_ids = layers.iter().map(|layer| sha256(layer)).collect();
    let config = serde_json::to_vec(&config).unwrap();
    let digests = [sha256(&config), sha256(&layers[0]), sha256(&layers[1])];
    let stored = if damaged { [&config[..], b" "].concat() } else { config };
    let config_name = format!("{}.json", digests[0].hex());
    let image = |name: &&str| serde_json::json!({"Config": config_name, "RepoTags": [name], "Layers": ["a/layer.tar", "b/layer.tar"]});
    let manifest = serde_json::to_vec(&names.iter().map(image).collect::<Vec<_>>()).unwrap();
    let mut link = Header::new_ustar();
    link.as_old_mut().name[..11].copy_from_slice(b"b/layer.tar");
    link.set_entry_type(EntryType::Symlink);
    link.set_link_name("../c/layer.tar").unwrap();
    link.set_size(0);
    link.set_cksum();
    let bytes = archive(&[
        member_of(EntryType::Directory, "a/", 0, b""),
        member("a/VERSION", b"1.0"),
        member("a/layer.tar", &layers[0]),
        link.as_bytes().to_vec(),
        member("c/layer.tar", &layers[1]),
        member(&config_name, &stored),
        member("manifest.json", &manifest),
        member("repositories", b"{}"),
    ]);
    (bytes, digests)
}

fn as_file(bytes: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    io::Write::write_all(&mut file, bytes).unwrap();
    io::Seek::rewind(&mut file).unwrap();
    file
}

fn as_oci_archive(bytes: &[u8]) -> Result<Vec<u8>, ArchiveError> {
    let mut out = Vec::new();
    copy_as_oci_archive(as_file(bytes), &mut out).map(|()| out)
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn docker_save_archives_are_images_however_they_are_compressed() {
    let arm64 = DeclaredPlatform::linux("arm64", None);
    for names in [&["app:1"][..], &["app:1", "app:2"], &[""]] {
        let (plain, [config, one, two]) = docker_save(names, false);
        for bytes in [plain.clone(), gzip(&plain), zstd::bulk::compress(&plain, 1).unwrap()] {
            let file = ImageFile::from_file(as_file(&bytes)).unwrap();
            let (descriptor, manifest) = file.manifest(&arm64).unwrap();
            assert_eq!(manifest.config.digest, config);
            assert_eq!(manifest.layers.iter().map(|layer| layer.digest).collect::<Vec<_>>(), [one, two]);
            let converted = as_oci_archive(&bytes).unwrap();
            let read = read_all(&converted).unwrap();
            assert_eq!((read.index.manifests[0].digest, read.blobs), (descriptor.digest, 4));
        }
    }
    let amd64 = ImageFile::from_file(as_file(&docker_save(&["a"], false).0))
        .unwrap()
        .manifest(&DeclaredPlatform::default());
    assert!(matches!(amd64, Err(ArchiveError::NoPlatform { .. })));
}

#[test]
fn damaged_docker_save_archives_are_refused() {
    let (bytes, _) = docker_save(&["app:1"], true);
    assert!(matches!(as_oci_archive(&bytes).unwrap_err(), ArchiveError::Mismatch { .. }));
    let (bytes, _) = docker_save(&["app:1"], false);
    for cut in [600, 3000, bytes.len() - 1024] {
        assert!(matches!(as_oci_archive(&bytes[..cut]).unwrap_err(), ArchiveError::Truncated), "{cut}");
    }
    let compressed = gzip(&bytes);
    for damaged in
        [&compressed[..compressed.len() - 5], &[&compressed[..40], &[0xff; 20], &compressed[60..]].concat()]
    {
        as_oci_archive(damaged).unwrap_err();
        ImageFile::from_file(as_file(damaged)).unwrap_err();
    }
    for (manifest, expected) in [
        (r#"[{"Config":"../x","Layers":[]}]"#, "is missing"),
        (r#"[{"Config":"x","Layers":["loop"]}]"#, "is missing"),
        (r#"[{"Config":"x"},{"Config":"y"}]"#, "2 images"),
        ("[]", "0 images"),
        ("{}", "not valid"),
    ] {
        let bytes = archive(&[member("x", b"{}"), member("manifest.json", manifest.as_bytes())]);
        let error = as_oci_archive(&bytes).unwrap_err().to_string();
        assert!(error.contains(expected), "{manifest}: {error}");
    }
}

#[test]
fn one_image_with_two_names_is_one_image_and_two_images_are_refused() {
    let amd64 = DeclaredPlatform::default();
    let (config, manifest) = image("amd64", None);
    let (arm_config, arm_manifest) = image("arm64", None);
    let entry = |name: &str| {
        let mut entry = described(OCI_MANIFEST_TYPE, &manifest, None);
        entry.annotations.insert("org.opencontainers.image.ref.name".to_owned(), name.to_owned());
        entry
    };
    let named =
        OciIndex::new(vec![entry("a"), entry("b"), described(OCI_MANIFEST_TYPE, &arm_manifest, None)]);
    let blobs = [config.clone(), manifest.clone(), arm_config, arm_manifest];
    assert_eq!(image_file(&named, &blobs).unwrap().manifest(&amd64).unwrap().0.digest, sha256(&manifest));
    let other = serde_json::to_vec(&serde_json::json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}, "created": "x"})).unwrap();
    let other_manifest =
        serde_json::to_vec(&Manifest::new(described(OCI_CONFIG_TYPE, &other, None), Vec::new())).unwrap();
    let two = OciIndex::new(vec![entry("a"), described(OCI_MANIFEST_TYPE, &other_manifest, None)]);
    let file = image_file(&two, &[config, manifest.clone(), other, other_manifest]).unwrap();
    assert!(matches!(file.manifest(&amd64), Err(ArchiveError::ImageCount { count: 2 })));
}

#[test]
fn an_oci_archive_is_copied_as_it_is() {
    for first in ["blobs/", "./blobs/", "./"] {
        let bytes = archive(&[member_of(EntryType::Directory, first, 0, b""), blob(b"one"), index()]);
        assert!(as_oci_archive(&bytes).unwrap() == bytes, "{first}");
        assert!(as_oci_archive(&gzip(&bytes)).unwrap() == bytes, "{first}");
    }
}

proptest::proptest! {
    #[test]
    fn no_damage_makes_the_reader_panic_or_accept_a_false_blob(
        hits in proptest::collection::vec((proptest::prelude::any::<proptest::sample::Index>(), 0u8..), 1..8),
        refresh in proptest::prelude::any::<bool>(),
    ) {
        let pax = member_of(EntryType::XHeader, "x", 11, b"11 size=3\n\0");
        let mut bytes = archive(&[pax, blob(b"abc"), member("other", &[1; 700]), index(), blob(&[7; 900])]);
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if refresh {
            // The header's checksum does not cover this damage.
            for at in (0..bytes.len()).step_by(512) {
                let mut header = Header::new_ustar();
                header.as_mut_bytes().copy_from_slice(&bytes[at..at + 512]);
                if &header.as_bytes()[257..262] == b"ustar" {
                    header.set_cksum();
                    bytes[at..at + 512].copy_from_slice(header.as_bytes());
                }
            }
        }
        // The sink itself checks each blob.
        let _ = read_all(&bytes);
    }
}
