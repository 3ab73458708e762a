//! Finds the binaries under test (`hearthd`, `hearth`) beside this test's own executable, and builds them first when
//! they are missing or older than their sources, so that `cargo test` alone is enough.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

use crate::process;
use crate::wait::seconds;

pub struct Binaries {
    pub hearthd: PathBuf,
    pub hearth: PathBuf,
    /// The directory that cargo writes to, such as `target`.
    pub target: PathBuf,
}

pub fn binaries() -> &'static Binaries {
    static FOUND: OnceLock<Binaries> = OnceLock::new();
    FOUND.get_or_init(find)
}

/// The top of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("integration-tests lies in the repository")
}

fn find() -> Binaries {
    let own = std::env::current_exe().expect("own executable");
    // target/debug/deps/e2e-HASH or target/debug/bench
    let mut directory = own.parent().expect("a directory");
    if directory.ends_with("deps") {
        directory = directory.parent().expect("a profile's directory");
    }
    let found = Binaries {
        hearthd: directory.join("hearthd"),
        hearth: directory.join("hearth"),
        target: directory.parent().expect("a target directory").to_owned(),
    };
    let sources = newest(
        &["proto", "daemon", "client", "Cargo.toml", "Cargo.lock"].map(|path| repository().join(path)),
    );
    let built =
        [&found.hearthd, &found.hearth].map(|path| fs::metadata(path).and_then(|meta| meta.modified()).ok());
    if built.iter().any(|time| time.is_none_or(|time| time < sources)) {
        build(directory, &found.target);
    }
    found
}

fn newest(paths: &[PathBuf]) -> SystemTime {
    let mut time = SystemTime::UNIX_EPOCH;
    let mut pending = paths.to_vec();
    while let Some(path) = pending.pop() {
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() {
            // Tests beside the code are not part of the binaries.
            if !path.ends_with("tests") {
                pending.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
            }
        } else if let Ok(modified) = meta.modified() {
            time = time.max(modified);
        }
    }
    time
}

fn build(profile: &Path, target: &Path) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--locked", "--bins", "-p", "hearthd", "-p", "hearth"]);
    command.arg("--target-dir").arg(target).current_dir(repository());
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let output = process::run(&mut command, seconds(900));
    assert_eq!(output.code, 0, "cargo build failed\n{output}");
}
