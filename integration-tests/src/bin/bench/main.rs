//! `make bench`: how fast Hearth is, as ratios to `buildctl` on the same buildkitd, to `tar | zstd`, to kernel mounts,
//! and to `docker` and nginx where they are installed, in one run. Uses the binaries as a user would, and writes
//! docs/benchmarks.md.
//!
//! `make bench CHAPTER=pack` runs one chapter and only prints it. Chapters: tiny, context, context-large, builds, pack, upload,
//! image, fuse, deploy, ingress. A missing feature or program is reported as not measured. Exit code 1 when a bound is
//! missed.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark stops at whatever goes wrong, and reports on the terminal"
)]

mod backend;
mod builds;
mod context;
mod deploy;
mod figures;
mod fuse;
mod image;
mod ingress;
mod load;
mod pack;
mod registry;
mod report;
mod serve;
mod side;
mod tiny;
mod trees;
mod turns;
mod upload;

use std::fs;
use std::process::ExitCode;

use figures::Figure;
use integration_tests::binaries::repository;
use integration_tests::daemon::sweep_scratch;
use side::Bench;

const REPORT: &str = "docs/benchmarks.md";
/// Maximum memory of hearthd without its children when idle, in megabytes.
const IDLE_BOUND_MB: f64 = 40.0;

type Chapter = (&'static str, fn(&Bench) -> Vec<Figure>);

const CHAPTERS: [Chapter; 10] = [
    ("tiny", tiny::chapter),
    ("context", context::small),
    ("context-large", context::large),
    ("builds", builds::chapter),
    ("pack", pack::chapter),
    ("upload", upload::chapter),
    ("image", image::chapter),
    ("fuse", fuse::chapter),
    ("deploy", deploy::chapter),
    ("ingress", ingress::chapter),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [mode, port] = arguments.as_slice()
        && mode == "--serve"
    {
        let port = port.parse().expect("a port");
        return serve::run(port).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let wanted = arguments.into_iter().next().filter(|name| !name.is_empty());
    if let Some(name) = &wanted
        && !CHAPTERS.iter().any(|(chapter, _)| chapter == name)
    {
        let known: Vec<&str> = CHAPTERS.iter().map(|(name, _)| *name).collect();
        println!("no chapter `{name}`; there are: {}", known.join(", "));
        return ExitCode::from(2);
    }
    let bench = Bench::start();
    let idle = |when: &str| {
        Figure::amount(
            format!("memory of an idle hearthd {when}"),
            bench.idle_memory() / 1e6,
            "MB",
            IDLE_BOUND_MB,
        )
    };
    let mut memory = vec![idle("when started")];
    let mut chapters = Vec::new();
    for (name, chapter) in CHAPTERS {
        if wanted.as_deref().is_none_or(|wanted| wanted == name) {
            println!("chapter {name}");
            chapters.push((name, chapter(&bench)));
        }
    }
    memory.push(idle("after all of the above"));
    chapters.push(("memory", memory));
    let report = report::write(&bench, &chapters);
    drop(bench);
    let left = sweep_scratch();
    assert!(left.is_empty(), "left behind: {left:?}");

    println!("{report}");
    if wanted.is_none() {
        let path = repository().join(REPORT);
        fs::create_dir_all(path.parent().expect("docs")).expect("docs");
        fs::write(&path, &report).expect("the report");
        println!("written to {REPORT}");
    }
    let missed = chapters.iter().flat_map(|(_, figures)| figures).filter(|figure| figure.is_missed()).count();
    if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
