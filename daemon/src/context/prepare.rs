//! The files of one build: mounts opened, tree scanned, Dockerfile read.
//!
//! [`Contexts::prepare`] gives a [`Prepared`], whose Dockerfile the caller may look into and change;
//! [`Prepared::into_files`] makes of it what a solve needs.

mod dockerfile;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::ContextError;
use super::layers::{LayerBlob, LayerCache, LayerLimits};
use super::lineage::{LineageId, LineageName, Lineages};
use super::port::{ContextFiles, FileTree};
use super::storage::Storage;
use super::tree::{DirectoryLayer, ImageLayer, Layer, Mounted, Snapshot, Tree};
use crate::model::build::DockerfilePath;
use crate::model::{Digest, MountSource, MountSpec, MountTarget};
use crate::task;

pub use dockerfile::MemoryTree;

/// Lineages that are remembered; a 58,000-file tree takes about 1.5 MB in each.
const LINEAGES: usize = 64;

/// Size limit of a Dockerfile, and of each ignore file.
pub const MAX_DOCKERFILE: u64 = 1 << 20;

pub struct ContextOptions {
    pub room: String,
    pub storage: Storage,
    /// Decompressed layers are kept in `context/layers` below it.
    pub state_dir: PathBuf,
    pub limits: LayerLimits,
}

/// Prepares contexts; cheap to clone.
#[derive(Clone)]
pub struct Contexts(Arc<Shared>);

struct Shared {
    room: String,
    storage: Storage,
    layers: LayerCache,
    lineages: Mutex<Lineages>,
}

/// What of a build decides about its files.
#[derive(Debug)]
pub struct ContextRequest {
    pub mounts: Vec<ContextMount>,
    pub context_path: MountTarget,
    pub dockerfile: DockerfilePath,
    /// Target stage; builds of different stages keep their transfers apart.
    pub target: Option<String>,
}

/// A mount, and its image when its source is one. Whether the caller may use it was checked before.
#[derive(Debug)]
pub struct ContextMount {
    pub spec: MountSpec,
    /// For images and packs; none for everything else.
    pub image: Option<OpenedImage>,
}

#[derive(Debug)]
pub struct OpenedImage {
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Lowest first.
    pub layers: Vec<LayerBlob>,
}

/// A context that was scanned, with its Dockerfile.
pub struct Prepared {
    pub context: Arc<Snapshot>,
    /// Where the Dockerfile was found; links in it were followed to get at the bytes.
    pub dockerfile_path: MountTarget,
    pub dockerfile: Vec<u8>,
    /// Content of `<Dockerfile>.dockerignore`, which replaces `.dockerignore` of the context.
    pub ignore: Option<Vec<u8>>,
    shared_key: String,
}

impl Contexts {
    pub fn new(options: ContextOptions) -> Result<Self, ContextError> {
        let ContextOptions { room, storage, state_dir, limits } = options;
        let directory = state_dir.join("context").join("layers");
        let layers = LayerCache::open(&directory, limits)
            .map_err(|source| ContextError::Io { path: directory.display().to_string(), source })?;
        let lineages = Mutex::new(Lineages::new(LINEAGES));
        Ok(Self(Arc::new(Shared { room, storage, layers, lineages })))
    }

    /// Opens the mounts, scans the context and reads the Dockerfile.
    pub async fn prepare(&self, request: ContextRequest) -> Result<Prepared, ContextError> {
        let shared = Arc::clone(&self.0);
        let prepare = move || shared.prepare(request);
        task::blocking("context.prepare", prepare).await.unwrap_or(Err(ContextError::Ending))
    }
}

impl Contexts {
    /// Opens mounts as one tree, and looks at no more of it than that.
    pub async fn open_tree(&self, mounts: Vec<ContextMount>) -> Result<Tree, ContextError> {
        let shared = Arc::clone(&self.0);
        let open = move || {
            let mounted = mounts.into_iter().map(|mount| shared.open(mount)).collect::<Result<_, _>>()?;
            Tree::new(mounted)
        };
        task::blocking("context.open", open).await.unwrap_or(Err(ContextError::Ending))
    }

    /// Removes what is kept of layers that are not needed any more.
    pub async fn forget_layers(&self, diff_ids: Vec<Digest>) {
        let shared = Arc::clone(&self.0);
        let forget = move || diff_ids.iter().for_each(|diff_id| shared.layers.forget(diff_id));
        if task::blocking("context.forget", forget).await.is_err() {
            tracing::warn!("decompressed layers stay until the quota frees them");
        }
    }
}

impl Shared {
    fn prepare(&self, request: ContextRequest) -> Result<Prepared, ContextError> {
        let ContextRequest { mounts, context_path, dockerfile, target } = request;
        let mut name = LineageName::default().part(&self.room).part(context_path.as_str());
        let mut mounted = Vec::with_capacity(mounts.len());
        for mount in mounts {
            name = name.part(mount.spec.target.as_str()).part(source_name(&mount));
            mounted.push(self.open(mount)?);
        }
        let tree = Tree::new(mounted)?;
        let (dockerfile_path, dockerfile) = dockerfile::read(&tree, &context_path, &dockerfile)?;
        let ignore = dockerfile::read_ignore(&tree, &dockerfile_path)?;
        let context = tree.scan(&context_path)?;
        if ignore.is_none() {
            context.check_readable(b".dockerignore", MAX_DOCKERFILE)?;
        }
        let target = target.unwrap_or_default();
        let shared_key = self.shared_key(&name.part(dockerfile_path.as_str()).part(target).id(), &context);
        Ok(Prepared { context: Arc::new(context), dockerfile_path, dockerfile, ignore, shared_key })
    }

    fn shared_key(&self, id: &LineageId, context: &Snapshot) -> String {
        // A panic under the lock leaves at worst a generation that is newer than it had to be.
        let mut lineages = self.lineages.lock().unwrap_or_else(PoisonError::into_inner);
        lineages.key(id, context.seen())
    }

    fn open(&self, mount: ContextMount) -> Result<Mounted, ContextError> {
        let ContextMount { spec: MountSpec { source, target, .. }, image } = mount;
        let storage = |root, path: &str| {
            DirectoryLayer::open(root, Path::new(path))
                .map(Layer::Directory)
                .map_err(|source| ContextError::Source { target: target.clone(), source })
        };
        let layer = match &source {
            MountSource::Room(path) => storage(&self.storage.room, path)?,
            MountSource::Project(path) => storage(&self.storage.project, path)?,
            MountSource::Image { subpath, .. } => self.image(&target, image, subpath)?,
            MountSource::Pack(_) => self.image(&target, image, "")?,
            MountSource::EmptyDir => Layer::Empty,
        };
        Ok(Mounted { target, layer })
    }

    fn image(
        &self,
        target: &MountTarget,
        image: Option<OpenedImage>,
        subpath: &str,
    ) -> Result<Layer, ContextError> {
        let image = image.ok_or_else(|| ContextError::ImageNotOpened { target: target.clone() })?;
        let tree = self.layers.image(image.layers);
        let tree = tree.map_err(|(digest, source)| ContextError::Layer { digest, source })?;
        let layer = ImageLayer::new(Arc::new(tree), subpath);
        layer.map(Layer::Image).ok_or_else(|| ContextError::SubpathNotFound {
            target: target.clone(),
            subpath: subpath.to_owned(),
        })
    }
}

/// What a mount's files are, for the lineage: a path of a storage, or the very content of an image.
fn source_name(mount: &ContextMount) -> String {
    let manifest = || mount.image.as_ref().map(|image| image.manifest.to_string()).unwrap_or_default();
    match &mount.spec.source {
        MountSource::Room(path) => format!("room {path}"),
        MountSource::Project(path) => format!("project {path}"),
        MountSource::Image { subpath, .. } => format!("image {} {subpath}", manifest()),
        MountSource::Pack(_) => format!("image {} ", manifest()),
        MountSource::EmptyDir => "empty".to_owned(),
    }
}

impl Prepared {
    /// The files for a solve, with these bytes as the Dockerfile: the ones that were read, or what
    /// the caller made of them.
    pub fn into_files(self, dockerfile: Vec<u8>) -> ContextFiles {
        let name = dockerfile::file_name(&self.dockerfile_path).to_owned();
        let mut files = vec![(name.clone(), dockerfile)];
        if let Some(ignore) = self.ignore {
            files.push((dockerfile::ignore_name(&name), ignore));
        }
        ContextFiles {
            context: self.context as Arc<dyn FileTree>,
            dockerfile: Arc::new(MemoryTree::new(files)),
            dockerfile_name: name,
            shared_key: self.shared_key,
        }
    }
}

#[cfg(test)]
mod tests;
