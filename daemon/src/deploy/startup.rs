//! Start of the daemon: running instances are adopted and reconciled with the stored services.
//!
//! The instance of the live revision receives traffic at once, before it is probed: it served when the daemon stopped
//! and most likely still does. The router holds a request to an instance that does not answer, as it always does. Of
//! two generations the older one is chosen, since the younger may not have been ready.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::context::DeployContext;
use super::entry::ServiceEntry;
use super::plan::InstanceHealth;
use super::port::{InstanceState, ObservedInstance};
use super::reconcile::{adopt_instance, start_loop};
use crate::model::id::{InstanceId, ServiceId};
use crate::model::service::ProcessExit;

/// Pause between attempts while the runtime is unavailable; doubled up to `LONGEST_PAUSE`.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Time that the runtime may take to start before failures are logged.
const EXPECTED_START: Duration = Duration::from_secs(3);
/// Pause between housekeeping passes, which retry failed name updates and release unused image files.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(2);
/// Pause between updates of the set of images that the runtime must keep.
const KEEP_IMAGES_INTERVAL: Duration = Duration::from_secs(600);

pub(super) async fn startup_loop(shared: Arc<DeployContext>) {
    let mut pause = FIRST_PAUSE;
    let mut last_error = String::new();
    let known = shared.entries.all().iter().map(|entry| entry.id.to_string()).collect();
    shared.logs.remove_orphaned(known).await;
    let started = Instant::now();
    while let Err(error) = reconcile_all(&shared).await {
        shared.reconciled.send_modify(|now| *now = Err(error.clone()));
        // containerd takes some time to start.
        if error != last_error && started.elapsed() > EXPECTED_START {
            tracing::warn!(error, "failed to reconcile services with the running instances; retrying");
            last_error = error;
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    shared.publish_routes().await;
    shared.reconciled.send_modify(|now| *now = Ok(()));
    for entry in shared.entries.all() {
        start_loop(&shared, entry);
    }
    let mut images: Option<Instant> = None;
    loop {
        if shared.routes.has_stale_names() {
            shared.publish_routes().await;
        }
        if images.is_none_or(|at| at.elapsed() >= KEEP_IMAGES_INTERVAL) {
            images = shared.keep_images().await.then(Instant::now);
        }
        tokio::time::sleep(HOUSEKEEPING_INTERVAL).await;
    }
}

/// Runs one reconciliation of all services. It can be repeated: instances adopted by an earlier attempt stay adopted.
async fn reconcile_all(shared: &Arc<DeployContext>) -> Result<(), String> {
    let limit = shared.options.call_limit;
    let late = |_| "the call timed out".to_owned();
    let listed = tokio::time::timeout(limit, shared.ports.runtime.list()).await;
    let listed = listed.map_err(late)?.map_err(|error| error.to_string())?;
    let mut of_services: BTreeMap<ServiceId, Vec<ObservedInstance>> = BTreeMap::new();
    for observed in listed {
        if shared.entries.get(&observed.label.service).is_some() {
            of_services.entry(observed.label.service.clone()).or_default().push(observed);
        } else {
            tracing::info!(instance.id = %observed.label.instance, "found an instance that belongs to no service; removing it");
            let (shared_too, instance) = (Arc::clone(shared), observed.label.instance);
            // The removal may take long; the room's services do not wait for it.
            shared.spawn("remove instance", async move { shared_too.remove_instance(&instance).await });
        }
    }
    // Exited instances keep their networks and mounts until they are removed; incomplete ones have none that work.
    let kept: BTreeSet<InstanceId> =
        of_services.values().flatten().map(|observed| observed.label.instance.clone()).collect();
    let mended = tokio::time::timeout(limit, shared.ports.network.reconcile(&kept)).await;
    mended.map_err(late)?.map_err(|error| error.to_string())?;
    let broken = tokio::time::timeout(limit, shared.ports.mounts.reconcile(&kept)).await;
    let broken = broken.map_err(late)?.map_err(|error| error.to_string())?;
    for entry in shared.entries.all() {
        let observed = of_services.remove(&entry.id).unwrap_or_default();
        adopt_service_instances(shared, &entry, observed, &broken).await;
    }
    Ok(())
}

async fn adopt_service_instances(
    shared: &Arc<DeployContext>,
    entry: &Arc<ServiceEntry>,
    observed: Vec<ObservedInstance>,
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
            (true, _) => InstanceHealth::Unhealthy,
            (false, true) => InstanceHealth::Presumed,
            (false, false) => InstanceHealth::Unproven { since: Timestamp::now() },
        };
        let mut observed = observed;
        if is_broken && !is_serving {
            // Not the fault of the app: another instance is started, and a watcher does not see this one fail.
            let at = Timestamp::now();
            observed.state = InstanceState::Exited(ProcessExit { code: None, out_of_memory: false, at });
        }
        if !adopt_instance(shared, entry, observed, health).await {
            continue;
        }
        if is_serving {
            entry.state().routed = Some(instance.clone());
        }
        if is_broken {
            // It keeps the traffic until another instance takes over. Its answers to probes say nothing about its
            // mounts.
            tracing::warn!(instance.id = %instance, "instance lost its mounts; replacing it");
        } else {
            shared.start_monitor(entry, &instance);
        }
    }
}

impl DeployContext {
    /// Sends the runtime the set of images whose files it must keep. Skipped while an instance is being started, whose
    /// image may be newer than the set; returns false if it has to be done later.
    async fn keep_images(&self) -> bool {
        let Ok(_images) = self.image_lock.try_write() else { return false };
        let of = |entry: &Arc<ServiceEntry>| {
            let state = entry.state();
            state.service.revisions.iter().map(|revision| revision.spec.manifest).collect::<Vec<_>>()
        };
        let wanted = self.entries.all().iter().flat_map(of).collect();
        let kept =
            tokio::time::timeout(self.options.call_limit, self.ports.runtime.keep_images(&wanted)).await;
        match kept {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "failed to release files of old images"),
            Err(_) => tracing::warn!("failed to release files of old images in time"),
        }
        true
    }
}
