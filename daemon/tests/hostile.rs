//! Bodies of the fuzz targets on stable Rust: every seed, changed seeds, random bytes. See integration-tests/fuzz.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(clippy::print_stderr, reason = "a long run says where it keeps what fails")]

use std::fs;
use std::panic::{catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

#[path = "../../integration-tests/fuzz/bodies.rs"]
mod bodies;

/// Default number of cases of each kind; a few seconds in all.
const CASES: u32 = 150;
/// Time limit for a few KiB in a debug build on a machine that is busy with other tests.
const LIMIT: Duration = Duration::from_secs(10);

fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../integration-tests/fuzz/seeds").join(target);
    let mut paths: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() > 10, "seeds of {target}");
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// Change of a seed: position, kind, amount.
#[derive(Clone, Debug)]
enum Edit {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, u8),
    Repeat(Index, u16, u8),
    Cut(Index),
    /// Start of one seed and end of another.
    Join(Index),
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    prop_oneof![
        3 => (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        2 => (at(), prop::collection::vec(any::<u8>(), 1..12)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        1 => (at(), any::<u8>()).prop_map(|(at, count)| Edit::Remove(at, count)),
        1 => (at(), 1u16..700, 1u8..20).prop_map(|(at, length, times)| Edit::Repeat(at, length, times)),
        1 => at().prop_map(Edit::Cut),
        1 => at().prop_map(Edit::Join),
    ]
}

fn changed(seeds: &[Vec<u8>], which: &Index, edits: &[Edit]) -> Vec<u8> {
    let mut bytes = which.get(seeds).clone();
    for edit in edits {
        if bytes.is_empty() {
            bytes.push(b'\n');
        }
        let length = bytes.len();
        match edit {
            Edit::Set(at, byte) => bytes[at.index(length)] = *byte,
            Edit::Insert(at, more) => {
                drop(bytes.splice(at.index(length)..at.index(length), more.iter().copied()));
            }
            Edit::Remove(at, count) => {
                let from = at.index(length);
                bytes.drain(from..(from + usize::from(*count)).min(length));
            }
            Edit::Repeat(at, part, times) => {
                let from = at.index(length);
                let part = bytes[from..(from + usize::from(*part)).min(length)].repeat(usize::from(*times));
                bytes.splice(from..from, part);
            }
            Edit::Cut(at) => bytes.truncate(at.index(length)),
            Edit::Join(at) => {
                let other = at.get(seeds);
                bytes.truncate(length / 2);
                bytes.extend_from_slice(&other[other.len() / 2..]);
            }
        }
    }
    bytes.truncate(200_000);
    bytes
}

/// Recomputes the checksum of every header of a tar; otherwise a change is rejected before it is parsed.
fn resealed(mut bytes: Vec<u8>) -> Vec<u8> {
    for block in bytes.chunks_exact_mut(512).filter(|block| block[257..].starts_with(b"ustar")) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

/// Directory in which `make fuzz` keeps failing inputs.
fn artifacts() -> Option<PathBuf> {
    std::env::var_os("HEARTH_FUZZ_ARTIFACTS").map(PathBuf::from)
}

/// Writes a failing input to a file. The smallest input of one failure is written last, and stays.
fn keep(directory: &Path, target: &str, bytes: &[u8]) {
    let directory = directory.join(target);
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join(format!("stable-{}", std::process::id()));
    fs::write(&path, bytes).unwrap();
    eprintln!("{target}: {} bytes fail, kept as {}", bytes.len(), path.display());
}

fn run(target: &str, body: fn(&[u8]), prepare: fn(Vec<u8>) -> Vec<u8>) {
    let begun = Instant::now();
    let timed = |bytes: &[u8]| {
        let start = Instant::now();
        let outcome = catch_unwind(|| {
            body(bytes);
            assert!(start.elapsed() < LIMIT, "{target}: {} bytes took {:?}", bytes.len(), start.elapsed());
        });
        if let Err(panic) = outcome {
            artifacts().iter().for_each(|directory| keep(directory, target, bytes));
            resume_unwind(panic);
        }
    };
    let seeds = seeds(target);
    seeds.iter().for_each(|seed| timed(seed));
    // Runs once, or for as long as `make fuzz` gives this target.
    let lasts = std::env::var("HEARTH_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    let lasts = Duration::from_secs(lasts.unwrap_or_default());
    let mut rounds = 0;
    while rounds == 0 || begun.elapsed() < lasts {
        round(&seeds, &timed, prepare);
        rounds += 1;
    }
    if rounds > 1 {
        eprintln!("{target}: {rounds} rounds in {:?}", begun.elapsed());
    }
}

fn round(seeds: &[Vec<u8>], timed: &impl Fn(&[u8]), prepare: fn(Vec<u8>) -> Vec<u8>) {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(CASES);
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let from_seed = (any::<Index>(), prop::collection::vec(edit(), 1..6));
    TestRunner::new(config.clone())
        .run(&from_seed, |(which, edits)| {
            timed(&prepare(changed(seeds, &which, &edits)));
            Ok(())
        })
        .unwrap();
    let random = prop::collection::vec(any::<u8>(), 0..2000);
    TestRunner::new(config)
        .run(&random, |bytes| {
            timed(&bytes);
            Ok(())
        })
        .unwrap();
}

#[test]
fn ignore_files_never_panic_and_end_soon() {
    run("ignore", bodies::ignore, |bytes| bytes);
}

#[test]
fn mounts_that_are_taken_stay_below_their_root() {
    run("mount", bodies::mount, |bytes| bytes);
}

#[test]
fn references_that_are_taken_are_written_as_they_are_read() {
    run("reference", bodies::reference, |bytes| bytes);
}

#[test]
fn json_of_images_is_read_or_refused() {
    run("image_json", bodies::image_json, |bytes| bytes);
}

#[test]
fn archives_are_read_within_their_bytes() {
    run("archive", bodies::archive, resealed);
}

#[test]
fn layers_have_plain_names_and_files_of_their_size() {
    run("layer", bodies::layer, resealed);
}
