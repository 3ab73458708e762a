//! Passes over layers: one for each layer at a time, few at once, and what the last of them found.
//!
//! A pass belongs to those who wait for it: requests for the same layer share it, and when the last of them is
//! dropped it is cancelled. It runs on a blocking thread; the number of passes is bounded, so other
//! blocking work always finds a thread. Passes that nobody waits for yet have a single place of their own, and so
//! never stand in the way of those that somebody waits for; one of them that is waited for moves over.
//!
//! One owner's passes take all places but one, so that another owner's pass never waits for all of them. A pass that
//! several owners wait for takes a place of whichever has one first.

use std::collections::{HashMap, HashSet};
use std::io::Read as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use parking_lot::{Mutex, MutexGuard};

use super::super::ImageError;
use super::super::port::{Blobs, LayerFault, LayerInspector, LayerVerdict};
use super::limits_key;
use super::places::{Needed, PassPlace, PassPlaces};
use crate::model::{Digest, LayerLimits};
use crate::task;

/// Verdicts that are known without asking the catalog.
const RECENT: usize = 10_000;
/// Passes ahead of need that may wait. One more is left out: it is made when somebody needs it.
const AHEAD: usize = 256;

/// Looks through layers. Cheap to clone.
#[derive(Clone)]
pub(in super::super) struct Passes {
    inner: Arc<Inner>,
}

struct Inner {
    blobs: Arc<dyn Blobs>,
    inspector: Arc<dyn LayerInspector>,
    key: String,
    running: Mutex<HashMap<Digest, Running>>,
    recent: Mutex<HashMap<Digest, LayerVerdict>>,
    /// Found, and not handed out by [`Passes::take_unsaved`] yet.
    unsaved: Mutex<Vec<(Digest, LayerVerdict)>>,
    /// Manifests that were found wrong since the start.
    marked: Mutex<HashSet<Digest>>,
    places: PassPlaces,
    ahead: AtomicUsize,
}

struct Running {
    pass: WeakShared<Pass>,
    needed: Arc<Needed>,
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
            unsaved: Mutex::default(),
            marked: Mutex::default(),
            // A pass keeps about two cores busy.
            places: PassPlaces::new(cores.max(2)),
            ahead: AtomicUsize::new(0),
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

    /// Whether a manifest is found wrong for the first time since the start.
    pub(super) fn is_first_mark(&self, manifest: Digest) -> bool {
        let mut marked = lock(&self.inner.marked);
        if marked.len() >= RECENT {
            marked.clear();
        }
        marked.insert(manifest)
    }

    /// The catalog may have forgotten marks.
    pub(in super::super) fn forget_marks(&self) {
        lock(&self.inner.marked).clear();
    }

    /// Verdicts of passes since the last call.
    pub(super) fn take_unsaved(&self) -> Vec<(Digest, LayerVerdict)> {
        std::mem::take(&mut *lock(&self.inner.unsaved))
    }

    /// Joins the pass over a layer, or begins one. `owner` is whose share of the places it takes; with none, nobody
    /// waits for it, and it is made ahead.
    pub(super) async fn pass(&self, layer: Digest, owner: Option<&str>) -> Result<LayerVerdict, ImageError> {
        let (pass, needed) = self.join(layer);
        if let Some(owner) = owner {
            needed.by(owner);
        }
        pass.await.map_err(|failure| match failure {
            PassFailure::Missing => ImageError::BlobMissing { manifest: layer, blob: layer },
            PassFailure::Unreadable(error) => ImageError::Read {
                digest: layer,
                source: std::io::Error::new(error.kind(), error.to_string()),
            },
            PassFailure::Ending => ImageError::Ending,
        })
    }

    /// Begins the pass over a blob that looks like a layer, for whoever will need it. Returns at once.
    pub(in super::super) fn pass_ahead(&self, blob: Digest) {
        let inner = &self.inner;
        if lock(&inner.recent).contains_key(&blob) {
            return;
        }
        if inner.ahead.fetch_add(1, Ordering::Relaxed) >= AHEAD {
            inner.ahead.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let passes = self.clone();
        drop(task::spawn("look through layer ahead", async move {
            let blobs = Arc::clone(&passes.inner.blobs);
            let looks = task::blocking("look at blob", move || looks_like_layer(&*blobs, &blob)).await;
            if matches!(looks, Ok(Ok(true))) {
                // Who needs it hears of a failure, since the pass is then made again.
                drop(passes.join(blob).0.await);
            }
            passes.inner.ahead.fetch_sub(1, Ordering::Relaxed);
        }));
    }

    fn join(&self, layer: Digest) -> (Shared<Pass>, Arc<Needed>) {
        let mut running = lock(&self.inner.running);
        if let Some(found) = running.get(&layer)
            && let Some(pass) = found.pass.upgrade()
        {
            return (pass, Arc::clone(&found.needed));
        }
        let needed = Arc::new(Needed::default());
        let pass = Arc::clone(&self.inner).run(layer, Arc::clone(&needed)).boxed().shared();
        running.retain(|_, running| running.pass.upgrade().is_some());
        if let Some(weak) = pass.downgrade() {
            running.insert(layer, Running { pass: weak, needed: Arc::clone(&needed) });
        }
        (pass, needed)
    }
}

/// Whether a blob begins as a compressed file or a tar does. A config is then not taken for a layer.
fn looks_like_layer(blobs: &dyn Blobs, blob: &Digest) -> std::io::Result<bool> {
    let Some(file) = blobs.open(blob)? else { return Ok(false) };
    let mut start = Vec::with_capacity(512);
    file.take(512).read_to_end(&mut start)?;
    let is_compressed = start.starts_with(&[0x1f, 0x8b]) || start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    Ok(is_compressed || start.get(257..262) == Some(b"ustar"))
}

impl Inner {
    async fn run(self: Arc<Self>, layer: Digest, needed: Arc<Needed>) -> Result<LayerVerdict, PassFailure> {
        let place: PassPlace = self.places.take(&needed).await.ok_or(PassFailure::Ending)?;
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
        let mut unsaved = lock(&self.unsaved);
        if unsaved.len() < RECENT {
            unsaved.push((layer, verdict.clone()));
        }
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
    mutex.lock()
}
