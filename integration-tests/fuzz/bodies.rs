//! Fuzz bodies that read hostile bytes: cargo-fuzz runs them on nightly, and daemon/tests/hostile.rs on stable.
//!
//! A body panics when something is wrong. An error from the reader is fine; taking a second for a few KiB is not.

use std::io::{self, Read};

use hearth_oci::{
    DOCKER_INDEX_TYPE, DOCKER_MANIFEST_TYPE, ImageConfig, OCI_INDEX_TYPE, OCI_MANIFEST_TYPE, OciIndex,
};
use hearth_pack::FileKind;
use hearth_pack::archive::{self, ArchiveSink};
use hearth_pack::ignore::IgnorePatterns;
use hearth_proto::v1::mount::Source;
use hearth_proto::value::{BuildMountKind, Digest, MountKind, MountSpec, Reference, ServiceMountKind};
use hearthd::context::{ImageTree, LayerBlob, LayerCache, LayerLimits};
use hearthd::model::manifest::Manifest;
use sha2::{Digest as _, Sha256};

/// Parses an ignore file, and matches it against the paths in it and against some hostile paths.
pub fn ignore(bytes: &[u8]) {
    let patterns = match IgnorePatterns::parse_file(bytes) {
        Ok(patterns) => patterns,
        Err(error) => {
            assert!(error.line.is_some(), "the error names its line: {error}");
            return;
        }
    };
    let own = bytes.split(|&byte| byte == b'\n').take(8).map(|line| &line[..line.len().min(300)]);
    let long = [b'a'; 4000];
    let nasty: [&[u8]; 5] =
        [b"a/b/c", b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", b"\xff/\xfe", b"x\ny", &long];
    for path in own.chain(nasty).filter(|path| !path.is_empty()) {
        let alone = patterns.matches(path);
        assert_eq!(alone, patterns.matches(path), "a repeated match has the same result");
        let mut parent = hearth_pack::ignore::ParentMatch::default();
        for end in
            path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([path.len()])
        {
            (_, parent) = patterns.matches_under(&path[..end], &parent);
        }
        if !patterns.has_negation() {
            // Without exceptions, everything below a matching path matches as well.
            let below = [path, b"/below"].concat();
            assert!(!alone || patterns.matches(&below), "{:?}", String::from_utf8_lossy(path));
        }
    }
}

/// Parses a mount flag, for builds and for services.
pub fn mount(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    {
        use BuildMountKind::{Image, Pack, Project, Room};
        [Room, Project, Image, Pack].into_iter().for_each(|kind| parsed_mount(kind, text));
    }
    use ServiceMountKind::{EmptyDir, Image, Project, Room};
    [Room, Project, Image, EmptyDir].into_iter().for_each(|kind| parsed_mount(kind, text));
}

fn parsed_mount<K: MountKind<Source: Into<Source>>>(kind: K, text: &str) {
    match MountSpec::parse(kind, text) {
        Ok(spec) => {
            let target = spec.target.as_str();
            assert!(target.starts_with('/') && !target.contains('\0'), "{target:?}");
            assert!(target == "/" || !target.ends_with('/'), "{target:?}");
            assert!(target[1..].split('/').all(|part| part != ".." && part != "."), "{target:?}");
            assert_eq!(target.parse().as_ref(), Ok(&spec.target), "a target is in its normal form");
            let path = match spec.source.into() {
                Source::RoomPath(path) | Source::ProjectPath(path) => path,
                Source::Image(image) => image.subpath,
                Source::PackId(_) | Source::EmptyDir(_) => String::new(),
                Source::File(file) => panic!("a flag cannot have inline text: {:?}", file.text),
            };
            assert!(!path.starts_with('/') && !path.contains('\0'), "{path:?}");
            assert!(path.split('/').all(|part| part != ".."), "{path:?}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Parses a reference; an accepted reference must be the same after it is written and parsed again.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(reference) = text.parse::<Reference>() {
        let written = reference.to_string();
        assert_eq!(written.parse::<Reference>().as_ref(), Ok(&reference), "{text:?} became {written:?}");
        assert!(!written.contains(char::is_whitespace), "{written:?}");
        assert!(
            written.split('/').all(|part| !part.is_empty() && part != ".." && part != "."),
            "{written:?}"
        );
    }
    if let Ok(reference) = Reference::parse_tag(text) {
        assert!(reference.digest.is_none() && reference.tag.is_some(), "{text:?}");
    }
}

/// Parses JSON of a registry: an image manifest, an index, an image config.
pub fn image_json(bytes: &[u8]) {
    for media_type in
        [OCI_MANIFEST_TYPE, OCI_INDEX_TYPE, DOCKER_MANIFEST_TYPE, DOCKER_INDEX_TYPE, "text/html"]
    {
        if let Ok(manifest) = Manifest::parse(media_type, bytes) {
            let parts = manifest.parts();
            // Each part is named in the bytes, so the length of the bytes limits the number of parts.
            assert!(parts.len() * "sha256:".len() <= bytes.len(), "{} parts", parts.len());
            let _ = manifest.metadata();
            if let Manifest::Index(index) = &manifest {
                let _ = index.for_platform(&hearthd::model::image::Platform::host());
            }
        }
    }
    if let Ok(config) = ImageConfig::parse_unambiguous(bytes) {
        assert!(config.rootfs.diff_ids.len() * "sha256:".len() <= bytes.len());
    }
    let _ = serde_json::from_slice::<OciIndex>(bytes);
    let _ = serde_json::from_slice::<hearth_oci::Manifest>(bytes);
    let _ = ImageConfig::parse(bytes);
}

/// Reads an OCI archive as a client sends one.
pub fn archive(bytes: &[u8]) {
    /// Skips some of the blobs, like a receiver that already has them.
    struct Taken {
        bytes: u64,
        blobs: u64,
    }
    impl ArchiveSink for Taken {
        fn blob(&mut self, digest: &Digest, size: u64, content: &mut dyn Read) -> io::Result<()> {
            self.blobs += 1;
            if digest.hex().ends_with('0') {
                return Ok(());
            }
            let mut all = Vec::new();
            let count = content.read_to_end(&mut all)? as u64;
            assert_eq!(count, size, "a blob that was read to its end is complete");
            assert_eq!(
                Digest::from_sha256(Sha256::digest(&all).into()),
                *digest,
                "the content of a blob matches its digest"
            );
            self.bytes += count;
            Ok(())
        }
    }
    let mut taken = Taken { bytes: 0, blobs: 0 };
    if let Ok(read) = archive::read(bytes, &mut taken) {
        assert_eq!(read.blobs, taken.blobs);
        assert!(read.blob_bytes <= bytes.len() as u64 && taken.bytes <= read.blob_bytes);
    }
}

/// Reads a layer of an image that becomes part of a context: directly, and as a compressed stream where it is one.
pub fn layer(bytes: &[u8]) {
    let gzip = bytes.starts_with(b"\x1f\x8b");
    let zstd = bytes.starts_with(b"\x28\xb5\x2f\xfd");
    let media_type = match (gzip, zstd) {
        (true, _) => "application/vnd.oci.image.layer.v1.tar+gzip",
        (_, true) => "application/vnd.oci.image.layer.v1.tar+zstd",
        _ => "application/vnd.oci.image.layer.v1.tar",
    };
    let directory = tempfile::tempdir().expect("a directory");
    let limits = LayerLimits { layer_bytes: 64 << 20, entries: 10_000, ..LayerLimits::default() };
    let cache = LayerCache::open(directory.path(), limits).expect("a cache");
    let mut file = tempfile::tempfile().expect("a file");
    io::Write::write_all(&mut file, bytes).expect("written");
    io::Seek::rewind(&mut file).expect("rewound");
    let digest = Digest::from_sha256(Sha256::digest(bytes).into());
    let blob = LayerBlob { digest, diff_id: digest, media_type: media_type.to_owned(), file };
    if let Ok(tree) = cache.image_tree(vec![blob]) {
        let mut budget = 20_000;
        look(&tree, 0, 0, &mut budget);
    }
}

/// Walks a tree: names must be valid, and each file must be readable or return an error.
fn look(tree: &ImageTree, node: u32, depth: usize, budget: &mut usize) {
    for (name, child) in tree.children(node) {
        *budget = budget.checked_sub(1).expect("more names than the limit of entries");
        assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0), "{name:?}");
        assert!(name != b"." && name != b"..");
        let stat = tree.stat(child);
        assert_eq!(stat.mode & !0o7777, 0, "{:o}", stat.mode);
        match stat.kind {
            FileKind::Directory if depth < 500 => look(tree, child, depth + 1, budget),
            FileKind::File(_) => {
                let Some(content) = tree.open(child) else { continue };
                let mut taken = Vec::new();
                // A sparse file may claim to have terabytes.
                if content.take(1 << 16).read_to_end(&mut taken).is_ok() {
                    assert_eq!(taken.len() as u64, stat.size.min(1 << 16));
                }
            }
            _ => {}
        }
    }
}
