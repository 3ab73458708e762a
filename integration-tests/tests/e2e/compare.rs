//! Builds the same context with `buildctl` and through each source of hearth, on one buildkitd: the file systems of the
//! images are equal, entry by entry.
//!
//! ```text
//! tree in room storage --+-- buildctl, its own file sync --> OCI archive ------.
//!                        +-- --mount-room-path, --mount-project-path ------.   +--> FileSystem --> differences
//!                        +-- --pack -----------------------------------.   +---'
//!                        '-- pack, then --mount-image ------------------+--'   (blobs of the room's registry)
//! ```
//!
//! Compared: the config of the image with its history, except for times; and of each entry path, kind, mode, owner,
//! size, content, link target, hard-link groups, extended attributes, time. Times of files from a mount are compared
//! as they are. In a pack every time is 0 by contract, so there an entry of the context must have 0. An entry that
//! the build itself creates has the time of the build, which differs between builds: all times after the start of the
//! case count as equal. The trees are older than that.
//!
//! No COPY or ADD comes from the cache (`--no-cache`, and the test checks that): cache entries are keyed by content,
//! and would return one side's result to the other.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use integration_tests::buildctl::Buildctl;
use integration_tests::daemon::{BASE, Daemon, Options, scratch};
use integration_tests::filesystem::FileSystem;
use integration_tests::process::{self, Output};
use integration_tests::runner::Group;
use integration_tests::shared_cases;
use integration_tests::wait::seconds;
use parking_lot::Mutex;

#[path = "compare/context.rs"]
mod context;
#[path = "compare/ignore.rs"]
mod ignore;
#[path = "compare/instructions.rs"]
mod instructions;
#[path = "compare/layouts.rs"]
mod layouts;
#[path = "compare/trees.rs"]
mod trees;

use context::{Context, Packs};

const ROOM: &str = "compare";

pub fn group() -> Group {
    // One directory serves as both storages, so that each tree is written once.
    let storage = scratch().join(ROOM).join("state/storage/room");
    let cases = shared_cases![
        trees_are_equal,
        links_are_equal,
        names_are_equal,
        ignored_files_are_equal,
        instructions_are_equal,
        layouts_are_equal,
        a_second_transfer_gives_the_same_as_a_first,
        forty_contexts_are_compared,
    ];
    let storage = storage.to_str().expect("UTF-8");
    Group::new(ROOM, cases).options(Options::room(ROOM).arguments(&["--project-storage", storage]))
}

fn trees_are_equal(daemon: &Daemon) {
    compare_all(daemon, &trees::plain());
}

fn links_are_equal(daemon: &Daemon) {
    compare_all(daemon, &trees::links());
}

fn names_are_equal(daemon: &Daemon) {
    compare_all(daemon, &trees::names());
}

fn ignored_files_are_equal(daemon: &Daemon) {
    compare_all(daemon, &ignore::contexts());
}

fn instructions_are_equal(daemon: &Daemon) {
    compare_all(daemon, &instructions::contexts());
}

fn layouts_are_equal(daemon: &Daemon) {
    compare_all(daemon, &layouts::contexts());
}

/// The second transfer of a context updates BuildKit's copy of it instead of filling an empty directory.
fn a_second_transfer_gives_the_same_as_a_first(daemon: &Daemon) {
    let mut differences = Vec::new();
    let _alone = FIRST_TRANSFERS.lock();
    for context in trees::twice() {
        let comparison = Comparison::new(daemon, &context);
        context.write(&daemon.room_files());
        comparison.build(Source::Room).expect_code(0);
        // The second transfer needs something to update.
        fs::write(daemon.room_files().join(context.name).join("added"), "added").unwrap();
        let files = comparison.files(&comparison.build(Source::Room));
        let expected = comparison.buildctl().expect("buildctl builds it");
        // BuildKit sets a time of its own on a directory in which it changed something.
        let no_times = |_| 0;
        differences.extend(expected.differences(&files, no_times, ("a first transfer", "a second one")));
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

fn forty_contexts_are_compared(_: &Daemon) {
    let all = [trees::plain(), trees::links(), trees::names(), ignore::contexts(), instructions::contexts()];
    let mut names: Vec<&str> =
        all.iter().flatten().chain(&layouts::contexts()).map(|context| context.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count, "names are distinct, as they are directories and tags");
    assert!(count >= 40, "{count}");
}

/// Held while buildctl prunes BuildKit's contexts and builds: the next transfer would start from the result of another
/// one in between.
static FIRST_TRANSFERS: Mutex<()> = Mutex::new(());

/// Number of comparisons of a context of which buildctl may not have made a first transfer.
const ATTEMPTS: usize = 3;

/// Source through which hearth gets a context.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Source {
    Room,
    Project,
    Pack,
    Image,
}

fn compare_all(daemon: &Daemon, contexts: &[Context]) {
    if contexts.iter().any(|context| context.dockerfile.contains(BASE)) {
        daemon.base_image();
    }
    let (next, differences) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(context) = contexts.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let comparison = Comparison::new(daemon, context);
                    // The message of a panic in an unnamed thread would be lost.
                    let lines = catch_unwind(AssertUnwindSafe(|| comparison.run()));
                    let lines = lines.unwrap_or_else(|panic| {
                        let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                        vec![format!("{}: {text}", context.name)]
                    });
                    differences.lock().extend(lines);
                }
            });
        }
    });
    let differences = differences.into_inner();
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
}

struct Comparison<'a> {
    daemon: &'a Daemon,
    context: &'a Context,
    /// Start of the case in seconds since the epoch: entries that a build created are not older.
    began: i64,
}

impl<'a> Comparison<'a> {
    fn new(daemon: &'a Daemon, context: &'a Context) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        Self { daemon, context, began: i64::try_from(now).unwrap() - 1 }
    }

    /// Returns every difference, one line each.
    ///
    /// BuildKit may still hold the context of an earlier build when it is told to prune it. The transfer of buildctl
    /// then updates that copy, and leaves BuildKit's own time on directories. Such a comparison is made again.
    fn run(&self) -> Vec<String> {
        self.context.write(&self.daemon.room_files());
        let is_second_transfer = |line: &String| {
            let buildctl = line.split_once("buildctl has ").and_then(|(_, rest)| rest.split_once("; hearth"));
            buildctl.is_some_and(|(files, _)| files.contains(&format!("time {}", i64::MAX)))
        };
        for _ in 1..ATTEMPTS {
            let lines = self.run_once();
            if lines.is_empty() || !lines.iter().all(is_second_transfer) {
                return lines;
            }
        }
        self.run_once()
    }

    fn run_once(&self) -> Vec<String> {
        let expected = {
            let _alone = FIRST_TRANSFERS.lock();
            self.buildctl()
        };
        if expected.is_err() != self.context.refused {
            return vec![format!(
                "{}: buildctl does not do what is expected: {expected:?}",
                self.context.name
            )];
        }
        let mut lines = Vec::new();
        for source in [Source::Room, Source::Project, Source::Pack, Source::Image] {
            let applies = match self.context.packs {
                Packs::All => true,
                Packs::SentOnly => source != Source::Image,
                Packs::None => !matches!(source, Source::Pack | Source::Image),
            };
            if applies {
                lines.extend(self.against(source, &expected));
            }
        }
        lines
    }

    /// Builds the context with buildctl; returns its error text when it refuses.
    fn buildctl(&self) -> Result<FileSystem, String> {
        let (context, dockerfile) = self.context.for_buildctl(&self.daemon.room_files());
        let archive = self.daemon.directory().join(format!("{}.oci.tar", self.context.name));
        let output = format!("type=oci,dest={},compression=uncompressed", archive.display());
        let mut options = self.context.buildctl_options();
        options.push(format!("context:{BASE}=docker-image://{}/busybox:test", self.daemon.listen()));
        let buildctl = Buildctl::of(self.daemon);
        buildctl.forget_contexts();
        let result = buildctl.build(&context, &dockerfile, &options, &output);
        if result.code != 0 {
            return Err(result.stderr);
        }
        let files = FileSystem::of_archive(&archive);
        fs::remove_file(&archive).unwrap();
        Ok(files)
    }

    fn against(&self, source: Source, expected: &Result<FileSystem, String>) -> Vec<String> {
        let name = self.context.name;
        let output = self.build(source);
        let at = |line: String| format!("{name} through {source:?}: {line}");
        match (expected, output.code) {
            (Err(_), 0) => vec![at("hearth builds what buildctl refuses".to_owned())],
            (Err(_), _) => Vec::new(),
            (Ok(_), code) if code != 0 => vec![at(format!("buildctl builds it, hearth does not\n{output}"))],
            (Ok(expected), _) => {
                let files = self.files(&output);
                let lines = expected.differences(&files, self.time(source), ("buildctl", "hearth"));
                lines.into_iter().chain(self.wrong_pack_times(source, &files)).map(at).collect()
            }
        }
    }

    fn build(&self, source: Source) -> Output {
        process::run(self.daemon.client().args(self.arguments(source)), seconds(120))
    }

    /// Returns the files of the image that hearth built.
    fn files(&self, output: &Output) -> FileSystem {
        let result = output.expect_code(0).json();
        // "#7 [stage-0 2/2] COPY a b" names a step, "#7 CACHED" reports that it did not run.
        let copies = output.stderr.lines().filter(|line| line.contains("] COPY ") || line.contains("] ADD "));
        for number in copies.filter_map(|line| line.split(' ').next()) {
            let cached = output.stderr.lines().any(|line| line == format!("{number} CACHED"));
            assert!(!cached, "a step from the cache proves nothing\n{output}");
        }
        let digest = result["digest"].as_str().unwrap();
        FileSystem::of_registry(&self.daemon.listen(), self.daemon.token(), &self.repository(), digest)
    }

    /// Returns a function that maps a time to the value that is compared.
    fn time(&self, source: Source) -> impl Fn(i64) -> i64 {
        let (began, packed) = (self.began, matches!(source, Source::Pack | Source::Image));
        move |time| match time {
            made if made >= began => i64::MAX,
            _ if packed => 0,
            kept => kept,
        }
    }

    /// Returns the entries that came from a pack and have a time other than 0.
    fn wrong_pack_times(&self, source: Source, files: &FileSystem) -> Vec<String> {
        // The additional mounts of a build with a pack are mounts of the room.
        let all_packed = source == Source::Image || source == Source::Pack && self.context.mounts.is_empty();
        if !all_packed || self.context.has_times_of_its_own {
            return Vec::new();
        }
        let wrong = files.0.iter().filter(|(_, entry)| entry.time != 0 && entry.time < self.began);
        wrong
            .map(|(path, entry)| format!("{:?} has time {}", String::from_utf8_lossy(path), entry.time))
            .collect()
    }

    fn repository(&self) -> String {
        self.context.name.replace('_', "-")
    }

    fn arguments(&self, source: Source) -> Vec<String> {
        let (context, name) = (self.context, self.context.name);
        let mut arguments: Vec<String> = ["build", "--json", "--no-cache", "--tag"].map(str::to_owned).into();
        arguments.push(format!("{}:{source:?}", self.repository()).to_lowercase());
        let main = (name.to_owned(), "/context".to_owned());
        let more = context.mounts.iter().map(|(target, _)| (context.mounted(target), (*target).to_owned()));
        for (index, (path, target)) in std::iter::once(main).chain(more).enumerate() {
            let (flag, value) = match source {
                Source::Room => ("--mount-room-path", format!("{path}:{target}:ro")),
                Source::Project => ("--mount-project-path", format!("{path}:{target}")),
                Source::Pack if index == 0 => ("--pack", format!("{}:{target}", self.path(&path).display())),
                Source::Pack => ("--mount-room-path", format!("{path}:{target}:ro")),
                Source::Image => ("--mount-image", format!("{}={target}", self.packed(&path))),
            };
            arguments.extend([flag.to_owned(), value]);
        }
        arguments.extend(["--context-path".to_owned(), context.path.to_owned()]);
        arguments.extend(context.hearth_options());
        arguments
    }

    fn path(&self, path: &str) -> PathBuf {
        self.daemon.room_files().join(path)
    }

    /// Packs a directory into the room; returns the image's name.
    fn packed(&self, path: &str) -> String {
        let tag = format!("packs/{}:1", path.replace('_', "-").to_lowercase());
        let mut pack = self.daemon.client();
        pack.arg("pack").arg(self.path(path)).args(["--tag", &tag]);
        process::run(&mut pack, seconds(60)).expect_code(0);
        tag
    }
}

/// Copies a directory with all attributes that `stat` shows.
fn copy_exactly(from: &Path, to: &Path) {
    let mut cp = Command::new("cp");
    process::run(cp.args(["-a", "--"]).arg(from).arg(to), seconds(30)).expect_code(0);
}
