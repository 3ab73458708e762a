//! End-to-end tests of the build service with scripted ports; the store is in memory or SQLite.

mod caches;
mod cancel;
mod early;
mod ends;
mod lifecycle;
mod prune;
mod remote_tags;
mod restart;
mod store;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;

use super::admission::AdmissionLimits;
use super::fake::{
    Act, FakeContexts, FakeImages, FakeSecrets, FakeSolver, MemoryStore, NoDownloads, NoInputs,
};
use super::port::{BuildInputsStore, BuildStore};
use super::service::{BuildPorts, Handle, Options, Service};
use super::submit::SubmitBuild;
use crate::model::access::{NamePatterns, SymlinkPolicy};
use crate::model::build::{
    BuildEvent, BuildEventKind, BuildNetwork, BuildRecord, BuildSecrets, BuildSpec, BuildState,
    DockerfilePath, NoCache,
};
use crate::model::id::BuildId;
use crate::model::secret::{RegistryCredential, Secret};
use crate::model::share_owner::ShareOwnerResolver;
use crate::model::trust::TrustDomain;
use crate::model::{BuildCompression, RoomRegistries};

struct Room {
    directory: tempfile::TempDir,
    store: Arc<dyn BuildStore>,
    inputs: Arc<dyn BuildInputsStore>,
    solver: Arc<FakeSolver>,
    contexts: Arc<FakeContexts>,
    images: Arc<FakeImages>,
    secrets: Arc<FakeSecrets>,
    options: Options,
}

impl Room {
    fn new(in_sqlite: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (store, inputs): (Arc<dyn BuildStore>, Arc<dyn BuildInputsStore>) = if in_sqlite {
            let store = crate::store::StateStore::open(&directory.path().join("state.db")).unwrap();
            (Arc::new(store.clone()), Arc::new(store))
        } else {
            (Arc::new(MemoryStore::default()), Arc::new(NoInputs))
        };
        let options = Options {
            limits: AdmissionLimits { concurrency: 3, queue: 50, per_caller: 50 },
            log_quota: 1 << 20,
            logs_per_owner: 1 << 30,
            default_timeout: Duration::from_secs(60),
            max_timeout: Duration::from_secs(120),
            stop_timeout: Duration::from_secs(10),
            solver_wait: Duration::from_secs(2),
            keep_ended: 1000,
            keep_for: Duration::from_secs(86_400),
            log_dir: directory.path().join("logs"),
            min_free_space: 0,
            space: crate::disk::SpaceWatch::fixed(0, 0),
            registry: "127.0.0.1:4327".to_owned(),
            room_registries: RoomRegistries::default(),
            share_owners: ShareOwnerResolver::default(),
            registry_credential: Arc::new(|_, _| RegistryCredential {
                username: "build".to_owned(),
                password: Secret::new("token".to_owned()),
            }),
        };
        let (solver, contexts, images) = (Arc::default(), Arc::default(), Arc::default());
        Self { directory, store, inputs, solver, contexts, images, secrets: Arc::default(), options }
    }

    async fn start(&self) -> Service {
        let ports = BuildPorts {
            store: Arc::clone(&self.store),
            inputs: Arc::clone(&self.inputs) as _,
            solver: Arc::clone(&self.solver) as _,
            contexts: Arc::clone(&self.contexts) as _,
            images: Arc::clone(&self.images) as _,
            downloads: Arc::new(NoDownloads),
            secrets: Arc::clone(&self.secrets) as _,
        };
        Service::start(self.options.clone(), ports).await.unwrap()
    }

    fn script(&self, acts: Vec<Act>) {
        self.solver.scripts.lock().push_back(acts);
    }

    fn published(&self) -> Vec<String> {
        self.images.published.lock().iter().map(|(tag, _)| tag.clone()).collect()
    }
}

fn spec(tag: &str) -> BuildSpec {
    BuildSpec {
        tags: vec![format!("room.meshagent.com/{tag}").parse().unwrap()],
        mounts: Vec::new(),
        path_links: SymlinkPolicy::Followed,
        context_path: "/context".parse().unwrap(),
        dockerfile: DockerfilePath::Search,
        build_args: BTreeMap::new(),
        target: None,
        platforms: Vec::new(),
        annotations: Vec::new(),
        labels: BTreeMap::new(),
        no_cache: NoCache::Nothing,
        compression: BuildCompression::Gzip,
        provenance: Default::default(),
        sbom: false,
        pull: false,
        network: BuildNetwork::Default,
        timeout: None,
        secret_ids: Vec::new(),
        room_secrets: BTreeMap::new(),
        step_limits: Default::default(),
        cache_from: Vec::new(),
        cache_to: Vec::new(),
        recipe: Default::default(),
    }
}

pub(super) fn record(tag: &str, state: BuildState) -> BuildRecord {
    BuildRecord {
        context: None,
        sources: Vec::new(),
        steps: Vec::new(),
        may_pull: NamePatterns::all(),
        may_pull_from: NamePatterns::all(),
        id: BuildId::random(),
        spec: spec(tag),
        submitted_by: "ann".to_owned(),
        domain: None,
        state,
        created_at: Timestamp::now(),
        started_at: None,
        finished_at: None,
        attempts: 0,
        has_secrets: false,
        pinned: false,
        result: None,
        fault: None,
        last_sequence: 1,
    }
}

fn request(spec: BuildSpec) -> SubmitBuild {
    SubmitBuild {
        spec,
        secrets: BuildSecrets::default(),
        caller: "ann".to_owned(),
        domain: TrustDomain::of_caller("ann"),
        may_pull: NamePatterns::all(),
        may_pull_from: NamePatterns::all(),
        idempotency_key: None,
    }
}

async fn submit(handle: &Handle, spec: BuildSpec) -> String {
    handle.submit(request(spec)).await.unwrap().id.to_string()
}

/// Watches a build until it ends.
async fn events(handle: &Handle, id: &str, from: u64) -> Vec<BuildEvent> {
    let stream = handle.watch(id, from, true).await.unwrap();
    let events = tokio::time::timeout(Duration::from_secs(30), stream.collect::<Vec<_>>()).await;
    events.expect("the build does not end").into_iter().map(Result::unwrap).collect()
}

async fn ended(handle: &Handle, id: &str) -> BuildRecord {
    let events = events(handle, id, 1).await;
    let record = handle.get(id).await.unwrap();
    assert!(events.iter().zip(1u64..).all(|(event, n)| event.sequence == n), "a gap in {events:?}");
    let Some(BuildEventKind::Finished { state }) = events.last().map(|event| &event.kind) else {
        panic!("no last event in {events:?}");
    };
    assert_eq!(*state, record.state);
    assert_eq!(record.last_sequence, events.len() as u64);
    record
}

/// Waits until this number of builds runs and none waits: a slot is freed shortly after the last event.
async fn settled(handle: &Handle, running: usize) {
    while handle.running_and_waiting() != (running, 0) {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn states(events: &[BuildEvent]) -> Vec<BuildState> {
    events
        .iter()
        .filter_map(|event| match event.kind {
            BuildEventKind::StateChanged { state } => Some(state),
            _ => None,
        })
        .collect()
}
