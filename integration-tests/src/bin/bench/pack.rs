//! `hearth pack` into a file, compared with `tar | zstd`.

use std::fs;
use std::path::Path;
use std::process::Command;

use integration_tests::process;
use integration_tests::wait::seconds;

use super::figures::Figure;
use super::side::Bench;
use super::trees::SourceTree;
use super::turns::in_turns;

pub const TAR: &str = "set -o pipefail; tar -C \"$0\" -cf - . | zstd -3 -T2 -q -f -o \"$1\"";

pub fn chapter(bench: &Bench) -> Vec<Figure> {
    [bench.small(), bench.large()].into_iter().flat_map(|tree| packs(bench, tree)).collect()
}

fn packs(bench: &Bench, tree: &SourceTree) -> Vec<Figure> {
    let (ours, theirs) = (bench.work.join("pack.oci.tar"), bench.work.join("pack.tar.zst"));
    let pack = |home: &Path| {
        let mut command = bench.daemon.client();
        command.env("HOME", home).arg("pack").arg(&tree.path).arg("-o").arg(&ours);
        process::run(&mut command, seconds(120)).expect_code(0);
    };
    let tar = || {
        let mut command = Command::new("bash");
        command.args(["-c", TAR]).arg(&tree.path).arg(&theirs);
        process::run(&mut command, seconds(120)).expect_code(0);
    };
    let home = |round: usize| {
        let home = bench.work.join(format!("pack-home-{}-{round}", tree.name));
        fs::create_dir_all(&home).expect("home");
        home
    };
    // Both sides have read the tree once; each round of `hearth pack` starts without the cache of an earlier one.
    pack(&home(99));
    tar();
    let first = in_turns(
        |round| {
            let home = home(round);
            move || pack(&home)
        },
        |_| tar,
    );
    let again = in_turns(
        |round| move || pack(&home(round)),
        |round| {
            let home = home(100 + round);
            move || pack(&home)
        },
    );
    for file in [&ours, &theirs] {
        fs::remove_file(file).expect("the packed file");
    }
    let shown = tree.shown();
    vec![
        Figure::ratio(format!("pack of {shown}"), first, "`tar \\| zstd -3 -T2`", Some(1.0)),
        Figure::ratio("a second pack of it, unchanged", again, "a first pack", Some(0.3)),
    ]
}
