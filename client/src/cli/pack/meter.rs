//! Progress of a pack: a bar with rate and remaining time on a terminal; otherwise one line every few
//! seconds.

use std::time::{Duration, Instant};

use hearth_pack::PackProgress;
use indicatif::{ProgressBar, ProgressStyle};

use crate::output;

/// Time between two progress lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

pub(super) struct ProgressMeter {
    total: u64,
    /// Progress bar; none without a terminal.
    bar: Option<ProgressBar>,
    started_at: Instant,
    last_line: Instant,
}

impl ProgressMeter {
    pub(super) fn new() -> Self {
        let bar = (output::is_live_terminal() && !output::notes_are_json()).then(|| {
            let bar = ProgressBar::no_length().with_style(style("{spinner} listing {elapsed}"));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { total: 0, bar, started_at: Instant::now(), last_line: Instant::now() }
    }

    pub(super) fn show(&mut self, at: PackProgress) {
        match (at, &self.bar) {
            (PackProgress::Listed { entries, bytes }, bar) => {
                self.total = bytes;
                if let Some(bar) = bar {
                    bar.set_style(style(
                        "{spinner} packing {msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes}  {decimal_bytes_per_sec}  {eta} left",
                    ));
                    bar.set_message(output::count(entries, "path"));
                    bar.set_length(bytes);
                    bar.reset_eta();
                }
            }
            (PackProgress::Read { bytes, .. }, Some(bar)) => bar.set_position(bytes),
            (PackProgress::Read { bytes, .. }, None) => {
                if self.last_line.elapsed() >= LINE_INTERVAL {
                    self.last_line = Instant::now();
                    output::note(&self.line(bytes));
                }
            }
            (PackProgress::Compressed { .. }, bar) => {
                if let Some(bar) = bar {
                    bar.finish_and_clear();
                }
            }
        }
    }

    fn line(&self, bytes: u64) -> String {
        let rate = bytes as f64 / self.started_at.elapsed().as_secs_f64().max(0.001);
        let left = self.total.saturating_sub(bytes) as f64 / rate.max(1.0);
        format!(
            "packing: {} of {}, {}/s, {:.0} s left",
            output::size(bytes),
            output::size(self.total),
            output::size(rate as u64),
            left.ceil()
        )
    }
}

impl Drop for ProgressMeter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    // The templates are constants of this file.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_template_is_valid_and_a_line_says_how_far_and_how_long() {
        for template in ["{spinner} listing {elapsed}", "{decimal_bytes_per_sec}  {eta} left"] {
            assert!(ProgressStyle::with_template(template).is_ok());
        }
        let mut meter = ProgressMeter { bar: None, ..ProgressMeter::new() };
        meter.show(PackProgress::Listed { entries: 3, bytes: 3_000_000 });
        meter.started_at = Instant::now() - Duration::from_secs(10);
        let line = meter.line(1_000_000);
        assert!(line.starts_with("packing: 1.00 MB of 3.00 MB, "), "{line}");
        assert!(line.ends_with(" 20 s left") || line.ends_with(" 21 s left"), "{line}");
    }
}
