//! The report as Markdown: the machine, the trees, a table for each chapter.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use integration_tests::binaries::binaries;
use integration_tests::process;
use integration_tests::wait::seconds;

use super::figures::{Figure, ROUNDS};
use super::side::Bench;

pub fn write(bench: &Bench, chapters: &[(&str, Vec<Figure>)]) -> String {
    let mut text = String::from(
        "# Benchmarks\n\nWritten by `make bench`; run it to see your machine's figures. Ratios matter, not milliseconds.\n\n",
    );
    let _ = writeln!(text, "{}\n", machine());
    let trees: Vec<String> =
        bench.used_trees().iter().map(|tree| format!("{} ({})", tree.name, tree.shown())).collect();
    let _ = writeln!(
        text,
        "Times are medians of {ROUNDS} runs (least-most), the two sides in turns in one run, each as a whole command\n\
         with the start of its process. `buildctl` uses the same buildkitd and pushes to a registry in memory without\n\
         authentication; `hearth` publishes in the room's registry. Trees are the source of github.com/moby/buildkit\n\
         and of modules that it needs, as the Go module cache unpacks them: {}.",
        if trees.is_empty() { "none was used".to_owned() } else { trees.join(", ") },
    );
    for (name, figures) in chapters {
        let _ = writeln!(
            text,
            "\n## {name}\n\n| what | hearth | beside | ratio | at most | met |\n|---|---|---|---|---|---|"
        );
        figures.iter().for_each(|figure| {
            let _ = writeln!(text, "{}", figure.row());
        });
    }
    let all: Vec<&Figure> = chapters.iter().flat_map(|(_, figures)| figures).collect();
    let missed = all.iter().filter(|figure| figure.is_missed()).count();
    let unmeasured = all.iter().filter(|figure| !figure.is_measured()).count();
    let _ = writeln!(text, "\n{} figures: {missed} missed, {unmeasured} not measured.", all.len());
    text
}

fn machine() -> String {
    let version = |command: &mut Command| {
        let output = process::run(command.arg("--version"), seconds(10));
        output.stdout.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.split('-').next().unwrap_or_default().trim().to_owned();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let profile = if cfg!(debug_assertions) { "**debug, not to be compared**" } else { "release" };
    format!(
        "{}, {} ({profile} build), {cores} x {}, Linux {kernel}.",
        version(&mut Command::new(&binaries().hearthd)),
        version(&mut Command::new("buildkitd")),
        cpu.unwrap_or("unknown processor"),
    )
}
