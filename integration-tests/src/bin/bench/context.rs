//! Large contexts from room mounts, compared with `buildctl`'s own file sync on the same buildkitd.
//!
//! All of the context is sent and copied; the image that is pushed is small, so that the time is that of the context.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use integration_tests::process;
use integration_tests::wait::seconds;

use super::figures::Figure;
use super::side::Bench;
use super::trees::{self, SourceTree};
use super::turns::{alone, in_turns, in_turns_by};

const DOCKERFILE: &str =
    "FROM scratch AS all\nCOPY . /all/\nFROM scratch\nCOPY --from=all /all/unique /all/part/changed /\n";
/// Step that begins when the context has been sent.
const FIRST_COPY: &str = "COPY . /all/";
const SMALL_PART: &str = "FROM scratch\nCOPY part /part/\n";
const FAILS: &str = "FROM scratch AS all\nCOPY . /all/\nFROM scratch\nCOPY not-there /\n";

pub fn small(bench: &Bench) -> Vec<Figure> {
    Contexts { bench, tree: bench.small() }.all()
}

/// Measures the large tree, which takes twenty minutes.
pub fn large(bench: &Bench) -> Vec<Figure> {
    let mut figures = Contexts { bench, tree: bench.large() }.all();
    figures.extend(scan(bench, bench.large()));
    figures
}

struct Contexts<'a> {
    bench: &'a Bench,
    tree: &'a SourceTree,
}

impl Contexts<'_> {
    fn room_path(&self, round: usize) -> String {
        format!("contexts/{}-{round}", self.tree.name)
    }

    fn room(&self, round: usize) -> PathBuf {
        self.bench.daemon.room_files().join(self.room_path(round))
    }

    fn plain(&self, round: usize) -> PathBuf {
        self.bench.work.join(format!("contexts/{}-{round}", self.tree.name))
    }

    /// Prepares a tree that no build has seen: at a path of its own, with times of its own. Reuses the tree of the last
    /// round if there is one, because copying tens of thousands of files takes longer than the whole measurement.
    fn fresh(&self, last: Option<&Path>, to: &Path) {
        match last {
            Some(last) => {
                fs::rename(last, to).expect("rename");
                let mut find = Command::new("find");
                find.arg(to).args(["-exec", "touch", "--no-dereference", "{}", "+"]);
                process::run(&mut find, seconds(120)).expect_code(0);
            }
            None => trees::copy(&self.tree.path, to),
        }
        fs::write(to.join("Dockerfile"), DOCKERFILE).expect("Dockerfile");
        // Without this file, COPY of the second copy would come from the cache.
        fs::write(to.join("unique"), to.display().to_string()).expect("unique");
        fs::write(to.join("part/changed"), "0").expect("changed");
        let _ = fs::remove_file(to.join(".dockerignore"));
        // Writing back dirty pages would slow the next measurement.
        rustix::fs::sync();
    }

    fn all(&self) -> Vec<Figure> {
        let (bench, shown) = (self.bench, self.tree.shown());
        let mut memory = Vec::new();
        // Only one tree is on the disk at a time; the last one stays, and everything below uses it.
        let first = in_turns(
            |round| {
                let last = round.checked_sub(1).map(|last| self.room(last));
                self.fresh(last.as_deref(), &self.room(round));
                let path = self.room_path(round);
                memory.push(bench.idle_memory());
                move || bench.hearth_build("large:1", &path)
            },
            |round| {
                let last = round.checked_sub(1).map(|last| self.plain(last));
                self.fresh(last.as_deref(), &self.plain(round));
                let path = self.plain(round);
                move || bench.buildctl_build("large:1", &path)
            },
        );
        memory.push(bench.idle_memory());
        // Each round brought another tree, and the daemon keeps a record of what BuildKit has of each. The first round
        // is excluded, because it also started components for the first time.
        let grown = (memory[memory.len() - 1] - memory[1]).max(0.0) / (memory.len() - 2) as f64;
        let per_file = grown / self.tree.files as f64;
        let last = super::figures::ROUNDS - 1;
        let (room, plain, path) = (self.room(last), self.plain(last), self.room_path(last));
        let unchanged = in_turns(
            |_| || bench.hearth_build("large:1", &path),
            |_| || bench.buildctl_build("large:1", &plain),
        );
        let mut number = 0;
        let mut change = |directory: &Path| {
            number += 1;
            fs::write(directory.join("part/changed"), format!("{number}")).expect("write");
        };
        let mut changed = (Vec::new(), Vec::new());
        let mut context_part = (Vec::new(), Vec::new());
        for (target, part) in [(&mut changed, false), (&mut context_part, true)] {
            *target = in_turns_by(
                |_| {
                    change(&room);
                    match part {
                        true => bench.hearth_until("large:1", &path, FIRST_COPY),
                        false => super::turns::time(|| bench.hearth_build("large:1", &path)),
                    }
                },
                |_| {
                    // The content differs from that of the other side's file, so that no step is shared.
                    fs::write(plain.join("part/changed"), format!("theirs {}", plain.display()))
                        .expect("write");
                    fs::write(plain.join("unique"), format!("{:?}", std::time::Instant::now()))
                        .expect("write");
                    match part {
                        true => bench.buildctl_until("large:1", &plain, FIRST_COPY),
                        false => super::turns::time(|| bench.buildctl_build("large:1", &plain)),
                    }
                },
            );
        }
        let mut figures = vec![
            Figure::ratio(format!("context of {shown}, first build"), first, "buildctl", Some(0.95)),
            Figure::ratio("the same, nothing changed, scan included", unchanged, "buildctl", Some(0.10)),
            Figure::ratio("the same, one file changed", changed, "buildctl", Some(0.90)),
            Figure::ratio(
                "its context part: until the first COPY begins",
                context_part,
                "buildctl",
                Some(0.67),
            ),
            Figure::amount("memory of hearthd for each file of one such context", per_file, "bytes", 400.0),
        ];
        figures.push(self.small_part(&room, &plain, &path));
        figures.extend(self.after_a_failure(&room, &path));
        figures.push(self.two_at_once(last));
        for directory in [room, plain] {
            let _ = fs::remove_dir_all(directory);
        }
        figures
    }

    /// Measures a COPY of a small directory of a large tree.
    fn small_part(&self, room: &Path, plain: &Path, path: &str) -> Figure {
        for directory in [room, plain] {
            fs::write(directory.join("Dockerfile"), SMALL_PART).expect("Dockerfile");
        }
        let change = |directory: &Path, round: usize| {
            fs::write(directory.join("part/changed"), format!("{} {round}", directory.display()))
                .expect("write");
        };
        let times = in_turns(
            |round| {
                change(room, round);
                || self.bench.hearth_build("part:1", path)
            },
            |round| {
                change(plain, round);
                || self.bench.buildctl_build("part:1", plain)
            },
        );
        Figure::ratio(
            "the same tree, COPY of a small directory in which a file changed",
            times,
            "buildctl",
            Some(1.0),
        )
    }

    /// Measures the build after one that failed on a COPY of a missing path; the corrected build sends nothing again.
    fn after_a_failure(&self, room: &Path, path: &str) -> Vec<Figure> {
        let what = "context bytes that hearthd reads for a build after a failed one, of all";
        fs::write(room.join("Dockerfile"), DOCKERFILE).expect("Dockerfile");
        fs::write(room.join("unique"), "after a failure").expect("unique");
        fs::write(room.join("Dockerfile"), FAILS).expect("Dockerfile");
        self.bench.hearth_build_fails("failed:1", path);
        fs::write(room.join("Dockerfile"), DOCKERFILE).expect("Dockerfile");
        let before = self.bench.bytes_read();
        self.bench.hearth_build("failed:1", path);
        let percent = (self.bench.bytes_read() - before) / self.tree.bytes as f64 * 100.0;
        vec![Figure::amount(what, percent, "%", 2.0)]
    }

    /// Measures two simultaneous builds of one context that nobody has built, compared with a single one.
    fn two_at_once(&self, round: usize) -> Figure {
        let path = self.room_path(round);
        let room = self.room(round);
        let aside = self.room(round + 1);
        let prepare = || {
            fs::rename(&room, &aside).expect("rename");
            self.fresh(Some(&aside), &room);
            fs::write(room.join("unique"), format!("{:?}", std::time::Instant::now())).expect("unique");
        };
        let times = in_turns(
            |_| {
                prepare();
                || {
                    std::thread::scope(|scope| {
                        for tag in ["two:1", "two:2"] {
                            scope.spawn(|| self.bench.hearth_build(tag, &path));
                        }
                    });
                }
            },
            |_| {
                prepare();
                || self.bench.hearth_build("two:1", &path)
            },
        );
        Figure::ratio(
            "two builds of one fresh context, started together",
            times,
            "one build of it",
            Some(1.2),
        )
    }
}

/// Measures a scan of a tree that was scanned before.
fn scan(bench: &Bench, tree: &SourceTree) -> Vec<Figure> {
    let what = format!("scan of {} that did not change", tree.shown());
    if !bench.has_verb(&["context", "digest"]) {
        return vec![Figure::not_measured(what, "`hearth context digest` is not there")];
    }
    let room = bench.daemon.room_files().join("contexts/scan");
    trees::copy(&tree.path, &room);
    let digest = || {
        bench.hearth(&["context", "digest", "--mount-room-path", "contexts/scan:/context:ro"]);
    };
    digest();
    // The first scan hashes files that were written a moment ago; after this pause none counts as recently changed.
    std::thread::sleep(Duration::from_secs(1));
    digest();
    let times = alone(|_| digest);
    let _ = fs::remove_dir_all(room);
    vec![Figure::time(format!("{what}: `hearth context digest`"), &times, Duration::from_millis(150))]
}
