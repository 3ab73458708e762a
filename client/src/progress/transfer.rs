//! Progress of a transfer or a wait: on a terminal one line with rate and time left, which updates in place; elsewhere
//! a line now and then; and with `--progress json` an object now and then.

use std::io::{self, Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, ReadBuf};

use crate::output;

/// Time before anything is shown: what is done within it needs no progress.
const SHOWN_AFTER: Duration = Duration::from_millis(700);
/// Time between two lines without a terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
/// Time between two changes of a line that updates in place.
const BAR_INTERVAL: Duration = Duration::from_millis(100);
/// Time between two looks at a wait that has no events of its own.
const TICK: Duration = Duration::from_millis(500);

/// Progress of one transfer, which several threads may report while [`TransferMeter::during`] runs it.
#[derive(Clone)]
pub struct TransferMeter(Arc<SharedMeter>);

struct SharedMeter {
    what: String,
    state: Mutex<MeterState>,
}

struct MeterState {
    /// Bytes to transfer; 0 when unknown.
    total: u64,
    done: u64,
    started_at: Instant,
    shown_at: Option<Instant>,
    has_ended: bool,
    /// True on a terminal.
    is_live: bool,
    /// Line of a terminal, from the moment at which there is something to show.
    bar: Option<ProgressBar>,
}

impl TransferMeter {
    /// Creates a meter for `total` bytes; 0 when the number is not known. `what` says what happens: `sending`.
    pub fn new(what: impl Into<String>, total: u64) -> Self {
        let is_live = output::is_live_terminal() && !output::notes_are_json();
        let state = MeterState {
            total,
            done: 0,
            started_at: Instant::now(),
            shown_at: None,
            has_ended: false,
            is_live,
            bar: None,
        };
        Self(Arc::new(SharedMeter { what: what.into(), state: Mutex::new(state) }))
    }

    /// Adds bytes that are done.
    pub fn add(&self, bytes: u64) {
        self.update(|state| state.done = state.done.saturating_add(bytes));
    }

    /// Sets the bytes that are done, and all bytes.
    pub fn set(&self, done: u64, total: u64) {
        self.update(|state| (state.done, state.total) = (done, total));
    }

    /// Runs `work`, and meanwhile keeps the line up to date when nothing is reported. The line is removed at the end, or
    /// when the work is cancelled.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let _ending = MeterEnd(&self.0);
        let mut work = std::pin::pin!(work);
        loop {
            match tokio::time::timeout(TICK, work.as_mut()).await {
                Ok(outcome) => return outcome,
                Err(_) => self.add(0),
            }
        }
    }

    /// Runs `work`, which has no progress that could be counted, and says what happens when it takes long.
    pub async fn wait_for<T>(what: impl Into<String>, work: impl Future<Output = T>) -> T {
        Self::new(what, 0).during(work).await
    }

    /// Counts the bytes that are read from or written to a stream.
    pub fn metered<S>(&self, stream: S) -> MeteredStream<S> {
        MeteredStream { stream, meter: self.clone() }
    }

    /// Prints a message above the line.
    pub fn note(&self, text: &str) {
        match &self.0.state.lock().bar {
            Some(bar) => bar.suspend(|| output::note(text)),
            None => output::note(text),
        }
    }

    fn update(&self, change: impl FnOnce(&mut MeterState)) {
        let mut state = self.0.state.lock();
        change(&mut state);
        state.show(&self.0.what, Instant::now());
    }
}

/// Ends a meter when it is dropped. A thread may still report bytes then, which are not shown.
struct MeterEnd<'a>(&'a SharedMeter);

impl Drop for MeterEnd<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.has_ended = true;
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
    }
}

/// A stream whose bytes a meter counts.
pub struct MeteredStream<S> {
    stream: S,
    meter: TransferMeter,
}

impl<S: Read> Read for MeteredStream<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        self.meter.add(count as u64);
        Ok(count)
    }
}

impl<S: Write> Write for MeteredStream<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.stream.write(bytes)?;
        self.meter.add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for MeteredStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.meter.add((buffer.filled().len() - before) as u64);
        outcome
    }
}

impl MeterState {
    fn show(&mut self, what: &str, now: Instant) {
        let elapsed = now.saturating_duration_since(self.started_at);
        if elapsed < SHOWN_AFTER || self.has_ended {
            return;
        }
        let interval = if self.bar.is_some() { BAR_INTERVAL } else { LINE_INTERVAL };
        let last = self.shown_at.unwrap_or(self.started_at);
        let is_first = self.shown_at.is_none() && self.is_live;
        if !is_first && now.saturating_duration_since(last) < interval {
            return;
        }
        self.shown_at = Some(now);
        let line = self.line(what, elapsed);
        match &self.bar {
            Some(bar) => bar.set_message(line),
            None if self.is_live => {
                let bar = ProgressBar::no_length().with_style(line_style()).with_message(line);
                bar.enable_steady_tick(BAR_INTERVAL);
                self.bar = Some(bar);
            }
            None => output::note(&line),
        }
    }

    /// Formats the progress: `sending: 20.00 MB of 100.00 MB, 5.00 MB/s, 16 s left`.
    fn line(&self, what: &str, elapsed: Duration) -> String {
        if self.done == 0 {
            return format!("{what}: {} s", elapsed.as_secs());
        }
        let rate = self.done as f64 / elapsed.as_secs_f64().max(0.001);
        let (done, rate_text) = (output::size(self.done), output::size(rate as u64));
        if self.total < self.done {
            return format!("{what}: {done}, {rate_text}/s");
        }
        let left = ((self.total - self.done) as f64 / rate.max(1.0)).ceil();
        format!("{what}: {done} of {}, {rate_text}/s, {left:.0} s left", output::size(self.total))
    }
}

fn line_style() -> ProgressStyle {
    // The template is a constant.
    ProgressStyle::with_template("{spinner} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(done: u64, total: u64) -> MeterState {
        MeterState {
            total,
            done,
            started_at: Instant::now(),
            shown_at: None,
            has_ended: false,
            is_live: false,
            bar: None,
        }
    }

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        let after = Duration::from_secs(4);
        assert_eq!(
            state(20_000_000, 100_000_000).line("sending", after),
            "sending: 20.00 MB of 100.00 MB, 5.00 MB/s, 16 s left"
        );
        assert_eq!(state(20_000_000, 0).line("receiving", after), "receiving: 20.00 MB, 5.00 MB/s");
        assert_eq!(state(0, 0).line("stopping web", after), "stopping web: 4 s");
        assert!(ProgressStyle::with_template("{spinner} {wide_msg}").is_ok());
    }

    #[test]
    fn nothing_is_shown_before_a_second_and_then_now_and_then() {
        let mut state = state(1, 2);
        let start = state.started_at;
        state.show("sending", start + Duration::from_millis(600));
        assert!(state.shown_at.is_none() && state.bar.is_none());
        state.show("sending", start + Duration::from_secs(4));
        assert!(state.shown_at.is_none());
        state.show("sending", start + Duration::from_secs(6));
        assert_eq!(state.shown_at, Some(start + Duration::from_secs(6)));
        state.show("sending", start + Duration::from_secs(8));
        assert_eq!(state.shown_at, Some(start + Duration::from_secs(6)));
    }

    #[tokio::test]
    async fn bytes_are_counted_in_each_direction() {
        let meter = TransferMeter::new("sending", 0);
        let mut text = String::new();
        Read::read_to_string(&mut meter.metered(&b"abc"[..]), &mut text).unwrap();
        Write::write_all(&mut meter.metered(io::sink()), b"de").unwrap();
        tokio::io::AsyncReadExt::read_to_string(&mut meter.metered(&b"fghi"[..]), &mut text).await.unwrap();
        assert_eq!((text.as_str(), meter.0.state.lock().done), ("abcfghi", 9));
        meter.set(5, 10);
        assert_eq!(meter.0.state.lock().done, 5);
    }

    #[tokio::test]
    async fn a_wait_returns_what_its_work_returns() {
        assert_eq!(TransferMeter::wait_for("waiting", async { 7 }).await, 7);
        let meter = TransferMeter::new("sending", 0);
        meter.during(async {}).await;
        assert!(meter.0.state.lock().has_ended);
    }
}
