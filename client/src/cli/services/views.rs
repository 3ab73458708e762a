//! Services as they are shown: a row, a page, and what `--json` prints.

use std::fmt::Write as _;

use hearth_proto::v1::{
    Exit, Instance, InstancePhase, PortKind, Revision, RevisionState, Service, ServicePort, ServiceStatus,
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use super::manifest::{Manifest, without_digest};
use crate::error::{Failure, FailureKind};
use crate::progress::deploy::probe;
use crate::{exit, output};

pub(super) const HEAD: [&str; 8] =
    ["SERVICE", "STATUS", "REVISION", "IMAGE", "URL", "RESTARTS", "CREATED", "REASON"];

pub(super) fn row(service: &Service, now: Timestamp) -> Vec<String> {
    let reason = service.reason.lines().next().unwrap_or_default();
    vec![
        service.name.clone(),
        status(service.status()),
        revisions(service),
        without_digest(&service.image),
        service.urls.first().map_or("-".to_owned(), |url| output::printable(url)),
        service.restarts.to_string(),
        output::age(service.created_at.as_ref(), now),
        output::printable(&reason.chars().take(80).collect::<String>()),
    ]
}

/// `3`, or `2 -> 3` while another than the wanted one takes the traffic.
fn revisions(service: &Service) -> String {
    match service.live_revision {
        Some(live) if live != service.desired_revision => format!("{live} -> {}", service.desired_revision),
        _ => service.desired_revision.to_string(),
    }
}

pub(super) fn for_people(service: &Service, now: Timestamp) -> String {
    let mut page = Page(String::new());
    let restarts = if service.restarts > 0 {
        format!(", {}", output::count(service.restarts.into(), "restart"))
    } else {
        String::new()
    };
    page.line("service", &format!("{} ({})", service.name, service.service_id));
    page.line("status", &format!("{}{restarts}", status(service.status())));
    page.line("reason", &service.reason);
    if let Some(exit) = &service.last_exit {
        page.line("last exit", &format!("{}, {}", exit_text(exit), output::age(exit.time.as_ref(), now)));
    }
    if let Some(time) = output::timestamp(service.next_start_at.as_ref()) {
        page.line("next start", &time.to_string());
    }
    page.line("description", &service.description);
    page.line("revision", &revisions(service));
    page.line("image", &without_digest(&service.image));
    page.line("digest", &service.digest);
    page.line("ports", &service.ports.iter().map(port).collect::<Vec<_>>().join(", "));
    if !service.domains.is_empty() {
        let access = if service.public { "public" } else { "private" };
        page.line("domains", &format!("{} ({access})", service.domains.join(", ")));
    }
    service.urls.iter().for_each(|url| page.line("url", url));
    page.line(
        "created",
        &format!("{} by {}", output::age(service.created_at.as_ref(), now), service.created_by),
    );
    for instance in &service.instances {
        page.line("instance", &instance_text(instance));
        if let Some(probe) = &instance.last_probe {
            page.line("", &probe.text);
        }
    }
    for revision in service.revisions.iter().rev() {
        page.line("history", &revision_text(revision, now));
        if let Some(error) = &revision.error {
            page.line("", error.message.lines().next().unwrap_or_default());
        }
    }
    page.0.trim_end().to_owned()
}

/// Lines of a word and a text; those without a text are left out.
struct Page(String);

impl Page {
    fn line(&mut self, word: &str, text: &str) {
        if !text.is_empty() {
            // A string takes everything.
            let _ = writeln!(self.0, "{word:<12} {}", output::printable(text));
        }
    }
}

fn instance_text(instance: &Instance) -> String {
    let routed = if instance.routed { ", takes the traffic" } else { "" };
    let address =
        if instance.address.is_empty() { String::new() } else { format!(" at {}", instance.address) };
    let phase = phase(instance.phase());
    format!("{} of revision {}{address}: {phase}{routed}", instance.instance_id, instance.revision)
}

fn revision_text(revision: &Revision, now: Timestamp) -> String {
    let image = revision.spec.as_ref().map_or(String::new(), |spec| without_digest(&spec.image));
    let superseded = revision.superseded_by.map_or(String::new(), |by| format!(" by {by}"));
    format!(
        "{} {image} {}{superseded}, {} by {}",
        revision.number,
        state(revision.state()),
        output::age(revision.created_at.as_ref(), now),
        revision.created_by
    )
}

fn exit_text(exit: &Exit) -> String {
    match (exit.code, exit.out_of_memory) {
        (_, true) => "out of memory".to_owned(),
        (Some(code), false) => format!("exit code {code}"),
        (None, false) => "nobody saw how".to_owned(),
    }
}

fn port(port: &ServicePort) -> String {
    let kind = if port.kind() == PortKind::Tcp { "/tcp" } else { "" };
    let published = if port.published == Some(false) { " (not published)" } else { "" };
    format!("{}{kind}{published}", port.number)
}

/// `crash_loop` and so on.
fn status(status: ServiceStatus) -> String {
    word(status.as_str_name(), "SERVICE_STATUS_")
}

fn phase(phase: InstancePhase) -> String {
    word(phase.as_str_name(), "INSTANCE_PHASE_")
}

fn state(state: RevisionState) -> String {
    word(state.as_str_name(), "REVISION_STATE_")
}

fn word(name: &str, prefix: &str) -> String {
    name.trim_start_matches(prefix).to_ascii_lowercase()
}

#[derive(Serialize)]
pub(super) struct ServiceView {
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
    next_start_at: Option<String>,
    instances: Vec<InstanceView>,
    /// Oldest first; only of one service.
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
    manifest: Option<Manifest>,
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
            kind: if port.kind() == PortKind::Tcp { "tcp" } else { "http" },
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
            last_probe: instance.last_probe.as_ref().map(probe),
        }
    }
}

impl RevisionView {
    fn new(name: &str, revision: &Revision) -> Self {
        let error = revision.error.as_ref().and_then(|detail| {
            let failure = Failure::from_detail(FailureKind::Failed, Box::new(detail.clone()));
            serde_json::to_value(exit::for_programs(&failure)).ok()?.get("error").cloned()
        });
        Self {
            number: revision.number,
            state: state(revision.state()),
            superseded_by: revision.superseded_by,
            digest: revision.spec.as_ref().map(|spec| spec.digest.clone()),
            manifest: revision.spec.as_ref().map(|spec| Manifest::of(name, spec)),
            created_at: time(revision.created_at.as_ref()),
            created_by: revision.created_by.clone(),
            live_at: time(revision.live_at.as_ref()),
            generation: revision.generation,
            error,
        }
    }
}

#[cfg(test)]
mod tests;
