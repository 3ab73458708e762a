use std::os::unix::fs::{FileExt, PermissionsExt};
use std::time::Duration;

use super::*;
use crate::{PackOptions, PackedImage, pack};

struct Bench {
    work: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { work: tempfile::tempdir().unwrap() };
        fs::create_dir_all(bench.tree().join("sub")).unwrap();
        for number in 0..40u32 {
            fs::write(bench.tree().join(format!("sub/f{number}")), number.to_string().repeat(200)).unwrap();
        }
        // The file is longer than a frame and begins in the middle of one.
        fs::write(bench.tree().join("t-large"), vec![7; 3_000_000]).unwrap();
        std::thread::sleep(Duration::from_millis(60));
        bench
    }

    fn tree(&self) -> PathBuf {
        self.work.path().join("tree")
    }

    fn cache(&self) -> PathBuf {
        self.work.path().join("cache")
    }

    fn options(&self) -> PackOptions {
        PackOptions { cache: Some(self.cache()), ..PackOptions::default() }
    }

    fn pack(&self) -> PackedImage {
        let packed = pack(&self.tree(), &self.options(), &mut |_| {}).unwrap();
        assert_eq!(packed.cache_trouble, None);
        let plain = pack(&self.tree(), &PackOptions::default(), &mut |_| {}).unwrap();
        assert_eq!(packed.digest(), plain.digest(), "the cache never shows in the result");
        assert_eq!(archive(&packed), archive(&plain));
        packed
    }

    fn layers(&self) -> Vec<PathBuf> {
        let mut paths: Vec<_> =
            fs::read_dir(self.cache().join("layers")).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths
    }
}

fn archive(packed: &PackedImage) -> Vec<u8> {
    let mut bytes = Vec::new();
    packed.write_archive(&mut bytes).unwrap();
    bytes
}

fn reused(packed: &PackedImage) -> bool {
    packed.summary.reused_bytes > 0
}

#[test]
fn an_unchanged_tree_is_packed_once_and_a_changed_one_again() {
    let bench = Bench::new();
    assert!(!reused(&bench.pack()));
    assert!(reused(&bench.pack()));
    // The size and the modification time are the same.
    let path = bench.tree().join("sub/f1");
    let time = fs::metadata(&path).unwrap().modified().unwrap();
    fs::write(&path, "2".repeat(200)).unwrap();
    File::open(&path).unwrap().set_modified(time).unwrap();
    assert!(!reused(&bench.pack()));
    // With the old content, the layer is found again once the file is old enough to be trusted.
    fs::write(&path, "1".repeat(200)).unwrap();
    assert!(reused(&bench.pack()));
    assert_eq!(bench.layers().len(), 2);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(!reused(&bench.pack()));
}

#[test]
fn time_and_compression_make_other_layers() {
    let bench = Bench::new();
    bench.pack();
    let mut options = bench.options();
    options.layer.mtime = 5;
    assert!(!reused(&pack(&bench.tree(), &options, &mut |_| {}).unwrap()));
    options.layer.compression = Compression::Gzip;
    assert!(!reused(&pack(&bench.tree(), &options, &mut |_| {}).unwrap()));
    assert!(reused(&pack(&bench.tree(), &options, &mut |_| {}).unwrap()));
    assert_eq!(bench.layers().len(), 3);
}

#[test]
fn the_archive_is_the_same_from_the_cache_and_in_its_own_place() {
    let bench = Bench::new();
    let expected = archive(&pack(&bench.tree(), &PackOptions::default(), &mut |_| {}).unwrap());
    let out = bench.work.path().join("out.tar");
    let mut options = bench.options();
    options.output = Some(out.clone());
    for round in 0..3 {
        let packed = pack(&bench.tree(), &options, &mut |_| {}).unwrap();
        assert_eq!(reused(&packed), round > 0);
        packed.write_to_file(&out).unwrap();
        assert!(fs::read(&out).unwrap() == expected);
        // For another path, or a second time, the archive is a copy.
        packed.write_to_file(&bench.work.path().join("copy.tar")).unwrap();
        packed.write_to_file(&out).unwrap();
        assert!(fs::read(bench.work.path().join("copy.tar")).unwrap() == expected);
        assert!(fs::read(&out).unwrap() == expected);
        assert_eq!(fs::metadata(&out).unwrap().nlink(), 1);
        assert!(archive(&packed) == expected);
    }
}

/// Same as [`Bench::pack`], into a file.
fn pack_into(bench: &Bench, out: &Path) -> PackedImage {
    let options = PackOptions { output: Some(out.to_owned()), ..bench.options() };
    let packed = pack(&bench.tree(), &options, &mut |_| {}).unwrap();
    packed.write_to_file(out).unwrap();
    assert_eq!(packed.cache_trouble, None);
    packed
}

#[test]
fn an_archive_is_kept_by_another_name_which_outlives_it() {
    let bench = Bench::new();
    let out = bench.work.path().join("out.tar");
    let packed = pack_into(&bench, &out);
    assert!(!reused(&packed));
    let expected = archive(&packed);
    drop(packed);
    assert_eq!(fs::metadata(&out).unwrap().nlink(), 2);
    let [footer, kept] = &bench.layers()[..] else { panic!("{:?}", bench.layers()) };
    assert!(fs::metadata(footer).unwrap().len() < 1000);
    assert_eq!(fs::metadata(kept).unwrap().ino(), fs::metadata(&out).unwrap().ino());
    fs::remove_file(&out).unwrap();
    let again = pack_into(&bench, &out);
    assert!(reused(&again) && fs::read(&out).unwrap() == expected);
    let plain = bench.pack();
    assert!(reused(&plain) && archive(&plain) == expected);
    fs::remove_file(kept).unwrap();
    assert!(!reused(&pack_into(&bench, &out)));
}

#[test]
fn an_archive_that_was_written_into_is_not_packed_from() {
    let bench = Bench::new();
    let out = bench.work.path().join("out.tar");
    let expected = archive(&pack_into(&bench, &out));
    // The damage is inside the layer, which starts like every zstd frame.
    let start = expected.windows(4).position(|bytes| bytes == [0x28, 0xb5, 0x2f, 0xfd]).unwrap();
    let middle = start as u64 + 20;
    let damages: [&dyn Fn(&File); 2] =
        [&|file| file.write_all_at(b"X", middle).unwrap(), &|file| file.set_len(middle).unwrap()];
    for damage in damages {
        damage(&File::options().write(true).open(&out).unwrap());
        assert!(!reused(&pack_into(&bench, &out)));
        assert!(fs::read(&out).unwrap() == expected);
    }
    assert!(reused(&pack_into(&bench, &out)));
}

#[test]
fn an_archive_that_is_mostly_its_base_is_not_kept_with_it() {
    let bench = Bench::new();
    let below = tempfile::tempdir().unwrap();
    let noise: Vec<u8> =
        (0..200_000u32).flat_map(|number| *blake3::hash(&number.to_le_bytes()).as_bytes()).collect();
    fs::write(below.path().join("noise"), &noise).unwrap();
    let base = bench.work.path().join("base.tar");
    pack(below.path(), &PackOptions::default(), &mut |_| {}).unwrap().write_to_file(&base).unwrap();
    let out = bench.work.path().join("out.tar");
    let base = crate::BaseImage::from_archive(&base, &hearth_oci::DeclaredPlatform::default(), None).unwrap();
    let options = PackOptions { output: Some(out.clone()), base: Some(base), ..bench.options() };
    for again in [false, true] {
        let packed = pack(&bench.tree(), &options, &mut |_| {}).unwrap();
        packed.write_to_file(&out).unwrap();
        assert_eq!(reused(&packed), again);
        let kept = fs::metadata(&bench.layers()[0]).unwrap().len();
        assert!(bench.layers().len() == 1 && kept < noise.len() as u64, "{kept}");
    }
    assert_eq!(fs::metadata(&out).unwrap().nlink(), 1);
}

#[test]
fn packs_into_files_at_the_same_time_do_no_harm() {
    let bench = Bench::new();
    let expected = archive(&pack(&bench.tree(), &PackOptions::default(), &mut |_| {}).unwrap());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (bench, expected) = (&bench, &expected);
            scope.spawn(move || {
                for round in 0..4 {
                    let out = bench.work.path().join(format!("out-{}", (thread + round) % 3));
                    pack_into(bench, &out);
                    assert!(fs::read(&out).unwrap() == *expected);
                }
            });
        }
    });
    assert_eq!(bench.layers().len(), 2, "{:?}", bench.layers());
}

#[test]
fn a_damaged_layer_is_made_again() {
    let bench = Bench::new();
    bench.pack();
    let path = bench.layers().remove(0);
    let length = fs::metadata(&path).unwrap().len();
    let damages: [&dyn Fn(&File); 5] = [
        &|file| file.write_all_at(b"X", 20).unwrap(),
        &|file| file.write_all_at(b"X", length - 3).unwrap(),
        &|file| file.write_all_at(b"X", length - 120).unwrap(),
        &|file| file.set_len(length - 1).unwrap(),
        &|file| file.set_len(0).unwrap(),
    ];
    for damage in damages {
        assert!(reused(&bench.pack()));
        damage(&File::options().write(true).open(&path).unwrap());
        assert!(!reused(&bench.pack()));
    }
    // A layer that is stored under another key is not used.
    let mut options = bench.options();
    options.layer.mtime = 9;
    pack(&bench.tree(), &options, &mut |_| {}).unwrap();
    let other = bench.layers().into_iter().find(|other| *other != path).unwrap();
    fs::copy(&other, &path).unwrap();
    assert!(!reused(&bench.pack()));
}

#[test]
fn damaged_hashes_are_made_again() {
    let bench = Bench::new();
    bench.pack();
    let hashes = fs::read_dir(bench.cache().join("hashes")).unwrap().next().unwrap().unwrap().path();
    fs::write(&hashes, "nonsense").unwrap();
    // There are no cached hashes of the files, so they are read as for a first pack.
    assert!(!reused(&bench.pack()));
    assert!(reused(&bench.pack()));
}

#[test]
fn packs_at_the_same_time_do_no_harm() {
    let bench = Bench::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..4).for_each(|_| drop(bench.pack())));
        }
    });
    assert!(reused(&bench.pack()));
    assert_eq!(bench.layers().len(), 1);
}

#[test]
fn what_was_used_least_recently_goes_first() {
    let dir = tempfile::tempdir().unwrap();
    for (name, age) in [("old", 30), ("used", 10), ("new", 20)] {
        let file = File::create(dir.path().join(name)).unwrap();
        file.set_len(100).unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).unwrap();
    }
    evict(dir.path(), 250).unwrap();
    assert!(!dir.path().join("old").exists() && dir.path().join("new").exists());
    evict(dir.path(), 100).unwrap();
    assert!(dir.path().join("used").exists() && !dir.path().join("new").exists());
    // An archive is counted and removed together with its footer; a file that is being written belongs to its writer.
    for name in ["used.archive", ".hearth-new-x"] {
        File::create(dir.path().join(name)).unwrap().set_len(100).unwrap();
    }
    evict(dir.path(), 200).unwrap();
    assert!(dir.path().join("used").exists() && dir.path().join("used.archive").exists());
    evict(dir.path(), 150).unwrap();
    assert!(!dir.path().join("used").exists() && !dir.path().join("used.archive").exists());
    assert!(dir.path().join(".hearth-new-x").exists());
}

#[test]
fn a_cache_that_others_can_write_is_not_used_and_the_pack_goes_on() {
    let bench = Bench::new();
    fs::create_dir(bench.cache()).unwrap();
    fs::set_permissions(bench.cache(), fs::Permissions::from_mode(0o777)).unwrap();
    let packed = pack(&bench.tree(), &bench.options(), &mut |_| {}).unwrap();
    assert!(packed.cache_trouble.unwrap().contains("another user"));
    let mut options = bench.options();
    options.cache = Some(bench.tree().join("sub/f1"));
    assert!(pack(&bench.tree(), &options, &mut |_| {}).unwrap().cache_trouble.is_some());
}
