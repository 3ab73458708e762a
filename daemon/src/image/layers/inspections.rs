//! Inspections of layers: at most one for each layer, few at once, and a cache of their verdicts.
//!
//! An inspection is owned by the requests that wait for it: requests for the same layer share it, and dropping the last
//! of them cancels it. It runs on a blocking thread; the number of inspections is bounded, so that other blocking work
//! always finds a thread. Inspections ahead of need have a single slot of their own, and so never delay those that
//! somebody waits for; once somebody waits for one of them, it may use the other slots.
//!
//! One owner's inspections take at most all slots but one, so that another owner's inspection never waits for all of
//! them. An inspection for which several owners wait takes the first free slot of any of them.

use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::{Mutex, MutexGuard};

use super::super::ImageError;
use super::super::port::{BlobStorage, LayerFault, LayerInspector, LayerVerdict};
use super::limits_key;
use super::slots::{InspectionSlot, InspectionSlots, InspectionWaiters};
use crate::model::{Digest, LayerLimits};
use crate::task;

/// Maximum number of verdicts that are cached in memory.
const MAX_CACHED_VERDICTS: usize = 10_000;
/// Maximum number of pending inspections ahead of need. Further ones are skipped, and run when they are needed.
const MAX_AHEAD: usize = 256;

/// Inspection queue; cheap to clone.
#[derive(Clone)]
pub(in super::super) struct InspectionQueue {
    inner: Arc<InspectionState>,
}

struct InspectionState {
    blobs: Arc<dyn BlobStorage>,
    inspector: Arc<dyn LayerInspector>,
    key: String,
    running: Mutex<HashMap<Digest, RunningInspection>>,
    recent: Mutex<HashMap<Digest, LayerVerdict>>,
    /// New verdicts that [`InspectionQueue::take_unsaved`] has not returned yet.
    unsaved: Mutex<Vec<(Digest, LayerVerdict)>>,
    /// Manifests that were found invalid since the start.
    marked: Mutex<HashSet<Digest>>,
    slots: InspectionSlots,
    ahead: AtomicUsize,
}

struct RunningInspection {
    pass: WeakShared<InspectionFuture>,
    waiters: Arc<InspectionWaiters>,
}

type InspectionFuture = BoxFuture<'static, Result<LayerVerdict, InspectionFailure>>;

/// Reason why an inspection has no verdict; another attempt may succeed.
#[derive(Clone, Debug)]
pub(super) enum InspectionFailure {
    Missing,
    Unreadable(Arc<std::io::Error>),
    Ending,
}

/// Cancels an inspection when nobody waits for it any more.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl InspectionQueue {
    pub(in super::super) fn new(blobs: Arc<dyn BlobStorage>, inspector: Arc<dyn LayerInspector>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let inner = InspectionState {
            blobs,
            key: limits_key(inspector.limits()),
            inspector,
            running: Mutex::default(),
            recent: Mutex::default(),
            unsaved: Mutex::default(),
            marked: Mutex::default(),
            // An inspection keeps about two cores busy.
            slots: InspectionSlots::new(cores.max(2)),
            ahead: AtomicUsize::new(0),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(super) fn limits(&self) -> &LayerLimits {
        self.inner.inspector.limits()
    }

    /// Returns the key under which verdicts are stored.
    pub(super) fn limits_key(&self) -> &str {
        &self.inner.key
    }

    /// Returns the cached verdicts, and the layers without one.
    pub(super) fn recent(&self, layers: Vec<Digest>) -> (HashMap<Digest, LayerVerdict>, Vec<Digest>) {
        let recent = lock(&self.inner.recent);
        let (mut known, mut unknown) = (HashMap::new(), Vec::new());
        for layer in layers {
            match recent.get(&layer) {
                Some(verdict) => drop(known.insert(layer, verdict.clone())),
                None => unknown.push(layer),
            }
        }
        (known, unknown)
    }

    pub(super) fn remember(&self, verdicts: &HashMap<Digest, LayerVerdict>) {
        verdicts.iter().for_each(|(layer, verdict)| self.inner.remember(*layer, verdict));
    }

    /// Reports whether a manifest is found invalid for the first time since the start.
    pub(super) fn is_first_mark(&self, manifest: Digest) -> bool {
        let mut marked = lock(&self.inner.marked);
        if marked.len() >= MAX_CACHED_VERDICTS {
            marked.clear();
        }
        marked.insert(manifest)
    }

    /// Clears the known marks, because the catalog may have removed some.
    pub(in super::super) fn forget_marks(&self) {
        lock(&self.inner.marked).clear();
    }

    /// Returns the verdicts that were found since the last call.
    pub(super) fn take_unsaved(&self) -> Vec<(Digest, LayerVerdict)> {
        std::mem::take(&mut *lock(&self.inner.unsaved))
    }

    /// Joins the running inspection of a layer, or starts one. It runs within the share of `owner`; `None` means that
    /// nobody waits for it, and it runs ahead of need.
    pub(super) async fn inspect(
        &self,
        layer: Digest,
        owner: Option<&str>,
    ) -> Result<LayerVerdict, ImageError> {
        let (pass, needed) = self.join(layer);
        if let Some(owner) = owner {
            needed.add(owner);
        }
        pass.await.map_err(|failure| match failure {
            InspectionFailure::Missing => ImageError::BlobMissing { manifest: layer, blob: layer },
            InspectionFailure::Unreadable(error) => ImageError::Read {
                digest: layer,
                source: std::io::Error::new(error.kind(), error.to_string()),
            },
            InspectionFailure::Ending => ImageError::Ending,
        })
    }

    /// Starts the inspection of a blob that looks like a layer, ahead of need. Returns at once.
    pub(in super::super) fn inspect_ahead(&self, blob: Digest) {
        let inner = &self.inner;
        if lock(&inner.recent).contains_key(&blob) {
            return;
        }
        if inner.ahead.fetch_add(1, Ordering::Relaxed) >= MAX_AHEAD {
            inner.ahead.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let passes = self.clone();
        drop(task::spawn("look through layer ahead", async move {
            let blobs = Arc::clone(&passes.inner.blobs);
            let looks = task::blocking("look at blob", move || looks_like_layer(&*blobs, &blob)).await;
            if matches!(looks, Ok(Ok(true))) {
                // A failure is not reported here: the inspection runs again when somebody needs it.
                drop(passes.join(blob).0.await);
            }
            passes.inner.ahead.fetch_sub(1, Ordering::Relaxed);
        }));
    }

    fn join(&self, layer: Digest) -> (Shared<InspectionFuture>, Arc<InspectionWaiters>) {
        let mut running = lock(&self.inner.running);
        if let Some(found) = running.get(&layer)
            && let Some(pass) = found.pass.upgrade()
        {
            return (pass, Arc::clone(&found.waiters));
        }
        let needed = Arc::new(InspectionWaiters::default());
        let pass = Arc::clone(&self.inner).run(layer, Arc::clone(&needed)).boxed().shared();
        running.retain(|_, running| running.pass.upgrade().is_some());
        if let Some(weak) = pass.downgrade() {
            running.insert(layer, RunningInspection { pass: weak, waiters: Arc::clone(&needed) });
        }
        (pass, needed)
    }
}

/// Reports whether a blob starts like a compressed file or a tar, which a config does not.
fn looks_like_layer(blobs: &dyn BlobStorage, blob: &Digest) -> std::io::Result<bool> {
    let Some(file) = blobs.open(blob)? else { return Ok(false) };
    let mut start = Vec::with_capacity(512);
    file.take(512).read_to_end(&mut start)?;
    let is_compressed = start.starts_with(&[0x1f, 0x8b]) || start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    Ok(is_compressed || start.get(257..262) == Some(b"ustar"))
}

impl InspectionState {
    async fn run(
        self: Arc<Self>,
        layer: Digest,
        needed: Arc<InspectionWaiters>,
    ) -> Result<LayerVerdict, InspectionFailure> {
        let slot: InspectionSlot = self.slots.take(&needed).await.ok_or(InspectionFailure::Ending)?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let _cancel = CancelOnDrop(Arc::clone(&cancelled));
        let inner = Arc::clone(&self);
        let passed = task::blocking("look through layer", move || {
            // Released when the thread is free, not when nobody waits any more.
            let _slot = slot;
            let file =
                inner.blobs.open(&layer).map_err(|error| InspectionFailure::Unreadable(Arc::new(error)))?;
            let file = file.ok_or(InspectionFailure::Missing)?;
            match inner.inspector.inspect(file, &cancelled) {
                Ok(facts) => Ok(LayerVerdict::Sound(facts)),
                Err(LayerFault::Refused { refusal, reason }) => Ok(LayerVerdict::Refused { refusal, reason }),
                Err(LayerFault::Unreadable(error)) => Err(InspectionFailure::Unreadable(Arc::new(error))),
                Err(LayerFault::Cancelled) => Err(InspectionFailure::Ending),
            }
        });
        let verdict = passed.await.map_err(|_| InspectionFailure::Ending)??;
        self.remember(layer, &verdict);
        let mut unsaved = lock(&self.unsaved);
        if unsaved.len() < MAX_CACHED_VERDICTS {
            unsaved.push((layer, verdict.clone()));
        }
        Ok(verdict)
    }

    fn remember(&self, layer: Digest, verdict: &LayerVerdict) {
        let mut recent = lock(&self.recent);
        if recent.len() >= MAX_CACHED_VERDICTS && !recent.contains_key(&layer) {
            // The catalog has them.
            recent.clear();
        }
        recent.insert(layer, verdict.clone());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}
