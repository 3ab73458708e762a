//! The output of `--json` for services.

use hearth_proto::v1::{Exit, Instance, Revision, Service, ServicePort};
use serde::Serialize;
use serde_json::Value;

use super::super::manifest::ServiceManifest;
use super::{phase, state, status};
use crate::cli::deploy::network::kind_name;
use crate::error::{Failure, FailureKind};
use crate::progress::deploy::probe_json;
use crate::{exit, output};

#[derive(Serialize)]
pub(in crate::cli) struct ServiceView {
    service_id: String,
    name: String,
    status: String,
    reason: Option<String>,
    desired_revision: u32,
    live_revision: Option<u32>,
    repository: String,
    image: String,
    digest: String,
    ports: Vec<PortView>,
    domains: Vec<String>,
    public: bool,
    urls: Vec<String>,
    description: String,
    created_at: Option<String>,
    created_by: String,
    restarts: u32,
    last_exit: Option<ExitView>,
    /// Unexpected exits, newest first.
    last_exits: Vec<ExitView>,
    next_start_at: Option<String>,
    instances: Vec<InstanceView>,
    /// Revisions, oldest first; present only in the output of one service.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    revisions: Vec<RevisionView>,
}

#[derive(Serialize)]
struct PortView {
    number: u32,
    kind: &'static str,
    published: bool,
}

#[derive(Serialize)]
struct ExitView {
    code: Option<i32>,
    out_of_memory: bool,
    at: Option<String>,
}

#[derive(Serialize)]
struct InstanceView {
    instance: String,
    revision: u32,
    address: Option<String>,
    phase: String,
    routed: bool,
    last_probe: Option<Value>,
}

#[derive(Serialize)]
struct RevisionView {
    number: u32,
    state: String,
    superseded_by: Option<u32>,
    digest: Option<String>,
    manifest: Option<ServiceManifest>,
    created_at: Option<String>,
    created_by: String,
    live_at: Option<String>,
    generation: u32,
    error: Option<Value>,
}

fn time(time: Option<&prost_types::Timestamp>) -> Option<String> {
    output::timestamp(time).map(|time| time.to_string())
}

fn present(text: &str) -> Option<String> {
    Some(text.to_owned()).filter(|text| !text.is_empty())
}

impl From<&Service> for ServiceView {
    fn from(service: &Service) -> Self {
        let exit = |exit: &Exit| ExitView {
            code: exit.code,
            out_of_memory: exit.out_of_memory,
            at: time(exit.time.as_ref()),
        };
        let port = |port: &ServicePort| PortView {
            number: port.number,
            kind: kind_name(port.kind()),
            published: port.published.unwrap_or(true),
        };
        Self {
            service_id: service.service_id.clone(),
            name: service.name.clone(),
            status: status(service.status()),
            reason: present(&service.reason),
            desired_revision: service.desired_revision,
            live_revision: service.live_revision,
            repository: service.repository.clone(),
            image: service.image.clone(),
            digest: service.digest.clone(),
            ports: service.ports.iter().map(port).collect(),
            domains: service.domains.clone(),
            public: service.public,
            urls: service.urls.clone(),
            description: service.description.clone(),
            created_at: time(service.created_at.as_ref()),
            created_by: service.created_by.clone(),
            restarts: service.restarts,
            last_exit: service.last_exit.as_ref().map(exit),
            last_exits: service.last_exits.iter().map(exit).collect(),
            next_start_at: time(service.next_start_at.as_ref()),
            instances: service.instances.iter().map(InstanceView::from).collect(),
            revisions: service
                .revisions
                .iter()
                .map(|revision| RevisionView::new(&service.name, revision))
                .collect(),
        }
    }
}

impl From<&Instance> for InstanceView {
    fn from(instance: &Instance) -> Self {
        Self {
            instance: instance.instance_id.clone(),
            revision: instance.revision,
            address: present(&instance.address),
            phase: phase(instance.phase()),
            routed: instance.routed,
            last_probe: instance.last_probe.as_ref().map(probe_json),
        }
    }
}

impl RevisionView {
    fn new(name: &str, revision: &Revision) -> Self {
        let error = revision.error.as_ref().and_then(|detail| {
            let failure = Failure::from_detail(FailureKind::Failed, Box::new(detail.clone()));
            serde_json::to_value(exit::error_document(&failure)).ok()?.get("error").cloned()
        });
        Self {
            number: revision.number,
            state: state(revision.state()),
            superseded_by: revision.superseded_by,
            digest: revision.spec.as_ref().map(|spec| spec.digest.clone()),
            manifest: revision.spec.as_ref().map(|spec| ServiceManifest::from_spec(name, spec)),
            created_at: time(revision.created_at.as_ref()),
            created_by: revision.created_by.clone(),
            live_at: time(revision.live_at.as_ref()),
            generation: revision.generation,
            error,
        }
    }
}
