//! Health of an instance, probed from outside its container.
//!
//! ```text
//! Unproven --first healthy probe--> Healthy --`failures` failed in a row--> Unhealthy --healthy probe--> Healthy
//!    probed after 10, 20, 40 ms .. every second     every 200 ms during the settle time, then every `interval`
//! ```
//!
//! Healthy answers: with a path, a status of 200 to 399 from the first http port. Without a path, an http port may
//! answer `/` with any status below 500, or with any bytes that are not HTTP (the app may speak another protocol); a
//! tcp port only has to accept a connection. A port of HTTP/2 is asked the same over HTTP/2 (module `http2`). A
//! published port is preferred. An app without ports is healthy once it has run for a second.

mod http2;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::entry::ServiceEntry;
use super::plan::{InstanceHealth, after};
use super::tracked_instance::TrackedInstance;
use crate::model::deploy::{DeployEventKind, ProbeAnswer, ProbeResult};
use crate::model::id::InstanceId;
use crate::model::service::{HealthCheck, PortKind, ServicePort, ServiceSpec};

/// Pause before the first probe; doubled for each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Pause between probes of an instance that has just become healthy.
const SETTLE_PAUSE: Duration = Duration::from_millis(200);
/// Run time after which an app without ports counts as healthy.
const PORTLESS_DELAY: Duration = Duration::from_secs(1);
/// Maximum number of bytes read of an answer.
const MAX_ANSWER: usize = 8 << 10;
/// Time limit for each read of a body.
const BODY_LIMIT: Duration = Duration::from_millis(200);
/// Maximum number of bytes shown of a body.
const MAX_BODY: usize = 512;

/// Target and method of a health probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HealthProbe {
    address: SocketAddr,
    kind: PortKind,
    /// Path of the health check; without one, `/` is requested and the rules are less strict.
    path: Option<String>,
    host: String,
    timeout: Duration,
}

impl HealthProbe {
    /// Returns the probe for a service, or `None` if it has no ports.
    pub(super) fn for_service(spec: &ServiceSpec, name: &str, address: Ipv4Addr) -> Option<Self> {
        let port = probed_port(spec)?;
        // Some apps check the Host header: the probe sends a domain of the service.
        let host = spec.domains.iter().find(|domain| domain.suffix().is_none());
        Some(Self {
            address: SocketAddr::from((address, port.number)),
            kind: port.kind,
            path: spec.health.path.clone(),
            host: host.map_or(name, |domain| domain.as_str()).to_owned(),
            timeout: spec.health.timeout,
        })
    }

    fn target(&self) -> String {
        match self.kind {
            PortKind::Http | PortKind::H2c => {
                format!("http://{}{}", self.address, self.path.as_deref().unwrap_or("/"))
            }
            PortKind::Tcp => format!("tcp://{}", self.address),
        }
    }

    pub(super) async fn probe(&self, instance: &InstanceId) -> ProbeResult {
        let started = Instant::now();
        let answer = tokio::time::timeout(self.timeout, self.exchange()).await;
        let answer = match answer {
            Err(_) => ProbeAnswer::Timeout,
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => match error.kind() {
                std::io::ErrorKind::ConnectionRefused => ProbeAnswer::Refused,
                std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe => ProbeAnswer::Closed,
                _ => ProbeAnswer::Failed(error.to_string()),
            },
        };
        ProbeResult {
            at: Timestamp::now(),
            instance: instance.clone(),
            target: self.target(),
            took: started.elapsed(),
            healthy: self.is_healthy(&answer),
            answer,
        }
    }

    const fn is_healthy(&self, answer: &ProbeAnswer) -> bool {
        match answer {
            ProbeAnswer::Http { status, .. } if self.path.is_some() => *status >= 200 && *status < 400,
            ProbeAnswer::Http { status, .. } => *status < 500,
            ProbeAnswer::Other => self.path.is_none(),
            ProbeAnswer::Connected | ProbeAnswer::Running => true,
            ProbeAnswer::Refused | ProbeAnswer::Timeout | ProbeAnswer::Closed | ProbeAnswer::Failed(_) => {
                false
            }
        }
    }

    async fn exchange(&self) -> std::io::Result<ProbeAnswer> {
        let path = self.path.as_deref().unwrap_or("/");
        if self.kind == PortKind::H2c {
            return http2::exchange(self.address, &self.host, path).await;
        }
        let mut stream = TcpStream::connect(self.address).await?;
        if self.kind == PortKind::Tcp {
            return Ok(ProbeAnswer::Connected);
        }
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: hearth-probe\r\nAccept: */*\r\nConnection: close\r\n\r\n",
            self.host
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::with_capacity(1024);
        let mut chunk = [0; 2048];
        while answer.len() < MAX_ANSWER && !is_complete(&answer) {
            // Bytes received before an error or the end of the stream still count; the body is only shown.
            let read = stream.read(&mut chunk);
            let read = if header_end(&answer).is_some() {
                tokio::time::timeout(BODY_LIMIT, read).await.unwrap_or(Ok(0))
            } else {
                read.await
            };
            match read {
                Ok(0) => break,
                Ok(count) => answer.extend_from_slice(&chunk[..count]),
                Err(error) if answer.is_empty() => return Err(error),
                Err(_) => break,
            }
        }
        Ok(read_answer(&answer))
    }
}

/// Returns the port that is probed.
pub(super) fn probed_port(spec: &ServiceSpec) -> Option<&ServicePort> {
    let fits = |port: &&ServicePort| spec.health.path.is_none() || port.kind.is_routable();
    let mut ports = spec.ports.iter().filter(fits);
    ports.clone().find(|port| port.published).or_else(|| ports.next())
}

/// Reports whether the answer has a status and, if unhealthy, its body; or is not HTTP.
fn is_complete(answer: &[u8]) -> bool {
    let begins = answer.len().min(5);
    if answer[..begins] != b"HTTP/"[..begins] {
        return true;
    }
    match (status_of(answer), header_end(answer)) {
        (Some(200..=299), Some(_)) => true,
        (_, Some(end)) => answer.len() - end >= MAX_BODY,
        (_, None) => false,
    }
}

fn header_end(answer: &[u8]) -> Option<usize> {
    answer.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

fn status_of(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    words.next().filter(|version| version.starts_with("HTTP/"))?;
    words.next()?.parse().ok().filter(|status| (100..=599).contains(status))
}

fn read_answer(answer: &[u8]) -> ProbeAnswer {
    if answer.is_empty() {
        return ProbeAnswer::Closed;
    }
    let Some(status) = status_of(answer) else { return ProbeAnswer::Other };
    let end = header_end(answer).unwrap_or(answer.len());
    let head = String::from_utf8_lossy(&answer[..end]);
    let location = head.lines().skip(1).find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("location").then(|| value.trim().chars().take(300).collect())
    });
    ProbeAnswer::Http { status, location, body: shown_body(&answer[end..]) }
}

/// Returns the start of a body as a single line without control characters, since it is shown on terminals.
fn shown_body(body: &[u8]) -> String {
    let body = String::from_utf8_lossy(&body[..body.len().min(MAX_BODY)]);
    let body = body.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>();
    body.trim().to_owned()
}

/// Derives the health of an instance from its probe results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HealthTracker {
    pub(super) health: InstanceHealth,
    failed: u32,
}

impl HealthTracker {
    pub(super) const fn new(health: InstanceHealth) -> Self {
        Self { health, failed: 0 }
    }

    pub(super) fn record(&mut self, result: &ProbeResult, check: &HealthCheck) {
        if result.healthy {
            self.failed = 0;
            if !matches!(self.health, InstanceHealth::Healthy { .. }) {
                self.health = InstanceHealth::Healthy { since: result.at };
            }
            return;
        }
        self.failed = self.failed.saturating_add(1);
        if matches!(self.health, InstanceHealth::Healthy { .. } | InstanceHealth::Presumed)
            && self.failed >= check.failures.max(1)
        {
            self.health = InstanceHealth::Unhealthy;
        }
    }

    /// Returns the pause before the next probe, after `probes` of them.
    fn pause(&self, probes: u32, check: &HealthCheck) -> Duration {
        match self.health {
            InstanceHealth::Unproven { .. } => {
                FIRST_PAUSE.saturating_mul(1 << probes.min(10)).min(LONGEST_PAUSE)
            }
            InstanceHealth::Healthy { since } if self.failed == 0 => {
                let settled = Timestamp::now() >= after(since, check.settle);
                if settled { check.interval.max(SETTLE_PAUSE) } else { SETTLE_PAUSE }
            }
            InstanceHealth::Healthy { since } if Timestamp::now() < after(since, check.settle) => {
                SETTLE_PAUSE
            }
            // A presumed-healthy instance is probed at once after the start, then as often as a healthy one.
            InstanceHealth::Presumed if probes == 0 => FIRST_PAUSE,
            _ => LONGEST_PAUSE.min(check.interval.max(SETTLE_PAUSE)),
        }
    }
}

/// Probes a running instance until it stops, and wakes its service loop when its health changes.
pub(super) async fn monitor(entry: Arc<ServiceEntry>, instance: InstanceId) {
    let (stop, health, revision) = {
        let state = entry.state();
        let Some(known) = state.instances.get(&instance) else { return };
        let Some(health) = known.health() else { return };
        (known.stop_token(), health, known.label.revision)
    };
    let watch = watch(&entry, &instance, revision, health);
    tokio::select! {
        () = watch => {}
        () = stop.cancelled() => {}
    }
}

async fn watch(entry: &ServiceEntry, instance: &InstanceId, revision: u32, health: InstanceHealth) {
    let mut judge = HealthTracker::new(health);
    let mut probes = 0;
    loop {
        let (question, check) = {
            let state = entry.state();
            let Some(spec) = state.service.revision(revision).map(|revision| &revision.spec) else { return };
            let Some(known) = state.instances.get(instance) else { return };
            let name = state.service.name.as_str();
            (
                known.address().map(|address| HealthProbe::for_service(spec, name, address)),
                spec.health.clone(),
            )
        };
        let pause = match &question {
            Some(None) => PORTLESS_DELAY,
            _ => judge.pause(probes, &check),
        };
        tokio::time::sleep(pause).await;
        let result = match question {
            Some(Some(question)) => question.probe(instance).await,
            Some(None) => running_process_result(instance),
            // The address is not known yet.
            None => continue,
        };
        probes += 1;
        let before = judge.health;
        judge.record(&result, &check);
        let progress = {
            let mut state = entry.state();
            let progress = state.progress(revision);
            let Some(known) = state.instances.get_mut(instance) else { return };
            known.record_probe(result.clone());
            let (label, since) = (known.label.clone(), known.healthy_since());
            // The instance may have exited or been stopped while the probe was in progress.
            if !update_health(known, before, judge.health) {
                return;
            }
            if judge.health == InstanceHealth::Unhealthy && before != judge.health && state.shall_run(&label)
            {
                state.count_exit(&label, since, false);
            }
            progress
        };
        if let Some(progress) = progress.filter(|_| before != judge.health || !result.healthy) {
            progress.publish(DeployEventKind::Probed(result.clone()));
        }
        if before != judge.health {
            tracing::info!(
                health = ?judge.health,
                probe = %result,
                "instance health changed"
            );
            entry.wake.notify_one();
        }
    }
}

/// Applies a change of health to a running instance. Returns false if the instance is not running any more.
fn update_health(known: &mut TrackedInstance, before: InstanceHealth, now: InstanceHealth) -> bool {
    match now {
        unchanged if unchanged == before => known.is_running(),
        InstanceHealth::Healthy { since } => known.became_healthy(since),
        InstanceHealth::Unhealthy => known.became_unhealthy(),
        // No probe leads to these.
        InstanceHealth::Unproven { .. } | InstanceHealth::Presumed => false,
    }
}

fn running_process_result(instance: &InstanceId) -> ProbeResult {
    ProbeResult {
        at: Timestamp::now(),
        instance: instance.clone(),
        target: "process".to_owned(),
        took: Duration::ZERO,
        healthy: true,
        answer: ProbeAnswer::Running,
    }
}

#[cfg(test)]
mod tests;
