//! Watching a build: each watcher reads the event log at its own pace and is woken when the log grows.
//!
//! A watcher shares only the log with the build, so a slow or dropped watcher does not affect the build.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use tokio::sync::watch;

use super::event_log::EventLog;
use super::service::{ActiveBuild, BuildError, Handle};
use crate::model::build::{BuildEvent, BuildEventKind};
use crate::model::id::BuildId;
use crate::task;

/// Bytes of events that a watcher buffers.
const BATCH: usize = 64 << 10;

/// Stream of a build's events. Ends after the build's last event, or after an error.
pub type BuildEventStream = Pin<Box<dyn Stream<Item = Result<BuildEvent, BuildError>> + Send>>;

impl Handle {
    /// Returns the events of a build from a number on, each once and in order. With `follow`, waits for more until the
    /// build has ended; otherwise ends after the newest one.
    pub async fn watch(
        &self,
        id: &str,
        from_sequence: u64,
        follow: bool,
    ) -> Result<BuildEventStream, BuildError> {
        let id = self.resolve(id, None).await?;
        // The active build is looked up first: a build that ends in between is in the store by then.
        let active = self.shared.active_build(&id);
        self.record(&id).await?;
        let log = match &active {
            Some(active) => Some(Arc::clone(&active.log)),
            None => {
                let (directory, of) = (self.shared.options.log_dir.clone(), id.clone());
                let opened = task::blocking("build log", move || EventLog::open(&directory, &of)).await;
                let opened = opened.map_err(std::io::Error::other).flatten();
                opened.map_err(|source| BuildError::Log { id: id.clone(), source })?.map(Arc::new)
            }
        };
        let live = active.zip(log.as_ref().map(|log| log.subscribe()));
        let watcher = BuildWatcher {
            handle: self.clone(),
            id,
            log,
            live,
            next: from_sequence.max(1),
            follow,
            ready: VecDeque::new(),
            done: false,
        };
        Ok(Box::pin(futures::stream::unfold(watcher, |mut watcher| async move {
            let event = watcher.advance().await.transpose()?;
            watcher.done |= event.is_err();
            Some((event, watcher))
        })))
    }
}

struct BuildWatcher {
    handle: Handle,
    id: BuildId,
    log: Option<Arc<EventLog>>,
    /// Set while the build waits or runs.
    live: Option<(Arc<ActiveBuild>, watch::Receiver<u64>)>,
    next: u64,
    follow: bool,
    ready: VecDeque<BuildEvent>,
    done: bool,
}

impl BuildWatcher {
    async fn advance(&mut self) -> Result<Option<BuildEvent>, BuildError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.next = event.sequence + event.kind.count();
                if matches!(event.kind, BuildEventKind::Finished { .. }) {
                    self.done = true;
                    self.wait_stored().await?;
                }
                return Ok(Some(event));
            }
            if self.done {
                return Ok(None);
            }
            // Checked before reading, so that the read includes everything before the end.
            let ended = self.live.as_ref().is_none_or(|(active, _)| active.ended.is_cancelled());
            self.ready = self.read().await?.into();
            if !self.ready.is_empty() {
                continue;
            }
            if ended {
                return match self.missing_end().await? {
                    Some(event) => {
                        self.ready.push_back(event);
                        continue;
                    }
                    None => Ok(None),
                };
            }
            let Some((active, newest)) = self.live.as_mut().filter(|_| self.follow) else { return Ok(None) };
            let next = self.next;
            tokio::select! {
                _ = newest.wait_for(|newest| *newest >= next) => {}
                () = active.ended.cancelled() => {}
            }
        }
    }

    /// Waits until the end of the build is stored. Only an end that a start of the daemon found in the log is there
    /// before its record.
    async fn wait_stored(&self) -> Result<(), BuildError> {
        let Some((active, _)) = &self.live else { return Ok(()) };
        if self.handle.record(&self.id).await?.state.is_final() {
            return Ok(());
        }
        active.wait_ended().await
    }

    async fn read(&self) -> Result<Vec<BuildEvent>, BuildError> {
        let Some(log) = self.log.clone() else { return Ok(Vec::new()) };
        let next = self.next;
        if next > log.last_sequence() {
            return Ok(Vec::new());
        }
        let read = task::blocking("build log", move || log.read(next, BATCH)).await;
        let failed = |source| BuildError::Log { id: self.id.clone(), source };
        read.map_err(std::io::Error::other).flatten().map_err(failed)
    }

    /// Returns what a crash, a full disk or damage kept out of the log: the missing events, then the last one, built
    /// from the record.
    async fn missing_end(&self) -> Result<Option<BuildEvent>, BuildError> {
        let record = self.handle.record(&self.id).await?;
        let (true, Some(time)) = (record.state.is_final(), record.finished_at) else { return Ok(None) };
        let kind = match record.last_sequence.checked_sub(self.next) {
            None => return Ok(None),
            Some(0) => BuildEventKind::Finished { state: record.state },
            Some(events) => {
                let bytes = self.log.as_ref().map_or(Ok(0), |log| log.bytes_after_end());
                let bytes = bytes.map_err(|source| BuildError::Log { id: self.id.clone(), source })?;
                BuildEventKind::Damaged { events, bytes }
            }
        };
        Ok(Some(BuildEvent { sequence: self.next, time, kind }))
    }
}
