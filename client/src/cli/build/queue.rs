//! Place of a build in the queue, which is asked for while the build waits.

use std::future::pending;
use std::time::Duration;

use hearth_proto::v1::build_event::Event;
use hearth_proto::v1::{BuildEvent, BuildState, QueuePlace};

use crate::client::Client;
use crate::duration;

/// Time between two questions.
const INTERVAL: Duration = Duration::from_secs(1);

/// Follows the place of one build.
pub(super) struct QueueWatch<'a> {
    client: &'a Client,
    build_id: &'a str,
    is_waiting: bool,
    /// The last text that was returned.
    shown: String,
}

impl<'a> QueueWatch<'a> {
    pub(super) fn new(client: &'a Client, build_id: &'a str) -> Self {
        Self { client, build_id, is_waiting: false, shown: String::new() }
    }

    pub(super) fn follow(&mut self, event: &BuildEvent) {
        match event.event {
            Some(Event::StateChanged(state)) => self.is_waiting = state == i32::from(BuildState::Queued),
            Some(_) => self.is_waiting = false,
            None => {}
        }
    }

    /// Returns the place when it has changed. Never returns while the build does not wait. Cancel safe.
    pub(super) async fn next(&mut self) -> String {
        while self.is_waiting {
            tokio::time::sleep(INTERVAL).await;
            // The watch of the build reports a daemon that does not answer.
            let place = self.client.build(self.build_id).await.ok().and_then(|build| build.queue);
            let text = place.map(|place| text(&place)).unwrap_or_default();
            if !text.is_empty() && text != self.shown {
                self.shown.clone_from(&text);
                return text;
            }
        }
        pending().await
    }
}

/// Formats a place: `queued: next (2 of 2 builds run)`.
fn text(place: &QueuePlace) -> String {
    let before = match place.ahead {
        0 => "next".to_owned(),
        1 => "1 build before it".to_owned(),
        ahead => format!("{ahead} builds before it"),
    };
    let wait = place.expected_wait.and_then(|wait| Duration::try_from(wait).ok());
    let wait = wait.map(|wait| format!("; expected to start in {}", duration::format_short(rounded(wait))));
    format!("queued: {before} ({}{})", crate::output::printable(&place.reason), wait.unwrap_or_default())
}

/// Rounds an estimate up, so that its text changes less often than once a second: to 5 s, or to a minute.
fn rounded(wait: Duration) -> Duration {
    let step = if wait.as_secs() < 120 { 5 } else { 60 };
    Duration::from_secs((wait.as_secs() / step + 1) * step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_says_how_many_and_why() {
        let place =
            |ahead| text(&QueuePlace { ahead, reason: "2 of 2 builds run".into(), expected_wait: None });
        assert_eq!(place(0), "queued: next (2 of 2 builds run)");
        assert_eq!(place(1), "queued: 1 build before it (2 of 2 builds run)");
        assert_eq!(place(7), "queued: 7 builds before it (2 of 2 builds run)");
        let wait = prost_types::Duration { seconds: 43, nanos: 5 };
        let place = QueuePlace { ahead: 0, reason: "2 of 2 builds run".into(), expected_wait: Some(wait) };
        assert_eq!(text(&place), "queued: next (2 of 2 builds run; expected to start in 45.0s)");
    }
}
