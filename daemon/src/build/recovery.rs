//! Recovery after a restart: every build that had not ended is queued again or interrupted.
//!
//! ```text
//! queued                                   --> queued
//! running, first attempt, no secrets       --> queued (run again, once)
//! running, second attempt                  --> interrupted
//! with secrets, or a missing pack          --> interrupted
//! the log has an end that was not stored   --> ended as the log says
//! ```
//!
//! Ends are stored by tasks, so that a disk that is full does not keep the daemon from its start. Each build is
//! recovered independently, so recovery can be repeated after a crash in the middle of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use tracing::Instrument as _;

use super::driver::{build_span, interrupted_fault};
use super::event_log::EventLog;
use super::mask::SecretMask;
use super::port::{BuildQuery, StoreError};
use super::publisher::EventPublisher;
use super::service::{ActiveBuild, BuildRuntime};
use super::submit::packs_of;
use crate::model::build::{BuildEventKind, BuildOutcome, BuildRecord, BuildState};
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::id::PackId;
use crate::model::share_owner::ShareOwner;
use crate::task;

/// Maximum number of attempts of one build.
const MAX_ATTEMPTS: u32 = 2;
const PAGE: usize = 500;

pub(super) async fn recover(shared: &Arc<BuildRuntime>) -> Result<(), StoreError> {
    let mut open = Vec::new();
    loop {
        let page = shared.ports.store.list(BuildQuery {
            states: vec![BuildState::Queued, BuildState::Running],
            after: open.last().map(|record: &BuildRecord| record.id.clone()),
            limit: PAGE,
            ..BuildQuery::default()
        });
        let page = page.await?;
        let last = page.len() < PAGE;
        open.extend(page);
        if last {
            break;
        }
    }
    // Oldest first, in the order of acceptance.
    for record in open.into_iter().rev() {
        let span = build_span(&record.id);
        recover_one(shared, record).instrument(span).await?;
    }
    if let Err(error) = remove_orphaned_logs(shared).await {
        tracing::warn!(%error, "failed to remove orphaned build logs; retrying at the next start");
    }
    Ok(())
}

async fn recover_one(shared: &Arc<BuildRuntime>, mut record: BuildRecord) -> Result<(), StoreError> {
    let (directory, id) = (shared.options.log_dir.clone(), record.id.clone());
    let opened = task::blocking("build log", move || {
        let log = EventLog::reopen(&directory, &id)?;
        let end = cut_after_end(&log)?;
        Ok((log, end))
    });
    let (log, end) = match opened.await.map_err(std::io::Error::other).flatten() {
        Ok((log, end)) => (Arc::new(log), end),
        Err(error) => {
            tracing::error!(%error, "failed to open a build log");
            record.state = BuildState::Interrupted;
            record.fault = Some(interrupted_fault("and its log cannot be opened"));
            record.finished_at = Some(Timestamp::now());
            record.last_sequence += 1;
            return shared.ports.store.update(record).await;
        }
    };
    if let Some((state, at)) = end {
        tracing::warn!(
            state = state.as_str(),
            "the log of this build has its end, but the state database does not; storing the end from the log"
        );
        (record.state, record.finished_at, record.last_sequence) = (state, Some(at), log.last_sequence());
        record.fault = matches!(state, BuildState::Failed | BuildState::Interrupted).then(unknown_fault);
        let active = activate(shared, &record, log, Vec::new());
        let shared = Arc::clone(shared);
        let end = async move { shared.store_logged_end(&active, record).await };
        drop(task::spawn("end build", end));
        return Ok(());
    }
    let packs = packs_of(&record.spec);
    let refusal = if record.has_secrets {
        Some(interrupted_fault("and its secrets were held in memory only"))
    } else if record.state == BuildState::Running && record.attempts >= MAX_ATTEMPTS {
        Some(interrupted_fault("twice"))
    } else {
        shared.hold_packs(&packs, &record.submitted_by).await.err().as_ref().map(pack_fault)
    };
    if let Some(fault) = refusal {
        tracing::warn!(error = fault.message, "build interrupted");
        let publisher = EventPublisher::new(Arc::clone(&log), SecretMask::default(), 0);
        let active = activate(shared, &record, log, Vec::new());
        let shared = Arc::clone(shared);
        let end = async move {
            shared.finish(&active, record, BuildOutcome::Interrupted(fault), publisher).await;
        };
        drop(task::spawn("end build", end));
        return Ok(());
    }
    if record.state == BuildState::Running {
        tracing::info!("build queued to run again");
        let appending = Arc::clone(&log);
        let queued = vec![BuildEventKind::StateChanged { state: BuildState::Queued }];
        let appended = task::blocking("build log", move || appending.append(queued)).await;
        if let Err(error) = appended.map_err(std::io::Error::other).flatten() {
            // The driver meets the same error and fails the build with it.
            tracing::warn!(%error, "failed to write a build log");
        }
        record.state = BuildState::Queued;
        record.last_sequence = log.last_sequence();
        if let Err(error) = shared.ports.store.update(record.clone()).await {
            // Stored as running, it is recovered again by a later start if this one does not run it.
            tracing::warn!(%error, "failed to store the state of a build");
        }
    }
    activate(shared, &record, log, packs);
    let ShareOwner(owner) = shared.options.share_owners.owner_of(&record.submitted_by);
    shared.schedule().admission.restore(owner, record.id);
    Ok(())
}

/// Makes a build active.
fn activate(
    shared: &BuildRuntime,
    record: &BuildRecord,
    log: Arc<EventLog>,
    packs: Vec<PackId>,
) -> Arc<ActiveBuild> {
    let active = Arc::new(ActiveBuild::new(record.id.clone(), record.submitted_by.clone(), log, packs));
    shared.schedule().active.insert(record.id.clone(), Arc::clone(&active));
    active
}

/// Finds the end of a build in its log, and removes what follows it. Blocking.
fn cut_after_end(log: &EventLog) -> std::io::Result<Option<(BuildState, Timestamp)>> {
    let mut next = 1;
    loop {
        let events = log.read(next, 1 << 20)?;
        let Some(last) = events.last() else { return Ok(None) };
        next = last.sequence + last.kind.count();
        for event in &events {
            if let BuildEventKind::Finished { state } = event.kind {
                log.truncate_after(event.sequence)?;
                return Ok(Some((state, event.time)));
            }
        }
    }
}

fn unknown_fault() -> Fault {
    Fault::new(
        FaultStage::Solve,
        ErrorCode::StateUnavailable,
        "the daemon ended before it could store why the build ended; the build's log has its output",
    )
}

fn pack_fault(fault: &Fault) -> Fault {
    interrupted_fault(&format!("and a pack that it needs no longer exists: {}", fault.message))
}

/// Removes logs whose builds were never stored, or were removed.
async fn remove_orphaned_logs(shared: &BuildRuntime) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let directory = shared.options.log_dir.clone();
    let ids = task::blocking("build logs", move || EventLog::ids(&directory)).await??;
    let mut strays = BTreeSet::new();
    for id in ids {
        if shared.ports.store.get(&id).await?.is_none() {
            strays.insert(id);
        }
    }
    let directory = shared.options.log_dir.clone();
    task::blocking("build logs", move || strays.iter().try_for_each(|id| EventLog::remove(&directory, id)))
        .await??;
    Ok(())
}
