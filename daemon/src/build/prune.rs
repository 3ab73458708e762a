//! Removal of ended builds on request, and pins, which keep a build from it and from the retention.

use std::time::Duration;

use jiff::Timestamp;

use super::port::BuildQuery;
use super::retention::is_older;
use super::service::{BuildError, BuildRuntime, Handle};
use crate::model::build::{BuildRecord, BuildState};
use crate::model::id::BuildId;

/// Maximum number of pinned builds of one caller.
pub const MAX_PINNED: usize = 100;
const PAGE: usize = 200;

/// Selection of ended builds to remove.
#[derive(Clone, Debug, Default)]
pub struct PruneBuilds {
    /// Caller whose builds are removed; `None` for those of everybody.
    pub submitted_by: Option<String>,
    /// Number of newest builds that stay.
    pub keep: usize,
    /// Age since the end of a build from which it is removed.
    pub older_than: Duration,
    /// Only returns the selected builds.
    pub dry_run: bool,
}

impl Handle {
    /// Keeps a build that has ended whatever its age, or ends that.
    pub async fn pin(&self, id: &str, pinned: bool) -> Result<BuildRecord, BuildError> {
        let _turn = self.shared.removals.lock().await;
        let mut record = self.ended(id).await?;
        if record.pinned == pinned {
            return Ok(record);
        }
        if pinned {
            let mut count = 0;
            let owner = Some(record.submitted_by.clone());
            self.shared.each_ended(owner, |record| count += usize::from(record.pinned)).await?;
            if count >= MAX_PINNED {
                return Err(BuildError::TooManyPinned { limit: MAX_PINNED });
            }
        }
        record.pinned = pinned;
        self.shared.ports.store.update(record.clone()).await?;
        Ok(record)
    }

    /// Removes ended builds, except for pinned ones, and returns their ids, newest first.
    pub async fn prune(&self, selection: PruneBuilds) -> Result<Vec<BuildId>, BuildError> {
        let _turn = self.shared.removals.lock().await;
        let (now, mut seen, mut selected) = (Timestamp::now(), 0, Vec::new());
        let PruneBuilds { submitted_by, keep, older_than, dry_run } = selection;
        let select = |record: BuildRecord| {
            if record.pinned {
                return;
            }
            seen += 1;
            if seen > keep && is_older(&record, now, older_than) {
                selected.push(record.id);
            }
        };
        self.shared.each_ended(submitted_by, select).await?;
        // A build that is just ending still has its task.
        selected.retain(|id| self.shared.active_build(id).is_none());
        if !dry_run {
            for id in &selected {
                self.shared.remove(id).await?;
            }
        }
        Ok(selected)
    }
}

impl BuildRuntime {
    /// Visits all builds that have ended, newest first.
    pub(super) async fn each_ended(
        &self,
        submitted_by: Option<String>,
        mut visit: impl FnMut(BuildRecord),
    ) -> Result<(), BuildError> {
        let mut after = None;
        loop {
            let query = BuildQuery {
                states: BuildState::FINAL.to_vec(),
                submitted_by: submitted_by.clone(),
                after,
                limit: PAGE,
                ..BuildQuery::default()
            };
            let page = self.ports.store.list(query).await?;
            after = page.last().map(|record| record.id.clone());
            page.into_iter().for_each(&mut visit);
            if after.is_none() {
                return Ok(());
            }
        }
    }
}
