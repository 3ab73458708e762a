//! Retention of ended builds: removes builds beyond the configured number and age, with their logs. Of the builds that
//! stay, the oldest logs of an owner are removed when its logs exceed their common limit. Images are not affected. The
//! record of a pinned build stays, and does not count.

use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::event_log::EventLog;
use super::service::{BuildError, BuildRuntime};
use crate::model::build::BuildRecord;
use crate::model::id::BuildId;
use crate::model::share_owner::ShareOwner;
use crate::task;

/// Interval between two passes.
const PAUSE: Duration = Duration::from_secs(600);

pub(super) async fn retention_loop(shared: Arc<BuildRuntime>) {
    loop {
        match remove_old_builds(&shared, Timestamp::now()).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "old builds removed"),
            Err(error) => tracing::warn!(%error, "failed to remove old builds"),
        }
        // A pass reads all builds, so the end of a build triggers one only if its log is not small.
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = shared.large_log.notified() => {}
        }
    }
}

/// Removes the builds that are too many or too old at `now`. Returns their number.
pub(super) async fn remove_old_builds(shared: &BuildRuntime, now: Timestamp) -> Result<usize, BuildError> {
    let _turn = shared.removals.lock().await;
    let mut ended = Vec::new();
    let collect = |record: BuildRecord| {
        ended.push(EndedBuild {
            owner: shared.options.share_owners.owner_of(&record.submitted_by),
            is_expired: is_older(&record, now, shared.options.keep_for),
            pinned: record.pinned,
            id: record.id,
        });
    };
    shared.each_ended(None, collect).await?;
    trim_logs(shared, &ended).await?;
    ended.retain(|build| !build.pinned);
    let mut removed = 0;
    for id in surplus_builds(ended, shared.options.keep_ended) {
        // A build that is just ending still has its task.
        if shared.active_build(&id).is_none() {
            shared.remove(&id).await?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Removes the logs of ended builds (latest first) beyond the limit of their owner.
async fn trim_logs(shared: &BuildRuntime, ended: &[EndedBuild]) -> Result<(), BuildError> {
    let builds: Vec<(BuildId, String)> = ended
        .iter()
        .filter(|build| shared.active_build(&build.id).is_none())
        .map(|build| (build.id.clone(), build.owner.0.clone()))
        .collect();
    let (directory, limit) = (shared.options.log_dir.clone(), shared.options.logs_per_owner);
    let trimmed = task::blocking("build logs", move || {
        let mut kept: HashMap<String, u64> = HashMap::new();
        for (id, owner) in builds {
            let size = EventLog::size(&directory, &id).unwrap_or_default();
            let kept = kept.entry(owner).or_default();
            *kept = kept.saturating_add(size);
            if *kept > limit && size > 0 {
                let removed = EventLog::remove(&directory, &id);
                removed.map_err(|source| BuildError::Log { id: id.clone(), source })?;
                tracing::info!(build.id = %id, bytes = size, "build log removed; its owner's logs exceeded the limit");
            }
        }
        Ok(())
    });
    trimmed.await.unwrap_or_else(|error| {
        tracing::error!(%error, "task that removes old build logs panicked");
        Ok(())
    })
}

struct EndedBuild {
    id: BuildId,
    owner: ShareOwner,
    /// The build is older than the retention time.
    is_expired: bool,
    pinned: bool,
}

/// Returns the builds to remove, of all ended ones, the latest first. Beyond `keep`, each removed build is the oldest
/// one of the owner with most builds, so that no owner loses builds because another one builds a lot.
fn surplus_builds(mut ended: Vec<EndedBuild>, keep: usize) -> Vec<BuildId> {
    let mut counts: HashMap<&ShareOwner, usize> = HashMap::new();
    for build in ended.iter().filter(|build| !build.is_expired) {
        *counts.entry(&build.owner).or_default() += 1;
    }
    let total: usize = counts.values().sum();
    let mut most: BinaryHeap<(usize, &str)> =
        counts.into_iter().map(|(owner, count)| (count, owner.0.as_str())).collect();
    for _ in keep..total {
        if let Some((count, owner)) = most.pop() {
            most.push((count - 1, owner));
        }
    }
    let mut left: HashMap<String, usize> =
        most.into_iter().map(|(count, owner)| (owner.to_owned(), count)).collect();
    ended.retain(|build| {
        let left = left.get_mut(&build.owner.0).filter(|left| !build.is_expired && **left > 0);
        left.map(|left| *left -= 1).is_none()
    });
    ended.into_iter().map(|build| build.id).collect()
}

pub(super) fn is_older(record: &BuildRecord, now: Timestamp, than: Duration) -> bool {
    record
        .finished_at
        .is_some_and(|finished| now.duration_since(finished).unsigned_abs() > than && now > finished)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builds_of_whoever_has_most_go_first_and_the_oldest_of_them() {
        let builds = |owners: &str, old: &[usize]| -> Vec<EndedBuild> {
            let one = |(index, owner): (usize, char)| EndedBuild {
                id: format!("{index:012}").parse().unwrap(),
                owner: ShareOwner(owner.to_string()),
                is_expired: old.contains(&index),
                pinned: false,
            };
            owners.chars().enumerate().map(one).collect()
        };
        let gone = |owners: &str, old: &[usize], keep| -> Vec<usize> {
            surplus_builds(builds(owners, old), keep).iter().map(|id| id.as_str().parse().unwrap()).collect()
        };
        assert!(gone("aab", &[], 3).is_empty());
        assert_eq!(gone("aaaaaab", &[], 3), [2, 3, 4, 5]);
        // The owner with few builds has the oldest build, and keeps it.
        assert_eq!(gone("mmmmmmmma", &[], 4), [3, 4, 5, 6, 7]);
        assert_eq!(gone("abcabc", &[], 3), [3, 4, 5]);
        assert_eq!(gone("aab", &[0, 2], 3), [0, 2]);
        assert_eq!(gone("ab", &[], 0), [0, 1]);
    }
}
