//! Source trees of the benchmarks: the sources of Go modules, which every machine can get in the same form.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::binaries::repository;
use integration_tests::process;
use integration_tests::wait::seconds;

pub struct SourceTree {
    pub name: &'static str,
    pub path: PathBuf,
    pub files: u64,
    pub bytes: u64,
}

impl SourceTree {
    /// Returns the size as text, such as "58,012 files / 611 MB".
    pub fn shown(&self) -> String {
        let thousands = format!("{},{:03}", self.files / 1000, self.files % 1000);
        format!("{thousands} files / {} MB", self.bytes / 1_000_000)
    }
}

/// Makes a tree with as many files as a large project has.
pub fn small(work: &Path) -> SourceTree {
    // Excludes the few modules that are hundreds of megabytes of generated code.
    make(work, "small", 7_500, 20_000_000)
}

/// Makes a tree with as many files as a monorepository has.
pub fn large(work: &Path) -> SourceTree {
    make(work, "large", 58_000, 120_000_000)
}

/// Copies BuildKit's own source and that of its modules, in the order of `go list`, round after round until there are
/// enough files. From the second round on, each file gets an additional line of its own, so that no two are equal.
fn make(work: &Path, name: &'static str, files: u64, largest_module: u64) -> SourceTree {
    let module = repository().join("deploy/buildkit");
    let go = |arguments: &[&str]| {
        let mut go = Command::new("go");
        let output = process::run(go.args(arguments).current_dir(&module), seconds(300));
        output.expect_code(0);
        output
    };
    go(&["mod", "download"]);
    let path = work.join(name);
    fs::create_dir_all(path.join("modules")).expect("directory");
    let root = go(&["list", "-m", "-f", "{{.Dir}}", "github.com/moby/buildkit"]);
    let modules = go(&["list", "-m", "-f", "{{.Dir}}", "all"]);
    let others = modules.stdout.lines().filter(|dir| *dir != root.line() && Path::new(dir).is_dir());
    let wanted: Vec<(&str, u64)> = std::iter::once(root.line())
        .chain(others.filter(|directory| !directory.is_empty()))
        .map(|directory| (directory, count(Path::new(directory))))
        .filter(|(_, (_, bytes))| *bytes < largest_module)
        .map(|(directory, (files, _))| (directory, files))
        .collect();
    assert!(!wanted.is_empty(), "no module in the cache of {}", module.display());
    let mut copied = 0;
    for round in 0.. {
        for (number, (directory, files_in_it)) in wanted.iter().enumerate() {
            if copied >= files {
                break;
            }
            let to = path.join(format!("modules/{round}-{number}"));
            copy(Path::new(directory), &to);
            if round > 0 {
                append_to_all(&to, format!("// copy {round}\n").as_bytes());
            }
            copied += files_in_it;
        }
        if copied >= files {
            break;
        }
    }
    // The small part that a `COPY` reads. The benchmarks remove an ignore file of a module, because it would hide files
    // from one side only.
    fs::create_dir(path.join("part")).expect("directory");
    (0..20).for_each(|n| fs::write(path.join(format!("part/{n}.txt")), format!("{n}\n")).expect("file"));
    let (files, bytes) = count(&path);
    SourceTree { name, path, files, bytes }
}

/// Copies a tree so that it can be written to, and waits until it is on the disk: writing back dirty pages would slow
/// the next measurement.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().expect("a parent")).expect("directory");
    let mut cp = Command::new("cp");
    process::run(cp.args(["-r", "--no-preserve=mode"]).arg(from).arg(to), seconds(300)).expect_code(0);
}

fn append_to_all(directory: &Path, line: &[u8]) {
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(path).expect("list").flatten() {
            let kind = entry.file_type().expect("kind");
            if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file() {
                let mut file = File::options().append(true).open(entry.path()).expect("file");
                file.write_all(line).expect("append");
            }
        }
    }
}

/// Returns the number of files below a directory, and their bytes.
pub fn count(directory: &Path) -> (u64, u64) {
    let (mut files, mut bytes) = (0, 0);
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(path).expect("list").flatten() {
            let meta = entry.metadata().expect("stat");
            if meta.is_dir() {
                pending.push(entry.path());
            } else {
                files += 1;
                bytes += meta.len();
            }
        }
    }
    (files, bytes)
}
