//! Hostile layers: refused with an error that names the entry, or served as plain data.

use super::*;

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
    let expected = matches!(
        image.stat(node).kind,
        FileKind::Special(SpecialFile::Device { character: false, major: 8, minor: 1 })
    );
    assert!(expected && image.open(node).is_none());
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
fn errors_name_the_entry() {
    let zero = |name: &str| Tar::header(EntryType::Regular, name.as_bytes(), 0);
    let huge = "n".repeat(300);
    for (tar, named) in [
        (Tar::default().file("fine", "").file("a/../../x", ""), "a/../../x"),
        (Tar::default().pax(&[("path", &huge)]).raw(&zero("short"), b""), huge.as_str()),
        (Tar::default().pax(&[("size", "99999999999")]).raw(&zero("liar"), b""), "liar"),
        (Tar::default().pax(&[("size", "18446744073709551615")]).raw(&zero("liar"), b""), "liar"),
        (Tar::default().hard_link("link", "/etc/shadow"), "link"),
        (Tar::default().hard_link("link", "a/../../etc/shadow"), "a/../../etc/shadow"),
        (Tar::default().symlink("nowhere", ""), "nowhere"),
    ] {
        let error = image(vec![tar]).map(|_| ()).unwrap_err();
        let entry = match &error {
            LayerError::Entry { entry, .. }
            | LayerError::Escapes { entry }
            | LayerError::LinkTarget { entry, .. } => entry,
            other => panic!("{named}: {other}"),
        };
        assert_eq!(entry, named);
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn a_hard_link_through_a_link_reaches_nothing_outside() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("canary"), "secret").unwrap();
    let to = outside.path().to_str().unwrap();
    let tar = Tar::default().symlink("l", to).hard_link("mine", "l/canary");
    let error = image(vec![tar]).map(|_| ()).unwrap_err();
    assert!(matches!(error, LayerError::LinkTarget { .. }), "{error}");
    // A symbolic link can have two names; both are the link and not its target.
    let tar = Tar::default().symlink("l", &format!("{to}/canary")).hard_link("mine", "l");
    let image = image(vec![tar]).unwrap();
    assert_eq!(lines(&image), [format!("l->{to}/canary"), format!("mine->{to}/canary")]);
}

#[test]
fn kinds_replace_each_other_and_nothing_of_the_old_one_stays() {
    let lower = Tar::default()
        .symlink("link", "/etc")
        .directory("dir")
        .directory("dir/sub")
        .file("dir/sub/x", "1")
        .file("file", "1")
        .hard_link("other", "file");
    let upper = Tar::default()
        .directory("link")
        .file("link/x", "2")
        .file("dir", "2")
        .directory("file")
        .symlink("other", "dir");
    let image = image(vec![lower, upper]).unwrap();
    assert_eq!(lines(&image), ["dir=2", "file/", "link/", "link/x=2", "other->dir"]);
}

#[test]
fn case_twins_are_two_files() {
    let image = image(vec![Tar::default().file("Makefile", "1").file("makefile", "2").directory("MAKEFILE")])
        .unwrap();
    assert_eq!(lines(&image), ["MAKEFILE/", "Makefile=1", "makefile=2"]);
}

#[test]
fn whiteouts_of_what_is_not_there_hide_nothing() {
    let lower = Tar::default().file("a/x", "1").symlink("l", "a");
    let upper = Tar::default()
        .file(".wh.none", "")
        .file("none/deep/.wh.x", "")
        .file("a/x/.wh.below-a-file", "")
        // Through a symbolic link in the lower layer: `a/x` is another file.
        .file("l/.wh.x", "")
        .file("l/.wh..wh..opq", "");
    assert_eq!(lines(&image(vec![lower, upper]).unwrap()), ["a/", "a/x=1", "l->a"]);
}

#[test]
fn global_pax_headers_change_no_entry() {
    let global = |records: &[(&str, &str)]| {
        let mut tar = Tar::default().pax(records).0;
        let mut header = Header::from_byte_slice(&tar[..512]).clone();
        header.set_entry_type(EntryType::XGlobalHeader);
        header.set_cksum();
        tar[..512].copy_from_slice(header.as_bytes());
        Tar(tar)
    };
    let image = image(vec![global(&[("comment", "a commit"), ("mtime", "99")]).file("x", "1")]).unwrap();
    assert_eq!(
        (lines(&image), image.stat(image.lookup(0, b"x").unwrap()).mtime),
        (vec!["x=1".to_owned()], 7_000_000_000)
    );
    for key in ["path", "size", "linkpath", "GNU.sparse.size"] {
        let result = super::image(vec![global(&[(key, "9")]).file("x", "1")]).map(|_| ());
        assert!(matches!(result, Err(LayerError::Malformed { .. })), "{key}: {result:?}");
    }
}

#[test]
fn sizes_beyond_eight_gibibytes_are_understood() {
    const SIZE: u64 = (8 << 30) + 5;
    let encoded = Tar::header(EntryType::Regular, b"x", SIZE);
    let zero = Tar::header(EntryType::Regular, b"x", 0);
    let size = SIZE.to_string();
    let tars = [Tar::default().raw(&encoded, b""), Tar::default().pax(&[("size", &size)]).raw(&zero, b"")];
    for tar in tars {
        let mut parser = super::super::tar_parser::TarParser::new();
        let mut sizes = Vec::new();
        let mut note = |entry: super::super::tar_parser::TarEntry| {
            if let FileKind::File(super::super::tar_parser::TarFile { size, .. }) = entry.kind {
                sizes.push(size);
            }
            Ok(())
        };
        parser.feed(&tar.0, &mut note).unwrap();
        let zeros = vec![0; 8 << 20];
        for _ in 0..1024 {
            parser.feed(&zeros, &mut note).unwrap();
        }
        parser.feed(&zeros[..512], &mut note).unwrap();
        parser.feed(&Tar::default().file("after", "x").end(), &mut note).unwrap();
        parser.finish().unwrap();
        assert_eq!(sizes, [SIZE, 1]);
    }
}

#[test]
fn a_frame_that_asks_for_a_huge_window_is_refused_before_it_gets_it() {
    let tar = Tar::default().file("x", "1").end();
    // 1 GiB of window, and one block of content.
    let mut stored = vec![0x28, 0xb5, 0x2f, 0xfd, 0, 20 << 3];
    let block = (tar.len() as u32) << 3 | 1;
    stored.extend_from_slice(&block.to_le_bytes()[..3]);
    stored.extend_from_slice(&tar);
    let (_directory, cache) = cache(LayerLimits::default());
    let error = cache.image_tree(vec![blob(&stored, &tar)]).map(|_| ()).unwrap_err().1;
    assert!(matches!(error, LayerError::Window { window, .. } if window == 1 << 30), "{error}");
    stored[5] = 10 << 3;
    assert_eq!(lines(&cache.image_tree(vec![blob(&stored, &tar)]).unwrap()), ["x=1"]);
}

#[test]
fn compression_bombs_are_refused_by_ratio_and_by_size() {
    let mut tar = Tar::header(EntryType::Regular, b"zeros", 64 << 20).as_bytes().to_vec();
    tar.resize((64 << 20) + 512 + 1024, 0);
    let stored = [gzip(&tar), zstd::encode_all(&tar[..], 1).unwrap()];
    for stored in stored {
        let by = |limits: LayerLimits| {
            let (directory, cache) = cache(limits);
            let result = cache.image_tree(vec![blob(&stored, &tar)]).map(|_| ()).map_err(|(_, error)| error);
            // No index of it was stored.
            assert_eq!(
                fs::read_dir(directory.path().join("layers")).unwrap().count(),
                usize::from(result.is_ok())
            );
            result
        };
        let plain = LayerLimits::default();
        let ratio = by(LayerLimits { ratio_floor: 1 << 20, ..plain });
        assert!(matches!(ratio, Err(LayerError::Bomb { ratio: 200 })), "{ratio:?}");
        let size = by(LayerLimits { layer_bytes: 32 << 20, ..plain });
        assert!(matches!(size, Err(LayerError::TooLarge { limit }) if limit == 32 << 20), "{size:?}");
        assert!(by(plain).is_ok());
    }
}

#[test]
fn names_and_attributes_have_a_limit_of_their_own() {
    let limits = LayerLimits { index_bytes: 100_000, ..LayerLimits::default() };
    let target = "t".repeat(4000);
    let long = |name: &str| {
        let header = Tar::header(EntryType::Symlink, name.as_bytes(), 0);
        Tar::default().pax(&[("linkpath", &target)]).raw(&header, b"").0
    };
    let one: Vec<u8> = (0..40).flat_map(|n| long(&format!("l{n}"))).collect();
    let layers = (0..40).map(|n| long(&format!("l{n}"))).collect();
    let value = "v".repeat(60_000);
    let header = Tar::header(EntryType::Regular, b"x", 0);
    let attributes: Vec<u8> = (0..2)
        .flat_map(|_| Tar::default().pax(&[("SCHILY.xattr.user.a", &value)]).raw(&header, b"").0)
        .collect();
    // Few bytes in the tar, many in memory: a hard link to a symbolic link copies its target.
    let links: Vec<u8> = long("l")
        .into_iter()
        .chain((0..40).flat_map(|n| Tar::default().hard_link(&n.to_string(), "l").0))
        .collect();
    for tars in [vec![one], layers, vec![attributes], vec![links]] {
        let result = image_within(limits, tars).map(|_| ());
        assert!(matches!(result, Err(LayerError::TooManyNames { limit: 100_000 })), "{result:?}");
    }
}

#[test]
fn only_attributes_that_a_build_could_see_are_kept() {
    let records = [
        ("SCHILY.xattr.user.b", "2"),
        ("SCHILY.xattr.user.a", "1"),
        ("SCHILY.xattr.security.capability", "c"),
        ("SCHILY.xattr.security.selinux", "s"),
        ("SCHILY.xattr.trusted.overlay.opaque", "y"),
        ("SCHILY.xattr.user.b", "3"),
    ];
    let header = Tar::header(EntryType::Regular, b"x", 0);
    let lower = Tar::default().pax(&records).raw(&header, b"").hard_link("y", "x");
    let image = image(vec![lower]).unwrap();
    let expected: Vec<(Vec<u8>, Vec<u8>)> = [("security.capability", "c"), ("user.a", "1"), ("user.b", "3")]
        .map(|(name, value)| (name.into(), value.into()))
        .into();
    for name in ["x", "y"] {
        assert_eq!(image.xattrs(image.lookup(0, name.as_bytes()).unwrap()), expected);
    }
    assert!(image.xattrs(0).is_empty());
}
