//! Sparse files in the four formats of tar.

use hearth_pack::identity::ContentHash;

use super::*;

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

/// Returns the same file in every format: `real` bytes, with `stored` in the ranges.
fn ways(real: u64, stored: &[u8], parts: &[(u64, u64)]) -> Vec<(&'static str, Tar)> {
    let name = "GNUSparseFile.1/s";
    let plain = |content: &[u8], records: &[(&str, &str)]| {
        let header = Tar::header(EntryType::Regular, name.as_bytes(), content.len() as u64);
        Tar::default().pax(records).raw(&header, content)
    };
    let size = real.to_string();
    let count = parts.len().to_string();
    let pairs: Vec<(String, String)> =
        parts.iter().map(|(offset, length)| (offset.to_string(), length.to_string())).collect();
    let map: Vec<String> = pairs.iter().map(|(offset, length)| format!("{offset},{length}")).collect();
    let map = map.join(",");
    let common = [
        ("GNU.sparse.name", "s"),
        ("GNU.sparse.numblocks", count.as_str()),
        ("GNU.sparse.size", size.as_str()),
    ];
    let mut zero = common.to_vec();
    for (offset, length) in &pairs {
        zero.extend([("GNU.sparse.offset", offset.as_str()), ("GNU.sparse.numbytes", length.as_str())]);
    }
    let one = [&common[..], &[("GNU.sparse.map", map.as_str())]].concat();
    let mut text: Vec<u8> = format!("{count}\n").into_bytes();
    for (offset, length) in &pairs {
        text.extend_from_slice(format!("{offset}\n{length}\n").as_bytes());
    }
    text.resize(text.len().next_multiple_of(512), 0);
    text.extend_from_slice(stored);
    let latest = [
        ("GNU.sparse.major", "1"),
        ("GNU.sparse.minor", "0"),
        ("GNU.sparse.name", "s"),
        ("GNU.sparse.realsize", size.as_str()),
    ];
    vec![
        ("GNU", sparse(real, stored, parts)),
        ("PAX 0.0", plain(stored, &zero)),
        ("PAX 0.1", plain(stored, &one)),
        ("PAX 1.0", plain(&text, &latest)),
    ]
}

#[test]
fn a_sparse_file_is_the_same_however_it_is_written() {
    let mut expected = vec![0; 70_000];
    expected[1000..1003].copy_from_slice(b"abc");
    expected[65_000..65_002].copy_from_slice(b"de");
    for (way, tar) in ways(70_000, b"abcde", &[(1000, 3), (65_000, 2), (70_000, 0)]) {
        let image = image(vec![tar.file("after", "x")]).unwrap_or_else(|error| panic!("{way}: {error}"));
        let node = image.lookup(0, b"s").unwrap();
        let mut content = Vec::new();
        image.open(node).unwrap().read_to_end(&mut content).unwrap();
        assert!(content == expected, "{way}");
        assert_eq!(image.content_hash(node), ContentHash::of(&expected), "{way}");
        let mut some = [9; 10];
        assert_eq!(image.read_at(node, &mut some, 997).unwrap(), 10, "{way}");
        assert_eq!(&some, b"\0\0\0abc\0\0\0\0", "{way}");
        assert_eq!(image.read_at(node, &mut some, 69_998).unwrap(), 2, "{way}");
        assert_eq!(image.read_at(node, &mut some, 70_000).unwrap(), 0, "{way}");
        assert_eq!(text(&image, image.lookup(0, b"after").unwrap()), "x", "{way}");
    }
}

#[test]
fn a_sparse_file_of_ten_terabytes_is_served_by_its_holes() {
    const SIZE: u64 = 10 << 40;
    let mut hashes = Vec::new();
    for (way, tar) in ways(SIZE, b"middleend", &[(SIZE / 2, 6), (SIZE - 3, 3)]) {
        let started = std::time::Instant::now();
        let image = image(vec![tar]).unwrap();
        let node = image.lookup(0, b"s").unwrap();
        assert_eq!(image.stat(node).size, SIZE, "{way}");
        let mut bytes = [1; 8];
        for (at, expected) in
            [(0, *b"\0\0\0\0\0\0\0\0"), (SIZE / 2 - 1, *b"\0middle\0"), (SIZE - 8, *b"\0\0\0\0\0end")]
        {
            assert_eq!(image.read_at(node, &mut bytes, at).unwrap(), 8);
            assert_eq!(bytes, expected, "{way} at {at}");
        }
        assert!(started.elapsed() < std::time::Duration::from_secs(20), "{way}: {:?}", started.elapsed());
        // Nor is it copied into a build, whose disk it would fill.
        let error = image.open(node).unwrap().read(&mut bytes).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::FileTooLarge, "{way}: {error}");
        hashes.push(image.content_hash(node));
    }
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "{hashes:?}");
    let other = ways(SIZE, b"middleEND", &[(SIZE / 2, 6), (SIZE - 3, 3)]).remove(0).1;
    let other = image(vec![other]).unwrap();
    assert_ne!(other.content_hash(other.lookup(0, b"s").unwrap()), hashes[0]);
}

#[test]
fn sparse_maps_that_lie_are_refused_and_the_entry_is_named() {
    let cases = [
        ("overlap", 10, &b"abcd"[..], vec![(1, 2), (2, 2)]),
        ("beyond the end", 3, b"abcd", vec![(1, 4)]),
        ("more than stored", 10, b"abcd", vec![(1, 6)]),
        ("less than stored", 10, b"abcd", vec![(1, 2)]),
        ("overflow", 10, b"abcd", vec![(u64::MAX / 4, 4)]),
    ];
    for (what, real, stored, parts) in cases {
        for (way, tar) in ways(real, stored, &parts) {
            let result = image(vec![tar]).map(|_| ());
            assert!(
                matches!(&result, Err(LayerError::Entry { entry, .. }) if entry == "s"),
                "{what}, {way}: {result:?}"
            );
        }
    }
    let plain = |records: &[(&str, &str)], content: &[u8]| {
        let header = Tar::header(EntryType::Regular, b"s", content.len() as u64);
        image(vec![Tar::default().pax(records).raw(&header, content)]).map(|_| ())
    };
    let one = [("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9")];
    let version = [("GNU.sparse.major", "2"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", "9")];
    let count = [("GNU.sparse.size", "9"), ("GNU.sparse.numblocks", "2"), ("GNU.sparse.map", "0,1")];
    let many = format!("{}\n", 200_000);
    let mut endless = many.into_bytes();
    endless.resize(512, b'1');
    for (what, result) in [
        ("unknown version", plain(&version, b"")),
        ("no map", plain(&one, b"")),
        ("a map that is text", plain(&one, &[b'x'; 512])),
        ("a map without an end", plain(&one, &[b'1'; 4096])),
        ("a map of too many parts", plain(&one, &endless)),
        ("another number of parts", plain(&count, b"a")),
    ] {
        assert!(
            matches!(&result, Err(LayerError::Entry { entry, .. }) if entry == "s"),
            "{what}: {result:?}"
        );
    }
}
