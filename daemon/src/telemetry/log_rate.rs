//! Rate limit for log lines of one place in the code, so that nobody can fill the log by causing the same line
//! repeatedly. Suppressed lines are counted and reported.
//!
//! Each place has a bucket of [`BURST`] lines that refills with [`PER_SECOND`]. Lines below `info` are not limited: an
//! operator who enables them wants all of them.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use tracing::callsite::Identifier;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

const BURST: u64 = 100;
const PER_SECOND: u64 = 2;
/// Interval between two reports of suppressed lines.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Decides for each line whether it is written; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LogRateLimit(Arc<Mutex<HashMap<Identifier, LineBucket>>>);

#[derive(Debug)]
struct LineBucket {
    place: &'static Metadata<'static>,
    lines: u64,
    filled: Instant,
    left_out: u64,
}

impl LogRateLimit {
    fn admits(&self, place: &'static Metadata<'static>, now: Instant) -> bool {
        if *place.level() > Level::INFO {
            return true;
        }
        let mut buckets = self.buckets();
        let bucket = buckets.entry(place.callsite()).or_insert_with(|| LineBucket {
            place,
            lines: BURST,
            filled: now,
            left_out: 0,
        });
        let seconds = now.saturating_duration_since(bucket.filled).as_secs();
        if seconds > 0 {
            bucket.lines = bucket.lines.saturating_add(seconds.saturating_mul(PER_SECOND)).min(BURST);
            bucket.filled = now;
        }
        if bucket.lines == 0 {
            bucket.left_out += 1;
            return false;
        }
        bucket.lines -= 1;
        true
    }

    /// Reports suppressed lines periodically. Never returns.
    pub async fn report_loop(self) {
        loop {
            tokio::time::sleep(REPORT_INTERVAL).await;
            self.report();
        }
    }

    /// Writes one line for each place whose lines were suppressed since the last call.
    pub fn report(&self) {
        let left_out: Vec<_> = (self.buckets().values_mut().filter(|bucket| bucket.left_out > 0))
            .map(|bucket| (bucket.place, std::mem::take(&mut bucket.left_out)))
            .collect();
        // The lock is released first, because this line needs the bucket of its own place.
        for (place, left_out) in left_out {
            let (file, line) = (place.file().unwrap_or_default(), place.line().unwrap_or_default());
            tracing::warn!(
                left_out, module = place.target(), place = %format_args!("{file}:{line}"),
                "log lines were left out; too many came from one place in the code"
            );
        }
    }

    fn buckets(&self) -> MutexGuard<'_, HashMap<Identifier, LineBucket>> {
        self.0.lock()
    }
}

impl<S: Subscriber> Layer<S> for LogRateLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        self.admits(event.metadata(), Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct WrittenLog(Arc<Mutex<Vec<u8>>>);

    impl io::Write for WrittenLog {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_is_caused_again_and_again_is_counted_and_hides_no_other() {
        let (rate, written) = (LogRateLimit::default(), WrittenLog::default());
        let writer = written.clone();
        let text = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(rate.clone()).with(text);
        tracing::subscriber::with_default(subscriber, || {
            for n in 0..1000 {
                tracing::info!(n, "a name was refused");
                tracing::debug!("in detail");
            }
            tracing::warn!("something else");
            rate.report();
            rate.report();
        });
        let text = String::from_utf8(written.0.lock().clone()).unwrap();
        let count = |part: &str| text.lines().filter(|line| line.contains(part)).count() as u64;
        // The test may take a second on a slow machine.
        let refused = count("a name was refused");
        assert!((BURST..BURST + 20).contains(&refused), "{refused}");
        assert_eq!((count("in detail"), count("something else"), count("left out")), (1000, 1, 1));
        assert!(text.contains(&format!("left_out={}", 1000 - refused)), "{text}");
        assert!(text.contains("log_rate.rs:"), "{text}");
    }

    #[test]
    fn a_place_writes_again_after_a_while() {
        let (rate, begin) = (LogRateLimit::default(), Instant::now());
        let place = {
            use tracing::callsite::Callsite as _;
            tracing::callsite!(name: "event", kind: tracing::metadata::Kind::EVENT, target: "x", level: Level::INFO, fields: &[]).metadata()
        };
        let admitted = |seconds: u64| {
            let now = begin + Duration::from_secs(seconds);
            (0..1000).filter(|_| rate.admits(place, now)).count() as u64
        };
        assert_eq!((admitted(0), admitted(5), admitted(5)), (BURST, 5 * PER_SECOND, 0));
        assert_eq!(admitted(3600), BURST);
    }
}
