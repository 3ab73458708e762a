//! One row of the report: what was measured, on both sides, and whether it meets its bound. Each row is printed as soon
//! as it is known, because a whole run takes long.

use std::time::Duration;

/// Number of timed runs of each side.
pub const ROUNDS: usize = 5;

pub struct Figure {
    what: String,
    ours: String,
    beside: String,
    ratio: Option<f64>,
    bound: String,
    met: Met,
}

#[derive(Clone, PartialEq)]
enum Met {
    Yes,
    No,
    /// Shown only, without a bound.
    Open,
    NotMeasured(String),
}

impl Figure {
    /// Compares two sides that were timed in turns; the bound is met when the ratio of their medians is at most
    /// `bound`.
    pub fn ratio(
        what: impl Into<String>,
        (ours, theirs): (Vec<Duration>, Vec<Duration>),
        beside: &str,
        bound: Option<f64>,
    ) -> Self {
        Self::of_ratio(what.into(), (&ours, &theirs), beside, bound, spread)
    }

    /// Compares like [`Self::ratio`], and shows how much of `amount` is done in a second. The ratio and its bound are
    /// still those of the times: less is better.
    pub fn rate(
        what: impl Into<String>,
        (ours, theirs): (Vec<Duration>, Vec<Duration>),
        amount: f64,
        unit: &str,
        beside: &str,
        bound: Option<f64>,
    ) -> Self {
        let shown = |times: &[Duration]| {
            let rate = |time: Duration| format!("{:.0}", amount / time.as_secs_f64().max(1e-9));
            let (least, most) = ends(times);
            format!("{}{unit} ({}-{})", rate(median(times)), rate(most), rate(least))
        };
        Self::of_ratio(what.into(), (&ours, &theirs), beside, bound, shown)
    }

    fn of_ratio(
        what: String,
        (ours, theirs): (&[Duration], &[Duration]),
        beside: &str,
        bound: Option<f64>,
        shown: impl Fn(&[Duration]) -> String,
    ) -> Self {
        let ratio = median(ours).as_secs_f64() / median(theirs).as_secs_f64().max(1e-9);
        let met = match bound {
            Some(bound) if ratio <= bound => Met::Yes,
            Some(_) => Met::No,
            None => Met::Open,
        };
        Self {
            what,
            ours: shown(ours),
            beside: format!("{} ({beside})", shown(theirs)),
            ratio: Some(ratio),
            bound: bound.map_or_else(|| "-".to_owned(), |bound| format!("{bound:.2} x")),
            met,
        }
        .printed()
    }

    /// Reports times of one side, whose median has an absolute bound.
    pub fn time(what: impl Into<String>, ours: &[Duration], bound: Duration) -> Self {
        let met = if median(ours) <= bound { Met::Yes } else { Met::No };
        Self::of_times(what.into(), ours, format!("{} ms", bound.as_millis()), met)
    }

    /// Reports times of one side without a bound.
    pub fn shown(what: impl Into<String>, ours: &[Duration]) -> Self {
        Self::of_times(what.into(), ours, "-".to_owned(), Met::Open)
    }

    fn of_times(what: String, ours: &[Duration], bound: String, met: Met) -> Self {
        Self { what, ours: spread(ours), beside: "-".to_owned(), ratio: None, bound, met }.printed()
    }

    /// Reports a number that is not a time, such as bytes.
    pub fn amount(what: impl Into<String>, ours: f64, unit: &str, bound: f64) -> Self {
        let shown = |value: f64| {
            let digits = if value < 100.0 && value.fract() != 0.0 { 1 } else { 0 };
            format!("{value:.digits$} {unit}")
        };
        Self {
            what: what.into(),
            ours: shown(ours),
            beside: "-".to_owned(),
            ratio: None,
            bound: shown(bound),
            met: if ours <= bound { Met::Yes } else { Met::No },
        }
        .printed()
    }

    /// Reports that something could not be measured, and why. It counts neither as met nor as missed.
    pub fn not_measured(what: impl Into<String>, why: impl Into<String>) -> Self {
        let none = || "-".to_owned();
        let met = Met::NotMeasured(why.into());
        Self { what: what.into(), ours: none(), beside: none(), ratio: None, bound: none(), met }.printed()
    }

    fn printed(self) -> Self {
        println!("{}", self.row());
        self
    }

    pub fn is_missed(&self) -> bool {
        self.met == Met::No
    }

    pub fn is_measured(&self) -> bool {
        !matches!(self.met, Met::NotMeasured(_))
    }

    pub fn row(&self) -> String {
        let met = match &self.met {
            Met::Yes => "yes".to_owned(),
            Met::No => "**no**".to_owned(),
            Met::Open => "-".to_owned(),
            Met::NotMeasured(why) => format!("not measured: {why}"),
        };
        let ratio = self.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        format!("| {} | {} | {} | {ratio} | {} | {met} |", self.what, self.ours, self.beside, self.bound)
    }
}

pub fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

/// Formats the median and the range of times; short times get enough digits to differ.
fn spread(times: &[Duration]) -> String {
    let middle = median(times);
    let (scale, unit, digits) = match middle.as_micros() {
        0..1_000 => (1e6, "us", 0),
        1_000..10_000 => (1e3, "ms", 1),
        _ => (1e3, "ms", 0),
    };
    let show = |time: Duration| format!("{:.digits$}", time.as_secs_f64() * scale);
    if times.len() == 1 {
        return format!("{} {unit}", show(middle));
    }
    let (least, most) = ends(times);
    format!("{} {unit} ({}-{})", show(middle), show(least), show(most))
}

fn ends(times: &[Duration]) -> (Duration, Duration) {
    let (least, most) = (times.iter().min(), times.iter().max());
    (least.copied().unwrap_or_default(), most.copied().unwrap_or_default())
}
