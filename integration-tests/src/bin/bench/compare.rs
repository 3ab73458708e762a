//! Two ways to do the same, timed in turns, so that whatever else the machine does meets both.

use std::time::{Duration, Instant};

/// Timed runs of each side.
pub const ROUNDS: usize = 5;

pub struct Comparison {
    pub name: &'static str,
    pub ours: Vec<Duration>,
    pub theirs: Vec<Duration>,
    /// What the other side is.
    pub beside: &'static str,
    /// Largest ratio that is good; without one the figure is shown only.
    pub target: Option<f64>,
}

/// Times `ours` and `theirs` in turns. Each gets the number of the round, and prepares outside the
/// time: it answers with what is then timed.
pub fn in_turns<A: FnOnce(), B: FnOnce()>(
    mut ours: impl FnMut(usize) -> A,
    mut theirs: impl FnMut(usize) -> B,
) -> (Vec<Duration>, Vec<Duration>) {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        // Who goes first changes, too.
        if round % 2 == 0 {
            first.push(time(ours(round)));
            second.push(time(theirs(round)));
        } else {
            second.push(time(theirs(round)));
            first.push(time(ours(round)));
        }
    }
    (first, second)
}

fn time(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

pub fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted[sorted.len() / 2]
}

impl Comparison {
    pub fn ratio(&self) -> f64 {
        median(&self.ours).as_secs_f64() / median(&self.theirs).as_secs_f64()
    }

    pub fn is_good(&self) -> bool {
        self.target.is_none_or(|target| self.ratio() <= target)
    }

    /// A row of the table in the report.
    pub fn row(&self) -> String {
        let verdict = match self.target {
            Some(target) => format!("{target:.1} | {}", if self.is_good() { "yes" } else { "**no**" }),
            None => "- | -".to_owned(),
        };
        let (ours, theirs) = (spread(&self.ours), spread(&self.theirs));
        format!("| {} | {ours} | {theirs} ({}) | {:.2} | {verdict} |", self.name, self.beside, self.ratio())
    }
}

fn spread(times: &[Duration]) -> String {
    let show = |time: Duration| format!("{:.0}", time.as_secs_f64() * 1000.0);
    let (least, most) = (times.iter().min().copied(), times.iter().max().copied());
    format!(
        "{} ({}-{})",
        show(median(times)),
        show(least.unwrap_or_default()),
        show(most.unwrap_or_default())
    )
}
