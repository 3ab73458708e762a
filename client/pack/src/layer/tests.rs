use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::header::TarHeader;
use super::*;
use crate::archive::raw::pax;
use crate::walk::{WalkOptions, WalkedTree, walk};

fn tree(make: impl FnOnce(&Path)) -> (tempfile::TempDir, WalkedTree) {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    let tree = walk(dir.path(), &WalkOptions::default()).unwrap();
    (dir, tree)
}

fn layer(tree: &WalkedTree, options: &LayerOptions) -> Result<(PackedLayer, Vec<u8>), LayerError> {
    let mut bytes = Vec::new();
    let layer = write(tree, options, &mut bytes, &mut |_| {})?;
    Ok((layer, bytes))
}

#[test]
fn digests_and_sizes_are_those_of_the_bytes() {
    let (_dir, tree) = tree(|dir| fs::write(dir.join("f"), vec![b'x'; 700_000]).unwrap());
    let mut tars = Vec::new();
    for compression in [Compression::Zstd, Compression::Gzip, Compression::None] {
        let options = LayerOptions { compression, ..Default::default() };
        let (layer, bytes) = self::layer(&tree, &options).unwrap();
        assert_eq!(layer.digest, hearth_oci::sha256(&bytes));
        assert_eq!(layer.size, bytes.len() as u64);
        let tar = match compression {
            Compression::Zstd => zstd::decode_all(bytes.as_slice()).unwrap(),
            Compression::Gzip => {
                let mut tar = Vec::new();
                io::Read::read_to_end(&mut flate2::read::GzDecoder::new(bytes.as_slice()), &mut tar).unwrap();
                tar
            }
            Compression::None => bytes,
        };
        assert_eq!(layer.diff_id, hearth_oci::sha256(&tar));
        assert_eq!(layer.uncompressed_size, tar.len() as u64);
        tars.push(tar);
    }
    assert!(tars[0] == tars[1] && tars[1] == tars[2]);
}

#[test]
fn the_number_of_workers_does_not_show_in_a_layer_of_many_blocks() {
    // The content is larger than one block of a zstd worker and not uniform.
    let content: Vec<u8> =
        (0..20_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 & 0x1f).collect();
    let (_dir, tree) = tree(|dir| fs::write(dir.join("f"), &content).unwrap());
    let digest = |workers| {
        layer(&tree, &LayerOptions { workers: Some(workers), ..Default::default() }).unwrap().0.digest
    };
    let one = digest(1);
    assert_eq!([digest(0), digest(2), digest(3), digest(7)], [one; 4]);
}

/// Pins the bytes: every machine and version must make the same layer of the same tree. If they have to change,
/// `LAYER_FORMAT` of the cache must change, too.
#[test]
fn a_small_tree_is_the_layer_that_it_always_was() {
    let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let at = |name: &str| dir.path().join(name);
    let mode = |name: &str, mode| fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
    fs::create_dir_all(at("dir/empty")).unwrap();
    let large: Vec<u8> =
        (0..2_500_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8 & 0x3f).collect();
    let files: [(&str, &[u8], u32); 6] = [
        ("a", b"text\n", 0o644),
        ("dir/run", b"#!/bin/sh\n", 0o755),
        ("dir/setuid", &[b'x'; 513], 0o4750),
        ("dir/none", b"", 0o600),
        (&"n".repeat(150), b"long", 0o644),
        ("large", &large, 0o444),
    ];
    for (name, content, bits) in files {
        fs::write(at(name), content).unwrap();
        mode(name, bits);
    }
    fs::hard_link(at("a"), at("dir/same")).unwrap();
    std::os::unix::fs::symlink("../a", at("dir/link")).unwrap();
    xattr::set(at("a"), "user.note", b"a=1\n").unwrap();
    mode("dir/empty", 0o1777);
    mode("dir", 0o755);
    let tree = walk(dir.path(), &WalkOptions::default()).unwrap();
    let digests = [
        (Compression::Zstd, "19ae1548d2b3b864f73a82d8d63afaaaab8ba8dfe6d28b7df8eead3b1383034d"),
        (Compression::Gzip, "037b9022681546d998deb94e7b7d29d42c52b80df5cb51dd26fcfc00b8bef651"),
        (Compression::None, "b85daa11e98c61d48f5fadc10d02ab0c20ba461c908d56912df28a14b119b7fc"),
    ];
    for (compression, digest) in digests {
        let (layer, _) = layer(&tree, &LayerOptions { compression, ..Default::default() }).unwrap();
        assert_eq!(layer.digest.hex().to_string(), digest, "{}", compression.name());
        assert_eq!(layer.diff_id.hex().to_string(), digests[2].1);
    }
}

#[test]
fn a_file_that_changes_after_the_walk_is_named() {
    let grown = tree(|dir| fs::write(dir.join("log"), "a").unwrap());
    fs::write(grown.0.path().join("log"), "more").unwrap();
    let error = layer(&grown.1, &LayerOptions::default()).unwrap_err();
    assert!(
        matches!(&error, LayerError::Content(ContentError::Changed { path, .. }) if path == "log"),
        "{error}"
    );

    let replaced = tree(|dir| fs::write(dir.join("f"), "a").unwrap());
    fs::write(replaced.0.path().join("new"), "b").unwrap();
    fs::rename(replaced.0.path().join("new"), replaced.0.path().join("f")).unwrap();
    let error = layer(&replaced.1, &LayerOptions::default()).unwrap_err();
    assert!(matches!(error, LayerError::Content(ContentError::Changed { .. })), "{error}");
}

#[test]
fn a_file_that_changes_while_it_is_read_is_named() {
    let resize = |path: &Path, size| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(size);
    let touch = |path: &Path, _| fs::OpenOptions::new().append(true).open(path)?.write_all(b"");
    let rewrite = |path: &Path, _| {
        let file = fs::OpenOptions::new().write(true).open(path)?;
        std::os::unix::fs::FileExt::write_all_at(&file, b"x", 37 << 20)
    };
    type Change = dyn Fn(&Path, u64) -> io::Result<()>;
    let changes: [(&Change, u64); 3] = [(&resize, 1 << 20), (&resize, 60 << 20), (&rewrite, 0)];
    for (change, size) in changes {
        let (dir, tree) = tree(|dir| fs::write(dir.join("log"), vec![0; 40 << 20]).unwrap());
        let path = dir.path().join("log");
        let mut changed = false;
        // With few threads, at most some frames are read before the first report.
        let options = LayerOptions { workers: Some(1), ..Default::default() };
        let error = write(&tree, &options, &mut io::sink(), &mut |_| {
            if !std::mem::replace(&mut changed, true) {
                change(&path, size).unwrap();
            }
        })
        .unwrap_err();
        assert!(
            matches!(&error, LayerError::Content(ContentError::Changed { path, .. }) if path == "log"),
            "{error}"
        );
    }
    let (dir, tree) = tree(|dir| fs::write(dir.join("log"), vec![0; 40 << 20]).unwrap());
    let path = dir.path().join("log");
    write(&tree, &LayerOptions::default(), &mut io::sink(), &mut |_| touch(&path, 0).unwrap()).unwrap();
}

#[test]
fn what_vanished_or_became_a_link_is_an_error_and_never_left_out() {
    let (dir, vanished) = tree(|dir| fs::write(dir.join("f"), "a").unwrap());
    fs::remove_file(dir.path().join("f")).unwrap();
    let error = layer(&vanished, &LayerOptions::default()).unwrap_err();
    assert!(matches!(&error, LayerError::Content(ContentError::Read { path, .. }) if path == "f"), "{error}");
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("f")).unwrap();
    let error = layer(&vanished, &LayerOptions::default()).unwrap_err();
    assert!(matches!(&error, LayerError::Content(ContentError::Read { path, .. }) if path == "f"), "{error}");

    let (dir, moved) = tree(|dir| {
        fs::create_dir(dir.join("d")).unwrap();
        fs::write(dir.join("d/f"), "a").unwrap();
    });
    fs::rename(dir.path().join("d"), dir.path().join("e")).unwrap();
    std::os::unix::fs::symlink("e", dir.path().join("d")).unwrap();
    let error = layer(&moved, &LayerOptions::default()).unwrap_err();
    assert!(matches!(&error, LayerError::Content(ContentError::Read { path, .. }) if path == "d"), "{error}");
}

#[test]
fn a_full_disk_is_an_error_of_the_layer() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (_dir, tree) = tree(|dir| fs::write(dir.join("f"), "a").unwrap());
    let error = write(&tree, &LayerOptions::default(), &mut Full, &mut |_| {}).unwrap_err();
    assert!(matches!(error, LayerError::Write { .. }), "{error}");
}

#[test]
fn a_size_over_8_gib_and_any_bytes_of_a_name_or_value_are_in_the_header() {
    let size = 9 << 30;
    let path = [b'\n'; 150].to_vec();
    let record = TarHeader {
        path: path.clone(),
        link: b"",
        kind: tar::EntryType::Regular,
        mode: 0o644,
        size,
        mtime: 7,
    };
    let value = b"\n7 a=b\n".to_vec();
    let blocks = header::encode(&record, &[(b"user.x".to_vec(), value.clone())]);
    assert_eq!(blocks.len() % header::TAR_BLOCK, 0);
    let extension = tar::Header::from_byte_slice(&blocks[..512]);
    let length = extension.entry_size().unwrap() as usize;
    let records = pax(&blocks[512..512 + length]).unwrap();
    assert_eq!(
        records,
        [
            (&b"path"[..], path.as_slice()),
            (b"size", size.to_string().as_bytes()),
            (b"SCHILY.xattr.user.x", &value)
        ]
    );
    let main = tar::Header::from_byte_slice(&blocks[blocks.len() - 512..]);
    assert_eq!((main.entry_size().unwrap(), main.mtime().unwrap()), (size, 7));
}

#[test]
fn every_length_of_a_pax_record_counts_itself() {
    for length in 0..1200 {
        let xattr = (b"user.x".to_vec(), vec![b'v'; length]);
        let entry = TarHeader {
            path: b"f".to_vec(),
            link: b"",
            kind: tar::EntryType::Regular,
            mode: 0o644,
            size: 0,
            mtime: 0,
        };
        let blocks = header::encode(&entry, std::slice::from_ref(&xattr));
        let size = tar::Header::from_byte_slice(&blocks[..512]).entry_size().unwrap() as usize;
        assert_eq!(
            pax(&blocks[512..512 + size]).unwrap(),
            [(&b"SCHILY.xattr.user.x"[..], xattr.1.as_slice())]
        );
    }
}

#[test]
fn a_zstd_layer_is_read_from_the_middle_through_its_seek_table() {
    let content: Vec<u8> = (0..5_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 20) as u8).collect();
    let (_dir, tree) = tree(|dir| {
        fs::write(dir.join("a"), &content).unwrap();
        fs::write(dir.join("b"), "small").unwrap();
    });
    let (layer, bytes) = layer(&tree, &LayerOptions::default()).unwrap();
    let tar = zstd::decode_all(bytes.as_slice()).unwrap();
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let end = bytes.len();
    assert_eq!((number(end - 4), bytes[end - 5]), (0x8F92_EAB1, 0));
    let count = number(end - 9);
    let table = end - 9 - 8 * count;
    assert_eq!((number(table - 8), number(table - 4)), (0x184D_2A5E, 8 * count + 9));
    assert!(count >= 5, "{count} frames");
    let (mut from, mut offset) = (0, 0);
    for frame in 0..count {
        let (size, length) = (number(table + 8 * frame), number(table + 8 * frame + 4));
        let part = zstd::bulk::decompress(&bytes[from..from + size], length).unwrap();
        assert!(part == tar[offset..offset + length], "frame {frame}");
        (from, offset) = (from + size, offset + length);
    }
    assert_eq!((from, offset as u64), (table - 8, layer.uncompressed_size));
}

#[test]
fn a_sparse_file_of_many_gibibytes_is_read_through_its_holes() {
    struct Sum(u64);
    impl Write for Sum {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let size = (8 << 30) + 12_345;
    let (_dir, tree) = tree(|dir| {
        let file = fs::File::create(dir.join("disk")).unwrap();
        file.set_len(size).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"end", size - 3).unwrap();
    });
    let mut out = Sum(0);
    let layer = write(&tree, &LayerOptions::default(), &mut out, &mut |_| {}).unwrap();
    // The PAX record for the size, the file in whole blocks, and the end follow each other.
    assert_eq!(layer.uncompressed_size, 3 * 512 + size.next_multiple_of(512) + 1024);
    assert!(out.0 == layer.size && layer.size < 2 << 20, "{} bytes", layer.size);
}
