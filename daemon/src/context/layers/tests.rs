use std::fs::{self, File};
use std::io::{Read as _, Write as _};

use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use super::*;

/// A tar made by hand, so that it may be as wrong as a test wants it.
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
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
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
    cache.image(blobs).map_err(|(_, error)| error)
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
                NodeKind::Directory(_) => {
                    lines.push(format!("{path}/"));
                    below(image, node, &format!("{path}/"), lines);
                }
                NodeKind::File { .. } => lines.push(format!("{path}={}", text(image, node))),
                NodeKind::Symlink(target) => {
                    lines.push(format!("{path}->{}", String::from_utf8_lossy(target)));
                }
                NodeKind::Fifo | NodeKind::Device { .. } => lines.push(format!("{path}?")),
            }
        }
    }
    let mut lines = Vec::new();
    below(image, 0, "", &mut lines);
    lines
}

fn text(image: &ImageTree, node: u32) -> String {
    let mut text = String::new();
    image.open(node).unwrap().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn layers_are_read_whatever_their_compression() {
    let tar = Tar::default().directory("d").file("d/f", "one").file("e", "").end();
    let (_directory, cache) = cache(LayerLimits::default());
    for stored in [gzip(&tar), zstd::encode_all(&tar[..], 3).unwrap(), tar.clone()] {
        // Once decompressed, once from what is kept.
        for _ in 0..2 {
            let image = cache.image(vec![blob(&stored, &tar)]).unwrap();
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
fn names_that_lead_out_are_refused_and_absolute_ones_stay_inside() {
    for name in ["../x", "a/../../x", "a/..", "..", ".wh...", ".wh..", ".wh."] {
        let result = image(vec![Tar::default().file(name, "x")]).map(|_| ());
        assert!(matches!(result, Err(LayerError::Escapes { .. })), "{name}: {result:?}");
    }
    assert_eq!(lines(&image(vec![Tar::default().file("/etc//./x", "1")]).unwrap()), ["etc/", "etc/x=1"]);
}

#[test]
fn a_file_through_a_link_replaces_the_link_and_goes_nowhere() {
    let outside = tempfile::tempdir().unwrap();
    let canary = outside.path().join("canary");
    fs::write(&canary, "untouched").unwrap();
    let to = outside.path().to_str().unwrap();
    let same = Tar::default().symlink("l", to).file("l/canary", "mine");
    assert_eq!(lines(&image(vec![same]).unwrap()), ["l/", "l/canary=mine"]);
    let (lower, upper) = (Tar::default().symlink("l", to), Tar::default().file("l/canary", "mine"));
    assert_eq!(lines(&image(vec![lower, upper]).unwrap()), ["l/", "l/canary=mine"]);
    assert_eq!(fs::read(canary).unwrap(), b"untouched");
}

#[test]
fn a_lying_tar_is_refused() {
    let long = Header::from_byte_slice(&[0; 512]).clone();
    let mut huge_name = Tar::header(EntryType::GNULongName, b"././@LongLink", 1 << 33);
    huge_name.set_cksum();
    let mut wrong_sum = Tar::header(EntryType::Regular, b"x", 0);
    wrong_sum.set_cksum();
    wrong_sum.as_old_mut().name[0] = b'y';
    let beyond = Tar::header(EntryType::Regular, b"x", 1 << 40);
    let unknown = Tar::header(EntryType::new(b'Z'), b"x", 0);
    let zero = Tar::header(EntryType::Regular, b"x", 0);
    for (what, tar) in [
        ("name of 8 GiB", Tar::default().raw(&huge_name, b"")),
        ("wrong checksum", Tar::default().raw(&wrong_sum, b"")),
        ("content beyond the end", Tar::default().raw(&beyond, b"few")),
        ("PAX size beyond the end", Tar::default().pax(&[("size", "99999999999")]).raw(&zero, b"")),
        ("PAX size no number", Tar::default().pax(&[("size", "-1")]).raw(&zero, b"")),
        ("PAX name with NUL", Tar::default().pax(&[("path", "a\0b")]).raw(&zero, b"")),
        ("PAX sparse without a size", Tar::default().pax(&[("GNU.sparse.major", "1")]).raw(&zero, b"")),
        ("PAX cut off", Tar::default().raw(&Tar::header(EntryType::XHeader, b"p", 9), b"99 path=a")),
        ("unknown type", Tar::default().raw(&unknown, b"")),
        ("content after zeros", Tar::default().raw(&long, b"").file("x", "")),
        ("root is a file", Tar::default().file("./", "").file(".", "")),
        ("link to nowhere", Tar::default().symlink("l", "")),
        ("name too long", Tar::default().pax(&[("path", &"n".repeat(256))]).raw(&zero, b"")),
        ("path too long", Tar::default().pax(&[("path", &"n/".repeat(2100))]).raw(&zero, b"")),
    ] {
        let result = image(vec![tar]).map(|image| lines(&image));
        assert!(
            matches!(result, Err(LayerError::Malformed { .. } | LayerError::Entry { .. })),
            "{what}: {result:?}"
        );
    }
    let mut cut = Tar::default().file("x", "content").0;
    cut.truncate(700);
    assert_eq!(lines(&image_within(LayerLimits::default(), vec![cut]).unwrap()), ["x=content"]);
    let mut cut = Tar::default().file("x", "content").0;
    cut.truncate(515);
    assert!(image_within(LayerLimits::default(), vec![cut]).is_err());
}

#[test]
fn devices_and_fifos_are_entries_and_never_made() {
    let mut device = Tar::header(EntryType::Block, b"sda", 0);
    device.set_device_major(8).unwrap();
    device.set_device_minor(1).unwrap();
    device.set_cksum();
    let fifo = Tar::header(EntryType::Fifo, b"fifo", 0);
    let image = image(vec![Tar::default().raw(&device, b"").raw(&fifo, b"")]).unwrap();
    let node = image.lookup(0, b"sda").unwrap();
    let expected = matches!(image.stat(node).kind, NodeKind::Device { character: false, major: 8, minor: 1 });
    assert!(expected && image.open(node).is_none());
}

fn sparse(real: u64, stored: &[u8], parts: &[(u64, u64)]) -> Tar {
    let mut header = Tar::header(EntryType::GNUSparse, b"s", stored.len() as u64);
    let gnu = header.as_gnu_mut().unwrap();
    gnu.set_real_size(real);
    for (slot, (offset, length)) in gnu.sparse.iter_mut().zip(parts) {
        slot.set_offset(*offset);
        slot.set_length(*length);
    }
    header.set_cksum();
    Tar::default().raw(&header, stored)
}

#[test]
fn sparse_files_are_filled_with_zeros_and_their_maps_are_checked() {
    let image = image(vec![sparse(10, b"abcd", &[(1, 2), (6, 2), (10, 0)])]).unwrap();
    assert_eq!(text(&image, image.lookup(0, b"s").unwrap()), "\0ab\0\0\0cd\0\0");
    for (what, tar) in [
        ("overlap", sparse(10, b"abcd", &[(1, 2), (2, 2)])),
        ("beyond the end", sparse(3, b"abcd", &[(1, 4)])),
        ("more than stored", sparse(10, b"abcd", &[(1, 6)])),
        ("less than stored", sparse(10, b"abcd", &[(1, 2)])),
        ("overflow", sparse(10, b"abcd", &[(u64::MAX / 4, 4)])),
    ] {
        let result = super::tests::image(vec![tar]).map(|_| ());
        assert!(matches!(result, Err(LayerError::Entry { .. })), "{what}: {result:?}");
    }
}

#[test]
fn sizes_and_counts_are_bounded() {
    let small = LayerLimits { layer_bytes: 4096, entries: 5, ..LayerLimits::default() };
    let large = Tar::default().file("x", &"x".repeat(5000)).end();
    assert!(matches!(
        image_within(small, vec![large]).map(|_| ()),
        Err(LayerError::TooLarge { limit: 4096 })
    ));
    let limits = LayerLimits { entries: 5, ..LayerLimits::default() };
    let many = (0..6).fold(Tar::default(), |tar, n| tar.file(&n.to_string(), "")).end();
    let deep = Tar::default().file("a/b/c/d/e/f/g", "").end();
    let layers = (0..6).map(|n| Tar::default().file(&n.to_string(), "").end()).collect();
    for tars in [vec![many], vec![deep], layers] {
        let result = image_within(limits, tars).map(|_| ());
        assert!(matches!(result, Err(LayerError::TooManyEntries { limit: 5 })), "{result:?}");
    }
}

#[test]
fn a_layer_that_is_not_what_the_config_says_leaves_nothing_behind() {
    let (directory, cache) = cache(LayerLimits::default());
    let tar = Tar::default().file("x", "1").end();
    let lying = LayerBlob { diff_id: digest(b"other"), ..blob(&gzip(&tar), &tar) };
    let (at, error) = cache.image(vec![lying]).map(|_| ()).unwrap_err();
    assert!(matches!(error, LayerError::DiffId { .. }), "{error}");
    assert_eq!(at, digest(&gzip(&tar)));
    let mut damaged = gzip(&tar);
    damaged.truncate(damaged.len() / 2);
    let error = cache.image(vec![blob(&damaged, &tar)]).map(|_| ()).unwrap_err().1;
    assert!(matches!(error, LayerError::Decompress(_)), "{error}");
    let config =
        LayerBlob { media_type: "application/vnd.oci.image.config.v1+json".to_owned(), ..blob(&tar, &tar) };
    assert!(matches!(cache.image(vec![config]).map(|_| ()), Err((_, LayerError::MediaType(_)))));
    assert_eq!(fs::read_dir(directory.path().join("layers")).unwrap().count(), 0);
}

#[test]
fn the_layers_used_longest_ago_go_first_and_leftovers_go_at_start() {
    let tars: Vec<Vec<u8>> = ["a", "b", "c"].iter().map(|n| Tar::default().file(n, n).end()).collect();
    let limits = LayerLimits { kept_bytes: 450, ..LayerLimits::default() };
    let (directory, cache) = cache(limits);
    let use_it = |tar: &Vec<u8>| {
        std::thread::sleep(std::time::Duration::from_millis(15));
        cache.image(vec![blob(&gzip(tar), tar)]).unwrap()
    };
    let first = use_it(&tars[0]);
    let second = use_it(&tars[1]);
    use_it(&tars[0]);
    use_it(&tars[2]);
    let names: Vec<String> = fs::read_dir(directory.path().join("layers"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let kept = |tar: &Vec<u8>| names.iter().any(|name| name.starts_with(&digest(tar).hex()));
    assert_eq!(tars.iter().map(kept).collect::<Vec<_>>(), [true, false, true]);
    // What was removed while in use can still be read.
    assert_eq!((lines(&first), lines(&second)), (vec!["a=a".to_owned()], vec!["b=b".to_owned()]));
    let leftover = directory.path().join("layers/unfinished-x");
    File::create(&leftover).unwrap();
    LayerCache::open(&directory.path().join("layers"), limits).unwrap();
    assert!(!leftover.exists());
}

#[test]
fn the_same_layer_asked_for_at_once_is_indexed_once_and_right() {
    let tar = Tar::default().file("x", &"content ".repeat(100_000)).end();
    let (_directory, cache) = cache(LayerLimits::default());
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let image = cache.image(vec![blob(&gzip(&tar), &tar)]).unwrap();
                assert_eq!(text(&image, image.lookup(0, b"x").unwrap()).len(), 800_000);
            });
        }
    });
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

mod hostile {
    use proptest::prelude::*;

    use super::*;

    fn entry() -> impl Strategy<Value = (u8, String, String)> {
        let name = prop::sample::select(vec![
            "a",
            "a/b",
            "a/b/c",
            "b",
            "b/../c",
            "/a",
            ".wh.a",
            "a/.wh..wh..opq",
            "a/.wh.b",
            ".",
            "..",
            "a//b",
            "l/x",
        ]);
        let target = prop::sample::select(vec!["a", "/etc", "../x", "a/b", "l"]);
        (0..6u8, name, target).prop_map(|(kind, name, target)| (kind, name.to_owned(), target.to_owned()))
    }

    proptest! {
        /// Whatever the entries are, the image is refused or is a tree whose names are plain names.
        #[test]
        fn any_layers_are_refused_or_give_a_sound_tree(
            layers in prop::collection::vec(prop::collection::vec(entry(), 0..10), 1..4),
        ) {
            let tar = |entries: Vec<(u8, String, String)>| {
                entries.into_iter().fold(Tar::default(), |tar, (kind, name, target)| match kind {
                    0 | 1 => tar.file(&name, &target),
                    2 => tar.directory(&name),
                    3 => tar.symlink(&name, &target),
                    4 => tar.hard_link(&name, &target),
                    _ => tar.raw(&Tar::header(EntryType::Fifo, name.as_bytes(), 0), b""),
                })
            };
            if let Ok(image) = image(layers.into_iter().map(tar).collect()) {
                for line in lines(&image) {
                    let path = line.split(['=', '-']).next().unwrap();
                    prop_assert!(!path.split('/').any(|name| name == ".." || name.starts_with(".wh.")), "{}", line);
                }
            }
        }

        /// Random damage to a good tar never panics and never reads outside of it.
        #[test]
        fn a_damaged_tar_never_panics(at in 0..3072usize, byte: u8, cut in 0..4096usize) {
            let mut tar = Tar::default().pax(&[("path", "x")]).file("a", "1").file("b", "2").end();
            let place = at % tar.len();
            tar[place] = byte;
            tar.truncate(cut.max(1));
            if let Ok(image) = image_within(LayerLimits::default(), vec![tar]) {
                lines(&image);
            }
        }
    }
}
