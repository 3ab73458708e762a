//! Conversion of services and routes.

use hearth_proto::v1;

use super::super::error::fault_detail;
use super::deploy_event::{exit, probe};
use super::{timestamp, to_duration};
use crate::model::deploy::{InstancePhase, InstanceView, RouteView, ServiceState, ServiceStatus};
use crate::model::service::{
    DeployStrategy, EnvValue, HealthCheck, PortKind, RevisionOutcome, ServiceDomain, ServicePort,
    ServiceRevision, ServiceSpec,
};

/// Address of the room's ingress, for complete URLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IngressAddress {
    pub tls: bool,
    pub port: u16,
}

impl IngressAddress {
    /// URL of a domain; `None` for a wildcard domain.
    pub fn url(self, domain: &ServiceDomain) -> Option<String> {
        if domain.suffix().is_some() {
            return None;
        }
        Some(match (self.tls, self.port) {
            (false, 80) => format!("http://{domain}/"),
            (true, 443) => format!("https://{domain}/"),
            (false, port) => format!("http://{domain}:{port}/"),
            (true, port) => format!("https://{domain}:{port}/"),
        })
    }
}

/// Converts a service, with its revisions if requested.
pub fn service(state: ServiceState, entrance: IngressAddress, with_revisions: bool) -> v1::Service {
    let service = state.service;
    let shown_spec = service
        .target_revision()
        .or_else(|| service.revision(service.desired))
        .map(|revision| &revision.spec);
    let domains = service.domains();
    v1::Service {
        service_id: service.id.to_string(),
        name: service.name.to_string(),
        repository: service.repository.to_string(),
        created_at: Some(timestamp(service.created_at)),
        created_by: service.created_by.clone(),
        desired_revision: service.desired,
        live_revision: service.live,
        status: status(state.status).into(),
        reason: state.reason.unwrap_or_default(),
        restarts: state.restarts,
        last_exit: state.last_exits.first().copied().map(exit),
        last_exits: state.last_exits.into_iter().map(exit).collect(),
        next_start_at: state.next_start.map(timestamp),
        instances: state.instances.into_iter().map(instance).collect(),
        image: shown_spec.map(|spec| spec.image.to_string()).unwrap_or_default(),
        digest: shown_spec.map(|spec| spec.digest.to_string()).unwrap_or_default(),
        ports: shown_spec.map(|spec| spec.ports.iter().map(port).collect()).unwrap_or_default(),
        urls: domains.iter().filter_map(|domain| entrance.url(domain)).collect(),
        domains: domains.iter().map(ToString::to_string).collect(),
        public: shown_spec.is_some_and(|spec| spec.public),
        description: shown_spec.map(|spec| spec.description.clone()).unwrap_or_default(),
        revisions: if with_revisions {
            service.revisions.into_iter().map(revision).collect()
        } else {
            Vec::new()
        },
    }
}

const fn status(status: ServiceStatus) -> v1::ServiceStatus {
    match status {
        ServiceStatus::Starting => v1::ServiceStatus::Starting,
        ServiceStatus::Live => v1::ServiceStatus::Live,
        ServiceStatus::Updating => v1::ServiceStatus::Updating,
        ServiceStatus::Unhealthy => v1::ServiceStatus::Unhealthy,
        ServiceStatus::CrashLoop => v1::ServiceStatus::CrashLoop,
        ServiceStatus::Failed => v1::ServiceStatus::Failed,
        ServiceStatus::Removing => v1::ServiceStatus::Removing,
    }
}

fn instance(instance: InstanceView) -> v1::Instance {
    v1::Instance {
        instance_id: instance.id.to_string(),
        revision: instance.revision,
        address: instance.address.map(|address| address.to_string()).unwrap_or_default(),
        phase: match instance.phase {
            InstancePhase::Starting => v1::InstancePhase::Starting,
            InstancePhase::Healthy => v1::InstancePhase::Healthy,
            InstancePhase::Unhealthy => v1::InstancePhase::Unhealthy,
            InstancePhase::Retiring => v1::InstancePhase::Retiring,
            InstancePhase::Ended => v1::InstancePhase::Ended,
        }
        .into(),
        routed: instance.routed,
        last_probe: instance.last_probe.map(probe),
    }
}

fn revision(revision: ServiceRevision) -> v1::Revision {
    let state = match &revision.outcome {
        RevisionOutcome::Pending => v1::RevisionState::Pending,
        RevisionOutcome::Live { .. } => v1::RevisionState::Live,
        RevisionOutcome::Failed(_) => v1::RevisionState::Failed,
        RevisionOutcome::Superseded { .. } => v1::RevisionState::Superseded,
    };
    let (live_at, error, superseded_by) = match revision.outcome {
        RevisionOutcome::Pending => (None, None, None),
        RevisionOutcome::Live { at } => (Some(timestamp(at)), None, None),
        RevisionOutcome::Failed(fault) => (None, Some(fault_detail(*fault)), None),
        RevisionOutcome::Superseded { by } => (None, None, Some(by)),
    };
    v1::Revision {
        number: revision.number,
        spec: Some(service_spec(revision.spec)),
        created_at: Some(timestamp(revision.created_at)),
        created_by: revision.created_by,
        state: state.into(),
        live_at,
        error,
        superseded_by,
        generation: revision.generation,
    }
}

pub fn service_spec(spec: ServiceSpec) -> v1::ServiceSpec {
    v1::ServiceSpec {
        image: spec.image.to_string(),
        repository: spec.repository.to_string(),
        digest: spec.digest.to_string(),
        manifest_digest: spec.manifest.to_string(),
        env: spec.env.into_iter().map(|(name, value)| (name, env_value(value))).collect(),
        mounts: spec.mounts.into_iter().map(Into::into).collect(),
        ports: spec.ports.iter().map(port).collect(),
        command: spec.command.map(|arguments| v1::CommandLine { arguments }),
        working_dir: spec.workdir.map(|path| path.to_string()).unwrap_or_default(),
        identity: spec.identity.unwrap_or_default(),
        memory_bytes: spec.limits.memory_bytes,
        cpu_millis: spec.limits.cpu_millis,
        health: Some(health(spec.health)),
        strategy: match spec.strategy {
            DeployStrategy::Rolling => v1::DeployStrategy::Rolling,
            DeployStrategy::Recreate => v1::DeployStrategy::Recreate,
        }
        .into(),
        domains: spec.domains.into_iter().map(String::from).collect(),
        public: spec.public,
        description: spec.description,
        annotations: spec.annotations,
        isolated: spec.confinement.isolated,
        capabilities: spec.confinement.capabilities.iter().map(ToString::to_string).collect(),
    }
}

fn env_value(value: EnvValue) -> v1::EnvValue {
    use v1::env_value::Value;
    v1::EnvValue {
        value: Some(match value {
            EnvValue::Plain(text) => Value::Plain(text),
            EnvValue::Token { scope } => Value::TokenScope(scope),
            EnvValue::Secret { name } => Value::Secret(name),
        }),
    }
}

fn port(port: &ServicePort) -> v1::ServicePort {
    v1::ServicePort {
        number: port.number.into(),
        kind: match port.kind {
            PortKind::Http => v1::PortKind::Http,
            PortKind::Tcp => v1::PortKind::Tcp,
            PortKind::H2c => v1::PortKind::H2c,
        }
        .into(),
        published: Some(port.published),
    }
}

fn health(health: HealthCheck) -> v1::HealthCheck {
    v1::HealthCheck {
        path: health.path.unwrap_or_default(),
        start_limit: Some(to_duration(health.start_limit)),
        interval: Some(to_duration(health.interval)),
        timeout: Some(to_duration(health.timeout)),
        failures: health.failures,
        settle: Some(to_duration(health.settle)),
    }
}

pub fn route(route: &RouteView, entrance: IngressAddress) -> v1::ServiceRoute {
    v1::ServiceRoute {
        url: entrance.url(&route.domain).unwrap_or_default(),
        domain: route.domain.to_string(),
        service_id: route.service.to_string(),
        service: route.name.to_string(),
        revision: route.revision,
        private: route.private,
    }
}

#[cfg(test)]
mod tests;
