//! Loop of a service: observe, plan, act, and again whenever something changes. It only compares the desired with the
//! actual state, so a lost event, a restart of the daemon and an instance that was killed by hand all heal in the same
//! way.
//!
//! Short actions run here one after the other; long ones ([`super::steps`]) run in their own tasks and wake the loop
//! when they finish. A failed pass is logged and repeated.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::context::DeployContext;
use super::entry::{MAX_EXITS, ServiceEntry};
use super::failure::{report_exit, report_unhealthy};
use super::plan::{DesiredService, InstanceHealth, InstanceStage, after, plan};
use super::port::{InstanceState, NetworkError, ObservedInstance, RuntimeError, ServiceStoreError};
use super::steps::StopOptions;
use super::tracked_instance::{TrackedInstance, is_external_exit};
use crate::model::deploy::{DeployAction, DeployEventKind, FailCause};
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::id::InstanceId;
use crate::model::service::{ProcessExit, RevisionOutcome};

/// Pause after a failed pass.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// Maximum time between two passes.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// Maximum number of planning rounds per pass. Each round makes progress; reaching the limit means that the plan does
/// not terminate.
const MAX_ROUNDS: usize = 32;

/// Time of the next pass if nothing wakes the loop before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NextPass {
    At(Timestamp),
    /// The service has been removed.
    Removed,
}

/// Reason of a failed pass.
#[derive(Debug, thiserror::Error)]
pub(super) enum PassError {
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error(transparent)]
    Network(#[from] NetworkError),
    #[error(transparent)]
    Store(#[from] ServiceStoreError),
    #[error("the runtime does not answer")]
    Timeout,
    #[error("the plan does not come to an end")]
    EndlessPlan,
}

/// Starts the loop of a reconciled or new service, at most once.
pub(super) fn start_loop(shared: &Arc<DeployContext>, entry: Arc<ServiceEntry>) {
    if !entry.loop_started.swap(true, Ordering::AcqRel) {
        // No parent: the loop outlives the deploy that starts it.
        let span = tracing::info_span!(parent: None, "service", service.name = %entry.name());
        span.in_scope(|| shared.spawn("service", service_loop(Arc::clone(shared), entry)));
    }
}

async fn service_loop(shared: Arc<DeployContext>, entry: Arc<ServiceEntry>) {
    let mut changes = shared.ports.runtime.changes();
    let mut last_error = String::new();
    loop {
        changes.mark_unchanged();
        let pause = match reconcile_one(&shared, &entry).await {
            Ok(NextPass::Removed) => return,
            Ok(NextPass::At(at)) => {
                last_error.clear();
                at.duration_since(Timestamp::now()).try_into().unwrap_or(Duration::ZERO)
            }
            Err(error) => {
                let error = error.to_string();
                if error != last_error {
                    tracing::warn!(error, "failed to reconcile a service");
                    let state = entry.state();
                    let wanted = state.service.target_revision().map(|revision| revision.number);
                    if let Some(progress) = wanted.and_then(|revision| state.progress(revision)) {
                        progress.publish(DeployEventKind::Trouble { message: error.clone() });
                    }
                    last_error = error;
                }
                RETRY_PAUSE
            }
        };
        let changed = async {
            if changes.changed().await.is_err() {
                // The runtime sends no more changes; only the sleep remains.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = entry.wake.notified() => {}
            () = changed => {}
            () = tokio::time::sleep(pause.min(LONGEST_SLEEP)) => {}
        }
    }
}

/// Runs one pass over a service.
pub(super) async fn reconcile_one(
    shared: &Arc<DeployContext>,
    entry: &Arc<ServiceEntry>,
) -> Result<NextPass, PassError> {
    observe(shared, entry).await?;
    for _ in 0..MAX_ROUNDS {
        let now = Timestamp::now();
        let (actions, reported) = {
            let mut state = entry.state();
            let actions = plan(&DesiredService::of(&state.service), &state.actual(), now);
            let reported =
                if actions.is_empty() { Vec::new() } else { std::mem::take(&mut state.last_reported) };
            (actions, reported)
        };
        let mut next = after(now, LONGEST_SLEEP);
        let mut acted = false;
        for action in actions {
            publish_action(entry, &action, &reported);
            match action {
                DeployAction::AwaitHealthy { instance, revision } => {
                    let state = entry.state();
                    let health = state.instances.get(&instance).and_then(TrackedInstance::health);
                    let limit =
                        state.service.revision(revision).map(|revision| revision.spec.health.start_limit);
                    if let (Some(InstanceHealth::Unproven { since }), Some(limit)) = (health, limit) {
                        next = next.min(after(since, limit));
                    }
                }
                DeployAction::Settle { until, .. } | DeployAction::Backoff { until } => {
                    next = next.min(until);
                }
                DeployAction::Forget => {
                    forget_service(shared, entry).await?;
                    return Ok(NextPass::Removed);
                }
                action => {
                    apply(shared, entry, action).await?;
                    acted = true;
                }
            }
        }
        if !acted {
            return Ok(NextPass::At(next));
        }
    }
    Err(PassError::EndlessPlan)
}

/// Updates the tracked instances from the runtime's listing.
async fn observe(shared: &Arc<DeployContext>, entry: &Arc<ServiceEntry>) -> Result<(), PassError> {
    let expected: BTreeSet<InstanceId> = {
        let state = entry.state();
        state.instances.iter().filter(|(_, known)| known.is_running()).map(|(id, _)| id.clone()).collect()
    };
    let listed = shared.list_instances().await?;
    let listed: Vec<&ObservedInstance> =
        listed.iter().filter(|observed| observed.label.service == entry.id).collect();
    let mut strangers = Vec::new();
    let mut ended = Vec::new();
    {
        let mut state = entry.state();
        for ObservedInstance { label, state: now } in listed.iter().copied().cloned() {
            let Some(known) = state.instances.get_mut(&label.instance) else {
                if !state.recently_removed.contains(&label.instance) {
                    strangers.push(ObservedInstance { label, state: now });
                }
                continue;
            };
            match (known.stage(), now) {
                (InstanceStage::Running(_), InstanceState::Running { pid }) => known.set_pid(pid),
                (InstanceStage::Running(_), InstanceState::Exited(exit)) => {
                    ended.push((label.instance, Some(exit)));
                }
                // Its start may have completed while the listing was made.
                (InstanceStage::Running(_), InstanceState::Incomplete)
                    if expected.contains(&label.instance) =>
                {
                    ended.push((label.instance, None));
                }
                // Operations in progress own their instances, and exited instances do not change.
                _ => {}
            }
        }
        let there: BTreeSet<&InstanceId> = listed.iter().map(|observed| &observed.label.instance).collect();
        let vanished = expected.iter().filter(|id| !there.contains(id));
        let running = |id: &InstanceId| state.instances.get(id).is_some_and(TrackedInstance::is_running);
        ended.extend(vanished.filter(|id| running(id)).map(|id| (id.clone(), None)));
    }
    for stranger in strangers {
        let instance = stranger.label.instance.clone();
        if adopt_instance(shared, entry, stranger, InstanceHealth::Unproven { since: Timestamp::now() }).await
        {
            shared.start_monitor(entry, &instance);
        }
    }
    for (instance, exit) in ended {
        instance_exited(shared, entry, &instance, exit).await;
    }
    Ok(())
}

impl DeployContext {
    /// Lists the runtime's instances, not earlier than this call. Services that ask at the same time share one listing.
    async fn list_instances(&self) -> Result<Arc<Vec<ObservedInstance>>, PassError> {
        let asked = Instant::now();
        let mut last = self.last_listing.lock().await;
        if let Some((started, listed)) = &*last
            && *started >= asked
        {
            return Ok(Arc::clone(listed));
        }
        let started = Instant::now();
        let listed = tokio::time::timeout(self.options.call_limit, self.ports.runtime.list()).await;
        let listed = Arc::new(listed.map_err(|_| PassError::Timeout)??);
        *last = Some((started, Arc::clone(&listed)));
        Ok(listed)
    }
}

/// Adopts an instance that an earlier run of the daemon started. Returns whether it is running: then its health is
/// `health`, and the caller has to start its monitor.
pub(super) async fn adopt_instance(
    shared: &DeployContext,
    entry: &ServiceEntry,
    observed: ObservedInstance,
    health: InstanceHealth,
) -> bool {
    let ObservedInstance { label, state } = observed;
    let instance = label.instance.clone();
    let known = match state {
        InstanceState::Incomplete => TrackedInstance::found_incomplete(label),
        InstanceState::Exited(exit) => TrackedInstance::found_exited(label, exit),
        InstanceState::Running { pid } => {
            let limit = shared.options.call_limit;
            let isolated = is_isolated(entry, label.revision);
            let attach = shared.ports.network.attach(&instance, &label.name, isolated);
            match tokio::time::timeout(limit, attach).await {
                Ok(Ok(attached)) => TrackedInstance::found_running(label, pid, attached.address, health),
                // The instance is unreachable and is replaced.
                Ok(Err(error)) => {
                    tracing::warn!(%error, instance.id = %instance, "failed to repair the network of an instance");
                    TrackedInstance::found_unreachable(label)
                }
                Err(_) => TrackedInstance::found_unreachable(label),
            }
        }
    };
    let runs = known.is_running();
    entry.state().instances.insert(instance, known);
    runs
}

/// Reports whether a revision's instances are isolated. Those of an unknown revision are, until they are replaced.
fn is_isolated(entry: &ServiceEntry, revision: u32) -> bool {
    let state = entry.state();
    state.service.revision(revision).is_none_or(|revision| revision.spec.confinement.isolated)
}

/// Records the exit of a running instance.
async fn instance_exited(
    shared: &Arc<DeployContext>,
    entry: &Arc<ServiceEntry>,
    instance: &InstanceId,
    exit: Option<ProcessExit>,
) {
    let outside = is_external_exit(exit);
    let (label, is_wanted, covered) = {
        let mut state = entry.state();
        let Some(known) = state.instances.get_mut(instance) else { return };
        let since = known.healthy_since();
        if !known.exited(exit) {
            return;
        }
        let label = known.label.clone();
        let is_wanted = state.is_wanted(&label);
        let shall_run = state.shall_run(&label);
        if shall_run {
            state.count_exit(&label, since, outside);
            if let Some(exit) = exit {
                state.last_exits.push_front(exit);
                state.last_exits.truncate(MAX_EXITS);
            }
        }
        let wanted = state.service.target_revision().filter(|_| shall_run && !is_wanted);
        let covered = wanted.and_then(|revision| state.progress(revision.number));
        (label, is_wanted, covered)
    };
    metrics::counter!("hearth_instance_ends_total").increment(1);
    let code = exit.and_then(|exit| exit.code);
    tracing::info!(instance.id = %instance, revision = label.revision, exit.code = code, "instance exited");
    if let Some(progress) = covered {
        let message = format!("an instance of revision {}, which serves meanwhile, ended", label.revision);
        progress.publish(DeployEventKind::Trouble { message });
    }
    if is_wanted && is_live(entry, label.revision) {
        let fault = report_exit(&shared.logs, entry, instance).await;
        report_lost_instance(entry, label.revision, fault);
    }
}

fn is_live(entry: &ServiceEntry, revision: u32) -> bool {
    let state = entry.state();
    let revision = state.service.revision(revision);
    revision.is_some_and(|revision| matches!(revision.outcome, RevisionOutcome::Live { .. }))
}

/// Reports a failed instance of a live revision to the watchers of its restart; the loop tries again.
fn report_lost_instance(entry: &ServiceEntry, revision: u32, fault: Fault) {
    let mut state = entry.state();
    if let Some(progress) = state.progress(revision) {
        progress.fail(fault.clone());
    }
    state.last_fault = Some(fault);
}

/// Executes one action. The action is done or started on return; after an error it has had no effect.
async fn apply(
    shared: &Arc<DeployContext>,
    entry: &Arc<ServiceEntry>,
    action: DeployAction,
) -> Result<(), PassError> {
    tracing::debug!(%action, "began an action");
    match action {
        DeployAction::Start { revision, generation } => shared.begin_start(entry, revision, generation),
        DeployAction::Abort { instance, .. } => {
            // After a start that has completed meanwhile, the next plan stops the instance.
            if let Some(known) = entry.state().instances.get_mut(&instance) {
                known.abort();
            }
        }
        DeployAction::Route { instance, revision } => {
            let arrived = {
                let mut state = entry.state();
                let wanted =
                    state.instances.get(&instance).is_some_and(|known| state.is_wanted(&known.label));
                state.routed = Some(instance);
                state.progress(revision).filter(|_| wanted)
            };
            shared.publish_routes().await;
            // A restart completes here; a new revision completes when it is stored as live.
            if is_live(entry, revision) {
                entry.state().last_fault = None;
                if let Some(progress) = arrived {
                    progress.complete();
                }
            }
        }
        DeployAction::Unroute => {
            entry.state().routed = None;
            shared.publish_routes().await;
        }
        DeployAction::Retire { instance, .. } => {
            shared.begin_stop(
                entry,
                &instance,
                StopOptions { drain: true, grace: shared.options.stop_grace },
            );
        }
        DeployAction::Remove { instance, .. } => begin_remove(shared, entry, &instance).await,
        DeployAction::MarkLive { revision } => mark_live(shared, entry, revision).await?,
        DeployAction::MarkFailed { revision, cause } => mark_failed(shared, entry, revision, cause).await?,
        // The pass itself handles these.
        DeployAction::AwaitHealthy { .. }
        | DeployAction::Settle { .. }
        | DeployAction::Backoff { .. }
        | DeployAction::Forget => {}
    }
    Ok(())
}

/// Publishes an action to the watchers of a deploy; a waiting action only once. A start publishes its own events.
fn publish_action(entry: &ServiceEntry, action: &DeployAction, reported: &[DeployAction]) {
    let mut state = entry.state();
    state.last_reported.push(action.clone());
    if matches!(action, DeployAction::Start { .. }) || reported.contains(action) {
        return;
    }
    let wanted = state.service.target_revision().map(|revision| revision.number);
    if let Some(progress) = wanted.and_then(|revision| state.progress(revision)) {
        progress.publish(DeployEventKind::Started(action.clone()));
    }
}

async fn begin_remove(shared: &Arc<DeployContext>, entry: &Arc<ServiceEntry>, instance: &InstanceId) {
    let (grace, too_late) = {
        let state = entry.state();
        let grace = if state.service.removing { state.remove_grace } else { shared.options.stop_grace };
        let too_late = state.instances.get(instance).filter(|known| {
            matches!(known.health(), Some(InstanceHealth::Unproven { .. })) && state.shall_run(&known.label)
        });
        (grace, too_late.map(|known| known.label.clone()))
    };
    if let Some(label) = too_late.filter(|label| is_live(entry, label.revision)) {
        let fault = report_unhealthy(&shared.logs, entry, instance, true).await;
        entry.state().count_exit(&label, None, false);
        report_lost_instance(entry, label.revision, fault);
    }
    shared.begin_stop(entry, instance, StopOptions { drain: false, grace });
}

async fn mark_live(
    shared: &Arc<DeployContext>,
    entry: &Arc<ServiceEntry>,
    revision: u32,
) -> Result<(), ServiceStoreError> {
    let marked = entry.change(&*shared.ports.store, |service| {
        // The revision may have been superseded in the meantime.
        let found = service.revision_mut(revision)?;
        if found.outcome != RevisionOutcome::Pending {
            return None;
        }
        found.outcome = RevisionOutcome::Live { at: Timestamp::now() };
        service.live = Some(revision);
        service.drop_old_revisions();
        Some(())
    });
    if marked.await?.is_some() {
        let progress = {
            let mut state = entry.state();
            state.last_fault = None;
            state.progress(revision)
        };
        tracing::info!(revision, "revision became live");
        if let Some(progress) = progress {
            progress.complete();
        }
        // Domains of the previous revision may be free or lead elsewhere now.
        shared.publish_routes().await;
    }
    Ok(())
}

async fn mark_failed(
    shared: &Arc<DeployContext>,
    entry: &Arc<ServiceEntry>,
    revision: u32,
    cause: FailCause,
) -> Result<(), ServiceStoreError> {
    let fault = match cause {
        FailCause::NotStarted => {
            let state = entry.state();
            let failed = state.attempts().and_then(|attempts| attempts.start_failed.clone());
            failed.unwrap_or_else(|| {
                Fault::new(FaultStage::Deploy, ErrorCode::NotStarted, "the instance could not be started")
            })
        }
        FailCause::Ended { instance } => report_exit(&shared.logs, entry, &instance).await,
        FailCause::NeverHealthy { instance } => report_unhealthy(&shared.logs, entry, &instance, true).await,
        FailCause::Unhealthy { instance } => report_unhealthy(&shared.logs, entry, &instance, false).await,
    };
    let stored = fault.clone();
    let marked = entry.change(&*shared.ports.store, |service| {
        let found = service.revision_mut(revision)?;
        if found.outcome != RevisionOutcome::Pending {
            return None;
        }
        found.outcome = RevisionOutcome::Failed(Box::new(stored));
        Some(())
    });
    if marked.await?.is_none() {
        return Ok(());
    }
    tracing::info!(revision, error = fault.message, error.code = fault.code.as_str(), "revision failed");
    let progress = entry.state().progress(revision);
    if let Some(progress) = progress {
        progress.fail(fault);
    }
    shared.publish_routes().await;
    Ok(())
}

/// Deletes the service from the store; its name and its domains are free on return.
async fn forget_service(shared: &Arc<DeployContext>, entry: &Arc<ServiceEntry>) -> Result<(), PassError> {
    let service = entry.state().service.clone();
    shared.ports.store.remove(&service).await?;
    shared.entries.remove(&entry.id);
    shared.publish_routes().await;
    shared.logs.prune(&entry.id, BTreeSet::new(), true).await;
    tracing::info!("service removed");
    entry.removed.cancel();
    Ok(())
}
