//! The start of the daemon: what runs is compared with what shall run, and then kept so.
//!
//! Instances that run are taken back. That of the live revision is routed at once, before it is probed: it served when
//! the daemon ended, and most likely does; a request to one that does not is held by the router as it always is.
//! Of two generations the older one is taken, since the younger may not have been ready.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::entry::Entry;
use super::plan::Health;
use super::port::{InstanceState, Observed};
use super::reconcile::adopt;
use super::service::Shared;
use crate::model::id::{InstanceId, ServiceId};
use crate::model::service::Exit;

/// Between tries while the runtime is away.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// For the runtime's start.
const EXPECTED: Duration = Duration::from_secs(3);
/// Between looks at what could not be done at once.
const HOUSEKEEPING: Duration = Duration::from_secs(2);
const IMAGES: Duration = Duration::from_secs(600);

pub(super) async fn compare_loop(shared: Arc<Shared>) {
    let mut pause = FIRST_PAUSE;
    let mut last_error = String::new();
    shared.sweep_strange_logs().await;
    let begun = Instant::now();
    while let Err(error) = compare_one(&shared).await {
        shared.compared.send_modify(|now| *now = Err(error.clone()));
        // containerd takes a moment to start.
        if error != last_error && begun.elapsed() > EXPECTED {
            tracing::warn!(error, "services cannot be compared with what runs yet");
            last_error = error;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    shared.publish_routes().await;
    shared.compared.send_modify(|now| *now = Ok(()));
    for entry in shared.all() {
        shared.run(entry);
    }
    let mut images: Option<Instant> = None;
    loop {
        if shared.names_stale.load(Ordering::Relaxed) {
            shared.publish_routes().await;
        }
        if images.is_none_or(|at| at.elapsed() >= IMAGES) {
            images = shared.keep_images().await.then(Instant::now);
        }
        tokio::time::sleep(HOUSEKEEPING).await;
    }
}

/// Can be repeated: what an earlier try has taken in stays.
async fn compare_one(shared: &Arc<Shared>) -> Result<(), String> {
    let limit = shared.options.call_limit;
    let late = |_| "it takes too long".to_owned();
    let listed = tokio::time::timeout(limit, shared.ports.runtime.list()).await;
    let listed = listed.map_err(late)?.map_err(|error| error.to_string())?;
    let mut of_services: BTreeMap<ServiceId, Vec<Observed>> = BTreeMap::new();
    for observed in listed {
        if shared.knows(&observed.label.service) {
            of_services.entry(observed.label.service.clone()).or_default().push(observed);
        } else {
            tracing::info!(instance.id = %observed.label.instance, "an instance of no service is taken away");
            let (shared_too, instance) = (Arc::clone(shared), observed.label.instance);
            // However long it takes: the room's services do not wait for it.
            shared.spawn("take away", async move { shared_too.take_away(&instance).await });
        }
    }
    // Those that ended keep theirs until they are taken away; what is incomplete has nothing that works.
    let kept: BTreeSet<InstanceId> =
        of_services.values().flatten().map(|observed| observed.label.instance.clone()).collect();
    let mended = tokio::time::timeout(limit, shared.ports.network.reconcile(&kept)).await;
    mended.map_err(late)?.map_err(|error| error.to_string())?;
    let broken = tokio::time::timeout(limit, shared.ports.mounts.reconcile(&kept)).await;
    let broken = broken.map_err(late)?.map_err(|error| error.to_string())?;
    for entry in shared.all() {
        let observed = of_services.remove(&entry.id).unwrap_or_default();
        take_back(shared, &entry, observed, &broken).await;
    }
    Ok(())
}

async fn take_back(
    shared: &Arc<Shared>,
    entry: &Arc<Entry>,
    observed: Vec<Observed>,
    broken: &BTreeSet<InstanceId>,
) {
    let (live, removing, revisions) = {
        let state = entry.state();
        let revisions: BTreeSet<u32> =
            state.service.revisions.iter().map(|revision| revision.number).collect();
        (state.service.live, state.service.removing, revisions)
    };
    let serving = observed
        .iter()
        .filter(|observed| matches!(observed.state, InstanceState::Running { .. }))
        .filter(|observed| {
            Some(observed.label.revision) == live && revisions.contains(&observed.label.revision)
        })
        .min_by_key(|observed| observed.label.generation)
        .map(|observed| observed.label.instance.clone())
        .filter(|_| !removing);
    for observed in observed {
        let instance = observed.label.instance.clone();
        if entry.state().instances.contains_key(&instance) {
            continue;
        }
        let is_serving = serving.as_ref() == Some(&instance);
        let is_broken = broken.contains(&instance);
        let health = match (is_broken, is_serving) {
            (true, _) => Health::Unhealthy,
            (false, true) => Health::Presumed,
            (false, false) => Health::Unproven { since: Timestamp::now() },
        };
        let mut observed = observed;
        if is_broken && !is_serving {
            // Nobody's doing: another is started, and whoever waits for it does not see it fail.
            let at = Timestamp::now();
            observed.state = InstanceState::Ended(Exit { code: None, out_of_memory: false, at });
        }
        if !adopt(shared, entry, observed, health).await {
            continue;
        }
        if is_serving {
            entry.state().routed = Some(instance.clone());
        }
        if is_broken {
            // It keeps the traffic until another has it. What it answers to probes says nothing of its mounts.
            tracing::warn!(instance.id = %instance, "an instance has lost its mounts and is replaced");
        } else {
            shared.watch_over(entry, &instance);
        }
    }
}

impl Shared {
    /// Tells the runtime which images' files it may drop. Not while an instance is being started: its image may be
    /// newer than what is told. False when it has to be done later.
    async fn keep_images(&self) -> bool {
        let Ok(_images) = self.images.try_write() else { return false };
        let of = |entry: &Arc<Entry>| {
            let state = entry.state();
            state.service.revisions.iter().map(|revision| revision.spec.manifest).collect::<Vec<_>>()
        };
        let wanted = self.all().iter().flat_map(of).collect();
        let kept =
            tokio::time::timeout(self.options.call_limit, self.ports.runtime.keep_images(&wanted)).await;
        match kept {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "files of old images stay"),
            Err(_) => tracing::warn!("files of old images stay: the runtime takes too long"),
        }
        true
    }
}
