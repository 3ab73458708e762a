//! Scripted fakes of the ports that builds use.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use hearth_oci::Descriptor;
use hearth_pack::identity::TreeHasher;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

use super::dockerfile::Dockerfile;
use super::port::{
    BuildInputsStore, BuildQuery, BuildStatements, BuildStore, ContextSource, DownloadRequest, Downloader,
    IdempotencyKey, ImageRequest, InsertOutcome, OfferedDownload, PreparedContext, RoomImages,
    RoomSecretReader, SolveAnswer, SolveError, SolveOutcome, SolveQuestion, SolveRequest, Solver, StoreError,
    StoredInputs,
};
use crate::context::{ContextFiles, FileTree, NoTransferWatch, SessionName, TreeEntry};
use crate::image::{BuiltImage, ImageForm, SuppliedCache, SuppliedImage, SupplyOrigin};
use crate::model::build::{BuildEventKind, BuildRecord, BuildSpec, ContextIdentity, LogStream};
use crate::model::build_inputs::BuildInputs;
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::id::{BuildId, PackId};
use crate::model::image::{ImageDefaults, ImageInstruction, PinnedImage, VerifiedImage};
use crate::model::secret::{RegistryCredential, Secret, SecretName};
use crate::model::{CacheImport, CacheLocation, Digest, Reference, Repository};

/// A point at which a task waits until the test opens it.
#[derive(Clone)]
pub struct Gate(Arc<Semaphore>, Arc<AtomicUsize>);

impl Gate {
    pub fn closed() -> Self {
        Self(Arc::new(Semaphore::new(0)), Arc::default())
    }

    pub fn open(&self) {
        self.0.add_permits(10_000);
    }

    pub async fn pass(&self) {
        self.1.fetch_add(1, Ordering::SeqCst);
        self.0.acquire().await.unwrap().forget();
    }

    /// Waits until a task waits at the gate.
    pub async fn reached(&self) {
        while self.1.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// One step of a scripted solve.
#[derive(Clone)]
pub enum Act {
    Emit(BuildEventKind),
    /// Waits for the gate; cancellation ends the wait.
    Wait(Gate),
    /// Waits without checking the cancel token.
    Stubborn(Duration),
    Unavailable,
    Fail(Box<Fault>),
    Panic,
}

#[derive(Default)]
pub struct FakeSolver {
    /// One script per solve; without one a solve succeeds at once.
    pub scripts: Mutex<VecDeque<Vec<Act>>>,
    pub requests: Mutex<Vec<SolveRequest>>,
    running: AtomicUsize,
    pub peak: AtomicUsize,
}

/// Digest of every cache that the solver writes.
pub const CACHE_DIGEST: Digest = Digest::from_sha256([9; 32]);

pub fn digest_of(build: &BuildId) -> Digest {
    let mut sum = [7; 32];
    sum[..12].copy_from_slice(build.as_str().as_bytes());
    Digest::from_sha256(sum)
}

pub fn log(step: u32, text: &str) -> Act {
    Act::Emit(BuildEventKind::StepLog {
        step,
        stream: LogStream::Stdout,
        data: text.into(),
        dropped_bytes: 0,
    })
}

pub fn started(step: u32) -> Act {
    Act::Emit(BuildEventKind::StepStarted { step, name: format!("[{step}/2] RUN x") })
}

#[async_trait]
impl Solver for FakeSolver {
    async fn solve(
        &self,
        request: SolveRequest,
        events: mpsc::Sender<BuildEventKind>,
        cancel: CancellationToken,
    ) -> Result<SolveOutcome, SolveError> {
        let build = request.build.clone();
        let cache = request.caches.export.map(|_| CACHE_DIGEST);
        self.requests.lock().push(request);
        let script = self.scripts.lock().pop_front().unwrap_or_default();
        let running = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(running, Ordering::SeqCst);
        let result = play(script, &events, &cancel).await;
        self.running.fetch_sub(1, Ordering::SeqCst);
        result.map(|()| SolveOutcome {
            digest: digest_of(&build),
            cache,
            builder_version: "v0.0.0".to_owned(),
            commits: Vec::new(),
        })
    }

    async fn ask(
        &self,
        request: SolveRequest,
        _: SolveQuestion,
        _: CancellationToken,
    ) -> Result<SolveAnswer, SolveError> {
        self.requests.lock().push(request);
        Ok(SolveAnswer::default())
    }
}

async fn play(
    script: Vec<Act>,
    events: &mpsc::Sender<BuildEventKind>,
    cancel: &CancellationToken,
) -> Result<(), SolveError> {
    for act in script {
        if cancel.is_cancelled() {
            return Err(SolveError::Cancelled);
        }
        match act {
            Act::Emit(kind) => {
                let _ = events.send(kind).await;
            }
            Act::Wait(gate) => tokio::select! {
                () = gate.pass() => {}
                () = cancel.cancelled() => {
                    // Processes take a moment to exit.
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    return Err(SolveError::Cancelled);
                }
            },
            Act::Stubborn(time) => tokio::time::sleep(time).await,
            Act::Unavailable => return Err(SolveError::Unavailable("connection closed".to_owned())),
            Act::Fail(fault) => return Err(SolveError::Failed(fault)),
            Act::Panic => panic!("scripted"),
        }
    }
    Ok(())
}

/// A context that contains only a Dockerfile.
pub struct FakeContexts {
    pub dockerfile: Mutex<String>,
    pub gate: Mutex<Option<Gate>>,
    /// Number of context preparations.
    pub looks: AtomicUsize,
}

impl Default for FakeContexts {
    fn default() -> Self {
        Self {
            dockerfile: Mutex::new("FROM scratch\n".to_owned()),
            gate: Mutex::new(None),
            looks: AtomicUsize::new(0),
        }
    }
}

struct Empty;

impl FileTree for Empty {
    fn len(&self) -> usize {
        0
    }

    fn entry(&self, index: usize) -> TreeEntry<'_> {
        panic!("no entry {index}")
    }

    fn open(&self, _index: usize) -> std::io::Result<Box<dyn std::io::Read + Send>> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

#[async_trait]
impl ContextSource for FakeContexts {
    async fn prepare(
        &self,
        _spec: &BuildSpec,
        _caller: &str,
        _given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<PreparedContext, Fault> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        let gate = self.gate.lock().clone();
        if let Some(gate) = gate {
            gate.pass().await;
        }
        let dockerfile = Dockerfile::parse(self.dockerfile.lock().clone().into_bytes());
        let files = ContextFiles {
            context: Arc::new(Empty),
            dockerfile: Arc::new(Empty),
            dockerfile_name: String::from_utf8(dockerfile.bytes().to_vec()).unwrap(),
            context_session: SessionName { id: "c".to_owned(), shared_key: "k".to_owned() },
            dockerfile_session: SessionName { id: "d".to_owned(), shared_key: "k".to_owned() },
            watch: Arc::new(NoTransferWatch),
        };
        Ok(PreparedContext {
            files,
            identity: ContextIdentity { digest: TreeHasher::default().finish(), mounts: Vec::new() },
            dockerfile_path: "/context/docker/Dockerfile".parse().unwrap(),
            dockerfile: Arc::new(dockerfile),
        })
    }

    async fn prepare_dockerfile(
        &self,
        spec: &BuildSpec,
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<PreparedContext, Fault> {
        self.prepare(spec, caller, given).await
    }
}

#[derive(Default)]
pub struct FakeImages {
    pub known: Mutex<BTreeMap<String, Digest>>,
    /// Images that were requested and supplied.
    pub supplied: Mutex<Vec<String>>,
    pub published: Mutex<Vec<(String, Digest)>>,
    /// Statements that were attached to images, in order.
    pub attached: Mutex<Vec<BuildStatements>>,
    pub verify_gate: Mutex<Option<Gate>>,
    /// Whether the next built image has a new layer in another compression.
    pub has_other_compression: Mutex<bool>,
    /// Forms that images were given.
    pub forms: Mutex<Vec<ImageForm>>,
    pub publish_gate: Mutex<Option<Gate>>,
    /// Pushes to other registries, in order.
    pub pushed: Mutex<Vec<String>>,
    pub push_gate: Mutex<Option<Gate>>,
    pub push_fault: Mutex<Option<Fault>>,
    /// Fault that `push_names` returns.
    pub name_fault: Mutex<Option<Fault>>,
    /// Existing packs with their hold counts.
    pub packs: Mutex<BTreeMap<PackId, usize>>,
    /// Content of packs, by their ids.
    pub pack_contents: Mutex<BTreeMap<PackId, String>>,
}

#[async_trait]
impl RoomImages for FakeImages {
    async fn supply(&self, request: ImageRequest) -> Result<SuppliedImage, Fault> {
        let name = request.reference.to_string();
        let known = self.known.lock().get(&name).copied();
        let digest = known
            .ok_or_else(|| Fault::new(FaultStage::Context, ErrorCode::ImageNotFound, format!("no {name}")))?;
        self.supplied.lock().push(name);
        let defaults = request.platforms.iter().map(|_| ImageDefaults::default()).collect();
        let origin = if request.is_room_image { SupplyOrigin::Room } else { SupplyOrigin::Cached };
        Ok(SuppliedImage::new(request.reference.repository.clone(), digest, defaults, origin))
    }

    async fn supply_cache(
        &self,
        import: &CacheImport,
        _: &str,
        _: &BTreeMap<String, RegistryCredential>,
    ) -> Result<SuppliedCache, Fault> {
        let missing =
            || Fault::new(FaultStage::Context, ErrorCode::ImageNotFound, format!("no cache {import}"));
        let CacheLocation::Registry(reference) = &import.location else { return Err(missing()) };
        let digest = self.known.lock().get(&reference.to_string()).copied().ok_or_else(missing)?;
        Ok(SuppliedCache::new(PinnedImage { repository: reference.repository.clone(), digest }))
    }

    async fn store_cache(&self, _: &VerifiedImage, location: &CacheLocation) -> Result<(), Fault> {
        let message = format!("no storage for {location:?}");
        Err(Fault::new(FaultStage::Export, ErrorCode::NotFound, message))
    }

    async fn verify(&self, repository: &Repository, digest: Digest) -> Result<VerifiedImage, Fault> {
        let gate = self.verify_gate.lock().clone();
        if let Some(gate) = gate {
            gate.pass().await;
        }
        let manifest = Descriptor::new("m", digest, 1);
        Ok(VerifiedImage { repository: repository.clone(), manifest, size_bytes: 42 })
    }

    async fn instructions(&self, _: &Repository, _: Digest) -> Result<Vec<ImageInstruction>, Fault> {
        Ok(Vec::new())
    }

    async fn finish_built_image(&self, built: &PinnedImage, form: ImageForm) -> Result<BuiltImage, Fault> {
        let bases = form.bases.clone();
        self.forms.lock().push(form);
        let has_other_compression = std::mem::take(&mut *self.has_other_compression.lock());
        Ok(BuiltImage { digest: built.digest, bases, has_other_compression })
    }

    async fn attach(
        &self,
        image: VerifiedImage,
        statements: &BuildStatements,
    ) -> Result<VerifiedImage, Fault> {
        assert!(self.published.lock().iter().all(|(_, digest)| *digest != image.manifest.digest));
        self.attached.lock().push(statements.clone());
        Ok(image)
    }

    async fn publish(&self, image: &VerifiedImage, tags: &[Reference]) -> Result<(), Fault> {
        let gate = self.publish_gate.lock().clone();
        if let Some(gate) = gate {
            gate.pass().await;
        }
        let mut published = self.published.lock();
        published.extend(tags.iter().map(|tag| (tag.to_string(), image.manifest.digest)));
        Ok(())
    }

    async fn push_content(
        &self,
        _image: &VerifiedImage,
        tags: &[Reference],
        _given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<(), Fault> {
        let gate = self.push_gate.lock().clone();
        if let Some(gate) = gate {
            gate.pass().await;
        }
        match self.push_fault.lock().clone() {
            Some(fault) => Err(fault),
            None => {
                self.pushed.lock().extend(tags.iter().map(|tag| format!("content {tag}")));
                Ok(())
            }
        }
    }

    async fn push_names(
        &self,
        _image: &VerifiedImage,
        tags: &[Reference],
        _given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<(), Fault> {
        match self.name_fault.lock().clone() {
            Some(fault) => Err(fault),
            None => {
                self.pushed.lock().extend(tags.iter().map(|tag| format!("name {tag}")));
                Ok(())
            }
        }
    }

    async fn hold_pack(&self, id: &PackId, _caller: &str) -> Result<(), Fault> {
        match self.packs.lock().get_mut(id) {
            Some(count) => {
                *count += 1;
                Ok(())
            }
            None => Err(Fault::new(FaultStage::Request, ErrorCode::PackNotFound, format!("no pack {id}"))),
        }
    }

    async fn pack_content(&self, id: &PackId, _caller: &str) -> Result<Option<String>, StoreError> {
        Ok(self.pack_contents.lock().get(id).cloned())
    }

    async fn release_pack(&self, id: &PackId) {
        *self.packs.lock().get_mut(id).unwrap() -= 1;
    }
}

/// Downloader that refuses every request.
pub struct NoDownloads;

#[async_trait]
impl Downloader for NoDownloads {
    async fn download(&self, request: DownloadRequest) -> Result<OfferedDownload, Fault> {
        Err(Fault::new(FaultStage::Context, ErrorCode::DownloadUnreachable, request.url))
    }

    async fn allows_repository(&self, host: &str) -> Result<(), Fault> {
        Err(Fault::new(FaultStage::Context, ErrorCode::EgressDenied, host))
    }
}

/// Secrets of the room.
#[derive(Default)]
pub struct FakeSecrets(pub Mutex<BTreeMap<String, String>>);

#[async_trait]
impl RoomSecretReader for FakeSecrets {
    async fn reveal_for_build(&self, name: &SecretName) -> Result<Secret<String>, Fault> {
        let value = self.0.lock().get(name.as_str()).cloned();
        let missing = || Fault::new(FaultStage::Context, ErrorCode::SecretNotFound, name.as_str());
        value.map(Secret::new).ok_or_else(missing)
    }
}

#[derive(Default)]
pub struct MemoryStore {
    tables: Mutex<Tables>,
    /// The disk is full: records can be read, and not be changed.
    pub full: AtomicBool,
}

#[derive(Default)]
struct Tables {
    builds: Vec<BuildRecord>,
    keys: Vec<(IdempotencyKey, BuildId)>,
}

impl Tables {
    fn find(&self, key: &IdempotencyKey) -> Option<InsertOutcome> {
        let (known, id) =
            self.keys.iter().find(|(known, _)| (&known.caller, &known.key) == (&key.caller, &key.key))?;
        let same = known.request == key.request;
        Some(if same { InsertOutcome::Existing(id.clone()) } else { InsertOutcome::Conflict(id.clone()) })
    }
}

#[async_trait]
impl BuildStore for MemoryStore {
    async fn insert(
        &self,
        record: BuildRecord,
        key: Option<IdempotencyKey>,
    ) -> Result<InsertOutcome, StoreError> {
        let mut tables = self.tables.lock();
        if let Some(earlier) = key.as_ref().and_then(|key| tables.find(key)) {
            return Ok(earlier);
        }
        tables.keys.extend(key.map(|key| (key, record.id.clone())));
        tables.builds.push(record);
        Ok(InsertOutcome::New)
    }

    async fn get(&self, id: &BuildId) -> Result<Option<BuildRecord>, StoreError> {
        Ok(self.tables.lock().builds.iter().find(|record| record.id == *id).cloned())
    }

    async fn find_by_key(&self, key: &IdempotencyKey) -> Result<Option<InsertOutcome>, StoreError> {
        Ok(self.tables.lock().find(key))
    }

    async fn ids_with_prefix(
        &self,
        prefix: &str,
        owner: Option<&str>,
        limit: usize,
    ) -> Result<Vec<BuildId>, StoreError> {
        let tables = self.tables.lock();
        let builds =
            tables.builds.iter().filter(|record| owner.is_none_or(|owner| record.submitted_by == owner));
        let mut ids: Vec<_> = builds.map(|record| record.id.clone()).collect();
        ids.retain(|id| id.as_str().starts_with(prefix));
        ids.sort();
        ids.truncate(limit);
        Ok(ids)
    }

    async fn list(&self, query: BuildQuery) -> Result<Vec<BuildRecord>, StoreError> {
        let tables = self.tables.lock();
        let mut newest: Vec<BuildRecord> = tables.builds.iter().rev().cloned().collect();
        if let Some(after) = query.after {
            let position = newest.iter().position(|record| record.id == after);
            newest = position.map(|at| newest.split_off(at + 1)).unwrap_or_default();
        }
        newest.retain(|record| query.states.is_empty() || query.states.contains(&record.state));
        newest.retain(|record| query.tag.as_ref().is_none_or(|tag| record.spec.tags[0].to_string() == *tag));
        newest.retain(|record| query.submitted_by.as_ref().is_none_or(|name| record.submitted_by == *name));
        newest.truncate(query.limit);
        Ok(newest)
    }

    async fn update(&self, record: BuildRecord) -> Result<(), StoreError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(StoreError(std::io::ErrorKind::StorageFull.into()));
        }
        let mut tables = self.tables.lock();
        if let Some(stored) = tables.builds.iter_mut().find(|stored| stored.id == record.id) {
            *stored = record;
        }
        Ok(())
    }

    async fn remove(&self, id: &BuildId) -> Result<(), StoreError> {
        let mut tables = self.tables.lock();
        tables.builds.retain(|record| record.id != *id);
        tables.keys.retain(|(_, build)| build != id);
        Ok(())
    }
}

/// Store that keeps no inputs.
pub struct NoInputs;

#[async_trait]
impl BuildInputsStore for NoInputs {
    async fn put_inputs(
        &self,
        _id: &BuildId,
        _inputs: BuildInputs,
        _context: &str,
    ) -> Result<bool, StoreError> {
        Ok(true)
    }

    async fn put_listing(&self, _context: &str, _listing: Vec<u8>) -> Result<(), StoreError> {
        Ok(())
    }

    async fn stored_inputs(&self, _id: &BuildId) -> Result<Option<StoredInputs>, StoreError> {
        Ok(None)
    }

    async fn listing(&self, _context: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }
}
