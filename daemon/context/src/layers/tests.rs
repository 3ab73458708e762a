use std::fs::{self, File};
use std::io::{Read as _, Write as _};

use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use hearth_pack::{FileKind, SpecialFile};

use super::*;

/// A tar assembled by hand, so that a test can make it arbitrarily wrong.
#[derive(Default)]
struct Tar(Vec<u8>);

impl Tar {
    fn header(kind: EntryType, name: &[u8], size: u64) -> Header {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o644);
        header.set_mtime(7);
        header.set_cksum();
        header
    }

    fn raw(mut self, header: &Header, content: &[u8]) -> Self {
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        let header = Self::header(EntryType::Regular, name.as_bytes(), content.len() as u64);
        self.raw(&header, content.as_bytes())
    }

    fn directory(self, name: &str) -> Self {
        let mut header = Self::header(EntryType::Directory, name.as_bytes(), 0);
        header.set_mode(0o755);
        header.set_cksum();
        self.raw(&header, b"")
    }

    fn link(self, kind: EntryType, name: &str, target: &str) -> Self {
        let mut header = Self::header(kind, name.as_bytes(), 0);
        header.set_link_name_literal(target).unwrap();
        header.set_cksum();
        self.raw(&header, b"")
    }

    fn symlink(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Symlink, name, target)
    }

    fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(EntryType::Link, name, target)
    }

    fn pax(self, records: &[(&str, &str)]) -> Self {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = format!(" {key}={value}\n");
            let mut length = rest.len() + 1;
            while format!("{length}").len() + rest.len() != length {
                length += 1;
            }
            data.extend_from_slice(format!("{length}{rest}").as_bytes());
        }
        let header = Self::header(EntryType::XHeader, b"pax", data.len() as u64);
        self.raw(&header, &data)
    }

    fn end(mut self) -> Vec<u8> {
        self.0.extend_from_slice(&[0; 1024]);
        self.0
    }
}

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

fn blob(stored: &[u8], tar: &[u8]) -> LayerBlob {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(stored).unwrap();
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip".to_owned();
    LayerBlob { digest: digest(stored), diff_id: digest(tar), media_type, file }
}

fn gzip(tar: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(tar).unwrap();
    encoder.finish().unwrap()
}

fn cache(limits: LayerLimits) -> (tempfile::TempDir, LayerCache) {
    let directory = tempfile::tempdir().unwrap();
    let cache = LayerCache::open(&directory.path().join("layers"), limits).unwrap();
    (directory, cache)
}

#[expect(clippy::needless_pass_by_value, reason = "reads better where tars are made")]
fn image_within(limits: LayerLimits, tars: Vec<Vec<u8>>) -> Result<ImageTree, LayerError> {
    let (_directory, cache) = cache(limits);
    let blobs = tars.iter().map(|tar| blob(&gzip(tar), tar)).collect();
    cache.image_tree(blobs).map_err(|(_, error)| error)
}

fn image(tars: Vec<Tar>) -> Result<ImageTree, LayerError> {
    image_within(LayerLimits::default(), tars.into_iter().map(Tar::end).collect())
}

/// Each node as one line, depth first.
fn lines(image: &ImageTree) -> Vec<String> {
    fn below(image: &ImageTree, directory: u32, prefix: &str, lines: &mut Vec<String>) {
        for (name, node) in image.children(directory) {
            let path = format!("{prefix}{}", String::from_utf8_lossy(name));
            match image.stat(node).kind {
                FileKind::Directory => {
                    lines.push(format!("{path}/"));
                    below(image, node, &format!("{path}/"), lines);
                }
                FileKind::File(_) => lines.push(format!("{path}={}", text(image, node))),
                FileKind::Symlink(target) => {
                    lines.push(format!("{path}->{}", String::from_utf8_lossy(target)));
                }
                FileKind::HardLink(never) => match *never {},
                FileKind::Special(_) => lines.push(format!("{path}?")),
            }
        }
    }
    let mut lines = Vec::new();
    below(image, 0, "", &mut lines);
    lines
}

fn text(image: &ImageTree, node: u32) -> String {
    let mut bytes = Vec::new();
    image.open(node).unwrap().read_to_end(&mut bytes).unwrap();
    // A damaged tar may contain any bytes.
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn layers_are_read_whatever_their_compression() {
    let tar = Tar::default().directory("d").file("d/f", "one").file("e", "").end();
    let (_directory, cache) = cache(LayerLimits::default());
    for stored in [gzip(&tar), zstd::encode_all(&tar[..], 3).unwrap(), tar.clone()] {
        // The first read decompresses, the second is served from the cache.
        for _ in 0..2 {
            let image = cache.image_tree(vec![blob(&stored, &tar)]).unwrap();
            assert_eq!(lines(&image), ["d/", "d/f=one", "e="]);
            let node = image.lookup(0, b"d/f").unwrap();
            assert_eq!((image.stat(node).mode, image.stat(node).mtime), (0o644, 7_000_000_000));
        }
    }
}

#[test]
fn what_the_tar_crate_writes_is_read() {
    let mut builder = Builder::new(Vec::new());
    let long = format!("{}/file", ["directory-name"; 20].join("/"));
    let mut header = Tar::header(EntryType::Regular, b"", 4);
    builder.append_data(&mut header, &long, &b"long"[..]).unwrap();
    let mut link = Tar::header(EntryType::Symlink, b"", 0);
    builder.append_link(&mut link, "link", &long).unwrap();
    let tar = builder.into_inner().unwrap();
    let image = image_within(LayerLimits::default(), vec![tar]).unwrap();
    assert_eq!(text(&image, image.lookup(0, long.as_bytes()).unwrap()), "long");
    assert_eq!(lines(&image).last().unwrap(), &format!("link->{long}"));
}

#[test]
fn pax_records_win_over_the_header() {
    let name = "n".repeat(200);
    let records = [("path", name.as_str()), ("mtime", "12.5"), ("size", "3"), ("SCHILY.xattr.user.a", "b")];
    let header = Tar::header(EntryType::Regular, b"short", 0);
    let tar = Tar::default().pax(&records).raw(&header, b"abc").file("after", "x");
    let image = image(vec![tar]).unwrap();
    let node = image.lookup(0, name.as_bytes()).unwrap();
    assert_eq!((text(&image, node).as_str(), image.stat(node).mtime), ("abc", 12_500_000_000));
    assert_eq!(lines(&image)[0], "after=x");
}

#[test]
fn a_later_layer_replaces_hides_and_adds() {
    let lower = Tar::default()
        .directory("kept")
        .file("kept/a", "1")
        .file("kept/b", "1")
        .file("gone", "1")
        .directory("opaque")
        .file("opaque/old", "1")
        .file("file", "1")
        .directory("dir")
        .file("dir/x", "1");
    let upper = Tar::default()
        .file("kept/b", "2")
        .file(".wh.gone", "")
        .file("opaque/new", "2")
        .file("opaque/.wh..wh..opq", "")
        .file("file/now-a-directory", "2")
        .file("dir", "2")
        .file(".wh.never-there", "")
        .file("none/.wh.x", "")
        .file(".wh..wh.plnk", "");
    let image = image(vec![lower, upper]).unwrap();
    assert_eq!(
        lines(&image),
        [
            "dir=2",
            "file/",
            "file/now-a-directory=2",
            "kept/",
            "kept/a=1",
            "kept/b=2",
            "opaque/",
            "opaque/new=2"
        ]
    );
}

#[test]
fn a_whiteout_hides_lower_layers_and_never_its_own() {
    let lower = Tar::default().file("a", "1");
    let upper = Tar::default().file("a", "2").file(".wh.a", "").file("b", "2").file(".wh.b", "");
    assert_eq!(lines(&image(vec![lower, upper]).unwrap()), ["a=2", "b=2"]);
}

#[test]
fn hard_links_share_content_and_must_name_a_file_of_the_image() {
    let lower = Tar::default().file("a", "one").hard_link("b", "./a");
    let upper = Tar::default().hard_link("d/c", "/a");
    let image = image(vec![lower, upper]).unwrap();
    assert_eq!(lines(&image), ["a=one", "b=one", "d/", "d/c=one"]);
    let group = |path: &str| image.link_group(image.lookup(0, path.as_bytes()).unwrap());
    assert!(group("a").is_some());
    assert_eq!(group("a"), group("d/c"));
    for target in ["none", "/etc/passwd", "d", "x"] {
        let tar = Tar::default().directory("d").hard_link("x", target);
        let result = super::tests::image(vec![tar]).map(|_| ());
        assert!(matches!(result, Err(LayerError::LinkTarget { .. })), "{target}: {result:?}");
    }
    let out = Tar::default().hard_link("x", "../../etc/passwd");
    assert!(matches!(super::tests::image(vec![out]).map(|_| ()), Err(LayerError::Escapes { .. })));
}

#[test]
fn subpaths_follow_links_inside_the_image() {
    let image = image(vec![
        Tar::default()
            .directory("usr/lib")
            .file("usr/lib/x", "1")
            .symlink("lib", "/usr/lib")
            .symlink("l", "../../lib"),
    ])
    .unwrap();
    let usr_lib = image.lookup(0, b"usr/lib");
    assert!(usr_lib.is_some());
    assert_eq!((image.resolve(b"lib"), image.resolve(b"l"), image.resolve(b"")), (usr_lib, usr_lib, Some(0)));
    assert_eq!(image.resolve(b"none"), None);
}

mod figures;
mod hostile;
mod inspect;
mod kept;
mod model;
mod ranges;
mod sparse;
