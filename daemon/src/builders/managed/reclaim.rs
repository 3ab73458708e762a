//! Reclaims disk space from builds that use it up.
//!
//! ```text
//! less than the floor is free --> which builder wrote most since its builds began?
//!    |                              |
//!    |  none can be identified      '--> its builds end (`no_space`) --> BuildKit removes their output --> done
//!    |  and the disk is full:                                      '--> not within RECLAIM_LIMIT:
//!    '--> the builder whose build began last                            the builder is killed, its cache removed
//! ```
//!
//! A builder belongs to one trust domain, so no other domain is affected. Builders that have written little are
//! spared: a service or an upload may have filled the disk, and ending builds would then free nothing.

use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::super::growth::{DiskGrowth, MIN_GROWTH_DIVISOR, growth_since};
use super::{BuilderEvent, BuilderOwner};
use crate::buildkit::BuildKitClient;
use crate::disk::{FreeSpace, SpaceLevel, SpaceWatch};
use crate::model::trust::TrustDomain;
use crate::task;

/// Interval between two checks while less than the floor is free.
const PAUSE: Duration = Duration::from_millis(250);
/// Time limit for measuring what one builder has written.
const SCAN_LIMIT: Duration = Duration::from_secs(1);
/// Time limit for a builder to end its builds and to remove their output.
const RECLAIM_LIMIT: Duration = Duration::from_secs(3);
/// Time limit for BuildKit to remove unused data.
const COLLECT_LIMIT: Duration = Duration::from_secs(2);
/// Time limit for the removal of a builder's cache.
const DISCARD_LIMIT: Duration = Duration::from_secs(10);
/// Time after its last build during which a builder without builds is still a suspect.
const SUSPECT_TIME: Duration = Duration::from_secs(30);

/// Use of a builder by builds, for finding out which one used up the disk.
#[derive(Default)]
pub(super) struct DiskUse {
    builds: usize,
    /// Start of the first build since the builder was last without builds.
    since: Option<SystemTime>,
    /// Start of the newest build.
    newest: Option<Instant>,
    /// End of the build that ended last.
    released: Option<Instant>,
    /// Cancelled when the builds of the builder must end.
    pub(super) out_of_space: CancellationToken,
}

impl DiskUse {
    pub(super) fn record_grant(&mut self) {
        if self.builds == 0 {
            self.since = Some(SystemTime::now());
        }
        self.builds += 1;
        self.newest = Some(Instant::now());
    }

    pub(super) fn record_release(&mut self) {
        self.builds = self.builds.saturating_sub(1);
        self.released = Some(Instant::now());
    }

    fn is_suspect(&self) -> bool {
        self.builds > 0 || self.released.is_some_and(|released| released.elapsed() < SUSPECT_TIME)
    }
}

/// A builder whose builds may have used up the disk.
pub(super) struct DiskUseSuspect {
    domain: TrustDomain,
    root: PathBuf,
    client: BuildKitClient,
    builds: usize,
    since: SystemTime,
    newest: Option<Instant>,
}

impl BuilderOwner {
    pub(super) fn suspects(&mut self) -> Vec<DiskUseSuspect> {
        let mut suspects = Vec::new();
        for (domain, slot) in self.slots.iter().filter(|(_, slot)| slot.disk_use.is_suspect()) {
            let (Some((kit, _)), Some(since)) = (&slot.running, slot.disk_use.since) else { continue };
            suspects.push(DiskUseSuspect {
                domain: domain.clone(),
                root: self.directories.path_of(domain),
                client: kit.clone(),
                builds: slot.disk_use.builds,
                since,
                newest: slot.disk_use.newest,
            });
        }
        suspects
    }

    /// Ends the builds that use the builder now; later builds are not affected.
    pub(super) fn end_builds(&mut self, domain: &TrustDomain) {
        if let Some(slot) = self.slots.get_mut(domain) {
            std::mem::take(&mut slot.disk_use.out_of_space).cancel();
        }
    }
}

pub(super) async fn reclaim_loop(space: SpaceWatch, events: mpsc::UnboundedSender<BuilderEvent>) {
    metrics::describe_counter!(
        "hearth_builders_out_of_space_total",
        "Builders whose builds were ended because they used up the disk."
    );
    while !events.is_closed() {
        space.below_floor().await;
        if let Err(error) = reclaim_once(&space, &events).await {
            tracing::warn!(%error, "failed to find the builds that use up the disk; retrying");
        }
        sleep(PAUSE).await;
    }
}

/// Checks once, and reclaims the space that one builder has written.
async fn reclaim_once(
    space: &SpaceWatch,
    events: &mpsc::UnboundedSender<BuilderEvent>,
) -> std::io::Result<()> {
    let suspects = suspects(events).await;
    let now = free_space(space).await?;
    if suspects.is_empty() || now.level() == SpaceLevel::Ample {
        return Ok(());
    }
    let least = (now.floor / MIN_GROWTH_DIVISOR.max(suspects.len() as u64)).max(1);
    let Some((culprit, growth)) = find_culprit(suspects, now, least).await else { return Ok(()) };
    let domain = &culprit.domain;
    let FreeSpace { free: left, floor } = now;
    if culprit.builds == 0 {
        tracing::debug!(builder.domain = %domain, written = growth.bytes, "builds that used up the disk have already ended");
    } else {
        metrics::counter!("hearth_builders_out_of_space_total").increment(1);
        tracing::warn!(
            builder.domain = %domain, builds = culprit.builds, written = growth.bytes, free = left, floor,
            "builds used up the disk down to the space that must stay free; ending them"
        );
        let _ = events.send(BuilderEvent::EndBuilds(domain.clone()));
    }
    if releases_space(&culprit, least, space, events).await? {
        return Ok(());
    }
    if culprit.builds == 0 && now.level() != SpaceLevel::Full {
        // The output of its ended builds is in its cache, and something else may be filling the disk.
        return Ok(());
    }
    tracing::warn!(builder.domain = %domain, "builder did not release disk space; killing it and removing its cache");
    let _ = events.send(BuilderEvent::DiscardBuilder(domain.clone()));
    let end = Instant::now() + DISCARD_LIMIT;
    while free_space(space).await?.level() != SpaceLevel::Ample && Instant::now() < end {
        sleep(PAUSE).await;
    }
    Ok(())
}

/// Returns the builder that wrote most. If no writing is found and the disk is full, returns the one whose build began
/// last: a scan does not find files that a step has removed but holds open.
async fn find_culprit(
    suspects: Vec<DiskUseSuspect>,
    now: FreeSpace,
    least: u64,
) -> Option<(DiskUseSuspect, DiskGrowth)> {
    let mut looked = Vec::new();
    for suspect in suspects {
        let growth = measure_growth(&suspect).await;
        looked.push((suspect, growth));
    }
    let seen = looked.iter().enumerate().filter(|(_, (_, growth))| growth.bytes >= least || growth.partial);
    let most = seen.max_by_key(|(_, (_, growth))| *growth).map(|(index, _)| index);
    let newest = || {
        let busy = looked.iter().enumerate().filter(|(_, (suspect, _))| suspect.builds > 0);
        busy.max_by_key(|(_, (suspect, _))| suspect.newest).map(|(index, _)| index)
    };
    let index = most.or_else(|| (now.level() == SpaceLevel::Full).then(newest).flatten())?;
    Some(looked.swap_remove(index))
}

/// Reports whether the builds of a builder end and their output is removed in time.
async fn releases_space(
    culprit: &DiskUseSuspect,
    least: u64,
    space: &SpaceWatch,
    events: &mpsc::UnboundedSender<BuilderEvent>,
) -> std::io::Result<bool> {
    let end = Instant::now() + RECLAIM_LIMIT;
    loop {
        sleep(PAUSE).await;
        let running = suspects(events).await.into_iter().find(|suspect| suspect.domain == culprit.domain);
        let ended = running.as_ref().is_none_or(|suspect| suspect.builds == 0);
        if ended {
            // The cache of later builds stays; BuildKit removes only unreferenced data.
            let collected = timeout(COLLECT_LIMIT, culprit.client.prune(u64::MAX)).await;
            if let Ok(Err(error)) = collected {
                tracing::warn!(builder.domain = %culprit.domain, %error, "failed to prune after ending builds");
            }
            let (now, growth) = (free_space(space).await?, measure_growth(culprit).await);
            if now.level() == SpaceLevel::Ample || (growth.bytes < least && !growth.partial) {
                return Ok(true);
            }
        }
        if Instant::now() >= end {
            return Ok(false);
        }
    }
}

async fn suspects(events: &mpsc::UnboundedSender<BuilderEvent>) -> Vec<DiskUseSuspect> {
    let (answer, answered) = oneshot::channel();
    let _ = events.send(BuilderEvent::ListSuspects(answer));
    // Empty when the owner task has ended.
    answered.await.unwrap_or_default()
}

async fn measure_growth(suspect: &DiskUseSuspect) -> DiskGrowth {
    let (root, since) = (suspect.root.clone(), suspect.since);
    let looked = task::blocking("builder growth", move || growth_since(&root, since, SCAN_LIMIT)).await;
    looked.unwrap_or(DiskGrowth { bytes: 0, partial: true })
}

async fn free_space(space: &SpaceWatch) -> std::io::Result<FreeSpace> {
    let space = space.clone();
    task::blocking("disk space", move || space.now()).await.map_err(std::io::Error::other)?
}
