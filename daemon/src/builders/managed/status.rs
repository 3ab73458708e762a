//! Published status of the managed builders: the list of builders, their combined readiness, and their metrics.

use super::super::policy::BuilderPhase;
use super::BuilderOwner;
use crate::buildkit::ReadinessStatus;
use crate::model::builder::{BuilderState, BuilderStatus};

impl BuilderOwner {
    /// Publishes changes to the watch channels and the metrics.
    pub(super) fn publish(&self) {
        let all: Vec<BuilderStatus> = self
            .policy
            .domain_builders()
            .map(|(domain, builder)| {
                let slot = self.slots.get(domain);
                let status = slot
                    .and_then(|slot| slot.running.as_ref())
                    .map(|(buildkit, _)| buildkit.status().borrow().clone());
                let state = match (&status, builder.phase) {
                    (Some(status), _) if status.ready => BuilderState::Ready,
                    (_, BuilderPhase::Stopped | BuilderPhase::Removing) => BuilderState::Stopped,
                    _ => BuilderState::NotReady,
                };
                let detail = match (status, slot) {
                    (Some(status), _) => {
                        if status.ready {
                            status.version
                        } else {
                            status.detail
                        }
                    }
                    (None, Some(slot)) if slot.stopping => Some("buildkitd is stopping".to_owned()),
                    (None, Some(slot)) => {
                        Some(slot.failure.clone().unwrap_or_else(|| "buildkitd is starting".to_owned()))
                    }
                    (None, None) => None,
                };
                BuilderStatus {
                    domain: Some(domain.clone()),
                    address: None,
                    state,
                    detail: detail.unwrap_or_default(),
                    disk: builder.disk,
                    last_used: Some(builder.last_used),
                    builds: builder.builds,
                }
            })
            .collect();
        count(&all, self.policy.waiting_count());
        self.status.send_if_modified(|current| replace(current, combined_status(&all)));
        self.builders.send_if_modified(|current| replace(current, all));
    }
}

fn replace<T: PartialEq>(current: &mut T, new: T) -> bool {
    let changed = *current != new;
    *current = new;
    changed
}

/// Combines the status of all builders. It is ready if at least one builder is ready, because builds are then accepted.
/// Otherwise it has the detail of the most recently used builder that is not ready.
fn combined_status(all: &[BuilderStatus]) -> ReadinessStatus {
    let latest_in = |state| {
        all.iter().filter(move |builder| builder.state == state).max_by_key(|builder| builder.last_used)
    };
    if let Some(ready) = latest_in(BuilderState::Ready) {
        return ReadinessStatus { ready: true, version: Some(ready.detail.clone()), detail: None };
    }
    let detail = latest_in(BuilderState::NotReady).map_or("no builder runs", |down| &down.detail);
    ReadinessStatus { ready: false, version: None, detail: Some(detail.to_owned()) }
}

pub(super) fn describe_metrics() {
    metrics::describe_gauge!("hearth_builders", "Builders, by state.");
    metrics::describe_gauge!("hearth_builders_disk_bytes", "Size of all builder caches together.");
    metrics::describe_gauge!(
        "hearth_builders_waiting",
        "Builds that wait for a builder of their trust domain."
    );
    metrics::describe_counter!("hearth_builders_started_total", "Starts of builders.");
    metrics::describe_counter!(
        "hearth_builders_removed_total",
        "Builder caches that were removed to keep the limits."
    );
}

#[expect(clippy::cast_precision_loss, reason = "a gauge")]
fn count(all: &[BuilderStatus], waiting: usize) {
    for state in [BuilderState::Ready, BuilderState::NotReady, BuilderState::Stopped] {
        let number = all.iter().filter(|builder| builder.state == state).count();
        metrics::gauge!("hearth_builders", "state" => state.as_str()).set(number as f64);
    }
    let disk = all.iter().fold(0u64, |total, builder| total.saturating_add(builder.disk));
    metrics::gauge!("hearth_builders_disk_bytes").set(disk as f64);
    metrics::gauge!("hearth_builders_waiting").set(waiting as f64);
}
