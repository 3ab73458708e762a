//! Views of services for clients, and requests that do not change a service.

use std::sync::Arc;

use jiff::Timestamp;

use super::entry::{ServiceEntry, ServiceEntryState};
use super::plan::{InstanceHealth, InstanceStage};
use super::port::{ExecSpec, ExecStreams};
use super::progress::{DeployEvents, DeployProgress};
use super::service::{Actor, DeployError, Handle};
use super::tracked_instance::TrackedInstance;
use crate::model::deploy::{InstancePhase, InstanceView, RouteView, ServiceState, ServiceStatus};
use crate::model::id::InstanceId;
use crate::model::service::{RevisionOutcome, ServiceRecord};

impl Handle {
    /// Returns all services, ordered by name.
    pub fn list(&self) -> Vec<ServiceState> {
        let mut services: Vec<ServiceState> =
            self.shared.entries.all().iter().map(|entry| view(&entry.state())).collect();
        services.sort_by(|a, b| a.service.name.cmp(&b.service.name));
        services
    }

    /// Returns one service, by its name or id.
    pub fn get(&self, service: &str) -> Result<ServiceState, DeployError> {
        Ok(view(&self.find_entry(service)?.state()))
    }

    /// Returns a service that the caller may change or read the log of; `verb` names the operation.
    pub fn changeable(&self, service: &str, verb: &str, by: &Actor) -> Result<ServiceRecord, DeployError> {
        let service = self.find_entry(service)?.state().service.clone();
        by.may_change(&service, verb)?;
        Ok(service)
    }

    /// Returns every domain of the room's services, in order.
    pub fn routes(&self) -> Vec<RouteView> {
        let of = |entry: &Arc<ServiceEntry>| {
            let state = entry.state();
            let routed = state.routed.as_ref().and_then(|id| state.instances.get(id));
            let revision = routed.map(|known| known.label.revision);
            let shown_revision = revision.or(state.service.live).unwrap_or(state.service.desired);
            let private = state.service.revision(shown_revision).is_none_or(|revision| !revision.spec.public);
            let domains = state.service.domains().into_iter().cloned();
            domains
                .map(|domain| RouteView {
                    domain,
                    service: entry.id.clone(),
                    name: state.service.name.clone(),
                    revision,
                    private,
                })
                .collect::<Vec<_>>()
        };
        let mut routes: Vec<RouteView> = self.shared.entries.all().iter().flat_map(of).collect();
        routes.sort_by(|a, b| a.domain.cmp(&b.domain));
        routes
    }

    /// Returns the events of a revision's deploy or restart, starting with number `from`, to its end. For a deploy that
    /// ended before this run of the daemon, only the final event is returned.
    pub fn watch(&self, service: &str, revision: u32, from: u64) -> Result<DeployEvents, DeployError> {
        let entry = self.find_entry(service)?;
        let (progress, outcome) = {
            let state = entry.state();
            let found = state.service.revision(revision).ok_or_else(|| DeployError::NoRevision {
                name: state.service.name.clone(),
                revision,
                kept: state.service.revisions.iter().map(|revision| revision.number).collect(),
            })?;
            (state.progress(revision), found.outcome.clone())
        };
        let progress = progress.unwrap_or_else(|| Arc::new(DeployProgress::ended_earlier(outcome)));
        Ok(progress.follow(from, entry.removed.clone(), self.shared.stop.clone()))
    }

    /// Runs an additional process in the instance that receives the traffic, or else in the newest running one.
    pub async fn exec(
        &self,
        service: &str,
        mut exec: ExecSpec,
        by: &Actor,
    ) -> Result<ExecStreams, DeployError> {
        let entry = self.find_entry(service)?;
        let (label, revision) = {
            let state = entry.state();
            let not_running = || DeployError::NotRunning { name: state.service.name.clone() };
            let instance = serving_instance(&state).ok_or_else(not_running)?;
            let label = state.instances.get(&instance).map(|known| known.label.clone());
            let label = label.ok_or_else(not_running)?;
            // A process inside the instance has access to everything that the app has.
            let revision = state.service.revision(label.revision).ok_or_else(not_running)?.clone();
            by.may_run(&revision.spec)?;
            (label, revision)
        };
        exec.confidential = self.shared.environment.confidential_variables(&label, &revision).await;
        Ok(self.shared.ports.runtime.exec(&label.instance, exec).await?)
    }
}

/// Returns the routed instance, or else the newest running one.
fn serving_instance(state: &ServiceEntryState) -> Option<InstanceId> {
    let running = state.instances.iter().filter(|(_, known)| known.is_running());
    let rank = |(id, known): &(&InstanceId, &TrackedInstance)| {
        (state.routed.as_ref() == Some(*id), known.label.revision, known.label.generation)
    };
    running.max_by_key(rank).map(|(id, _)| id.clone())
}

pub(super) fn view(state: &ServiceEntryState) -> ServiceState {
    let instances = state.instances.iter().map(|(id, known)| InstanceView {
        id: id.clone(),
        revision: known.label.revision,
        address: known.address(),
        phase: phase(known.stage()),
        routed: state.routed.as_ref() == Some(id),
        last_probe: known.probes().back().cloned(),
    });
    let status = status(state);
    let fault = state.last_fault.as_ref().map(|fault| fault.message.clone());
    let failed = state.service.revision(state.service.desired).and_then(|revision| match &revision.outcome {
        RevisionOutcome::Failed(fault) => Some(format!("revision {}: {}", revision.number, fault.message)),
        _ => None,
    });
    let probe = || {
        let routed = state.instances.get(state.routed.as_ref()?)?;
        routed.probes().back().map(ToString::to_string)
    };
    let reason = match status {
        ServiceStatus::Failed | ServiceStatus::Live => failed,
        ServiceStatus::Unhealthy => probe(),
        ServiceStatus::CrashLoop | ServiceStatus::Starting | ServiceStatus::Updating => fault,
        ServiceStatus::Removing => None,
    };
    let now = Timestamp::now();
    let backoff = state.attempts().map(|attempts| attempts.backoff).unwrap_or_default();
    ServiceState {
        service: state.service.clone(),
        status,
        instances: instances.collect(),
        restarts: backoff.failures,
        last_exits: state.last_exits.iter().copied().collect(),
        reason,
        next_start: backoff.not_before.filter(|at| *at > now && status == ServiceStatus::CrashLoop),
    }
}

const fn phase(stage: InstanceStage) -> InstancePhase {
    match stage {
        InstanceStage::Starting | InstanceStage::Running(InstanceHealth::Unproven { .. }) => {
            InstancePhase::Starting
        }
        InstanceStage::Running(InstanceHealth::Presumed | InstanceHealth::Healthy { .. }) => {
            InstancePhase::Healthy
        }
        InstanceStage::Running(InstanceHealth::Unhealthy) => InstancePhase::Unhealthy,
        InstanceStage::Stopping => InstancePhase::Retiring,
        InstanceStage::Exited { .. } | InstanceStage::Incomplete => InstancePhase::Ended,
    }
}

fn status(state: &ServiceEntryState) -> ServiceStatus {
    let service = &state.service;
    if service.removing {
        return ServiceStatus::Removing;
    }
    let Some(wanted) = service.target_revision() else { return ServiceStatus::Failed };
    let routed = state.routed.as_ref().and_then(|id| state.instances.get(id));
    let health = routed.and_then(TrackedInstance::health);
    let is_wanted = routed.is_some_and(|known| {
        (known.label.revision, known.label.generation) == (wanted.number, wanted.generation)
    });
    match health {
        Some(InstanceHealth::Unhealthy) => ServiceStatus::Unhealthy,
        Some(_) if is_wanted => ServiceStatus::Live,
        Some(_) => ServiceStatus::Updating,
        None if state.attempts().is_some_and(|attempts| attempts.backoff.failures > 0) => {
            ServiceStatus::CrashLoop
        }
        None => ServiceStatus::Starting,
    }
}
