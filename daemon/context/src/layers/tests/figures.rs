//! Benchmarks of indexing and reading. Run by hand:
//! `cargo test -p hearthd --lib layers::tests::figures -- --ignored --nocapture --test-threads 1`

use std::time::Instant;

use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};

use super::*;

/// Wall-clock seconds, and CPU seconds of all cores.
fn timed<T>(work: impl FnOnce() -> T) -> (T, String) {
    let cpu = || {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<i64> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split(' ')
            .filter_map(|field| field.parse::<i64>().ok())
            .collect();
        (fields[10] + fields[11]) as f64 / 100.0
    };
    let (started, used) = (Instant::now(), cpu());
    let result = work();
    (result, format!("{:.2} s ({:.2} s of cores)", started.elapsed().as_secs_f64(), cpu() - used))
}

fn resident() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Creates a tar of 1 GiB in 5,000 files, whose content compresses about as well as program text.
fn gibibyte() -> Vec<u8> {
    let mut random = StdRng::seed_from_u64(1);
    let words: Vec<u8> = (0..2_000_000)
        .flat_map(|_| {
            let word = random.next_u32();
            format!("{:x} ", word >> (word & 15)).into_bytes()
        })
        .collect();
    let mut tar = Tar(Vec::with_capacity((1 << 30) + (8 << 20)));
    for number in 0..5000usize {
        let start = number * 7919 % (words.len() - 450_000);
        let length = 1000 + number * 104_729 % 430_000;
        let header =
            Tar::header(EntryType::Regular, format!("d{}/f{number}", number / 100).as_bytes(), length as u64);
        tar = tar.raw(&header, &words[start..start + length]);
    }
    tar.end()
}

#[test]
#[ignore = "prints figures, and takes minutes"]
fn a_gibibyte_is_indexed_and_read() {
    let tar = gibibyte();
    let diff_id = digest(&tar);
    let frames: Vec<u8> =
        tar.chunks(1 << 20).flat_map(|piece| zstd::bulk::compress(piece, 3).unwrap()).collect();
    let one = zstd::stream::encode_all(&tar[..], 3).unwrap();
    let zipped = gzip(&tar);
    let length = tar.len();
    drop(tar);
    println!("tar of {} MiB", length >> 20);
    for (way, stored) in [("zstd, 1 MiB frames", frames), ("zstd, one frame", one), ("gzip", zipped)] {
        let (directory, cache) = cache(LayerLimits::default());
        let layer = || LayerBlob { diff_id, ..blob(&stored, b"") };
        let (one, another) = (layer(), layer());
        let (image, made) = timed(|| cache.image_tree(vec![one]).unwrap());
        let first = image.lookup(0, b"d0/f1").unwrap();
        let middle = image.lookup(0, b"d25/f2510").unwrap();
        let mut bytes = [0; 4096];
        let (_, first) = timed(|| image.read_at(first, &mut bytes, 0).unwrap());
        let (_, random) = timed(|| image.read_at(middle, &mut bytes, 0).unwrap());
        drop(image);
        let (image, again) = timed(|| cache.image_tree(vec![another]).unwrap());
        let (total, all) = timed(|| {
            let mut total = 0;
            for number in 0..5000 {
                let node = image.lookup(0, format!("d{}/f{number}", number / 100).as_bytes()).unwrap();
                total += std::io::copy(&mut image.open(node).unwrap(), &mut std::io::sink()).unwrap();
            }
            total
        });
        let index = fs::read_dir(directory.path().join("layers")).unwrap().next().unwrap().unwrap();
        println!(
            "{way}: blob {} MiB, index {} KiB\n  index made {made}, opened again {again}\n  first read {first}, one in the middle {random}, all {} MiB in order {all}",
            stored.len() >> 20,
            index.metadata().unwrap().len() >> 10,
            total >> 20,
        );
    }
}

#[test]
#[ignore = "prints figures, and takes a minute"]
fn a_million_entries_are_indexed_and_merged() {
    let mut stored = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    let mut sum = Sha256::new();
    for number in 0..990_000u32 {
        let name = format!("directory-{}/some/file-{number}", number / 1000);
        let entry = Tar::default().raw(&Tar::header(EntryType::Regular, name.as_bytes(), 0), b"").0;
        sum.update(&entry);
        stored.write_all(&entry).unwrap();
    }
    let stored = stored.finish().unwrap();
    let layer =
        || LayerBlob { diff_id: Digest::from_sha256(sum.clone().finalize().into()), ..blob(&stored, b"") };
    let (directory, cache) = cache(LayerLimits::default());
    let (one, another) = (layer(), layer());
    let before = resident();
    let (image, made) = timed(|| cache.image_tree(vec![one]).unwrap());
    let memory = resident() - before;
    drop(image);
    let (image, again) = timed(|| cache.image_tree(vec![another]).unwrap());
    assert!(image.lookup(0, b"directory-989/some/file-989999").is_some());
    let index = fs::read_dir(directory.path().join("layers")).unwrap().next().unwrap().unwrap();
    println!(
        "990,000 files: made {made}, opened again {again}, {memory} MiB more in memory, index of {} MiB",
        index.metadata().unwrap().len() >> 20
    );
}
