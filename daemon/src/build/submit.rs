//! Submission of a build. The steps: idempotency check, disk space, reservation, packs, log, record; then the build
//! waits.
//!
//! Every step before the record is undone when a later one fails. Once the record is stored, the build is accepted and
//! survives a crash of the daemon.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::Instrument as _;

use super::admission::{AdmissionError, Reservation};
use super::driver::{ContextPrefetch, build_span};
use super::event_log::EventLog;
use super::port::{IdempotencyKey, InsertOutcome, StoreError};
use super::service::{ActiveBuild, BuildRuntime, Handle};
use crate::model::BuildMountSource;
use crate::model::access::NamePatterns;
use crate::model::build::{BuildEventKind, BuildRecord, BuildSecrets, BuildSpec, BuildState};
use crate::model::fault::Fault;
use crate::model::id::{BuildId, PackId};
use crate::model::share_owner::ShareOwner;
use crate::model::trust::TrustDomain;
use crate::task;

pub struct SubmitBuild {
    pub spec: BuildSpec,
    pub secrets: BuildSecrets,
    /// Name of the participant who submits the build.
    pub caller: String,
    /// Trust domain whose builder runs the build.
    pub domain: TrustDomain,
    /// Images of the room that the Dockerfile may name.
    pub may_pull: NamePatterns,
    /// Images of other registries that the Dockerfile may name.
    pub may_pull_from: NamePatterns,
    /// Idempotency key: the same key with the same spec returns the same build.
    pub idempotency_key: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubmittedBuild {
    pub id: BuildId,
    /// False when an earlier request with the same key created the build.
    pub created: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error(transparent)]
    Denied(#[from] AdmissionError),
    #[error(
        "the disk has {free} bytes free, and builds need {floor}; remove images or builds, or make the disk larger"
    )]
    DiskLow { free: u64, floor: u64 },
    #[error("the idempotency key was used for build `{build}` with another spec; use another key")]
    KeyReused { build: BuildId },
    /// A pack or another part of the request cannot be used.
    #[error("{}", .0.message)]
    Refused(Box<Fault>),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the build's log cannot be created: {0}")]
    Log(#[from] std::io::Error),
    #[error("the daemon is ending")]
    Ending,
}

impl SubmitError {
    /// Suggested wait before the next try, when trying again may help.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Denied(
                AdmissionError::QueueFull { retry_after, .. }
                | AdmissionError::CallerLimit { retry_after, .. }
                | AdmissionError::QueueShare { retry_after, .. },
            ) => Some(*retry_after),
            _ => None,
        }
    }
}

impl Handle {
    /// Stores a build as queued and returns its id.
    pub async fn submit(&self, request: SubmitBuild) -> Result<SubmittedBuild, SubmitError> {
        let shared = Arc::clone(&self.shared);
        // A task of its own, so that a caller that disconnects does not leave a partly stored build.
        let accepted = task::spawn("submit build", async move {
            let submitted = shared.accept(request).await?;
            shared.start_waiting_builds();
            Ok(submitted)
        });
        accepted.await.unwrap_or(Err(SubmitError::Ending))
    }
}

impl BuildRuntime {
    async fn accept(&self, request: SubmitBuild) -> Result<SubmittedBuild, SubmitError> {
        let key = self.idempotency_key(&request).await?;
        if let Some(key) = &key
            && let Some(earlier) = self.ports.store.find_by_key(key).await?
        {
            return self.existing_build(earlier, &request.spec).await;
        }
        let id = BuildId::random();
        let span = build_span(&id);
        self.accept_new(id, request, key).instrument(span).await
    }

    async fn accept_new(
        &self,
        id: BuildId,
        request: SubmitBuild,
        key: Option<IdempotencyKey>,
    ) -> Result<SubmittedBuild, SubmitError> {
        self.check_disk().await?;
        let ShareOwner(owner) = self.options.share_owners.owner_of(&request.caller);
        let (reservation, has_slot) = {
            let admission = &mut self.schedule().admission;
            let reservation = admission.reserve(&owner)?;
            let has_slot = admission.has_slot(&reservation);
            (reservation, has_slot)
        };
        let packs = packs_of(&request.spec);
        match self.hold_packs(&packs, &request.caller).await {
            Ok(()) => {
                let SubmitBuild { spec, caller, secrets, .. } = &request;
                let prefetch = (has_slot && ContextPrefetch::is_local_only(spec)).then(|| {
                    ContextPrefetch::start(&self.ports.contexts, spec, caller, &secrets.credentials)
                });
                self.store_build(id, reservation, packs, prefetch, request, key).await
            }
            Err(fault) => {
                self.schedule().admission.release_reservation(reservation);
                Err(SubmitError::Refused(Box::new(fault)))
            }
        }
    }

    async fn store_build(
        &self,
        id: BuildId,
        reservation: Reservation,
        packs: Vec<PackId>,
        prefetch: Option<ContextPrefetch>,
        request: SubmitBuild,
        key: Option<IdempotencyKey>,
    ) -> Result<SubmittedBuild, SubmitError> {
        let stored = self.store_record(&id, &request, key).await;
        match stored {
            Ok((InsertOutcome::New, log)) => {
                let mut state = self.schedule();
                let SubmitBuild { caller, secrets, .. } = request;
                let active = ActiveBuild::new(id.clone(), caller.clone(), log, packs);
                let active = active.with_secrets(secrets).with_prefetch(prefetch);
                state.active.insert(id.clone(), Arc::new(active));
                state.admission.enqueue(reservation, id.clone());
                tracing::info!(caller, "build accepted");
                Ok(SubmittedBuild { id, created: true })
            }
            other => {
                self.schedule().admission.release_reservation(reservation);
                self.release_packs(&packs).await;
                let (directory, of) = (self.options.log_dir.clone(), id);
                let removed = task::blocking("build log", move || EventLog::remove(&directory, &of)).await;
                if !matches!(removed, Ok(Ok(()))) {
                    tracing::warn!("failed to remove the log of a refused build; retrying at the next start");
                }
                self.existing_build(other?.0, &request.spec).await
            }
        }
    }

    async fn store_record(
        &self,
        id: &BuildId,
        request: &SubmitBuild,
        key: Option<IdempotencyKey>,
    ) -> Result<(InsertOutcome, Arc<EventLog>), SubmitError> {
        let (directory, of) = (self.options.log_dir.clone(), id.clone());
        let log = task::blocking("build log", move || {
            let log = EventLog::create(&directory, &of)?;
            log.append(vec![BuildEventKind::StateChanged { state: BuildState::Queued }])?;
            Ok::<_, std::io::Error>(log)
        });
        let log = Arc::new(log.await.map_err(|_| SubmitError::Ending)??);
        let record = new_record(id, request, log.last_sequence());
        // The answer waits for both, because a crash may leave only one of them.
        let sealed = Arc::clone(&log);
        let sealed = task::blocking("build log", move || sealed.sync());
        let (inserted, sealed) = tokio::join!(self.ports.store.insert(record, key), sealed);
        let inserted = inserted?;
        if let Err(error) = sealed.map_err(std::io::Error::other).flatten() {
            if inserted == InsertOutcome::New {
                self.ports.store.remove(id).await?;
            }
            return Err(SubmitError::Log(error));
        }
        Ok((inserted, log))
    }

    async fn check_disk(&self) -> Result<(), SubmitError> {
        let directory = self.options.log_dir.clone();
        let space = task::blocking("disk space", move || rustix::fs::statvfs(&directory)).await;
        let space = space.map_err(|_| SubmitError::Ending)?.map_err(std::io::Error::from)?;
        let (free, floor) = (space.f_bavail.saturating_mul(space.f_frsize), self.options.min_free_space);
        if free < floor { Err(SubmitError::DiskLow { free, floor }) } else { Ok(()) }
    }

    /// Holds all of the packs, or none on an error.
    pub(super) async fn hold_packs(&self, packs: &[PackId], caller: &str) -> Result<(), Fault> {
        for (held, pack) in packs.iter().enumerate() {
            if let Err(fault) = self.ports.images.hold_pack(pack, caller).await {
                self.release_packs(&packs[..held]).await;
                return Err(fault);
            }
        }
        Ok(())
    }

    pub(super) async fn release_packs(&self, packs: &[PackId]) {
        for pack in packs {
            self.ports.images.release_pack(pack).await;
        }
    }
}

/// Returns the record of a build that waits for a slot.
pub(super) fn new_record(id: &BuildId, request: &SubmitBuild, last_sequence: u64) -> BuildRecord {
    BuildRecord {
        context: None,
        sources: Vec::new(),
        steps: Vec::new(),
        id: id.clone(),
        spec: request.spec.clone(),
        submitted_by: request.caller.clone(),
        domain: Some(request.domain.clone()),
        may_pull: request.may_pull.clone(),
        may_pull_from: request.may_pull_from.clone(),
        state: BuildState::Queued,
        created_at: Timestamp::now(),
        started_at: None,
        finished_at: None,
        attempts: 0,
        has_secrets: !request.secrets.is_empty(),
        pinned: false,
        result: None,
        fault: None,
        last_sequence,
    }
}

/// Returns the packs among a build's mounts, each once.
pub(super) fn packs_of(spec: &BuildSpec) -> Vec<PackId> {
    let mut packs: Vec<PackId> = Vec::new();
    for mount in &spec.mounts {
        // The context preparation refuses an invalid id with an error that names the mount.
        if let BuildMountSource::Pack(id) = &mount.source
            && let Ok(id) = id.parse()
            && !packs.contains(&id)
        {
            packs.push(id);
        }
    }
    packs
}
