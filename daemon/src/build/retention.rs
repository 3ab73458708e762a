//! Old builds go: ended ones beyond the number and the age that are kept, with their logs. Images stay.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::port::BuildQuery;
use super::service::{BuildError, Shared};
use crate::model::build::{BuildRecord, BuildState};

const PAUSE: Duration = Duration::from_secs(600);
const PAGE: usize = 200;
const ENDED: [BuildState; 4] =
    [BuildState::Succeeded, BuildState::Failed, BuildState::Cancelled, BuildState::Interrupted];

pub(super) async fn retention_loop(shared: Arc<Shared>) {
    loop {
        match retention_one(&shared, Timestamp::now()).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "old builds removed"),
            Err(error) => tracing::warn!(%error, "old builds could not be removed"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Removes what is too much or too old at `now`, and says how many.
pub(super) async fn retention_one(shared: &Shared, now: Timestamp) -> Result<usize, BuildError> {
    let (mut seen, mut removed, mut after) = (0, 0, None);
    loop {
        let query =
            BuildQuery { states: ENDED.to_vec(), after: after.clone(), limit: PAGE, ..BuildQuery::default() };
        let page = shared.ports.store.list(query).await?;
        let Some(last) = page.last().map(|record| record.id.clone()) else { return Ok(removed) };
        // The page's last build marks where the next page begins, so it goes in the next round at the earliest.
        let full = page.len() == PAGE;
        for record in page {
            seen += 1;
            let goes = seen > shared.options.keep_ended || is_older(&record, now, shared.options.keep_for);
            // A build that is just ending still has its task.
            if goes && shared.active(&record.id).is_none() && !(full && record.id == last) {
                shared.remove(&record.id).await?;
                removed += 1;
            }
        }
        if !full {
            return Ok(removed);
        }
        after = Some(last);
    }
}

fn is_older(record: &BuildRecord, now: Timestamp, than: Duration) -> bool {
    record
        .finished_at
        .is_some_and(|finished| now.duration_since(finished).unsigned_abs() > than && now > finished)
}
