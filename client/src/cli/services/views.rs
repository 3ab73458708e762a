//! Displays services: a table row, a page of text, and, in `json`, the output of `--json`.

mod json;
mod settings;

use std::fmt::Write as _;

use hearth_proto::v1::{
    Exit, Instance, InstancePhase, Revision, RevisionState, Service, ServicePort, ServiceStatus,
};
use jiff::Timestamp;

use super::manifest::without_digest;
use crate::cli::deploy::network::kind_name;
use crate::output;
pub(in crate::cli) use json::ServiceView;

pub(super) const TABLE_HEAD: [&str; 8] =
    ["SERVICE", "STATUS", "REVISION", "IMAGE", "URL", "RESTARTS", "CREATED", "REASON"];

pub(super) fn row(service: &Service, now: Timestamp) -> Vec<String> {
    let reason = service.reason.lines().next().unwrap_or_default();
    vec![
        service.name.clone(),
        status_text(service, now),
        revisions(service),
        without_digest(&service.image),
        service.urls.first().map_or("-".to_owned(), |url| output::printable(url)),
        service.restarts.to_string(),
        output::age(service.created_at.as_ref(), now),
        output::printable(&reason.chars().take(80).collect::<String>()),
    ]
}

/// Formats the revision as `3`, or as `2 -> 3` while revision 2 takes the traffic and revision 3 is
/// desired.
fn revisions(service: &Service) -> String {
    match service.live_revision {
        Some(live) if live != service.desired_revision => format!("{live} -> {}", service.desired_revision),
        _ => service.desired_revision.to_string(),
    }
}

pub(super) fn service_text(service: &Service, now: Timestamp) -> String {
    let mut page = LabeledLines(String::new());
    page.line("service", &format!("{} ({})", service.name, service.service_id));
    page.line("status", &status_text(service, now));
    page.line("reason", &service.reason);
    // A daemon of an earlier version sends one exit.
    let exits =
        if service.last_exits.is_empty() { service.last_exit.as_slice() } else { &service.last_exits };
    let exit = |exit: &Exit| format!("{}, {}", exit_text(exit), output::age(exit.time.as_ref(), now));
    page.list(if exits.len() > 1 { "last exits" } else { "last exit" }, exits.iter().map(exit));
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
    if let Some(spec) = settings::shown_spec(service) {
        settings::write(&mut page, spec);
    }
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

/// Text of labelled lines. Lines without a text are left out.
struct LabeledLines(String);

impl LabeledLines {
    /// Writes one line for each text; only the first has the word.
    fn list(&mut self, word: &str, texts: impl Iterator<Item = String>) {
        self.line(word, &texts.collect::<Vec<_>>().join("\n"));
    }

    fn line(&mut self, word: &str, text: &str) {
        for (number, line) in text.lines().enumerate() {
            let word = if number == 0 { word } else { "" };
            // Writing to a string cannot fail.
            let _ = writeln!(self.0, "{word:<12} {}", output::printable(line));
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
        (None, false) => "exit not observed".to_owned(),
    }
}

fn port(port: &ServicePort) -> String {
    let kind = match kind_name(port.kind()) {
        "http" => String::new(),
        other => format!("/{other}"),
    };
    let published = if port.published == Some(false) { " (not published)" } else { "" };
    format!("{}{kind}{published}", port.number)
}

/// Formats the status with the last exit, the number of restarts and the time of the next start: `restarting (exit 7, 12 times, next in 8s)`.
fn status_text(service: &Service, now: Timestamp) -> String {
    let is_waiting = service.status() == ServiceStatus::CrashLoop;
    let word = if is_waiting { "restarting".to_owned() } else { status(service.status()) };
    let mut facts = Vec::new();
    if service.restarts > 0 {
        facts.extend(service.last_exit.as_ref().map(short_exit_text));
        facts.push(output::count(service.restarts.into(), "time"));
    }
    if let Some(next) = output::timestamp(service.next_start_at.as_ref()).filter(|_| is_waiting) {
        let seconds = next.duration_since(now).as_secs().max(0);
        facts.push(if seconds > 0 { format!("next in {seconds}s") } else { "next now".to_owned() });
    }
    if facts.is_empty() {
        return word;
    }
    let restarted = if is_waiting { "" } else { "restarted after " };
    format!("{word} ({restarted}{})", facts.join(", "))
}

fn short_exit_text(exit: &Exit) -> String {
    match (exit.code, exit.out_of_memory) {
        (_, true) => "out of memory".to_owned(),
        (Some(code), false) => format!("exit {code}"),
        (None, false) => "exit not observed".to_owned(),
    }
}

/// Returns the lower-case name of a status, such as `crash_loop`.
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

#[cfg(test)]
mod tests;
