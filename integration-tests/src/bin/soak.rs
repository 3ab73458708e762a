//! `make soak MINUTES=10`: random builds of four callers while the daemon and its builders are killed, and a check of
//! everything afterwards. A second argument repeats the choices of an earlier run by its seed.
#![allow(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a soak stops at whatever goes wrong, and reports on the terminal"
)]

use std::time::{Duration, SystemTime};

use integration_tests::daemon::sweep_scratch;
use integration_tests::soak;

fn main() {
    let mut arguments = std::env::args().skip(1);
    let minutes: f64 = arguments.next().map_or(10.0, |text| text.parse().expect("a number of minutes"));
    let seed =
        arguments.next().map_or_else(clock_seed, |text| text.parse().expect("a seed, which is a number"));
    println!("soak: {minutes} minutes, seed {seed}");
    // Swept also when a check fails, after its daemon has ended.
    let _scratch = Scratch;
    let summary = soak::run(Duration::from_secs_f64(minutes * 60.0), seed);
    println!("soak: {summary:#?}");
}

struct Scratch;

impl Drop for Scratch {
    fn drop(&mut self) {
        for left in sweep_scratch() {
            println!("left behind: {left}");
        }
    }
}

fn clock_seed() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |elapsed| elapsed.as_secs())
}
