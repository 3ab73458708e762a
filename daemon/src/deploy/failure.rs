//! Failure reports about instances, written for the person who has to fix the problem: the cause, the exit code, the
//! last lines of the log, the last probes, and a suggestion.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use futures::StreamExt as _;

use super::entry::ServiceEntry;
use super::listening::{self, ListeningSocket};
use super::port::{LogError, MountFault, MountFaultKind, NetworkError, RuntimeError};
use super::service_logs::ServiceLogs;
use crate::model::deploy::{ProbeAnswer, ProbeResult, ServiceLogQuery};
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::id::InstanceId;
use crate::model::service::{ProcessExit, ServiceSpec};
use crate::task;

/// Maximum number of log lines in a report.
const TAIL: usize = 50;
/// Maximum number of characters per log line.
const MAX_LINE: usize = 2000;
/// Time limit for reading the log.
const LOG_LIMIT: Duration = Duration::from_secs(2);
/// Pause before the log is read: the last output of a process reaches its log shortly after the exit.
const LOG_PAUSE: Duration = Duration::from_millis(100);
/// Maximum number of probes in a report.
const SHOWN_PROBES: usize = 3;

/// Reason why an instance was not started.
pub(super) struct StartFault {
    pub(super) fault: Fault,
    pub(super) kind: StartFaultKind,
}

/// Prospects of another start after a failed one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StartFaultKind {
    /// The same start fails again.
    Permanent,
    /// Another start may succeed; a limited number is attempted.
    Transient,
    /// A dependency such as the runtime is unavailable; starts are retried until it is back.
    Unavailable,
}

impl StartFault {
    const fn new(fault: Fault, kind: StartFaultKind) -> Self {
        Self { fault, kind }
    }

    pub(super) fn timeout(what: &str, limit: Duration) -> Self {
        let message = format!("{what} took longer than {} s", limit.as_secs());
        Self::new(
            Fault::new(FaultStage::Deploy, ErrorCode::Timeout, message).retryable(),
            StartFaultKind::Transient,
        )
    }
}

impl From<Fault> for StartFault {
    fn from(fault: Fault) -> Self {
        Self::new(fault, StartFaultKind::Permanent)
    }
}

impl From<RuntimeError> for StartFault {
    fn from(error: RuntimeError) -> Self {
        let message = error.to_string();
        match error {
            RuntimeError::Unavailable(_) => {
                let fault = Fault::new(FaultStage::Deploy, ErrorCode::RuntimeUnavailable, message);
                Self::new(fault, StartFaultKind::Unavailable)
            }
            RuntimeError::StartFailed { code: code @ ErrorCode::StartFailed, .. } => {
                Self::new(Fault::new(FaultStage::Deploy, code, message), StartFaultKind::Transient)
            }
            RuntimeError::StartFailed { code: code @ ErrorCode::CommandNotFound, .. } => {
                Self::from(Fault::new(FaultStage::Deploy, code, message).hint(
                    "see the image's entry point with `hearth images inspect`, or give one with --command",
                ))
            }
            RuntimeError::StartFailed { code, .. } => {
                Self::from(Fault::new(FaultStage::Deploy, code, message))
            }
            RuntimeError::CorruptImage { code, .. } => {
                Self::from(Fault::new(FaultStage::Deploy, code, message))
            }
            RuntimeError::UnusableImage(_) => {
                Self::from(Fault::new(FaultStage::Deploy, ErrorCode::ImageUnusable, message))
            }
            RuntimeError::DiskFull => {
                let fault = Fault::new(FaultStage::Deploy, ErrorCode::NoSpace, message).retryable();
                Self::new(fault, StartFaultKind::Permanent)
            }
            RuntimeError::NotFound(_) | RuntimeError::NotRunning(_) | RuntimeError::Other(_) => Self::new(
                Fault::new(FaultStage::Deploy, ErrorCode::NotStarted, message),
                StartFaultKind::Transient,
            ),
        }
    }
}

impl From<NetworkError> for StartFault {
    fn from(error: NetworkError) -> Self {
        let code = match &error {
            NetworkError::DiskFull(_) => ErrorCode::NoSpace,
            NetworkError::Exhausted { .. } | NetworkError::Other(_) => ErrorCode::Network,
        };
        let fault = Fault::new(FaultStage::Deploy, code, error.to_string());
        match error {
            NetworkError::Exhausted { .. } => Self::from(
                fault.hint("remove services that are not needed, or give the daemon a larger subnet"),
            ),
            NetworkError::DiskFull(_) | NetworkError::Other(_) => {
                Self::new(fault.retryable(), StartFaultKind::Transient)
            }
        }
    }
}

impl From<MountFault> for StartFault {
    fn from(error: MountFault) -> Self {
        let fault = Fault::new(FaultStage::Deploy, error.code, error.to_string());
        match error.kind {
            MountFaultKind::Permanent => Self::from(fault),
            MountFaultKind::Transient => Self::new(fault.retryable(), StartFaultKind::Transient),
            MountFaultKind::Unavailable => Self::new(fault.retryable(), StartFaultKind::Unavailable),
        }
    }
}

/// Facts about a failed instance.
struct InstanceFindings {
    spec: ServiceSpec,
    exit: Option<ProcessExit>,
    probes: VecDeque<ProbeResult>,
    listeners: BTreeSet<ListeningSocket>,
}

/// Returns the report about an instance that exited.
pub(super) async fn report_exit(logs: &ServiceLogs, entry: &ServiceEntry, instance: &InstanceId) -> Fault {
    let findings = gather_findings(entry, instance).await;
    let fault = findings.as_ref().map_or_else(gone_fault, exit_fault);
    add_details(logs, entry, instance, fault, findings).await
}

/// Returns the report about a running instance that is not healthy. `never` is set if it has not been healthy since
/// its start.
pub(super) async fn report_unhealthy(
    logs: &ServiceLogs,
    entry: &ServiceEntry,
    instance: &InstanceId,
    never: bool,
) -> Fault {
    let findings = gather_findings(entry, instance).await;
    let fault = findings.as_ref().map_or_else(gone_fault, |findings| unhealthy_fault(findings, never));
    add_details(logs, entry, instance, fault, findings).await
}

async fn gather_findings(entry: &ServiceEntry, instance: &InstanceId) -> Option<InstanceFindings> {
    let (mut findings, pid) = {
        let state = entry.state();
        let known = state.instances.get(instance)?;
        let spec = state.service.revision(known.label.revision)?.spec.clone();
        let findings = InstanceFindings {
            spec,
            exit: known.exit(),
            probes: known.probes().clone(),
            listeners: BTreeSet::new(),
        };
        (findings, known.pid().filter(|_| known.is_running()))
    };
    if let Some(pid) = pid {
        let read = task::blocking("listeners", move || listening::listening_sockets(pid)).await;
        findings.listeners = read.unwrap_or_default();
    }
    Some(findings)
}

async fn add_details(
    logs: &ServiceLogs,
    entry: &ServiceEntry,
    instance: &InstanceId,
    mut fault: Fault,
    findings: Option<InstanceFindings>,
) -> Fault {
    fault.log_tail = log_tail(logs, entry, instance).await;
    if let Some(findings) = findings {
        fault.exit_code = findings.exit.and_then(|exit| exit.code);
        fault.probes = last_probes(findings.probes.iter().map(ToString::to_string));
    }
    fault
}

/// Returns the last probe results that differ from the one before, with the number of equal ones.
fn last_probes(results: impl Iterator<Item = String>) -> Vec<String> {
    let mut counted: Vec<(String, usize)> = Vec::new();
    for result in results {
        match counted.last_mut() {
            Some((last, count)) if *last == result => *count += 1,
            _ => counted.push((result, 1)),
        }
    }
    let skipped = counted.len().saturating_sub(SHOWN_PROBES);
    let text = |(result, count)| if count == 1 { result } else { format!("{result} ({count} times)") };
    counted.into_iter().skip(skipped).map(text).collect()
}

async fn log_tail(logs: &ServiceLogs, entry: &ServiceEntry, instance: &InstanceId) -> Vec<String> {
    let read = async {
        let query = ServiceLogQuery { tail: Some(TAIL), ..ServiceLogQuery::default() };
        let lines = logs.read(&entry.id, instance, query).await?;
        Ok::<_, LogError>(
            lines
                .take(TAIL)
                .filter_map(|line| async {
                    let text = line.ok()?.text;
                    Some(String::from_utf8_lossy(&text).chars().take(MAX_LINE).collect())
                })
                .collect::<Vec<String>>()
                .await,
        )
    };
    tokio::time::sleep(LOG_PAUSE).await;
    match tokio::time::timeout(LOG_LIMIT, read).await {
        Ok(Ok(lines)) => lines,
        Ok(Err(error)) => {
            tracing::warn!(%error, instance.id = %instance, "failed to read the log tail for a failure report");
            Vec::new()
        }
        Err(_) => Vec::new(),
    }
}

fn gone_fault() -> Fault {
    Fault::new(FaultStage::Deploy, ErrorCode::InstanceGone, "the instance is gone")
}

fn exit_fault(findings: &InstanceFindings) -> Fault {
    let fault = |code: ErrorCode, message: String| Fault::new(FaultStage::Deploy, code, message);
    let Some(exit) = findings.exit else {
        return fault(ErrorCode::InstanceGone, "the instance was removed by something else".to_owned())
            .retryable();
    };
    if exit.out_of_memory {
        return match findings.spec.limits.memory_bytes {
            Some(limit) => fault(
                ErrorCode::OutOfMemory,
                format!("the app needs more memory than its limit of {}", format_bytes(limit)),
            )
            .hint("raise the memory limit with --memory"),
            None => fault(ErrorCode::OutOfMemory, "the machine had no memory left for the app".to_owned())
                .hint("free memory on the machine, or set a limit with --memory"),
        };
    }
    match exit.code {
        None => fault(
            ErrorCode::ExitUnseen,
            "the app ended while the runtime was down; its exit code is unknown".to_owned(),
        ),
        Some(0) => fault(ErrorCode::Exited, "the app ended with exit code 0 instead of serving".to_owned())
            .hint("let its command stay in the foreground"),
        Some(127) => fault(
            ErrorCode::Exited,
            "the app ended with exit code 127: its shell found no such command".to_owned(),
        )
        .hint("see the command in the last lines of the log"),
        Some(126) => fault(
            ErrorCode::Exited,
            "the app ended with exit code 126: its command is not executable".to_owned(),
        )
        .hint("see the command in the last lines of the log"),
        Some(code) if code > 128 => {
            fault(ErrorCode::Exited, format!("the app was ended by signal {} (exit code {code})", code - 128))
        }
        Some(code) => fault(ErrorCode::Exited, format!("the app ended with exit code {code}")),
    }
}

fn unhealthy_fault(findings: &InstanceFindings, never: bool) -> Fault {
    let fault = |code: ErrorCode, message: String| Fault::new(FaultStage::Deploy, code, message);
    let health = &findings.spec.health;
    let asked = probed_port_number(&findings.spec);
    let refused = matches!(findings.probes.back().map(|probe| &probe.answer), Some(ProbeAnswer::Refused));
    if let (true, Some(port)) = (refused, asked) {
        let on_port = findings.listeners.iter().find(|listener| listener.port == port);
        if let Some(listener) = on_port.filter(|listener| listener.is_local()) {
            let message = format!(
                "the app listens on {}:{port} only, where nothing outside reaches it",
                listener.address
            );
            return fault(ErrorCode::ListensLocally, message);
        }
        let open: Vec<u16> =
            findings.listeners.iter().filter(|listener| !listener.is_local()).map(|l| l.port).collect();
        return match open.as_slice() {
            [] => fault(ErrorCode::PortNotListening, format!("nothing in the app listens on port {port}"))
                .hint("see its log for why; a slow start gets more time with --timeout"),
            ports => {
                let list: Vec<String> = ports.iter().map(u16::to_string).collect();
                let message = format!("the app listens on port {}, not on {port}", list.join(", "));
                fault(ErrorCode::PortNotListening, message)
                    .hint(format!("deploy it with --port {}", ports[0]))
            }
        };
    }
    let path = health.path.as_deref();
    if !never {
        return fault(
            ErrorCode::BecameUnhealthy,
            "the app was healthy, and then it was not any more".to_owned(),
        );
    }
    let message = format!("the app was not healthy within {} s", health.start_limit.as_secs());
    let fault = fault(ErrorCode::NeverHealthy, message);
    match findings.probes.back().map(|probe| &probe.answer) {
        Some(ProbeAnswer::Http { status: 301..=308, location, .. }) => fault.hint(match location {
            Some(location) => {
                format!("it redirects to {location}; name a path that answers itself with --liveness")
            }
            None => "name a path that answers itself with --liveness".to_owned(),
        }),
        Some(ProbeAnswer::Http { status: 401 | 403, .. }) => {
            fault.hint("name a path that needs no login with --liveness")
        }
        Some(ProbeAnswer::Http { status: 404, .. }) => {
            fault.hint(format!("the app has no {}; name another path with --liveness", path.unwrap_or("/")))
        }
        Some(ProbeAnswer::Closed) => fault.hint("if the app speaks only HTTP/2 (gRPC), write the port as --port N/h2c; if it speaks no http, as --port N/tcp"),
        _ => fault.hint("see its log for why; a slow start gets more time with --timeout"),
    }
}

fn probed_port_number(spec: &ServiceSpec) -> Option<u16> {
    super::health::probed_port(spec).map(|port| port.number)
}

/// Formats a size in the units that `--memory` accepts.
fn format_bytes(count: u64) -> String {
    match count {
        count if count % (1 << 30) == 0 => format!("{} GiB", count >> 30),
        count if count % (1 << 20) == 0 => format!("{} MiB", count >> 20),
        count => format!("{count} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::deploy::tests::{probe, spec};

    fn findings(
        exit: Option<ProcessExit>,
        answer: Option<ProbeAnswer>,
        listeners: &[&str],
    ) -> InstanceFindings {
        let listener = |text: &&str| {
            let address: std::net::SocketAddr = text.parse().unwrap();
            ListeningSocket { address: address.ip(), port: address.port() }
        };
        InstanceFindings {
            spec: spec(8080),
            exit,
            probes: answer.into_iter().map(probe).collect(),
            listeners: listeners.iter().map(listener).collect(),
        }
    }

    fn exit(code: Option<i32>, out_of_memory: bool) -> Option<ProcessExit> {
        Some(ProcessExit { code, out_of_memory, at: Timestamp::UNIX_EPOCH })
    }

    #[test]
    fn equal_probes_in_a_row_are_one() {
        let probes = |texts: &[&str]| last_probes(texts.iter().map(|text| (*text).to_owned()));
        assert_eq!(probes(&["a", "b", "b", "b", "a"]), ["a", "b (3 times)", "a"]);
        let many: Vec<String> = (0..20).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(probes(&many).len(), SHOWN_PROBES);
        assert!(probes(&[]).is_empty());
    }

    #[test]
    fn an_end_for_want_of_memory_names_the_limit() {
        let mut found = findings(exit(Some(137), true), None, &[]);
        found.spec.limits.memory_bytes = Some(64 << 20);
        let fault = exit_fault(&found);
        assert_eq!(fault.code, "out_of_memory");
        assert!(fault.message.contains("64 MiB"), "{}", fault.message);
        assert!(exit_fault(&findings(exit(Some(137), false), None, &[])).message.contains("signal 9"));
    }

    #[test]
    fn an_app_that_listens_on_loopback_or_another_port_is_reported() {
        let refused = Some(ProbeAnswer::Refused);
        let local = unhealthy_fault(&findings(None, refused.clone(), &["127.0.0.1:8080"]), true);
        assert_eq!(local.code, "listens_locally");
        let elsewhere =
            unhealthy_fault(&findings(None, refused.clone(), &["0.0.0.0:3000", "127.0.0.1:9"]), true);
        assert_eq!(elsewhere.hint.as_deref(), Some("deploy it with --port 3000"));
        let nowhere = unhealthy_fault(&findings(None, refused, &[]), true);
        assert_eq!((nowhere.code.as_str(), nowhere.hint.is_some()), ("port_not_listening", true));
    }

    #[test]
    fn a_redirect_or_a_login_at_the_health_path_is_reported_with_a_hint() {
        let http = |status, location: Option<&str>| {
            Some(ProbeAnswer::Http { status, location: location.map(str::to_owned), body: "x".to_owned() })
        };
        let redirect = unhealthy_fault(&findings(None, http(301, Some("/login")), &[]), true);
        assert!(redirect.hint.unwrap().contains("/login"));
        let login = unhealthy_fault(&findings(None, http(401, None), &[]), true);
        assert!(login.hint.unwrap().contains("login"));
    }
}
