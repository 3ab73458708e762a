//! Preparation of the files of one build: opens the mounts, scans the tree, reads the Dockerfile.
//!
//! [`ContextPreparer::prepare`] returns a [`ScannedContext`] with the Dockerfile as the caller parsed it;
//! [`ScannedContext::into_files`] turns it into the inputs of a solve.
//!
//! ```text
//! scan -> paths that the Dockerfile may copy -> content hashes -> digest, times -> session id   (session_ids)
//!                                                          '--> path, stat, content -> shared key (lineage)
//! ```
//!
//! Times are not part of a tree's digest, but of its session id: two trees that differ only in the times of
//! files are different for BuildKit, which then receives the new times and uses them for a COPY that it runs.
//! A cached COPY stays cached, because its cache key does not contain times.

mod dockerfile;
mod records;
mod scan_cache;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use hearth_model::access::SymlinkPolicy;
use hearth_model::build::DockerfilePath;
use hearth_model::{BuildMount, BuildMountSource, Digest, MountTarget};
use hearth_pack::ignore::IgnorePatterns;
use hearth_task as task;
use tokio_util::sync::CancellationToken;

use super::ContextError;
use super::layers::{ImageTree, LayerBlob, LayerCache, LayerLimits};
use super::lineage::{LineageId, LineageIdBuilder, ScannedFile, lineage_name};
use super::port::{ContextFiles, FileTree, SessionName};
use super::storage::{StorageRoot, StorageRoots};
use super::tree::{
    ContextTree, CopySelection, DirectoryLayer, IdentifiedTree, ImageLayer, MountedLayer, NamedEntry,
    PackLayer, ScanBounds, TreeIdentity, TreeSnapshot,
};
use crate::pack::PackTree;

pub use dockerfile::MemoryTree;

use records::ContextRecords;
use scan_cache::ScanScope;
use watch::ContextTransferWatch;

/// Maximum number of scans of a tree that changes while it is hashed.
const ATTEMPTS: usize = 3;

/// Name of the ignore file in the root of a context.
const IGNORE: &[u8] = b".dockerignore";

/// Maximum size in bytes of a Dockerfile, and of each ignore file.
pub const MAX_DOCKERFILE: u64 = 1 << 20;

pub struct ContextOptions {
    pub room: String,
    pub storage: StorageRoots,
    /// State directory; the persistent records of contexts are in `context` below it.
    pub state_dir: PathBuf,
    pub limits: LayerLimits,
}

/// Prepares contexts; cheap to clone.
#[derive(Clone)]
pub struct ContextPreparer(Arc<PreparerState>);

struct PreparerState {
    room: String,
    storage: StorageRoots,
    layers: LayerCache,
    records: ContextRecords,
}

/// Parses the bytes of a Dockerfile, and tells what it copies from its context. If it tells too little, the
/// build fails with an error, and the next attempt covers everything.
pub type DockerfileParser<D> = Box<dyn FnOnce(Vec<u8>) -> (D, CopySelection) + Send>;

/// The inputs that determine the files of a build, whose Dockerfile is parsed into a `D`.
pub struct ContextRequest<D> {
    pub mounts: Vec<ContextMount>,
    pub context_path: MountTarget,
    pub dockerfile: DockerfilePath,
    /// Target stage. Builds of different stages have separate lineages.
    pub target: Option<String>,
    pub parse: DockerfileParser<D>,
}

/// A mount, with its image if its source is one. The caller's permission to use it was checked before.
#[derive(Debug)]
pub struct ContextMount {
    pub spec: BuildMount,
    /// Present for images, and for packs that are images.
    pub image: Option<OpenedImage>,
    /// Present for packs that are trees.
    pub pack: Option<OpenedPack>,
    /// Policy for symbolic links in the path of a storage source.
    pub links: SymlinkPolicy,
}

#[derive(Debug)]
pub struct OpenedImage {
    /// Digest of the image's manifest.
    pub manifest: Digest,
    /// Layers, lowest first.
    pub layers: Vec<LayerBlob>,
}

/// A scanned and identified context with its Dockerfile.
pub struct ScannedContext<D> {
    pub context: Arc<TreeSnapshot>,
    /// Path of the Dockerfile; symbolic links in it were followed to read the bytes.
    pub dockerfile_path: MountTarget,
    pub dockerfile: D,
    /// Content of `<Dockerfile>.dockerignore`, which takes precedence over `.dockerignore` of the context.
    pub ignore: Option<Vec<u8>>,
    /// Identity of the context.
    pub identity: TreeIdentity,
    session: SessionName,
    lineage: LineageId,
    shared: Arc<PreparerState>,
    watch: Arc<ContextTransferWatch>,
}

#[derive(Debug)]
pub struct OpenedPack {
    pub tree: Arc<PackTree>,
    /// Packs with the same lineage come from the same place. An empty lineage means that the pack stands
    /// alone.
    pub lineage: String,
}

impl ContextPreparer {
    pub fn new(options: ContextOptions) -> Result<Self, ContextError> {
        let ContextOptions { room, storage, state_dir, limits } = options;
        let state = state_dir.join("context");
        let directory = state.join("layers");
        let failed = |path: &Path| {
            let path = path.display().to_string();
            move |source| ContextError::Io { path, source }
        };
        let layers = LayerCache::open(&directory, limits).map_err(failed(&directory))?;
        let memory = ContextRecords::open(&state).map_err(failed(&state))?;
        Ok(Self(Arc::new(PreparerState { room, storage, layers, records: memory })))
    }

    /// Saves the persistent records for the next run of the daemon. No context may be prepared after this.
    pub async fn save(&self) {
        let shared = Arc::clone(&self.0);
        if task::blocking("context.save", move || shared.records.save_all()).await.is_err() {
            tracing::warn!("failed to save the context records; the next builds send their contexts in full");
        }
    }

    /// Opens the mounts, scans the context and reads the Dockerfile.
    #[tracing::instrument(name = "context", skip_all, fields(operation = "prepare", path = %request.context_path))]
    pub async fn prepare<D: Send + 'static>(
        &self,
        request: ContextRequest<D>,
    ) -> Result<ScannedContext<D>, ContextError> {
        let shared = Arc::clone(&self.0);
        // Cancelling the build drops the guard, which stops the reading of files.
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let prepare = move || shared.prepare(request, &stop);
        task::blocking("context.prepare", prepare).await.unwrap_or(Err(ContextError::ShuttingDown))
    }
}

impl ContextPreparer {
    /// Opens mounts as one tree, without scanning it.
    #[tracing::instrument(name = "context", skip_all, fields(operation = "open"))]
    pub async fn open_tree(&self, mounts: Vec<ContextMount>) -> Result<ContextTree, ContextError> {
        let shared = Arc::clone(&self.0);
        let open = move || {
            let mounted = mounts.into_iter().map(|mount| shared.open(mount)).collect::<Result<_, _>>()?;
            ContextTree::new(mounted)
        };
        task::blocking("context.open", open).await.unwrap_or(Err(ContextError::ShuttingDown))
    }

    /// Opens an image by its own, to read its files.
    #[tracing::instrument(name = "context", skip_all, fields(operation = "open image"))]
    pub async fn open_image(&self, image: OpenedImage) -> Result<ImageTree, ContextError> {
        let shared = Arc::clone(&self.0);
        let open = move || {
            let tree = shared.layers.image_tree(image.layers);
            tree.map_err(|(digest, source)| ContextError::Layer { digest, source })
        };
        task::blocking("context.image", open).await.unwrap_or(Err(ContextError::ShuttingDown))
    }

    /// Returns the identity of everything below a directory of a tree, and the number of its regular files
    /// and their size in bytes.
    #[tracing::instrument(name = "context", skip_all, fields(operation = "digest", path = %directory))]
    pub async fn identity(
        &self,
        tree: ContextTree,
        directory: MountTarget,
    ) -> Result<(TreeIdentity, usize, u64), ContextError> {
        let shared = Arc::clone(&self.0);
        // Dropping the future drops the guard, which stops the reading of files.
        let stop = CancellationToken::new();
        let _stop = stop.clone().drop_guard();
        let identify = move || {
            retry_when_changed(|| {
                let (selection, ignore) = (&CopySelection::default(), &NamedEntry::Absent);
                let (scope, memory) = (ScanScope { selection, ignore, patterns: None }, &shared.records);
                let scan = || tree.scan(&directory, &ScanBounds::default());
                let looked = scan_cache::scan_or_revalidate(&tree, &directory, &scope, memory, scan)?;
                let (snapshot, identified) = scan_cache::identify(looked, scope, memory, &stop)?;
                let identity = identified.identity.clone();
                let (files, bytes) = snapshot.files();
                Ok((identity, files, bytes))
            })
        };
        task::blocking("context.identity", identify).await.unwrap_or(Err(ContextError::ShuttingDown))
    }

    /// Removes the indexes of layers that are not needed any more.
    pub async fn remove_layer_indexes(&self, diff_ids: Vec<Digest>) {
        let shared = Arc::clone(&self.0);
        let forget = move || diff_ids.iter().for_each(|diff_id| shared.layers.remove_indexes(diff_id));
        if task::blocking("context.forget", forget).await.is_err() {
            tracing::warn!("failed to remove layer indexes; they remain until the quota evicts them");
        }
    }
}

impl PreparerState {
    fn prepare<D>(
        self: Arc<Self>,
        request: ContextRequest<D>,
        stop: &CancellationToken,
    ) -> Result<ScannedContext<D>, ContextError> {
        let ContextRequest { mounts, context_path, dockerfile, target, parse } = request;
        let mut name = LineageIdBuilder::default().part(&self.room).part(context_path.as_str());
        let mut mounted = Vec::with_capacity(mounts.len());
        for mount in mounts {
            name = name.part(mount.spec.target.as_str()).part(source_name(&mount));
            mounted.push(self.open(mount)?);
        }
        let tree = ContextTree::new(mounted)?;
        let is_absent = dockerfile == DockerfilePath::Absent;
        let (dockerfile_path, dockerfile) = dockerfile::read(&tree, &context_path, &dockerfile)?;
        let ignore = match is_absent {
            // Without a Dockerfile, nobody reads an ignore file, so that no file is excluded.
            true => Some(Vec::new()),
            false => dockerfile::read_ignore(&tree, &dockerfile_path)?,
        };
        let name = name.part(dockerfile_path.as_str()).part(target.unwrap_or_default());
        let origin = name.clone().id();
        let (dockerfile, mut selection) = parse(dockerfile);
        if self.records.needs_full_coverage(&origin) {
            selection = CopySelection::default();
        }
        let view = ContextView { tree, context_path, own_ignore: ignore.clone(), selection };
        let (mut context, identified) = view.scan_and_identify(&self.records, stop)?;
        context.set_identified(Arc::clone(&identified));
        let lineage = name.part(view.selection.canonical_bytes()).id();
        let identity = identified.identity.clone();
        let id = self.records.session_id(&lineage, &identity);
        let shared_key = self.records.shared_key(lineage, &identity, scanned_files(&context, &identified));
        let session = SessionName { id, shared_key };
        let watch = ContextTransferWatch::new(&self, view, origin, identity.clone(), session.id.clone());
        Ok(ScannedContext {
            context: Arc::new(context),
            dockerfile_path,
            dockerfile,
            ignore,
            identity,
            session,
            lineage,
            watch: Arc::new(watch),
            shared: self,
        })
    }

    fn open(&self, mount: ContextMount) -> Result<MountedLayer, ContextError> {
        let ContextMount { spec: BuildMount { source, target, .. }, image, pack, links } = mount;
        let storage = |root: &StorageRoot, path: &str| {
            DirectoryLayer::open(&root.with_links(links), Path::new(path))
                .map(|layer| MountedLayer::directory(target.clone(), layer))
                .map_err(|source| ContextError::Source { target: target.clone(), source })
        };
        Ok(match &source {
            BuildMountSource::Room(path) => storage(&self.storage.room, path)?,
            BuildMountSource::Project(path) => storage(&self.storage.project, path)?,
            BuildMountSource::Image { subpath, .. } => self.image(&target, image, subpath)?,
            BuildMountSource::Pack(_) => match pack {
                Some(pack) => MountedLayer::pack(target, PackLayer::new(pack.tree)),
                None => self.image(&target, image, "")?,
            },
        })
    }

    fn image(
        &self,
        target: &MountTarget,
        image: Option<OpenedImage>,
        subpath: &str,
    ) -> Result<MountedLayer, ContextError> {
        let image = image.ok_or_else(|| ContextError::ImageNotOpened { target: target.clone() })?;
        let tree = self.layers.image_tree(image.layers);
        let tree = tree.map_err(|(digest, source)| ContextError::Layer { digest, source })?;
        let layer = ImageLayer::new(Arc::new(tree), subpath);
        let layer = layer.ok_or_else(|| ContextError::SubpathNotFound {
            target: target.clone(),
            subpath: subpath.to_owned(),
        })?;
        Ok(MountedLayer::image(target.clone(), layer))
    }
}

fn retry_when_changed<T>(mut attempt: impl FnMut() -> Result<T, ContextError>) -> Result<T, ContextError> {
    for _ in 1..ATTEMPTS {
        match attempt() {
            Err(ContextError::Changed { .. }) => {}
            other => return other,
        }
    }
    attempt()
}

/// The inputs for scanning a build's context again.
struct ContextView {
    tree: ContextTree,
    context_path: MountTarget,
    /// Content of the Dockerfile's own ignore file, if it has one.
    own_ignore: Option<Vec<u8>>,
    selection: CopySelection,
}

impl ContextView {
    /// Scans and identifies the context, and repeats both when files changed meanwhile.
    fn scan_and_identify(
        &self,
        memory: &ContextRecords,
        stop: &CancellationToken,
    ) -> Result<(TreeSnapshot, Arc<IdentifiedTree>), ContextError> {
        retry_when_changed(|| self.scan_and_identify_once(memory, stop))
    }

    fn scan_and_identify_once(
        &self,
        memory: &ContextRecords,
        stop: &CancellationToken,
    ) -> Result<(TreeSnapshot, Arc<IdentifiedTree>), ContextError> {
        let given = self.ignore_file()?;
        // Only BuildKit's reader can interpret a symbolic link or another kind here; it hides nothing.
        let text = match &given {
            NamedEntry::File(text) => Some(text),
            NamedEntry::Absent | NamedEntry::Other => None,
        };
        // An ignore file that cannot be parsed hides nothing either; the frontend fails the build.
        let patterns = text.and_then(|text| IgnorePatterns::parse_file(text).ok());
        let scope = ScanScope { selection: &self.selection, ignore: &given, patterns };
        let scan = || self.scan(&scope);
        let looked = scan_cache::scan_or_revalidate(&self.tree, &self.context_path, &scope, memory, scan)?;
        if self.own_ignore.is_none() {
            looked.snapshot.check_readable(IGNORE, MAX_DOCKERFILE)?;
        }
        if self.ignore_file()? != given {
            return Err(ContextError::Changed { path: String::from_utf8_lossy(IGNORE).into_owned() });
        }
        scan_cache::identify(looked, scope, memory, stop)
    }

    /// Scans the selected paths, or everything if a symbolic link is on the path to one of them.
    fn scan(&self, scope: &ScanScope<'_>) -> Result<TreeSnapshot, ContextError> {
        let everything = CopySelection::default();
        let scan = |selection: &CopySelection| {
            let bounds = match &scope.ignore {
                // A symbolic link may lead anywhere in the context.
                NamedEntry::Other => ScanBounds::default(),
                _ => ScanBounds::new(selection, scope.patterns.as_ref()),
            };
            self.tree.scan(&self.context_path, &bounds)
        };
        let context = scan(&self.selection)?;
        if context.is_link_free(&self.selection) { Ok(context) } else { scan(&everything) }
    }

    fn ignore_file(&self) -> Result<NamedEntry, ContextError> {
        match &self.own_ignore {
            Some(own) => Ok(NamedEntry::File(own.clone())),
            None => self.tree.entry_of(&self.context_path, IGNORE, MAX_DOCKERFILE),
        }
    }
}

/// Returns the files that the lineage tracks: every file that may be sent.
fn scanned_files<'s>(
    context: &'s TreeSnapshot,
    identified: &'s IdentifiedTree,
) -> impl Iterator<Item = ScannedFile<'s>> {
    identified.contents(context).map(|(index, content)| {
        let entry = context.entry(index);
        let xattrs = context.xattrs(index);
        ScannedFile {
            path: entry.path,
            mode: entry.mode,
            size: entry.size,
            mtime: entry.mtime,
            content,
            xattrs,
        }
    })
}

/// Returns the identity of a mount's files for the lineage: a path of a storage, or the digest of an image.
fn source_name(mount: &ContextMount) -> String {
    let manifest = || mount.image.as_ref().map(|image| image.manifest.to_string()).unwrap_or_default();
    match &mount.spec.source {
        BuildMountSource::Room(path) => format!("room {path}"),
        BuildMountSource::Project(path) => format!("project {path}"),
        BuildMountSource::Image { subpath, .. } => format!("image {} {subpath}", manifest()),
        BuildMountSource::Pack(_) => match &mount.pack {
            Some(pack) if pack.lineage.is_empty() => format!("tree {}", pack.tree.listing.digest()),
            Some(pack) => format!("pack {}", pack.lineage),
            None => format!("image {} ", manifest()),
        },
    }
}

impl<D> ScannedContext<D> {
    /// Returns the files for a solve, with the given bytes as the Dockerfile: the original ones, or ones that
    /// the caller changed.
    pub fn into_files(self, dockerfile: Vec<u8>) -> ContextFiles {
        let name = dockerfile::file_name(&self.dockerfile_path).to_owned();
        let mut files = vec![(name.clone(), dockerfile)];
        if let Some(ignore) = self.ignore {
            files.push((dockerfile::ignore_name(&name), ignore));
        }
        let dockerfile_session = SessionName {
            id: self.shared.records.dockerfile_id(&self.lineage, &files),
            // Its times derive from its content: two files that look the same are the same.
            shared_key: format!("{}-dockerfile", lineage_name(&self.lineage)),
        };
        ContextFiles {
            context: self.context as Arc<dyn FileTree>,
            dockerfile: Arc::new(MemoryTree::new(files)),
            dockerfile_name: name,
            context_session: self.session,
            dockerfile_session,
            watch: self.watch,
        }
    }
}

#[cfg(test)]
mod tests;
