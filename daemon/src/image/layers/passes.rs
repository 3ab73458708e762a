//! Passes over layers: one for each layer at a time, few at once, and what the last of them found.
//!
//! A pass belongs to those who wait for it: requests for the same layer share it, and when the last of them is
//! dropped it is cancelled. It runs on a blocking thread; the number of passes is bounded, so other
//! blocking work always finds a thread.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::sync::Semaphore;

use super::super::ImageError;
use super::super::port::{Blobs, LayerFault, LayerInspector, LayerVerdict};
use super::limits_key;
use crate::model::{Digest, LayerLimits};
use crate::task;

/// Verdicts that are known without asking the catalog.
const RECENT: usize = 10_000;

/// Looks through layers. Cheap to clone.
#[derive(Clone)]
pub(in super::super) struct Passes {
    inner: Arc<Inner>,
}

struct Inner {
    blobs: Arc<dyn Blobs>,
    inspector: Arc<dyn LayerInspector>,
    key: String,
    running: Mutex<HashMap<Digest, WeakShared<Pass>>>,
    recent: Mutex<HashMap<Digest, LayerVerdict>>,
    places: Arc<Semaphore>,
}

type Pass = BoxFuture<'static, Result<LayerVerdict, PassFailure>>;

/// Why a pass found nothing out; another one may.
#[derive(Clone, Debug)]
pub(super) enum PassFailure {
    Missing,
    Unreadable(Arc<std::io::Error>),
    Ending,
}

/// Cancels a pass that nobody waits for any more.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Passes {
    pub(in super::super) fn new(blobs: Arc<dyn Blobs>, inspector: Arc<dyn LayerInspector>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let inner = Inner {
            blobs,
            key: limits_key(inspector.limits()),
            inspector,
            running: Mutex::default(),
            recent: Mutex::default(),
            // A pass keeps about two cores busy.
            places: Arc::new(Semaphore::new(cores.max(2))),
        };
        Self { inner: Arc::new(inner) }
    }

    pub(super) fn limits(&self) -> &LayerLimits {
        self.inner.inspector.limits()
    }

    /// What verdicts are stored under.
    pub(super) fn key(&self) -> &str {
        &self.inner.key
    }

    /// What is known at once, and the layers of which nothing is.
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

    /// Joins the pass over a layer, or begins one.
    pub(super) async fn pass(&self, layer: Digest) -> Result<LayerVerdict, ImageError> {
        self.join(layer).await.map_err(|failure| match failure {
            PassFailure::Missing => ImageError::BlobMissing { manifest: layer, blob: layer },
            PassFailure::Unreadable(error) => ImageError::Read {
                digest: layer,
                source: std::io::Error::new(error.kind(), error.to_string()),
            },
            PassFailure::Ending => ImageError::Ending,
        })
    }

    fn join(&self, layer: Digest) -> Shared<Pass> {
        let mut running = lock(&self.inner.running);
        if let Some(pass) = running.get(&layer).and_then(WeakShared::upgrade) {
            return pass;
        }
        let pass = Arc::clone(&self.inner).run(layer).boxed().shared();
        running.retain(|_, pass| pass.upgrade().is_some());
        if let Some(weak) = pass.downgrade() {
            running.insert(layer, weak);
        }
        pass
    }
}

impl Inner {
    async fn run(self: Arc<Self>, layer: Digest) -> Result<LayerVerdict, PassFailure> {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|_| PassFailure::Ending)?;
        let cancelled = Arc::new(AtomicBool::new(false));
        let _cancel = CancelOnDrop(Arc::clone(&cancelled));
        let inner = Arc::clone(&self);
        let passed = task::blocking("look through layer", move || {
            // Given back when the thread is free, not when nobody waits any more.
            let _place = place;
            let file = inner.blobs.open(&layer).map_err(|error| PassFailure::Unreadable(Arc::new(error)))?;
            let file = file.ok_or(PassFailure::Missing)?;
            match inner.inspector.inspect(file, &cancelled) {
                Ok(facts) => Ok(LayerVerdict::Sound(facts)),
                Err(LayerFault::Refused { refusal, reason }) => Ok(LayerVerdict::Refused { refusal, reason }),
                Err(LayerFault::Unreadable(error)) => Err(PassFailure::Unreadable(Arc::new(error))),
                Err(LayerFault::Cancelled) => Err(PassFailure::Ending),
            }
        });
        let verdict = passed.await.map_err(|_| PassFailure::Ending)??;
        self.remember(layer, &verdict);
        Ok(verdict)
    }

    fn remember(&self, layer: Digest, verdict: &LayerVerdict) {
        let mut recent = lock(&self.recent);
        if recent.len() >= RECENT && !recent.contains_key(&layer) {
            // The catalog has them.
            recent.clear();
        }
        recent.insert(layer, verdict.clone());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
