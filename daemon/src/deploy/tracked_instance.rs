//! Lifecycle of one instance as the daemon tracks it. [`TrackedInstance`] owns the stage: every transition is one of its
//! methods, and a transition that the current stage does not allow changes nothing and returns false. That happens when
//! two events race, for example when an instance exits while it is being stopped.
//!
//! ```text
//! starting: Starting --started--> Running(Unproven) --became_healthy--> Running(Healthy)
//!              |                                                          |          ^
//!              |                           became_unhealthy or exited <---'          | became_healthy
//!              |                                      '--> Running(Unhealthy) -------'
//!              '--abort--> Stopping <--stop-- Running(any), Exited, Incomplete
//! found_running:    Running(Presumed, Unproven or Unhealthy); Presumed changes to Healthy or Unhealthy
//! found_incomplete: Incomplete           found_exited, found_unreachable: Exited
//! Running(any) --exited--> Exited
//! ```
//!
//! An instance in the stage `Stopping` belongs to the task that removes it, and is forgotten after that.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;

use super::plan::{InstanceHealth, InstanceStage};
use crate::model::deploy::ProbeResult;
use crate::model::service::{InstanceLabel, ProcessExit};

/// Maximum number of probe results kept per instance.
const KEPT_PROBES: usize = 10;

/// An instance as the daemon tracks it.
pub(super) struct TrackedInstance {
    pub(super) label: InstanceLabel,
    stage: InstanceStage,
    address: Option<Ipv4Addr>,
    pid: Option<u32>,
    exit: Option<ProcessExit>,
    probes: VecDeque<ProbeResult>,
    /// Cancels the health monitor, or the start in progress.
    stop: CancellationToken,
}

impl TrackedInstance {
    /// Returns a new instance whose start begins.
    pub(super) fn starting(label: InstanceLabel) -> Self {
        Self::in_stage(label, InstanceStage::Starting)
    }

    /// Returns an instance of which an interrupted start left parts.
    pub(super) fn found_incomplete(label: InstanceLabel) -> Self {
        Self::in_stage(label, InstanceStage::Incomplete)
    }

    /// Returns a running instance that an earlier run of the daemon started.
    pub(super) fn found_running(
        label: InstanceLabel,
        pid: u32,
        address: Ipv4Addr,
        health: InstanceHealth,
    ) -> Self {
        let running = Self::in_stage(label, InstanceStage::Running(health));
        Self { pid: Some(pid), address: Some(address), ..running }
    }

    /// Returns an instance that exited while the daemon did not run.
    pub(super) fn found_exited(label: InstanceLabel, exit: ProcessExit) -> Self {
        let exited = Self::in_stage(label, InstanceStage::Exited { external: is_external_exit(Some(exit)) });
        Self { exit: Some(exit), ..exited }
    }

    /// Returns a running instance that cannot be reached and has to be replaced. It counts as ended by an external
    /// cause.
    pub(super) fn found_unreachable(label: InstanceLabel) -> Self {
        Self::in_stage(label, InstanceStage::Exited { external: true })
    }

    fn in_stage(label: InstanceLabel, stage: InstanceStage) -> Self {
        Self {
            label,
            stage,
            address: None,
            pid: None,
            exit: None,
            probes: VecDeque::new(),
            stop: CancellationToken::new(),
        }
    }

    /// The process has started. False if the start was aborted in the meantime.
    pub(super) fn started(&mut self, address: Ipv4Addr, now: Timestamp) -> bool {
        let is_legal = self.stage == InstanceStage::Starting;
        let unproven = InstanceHealth::Unproven { since: now };
        let entered = self.enter(InstanceStage::Running(unproven), is_legal);
        if entered {
            self.address = Some(address);
        }
        entered
    }

    /// A probe found the running instance healthy, which it was not before.
    pub(super) fn became_healthy(&mut self, since: Timestamp) -> bool {
        let is_legal = self.health().is_some_and(|health| !matches!(health, InstanceHealth::Healthy { .. }));
        self.enter(InstanceStage::Running(InstanceHealth::Healthy { since }), is_legal)
    }

    /// Probes of an instance that served have failed too often.
    pub(super) fn became_unhealthy(&mut self) -> bool {
        let is_legal = self.health().is_some_and(InstanceHealth::is_ready);
        self.enter(InstanceStage::Running(InstanceHealth::Unhealthy), is_legal)
    }

    /// The process has exited, or vanished without an exit that was seen.
    pub(super) fn exited(&mut self, exit: Option<ProcessExit>) -> bool {
        let is_legal = self.is_running();
        let entered = self.enter(InstanceStage::Exited { external: is_external_exit(exit) }, is_legal);
        if entered {
            self.exit = exit;
            self.stop.cancel();
        }
        entered
    }

    /// The start has failed or is not wanted any more: it is cancelled, and its task removes the instance. False if the
    /// process has started already; such an instance is stopped instead.
    pub(super) fn abort(&mut self) -> bool {
        let is_legal = self.stage == InstanceStage::Starting;
        self.enter_stopping(is_legal)
    }

    /// The instance is to be stopped, if it runs, and removed. False if it is being started or removed.
    pub(super) fn stop(&mut self) -> bool {
        let is_legal = !matches!(self.stage, InstanceStage::Starting | InstanceStage::Stopping);
        self.enter_stopping(is_legal)
    }

    fn enter_stopping(&mut self, is_legal: bool) -> bool {
        let entered = self.enter(InstanceStage::Stopping, is_legal);
        if entered {
            self.stop.cancel();
        }
        entered
    }

    /// Changes the stage; the only place that does so.
    fn enter(&mut self, to: InstanceStage, is_legal: bool) -> bool {
        if is_legal {
            self.stage = to;
        } else {
            tracing::debug!(
                instance.id = %self.label.instance, from = ?self.stage, ?to, "ignored a transition of an instance"
            );
        }
        is_legal
    }

    /// Records the process id of a running instance, from the runtime's listing.
    pub(super) const fn set_pid(&mut self, pid: u32) {
        self.pid = Some(pid);
    }

    pub(super) fn record_probe(&mut self, result: ProbeResult) {
        if self.probes.len() == KEPT_PROBES {
            self.probes.pop_front();
        }
        self.probes.push_back(result);
    }

    pub(super) const fn stage(&self) -> InstanceStage {
        self.stage
    }

    pub(super) const fn is_running(&self) -> bool {
        matches!(self.stage, InstanceStage::Running(_))
    }

    pub(super) const fn health(&self) -> Option<InstanceHealth> {
        match self.stage {
            InstanceStage::Running(health) => Some(health),
            _ => None,
        }
    }

    pub(super) const fn healthy_since(&self) -> Option<Timestamp> {
        match self.stage {
            InstanceStage::Running(InstanceHealth::Healthy { since }) => Some(since),
            _ => None,
        }
    }

    pub(super) const fn address(&self) -> Option<Ipv4Addr> {
        self.address
    }

    pub(super) const fn pid(&self) -> Option<u32> {
        self.pid
    }

    pub(super) const fn exit(&self) -> Option<ProcessExit> {
        self.exit
    }

    pub(super) const fn probes(&self) -> &VecDeque<ProbeResult> {
        &self.probes
    }

    /// Returns the token that is cancelled when the instance exits or is stopped.
    pub(super) fn stop_token(&self) -> CancellationToken {
        self.stop.clone()
    }
}

/// Reports whether an external cause ended an instance, as far as can be determined: the exit was not seen, or the
/// process was killed for another reason than lack of memory.
pub(super) fn is_external_exit(exit: Option<ProcessExit>) -> bool {
    exit.is_none_or(|exit| exit.code.is_none_or(|code| code == 128 + 9 && !exit.out_of_memory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::id::{InstanceId, ServiceId};

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    /// Every stage, in the order of the columns of the table.
    const STAGES: [InstanceStage; 8] = [
        InstanceStage::Starting,
        InstanceStage::Incomplete,
        InstanceStage::Running(InstanceHealth::Unproven { since: NOW }),
        InstanceStage::Running(InstanceHealth::Presumed),
        InstanceStage::Running(InstanceHealth::Healthy { since: NOW }),
        InstanceStage::Running(InstanceHealth::Unhealthy),
        InstanceStage::Stopping,
        InstanceStage::Exited { external: false },
    ];

    fn label() -> InstanceLabel {
        InstanceLabel {
            instance: InstanceId::random(),
            service: ServiceId::random(),
            name: "web".parse().unwrap(),
            revision: 1,
            generation: 0,
        }
    }

    fn instance(stage: InstanceStage) -> TrackedInstance {
        TrackedInstance::in_stage(label(), stage)
    }

    #[test]
    fn only_the_transitions_of_the_table_change_the_stage() {
        type Transition = fn(&mut TrackedInstance) -> bool;
        let seen = ProcessExit { code: Some(1), out_of_memory: false, at: NOW };
        let exited = InstanceStage::Exited { external: is_external_exit(Some(seen)) };
        let healthy = InstanceStage::Running(InstanceHealth::Healthy { since: NOW });
        let unproven = InstanceStage::Running(InstanceHealth::Unproven { since: NOW });
        let unhealthy = InstanceStage::Running(InstanceHealth::Unhealthy);
        // Name, transition, stage after it, and the stages that allow it.
        let table: [(&str, Transition, InstanceStage, &str); 6] = [
            ("started", |i| i.started(Ipv4Addr::LOCALHOST, NOW), unproven, "x......."),
            ("became_healthy", |i| i.became_healthy(NOW), healthy, "..xx.x.."),
            ("became_unhealthy", TrackedInstance::became_unhealthy, unhealthy, "...xx..."),
            (
                "exited",
                |i| i.exited(Some(ProcessExit { code: Some(1), out_of_memory: false, at: NOW })),
                exited,
                "..xxxx..",
            ),
            ("abort", TrackedInstance::abort, InstanceStage::Stopping, "x......."),
            ("stop", TrackedInstance::stop, InstanceStage::Stopping, ".xxxxx.x"),
        ];
        for (name, transition, to, allowed) in table {
            for (from, mark) in STAGES.into_iter().zip(allowed.chars()) {
                let mut instance = instance(from);
                let is_legal = mark == 'x';
                assert_eq!(transition(&mut instance), is_legal, "{name} from {from:?}");
                assert_eq!(instance.stage(), if is_legal { to } else { from }, "{name} from {from:?}");
                let has_left = is_legal && matches!(name, "exited" | "abort" | "stop");
                assert_eq!(instance.stop_token().is_cancelled(), has_left, "{name} from {from:?}");
            }
        }
    }

    #[test]
    fn a_refused_transition_leaves_what_came_with_the_stage() {
        let mut stopping = instance(InstanceStage::Stopping);
        assert!(!stopping.started(Ipv4Addr::LOCALHOST, NOW));
        assert!(!stopping.exited(Some(ProcessExit { code: Some(1), out_of_memory: false, at: NOW })));
        assert_eq!((stopping.address(), stopping.exit()), (None, None));
    }

    #[test]
    fn an_instance_is_found_in_the_stage_that_the_runtime_reports() {
        let exit = |code| ProcessExit { code, out_of_memory: false, at: NOW };
        let stage = |found: &TrackedInstance| found.stage();
        let running =
            TrackedInstance::found_running(label(), 7, Ipv4Addr::LOCALHOST, InstanceHealth::Presumed);
        assert_eq!(stage(&running), InstanceStage::Running(InstanceHealth::Presumed));
        assert_eq!((running.pid(), running.address()), (Some(7), Some(Ipv4Addr::LOCALHOST)));
        assert_eq!(stage(&TrackedInstance::found_incomplete(label())), InstanceStage::Incomplete);
        let external = InstanceStage::Exited { external: true };
        assert_eq!(stage(&TrackedInstance::found_unreachable(label())), external);
        assert_eq!(stage(&TrackedInstance::found_exited(label(), exit(None))), external);
        let own = TrackedInstance::found_exited(label(), exit(Some(1)));
        assert_eq!(
            (stage(&own), own.exit()),
            (InstanceStage::Exited { external: false }, Some(exit(Some(1))))
        );
    }
}
