//! An image of 1 GB as a mount: usable at once, without being unpacked first.

use std::fs;
use std::time::Duration;

use integration_tests::process;
use integration_tests::sources::{Tree, noise};
use integration_tests::wait::seconds;

use super::figures::Figure;
use super::side::Bench;
use super::trees::count;
use super::turns::alone;

const FILES: u64 = 64;
const FILE_BYTES: usize = 16 << 20;

pub fn chapter(bench: &Bench) -> Vec<Figure> {
    let tree = bench.work.join("image-tree");
    fs::create_dir_all(&tree).expect("directory");
    bench.daemon.put("image-user", &Tree::new().dockerfile("FROM scratch\nCOPY assets/small /\n"));
    let state = bench.daemon.state();
    let mut grown = Vec::new();
    // A new image for each round: the cache entry of an image that was mounted before would make it no first mount.
    let times = alone(|round| {
        for file in 0..FILES {
            fs::write(tree.join(format!("f{file}")), noise(file * 7 + round as u64, FILE_BYTES))
                .expect("file");
        }
        fs::write(tree.join("small"), format!("{round}")).expect("small");
        let tag = format!("big:{round}");
        let mut pack = bench.daemon.client();
        pack.args(["pack", "--tag", &tag]).arg(&tree);
        process::run(&mut pack, seconds(300)).expect_code(0);
        rustix::fs::sync();
        grown.push(count(&state).1);
        move || {
            let mount = format!("big:{round}=/context/assets");
            let arguments = ["build", "--tag", "image-user:1", "--mount-room-path", "image-user:/context:ro"];
            let more = ["--mount-image", &mount, "--context-path", "/context"];
            bench.hearth(&[&arguments[..], &more[..]].concat());
        }
    });
    let after = count(&state).1.saturating_sub(grown.last().copied().unwrap_or_default());
    let percent = after as f64 / (FILES as f64 * FILE_BYTES as f64) * 100.0;
    let _ = fs::remove_dir_all(tree);
    for round in 0..super::figures::ROUNDS {
        bench.hearth(&["images", "rm", &format!("big:{round}")]);
    }
    let what = "an image of 1 GB as a mount, met for the first time: build that copies one small file of it";
    vec![
        Figure::time(what, &times, Duration::from_secs(1)),
        Figure::amount(
            "what the daemon and buildkitd keep on disk for that, of the image",
            percent,
            "%",
            5.0,
        ),
    ]
}
