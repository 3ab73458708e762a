//! Estimate of when a waiting build starts, from the durations of earlier builds of the same tags.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

use super::admission::{QueuePlace, QueueWait};
use super::port::{BuildQuery, BuildStore, StoreError};
use crate::model::build::{BuildRecord, BuildState};
use crate::model::id::BuildId;

/// Number of earlier builds of a tag whose median duration is expected of the next.
const SAMPLES: usize = 5;
/// Number of builds of the whole room that stand for a tag without earlier builds.
const ROOM_SAMPLES: usize = 20;
/// Maximum number of builds ahead that are looked up; those behind are taken to be like the room's.
const MAX_LOOKED_UP: usize = 50;

pub(super) async fn expected_wait(
    store: &dyn BuildStore,
    place: &QueuePlace,
) -> Result<Option<Duration>, StoreError> {
    if place.wait == QueueWait::Draining {
        return Ok(None);
    }
    let Some(of_room) = median_of(store, None, ROOM_SAMPLES).await? else { return Ok(None) };
    let mut by_tag = HashMap::new();
    let now = Timestamp::now();
    let mut free_at = Vec::new();
    for id in &place.running {
        let Some((record, expected)) = expected(store, &mut by_tag, id, of_room).await? else { continue };
        let elapsed = record.started_at.map(|started| now.duration_since(started).unsigned_abs());
        free_at.push(expected.saturating_sub(elapsed.unwrap_or_default()));
    }
    let mut ahead = Vec::new();
    for id in place.ahead.iter().take(MAX_LOOKED_UP) {
        ahead
            .push(expected(store, &mut by_tag, id, of_room).await?.map_or(of_room, |(_, expected)| expected));
    }
    ahead.resize(place.ahead.len(), of_room);
    Ok(Some(wait(free_at, &ahead)))
}

/// Returns the record of a build and its expected duration.
async fn expected(
    store: &dyn BuildStore,
    by_tag: &mut HashMap<String, Duration>,
    id: &BuildId,
    of_room: Duration,
) -> Result<Option<(BuildRecord, Duration)>, StoreError> {
    let Some(record) = store.get(id).await? else { return Ok(None) };
    let tag = record.spec.tags.first().map(ToString::to_string).unwrap_or_default();
    let expected = match by_tag.get(&tag) {
        Some(known) => *known,
        None => {
            let median = median_of(store, Some(tag.clone()), SAMPLES).await?.unwrap_or(of_room);
            by_tag.insert(tag, median);
            median
        }
    };
    Ok(Some((record, expected)))
}

/// Returns the median duration of the last builds that succeeded.
async fn median_of(
    store: &dyn BuildStore,
    tag: Option<String>,
    limit: usize,
) -> Result<Option<Duration>, StoreError> {
    let query = BuildQuery { states: vec![BuildState::Succeeded], tag, limit, ..BuildQuery::default() };
    let builds = store.list(query).await?;
    let mut durations: Vec<Duration> =
        builds.into_iter().filter_map(|build| Some(build.result?.duration)).collect();
    durations.sort();
    Ok(durations.get(durations.len() / 2).copied())
}

/// Returns when a slot is free for the next build: the builds ahead take the slots of the running ones, each the first
/// that becomes free.
fn wait(mut free_at: Vec<Duration>, ahead: &[Duration]) -> Duration {
    for expected in ahead {
        let Some(first) = free_at.iter_mut().min() else { break };
        *first += *expected;
    }
    free_at.into_iter().min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn builds_ahead_take_the_first_free_slots() {
        let seconds =
            |counts: &[u64]| -> Vec<Duration> { counts.iter().copied().map(Duration::from_secs).collect() };
        let wait = |running: &[u64], ahead: &[u64]| wait(seconds(running), &seconds(ahead)).as_secs();
        assert_eq!(wait(&[10, 4], &[]), 4);
        assert_eq!(wait(&[10, 4], &[3]), 7);
        assert_eq!(wait(&[10, 4], &[3, 9]), 10);
        assert_eq!(wait(&[10, 4], &[3, 9, 1]), 11);
        assert_eq!(wait(&[], &[3]), 0);
    }
}
