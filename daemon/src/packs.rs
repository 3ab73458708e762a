//! Packs uploaded by content hash: a client names a tree, sends its file list, and then sends only the content that
//! the room lacks.
//!
//! ```text
//! begin --> the room has this participant's tree, or the image built from it: done
//!       '-> upload -- list --> missing content -- receive* --> commit --> tree stored --> pack or image
//! ```
//!
//! All participants share the content in [`store`]; each participant's trees are separate files (module `trees`). A
//! tree is kept for some time after its last use, so that the next pack of the same directory sends only the changes.
//! Content that no tree references is removed one hour after it was last asked for. Therefore the content received by
//! an interrupted upload is still there when the client retries.
//!
//! A hash alone gives no access to content. For content that a participant has never sent, the client either proves
//! possession, with a keyed hash over all of it under a fresh random key, or sends the content.

mod commit;
mod error;
mod image;
mod memory;
pub mod port;
mod ready;
mod receive;
pub mod store;
mod trees;
mod upload;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hearth_pack::identity::{ContentHash, Node, TreeDigest};
use hearth_pack::listing::{Listing, ListingLimits, ListingWriter};
use parking_lot::{Mutex, MutexGuard, RwLock};

use self::image::ImageOptions;
use crate::image::Images;
use crate::image::port::{Origin, PackContent};
use crate::model::Reference;
use crate::model::access::SERVICE_NAME;
use crate::model::id::ServiceId;
use crate::model::share_owner::{ShareOwner, ShareOwners};
use crate::task;
use memory::{Memory, Share};
use port::PackTree;
use store::{AppendError, ContentStore, OwnerKey, Piece, Presence, StoreLimits, Swept};
use trees::Trees;
use upload::{Call, Piece64, Upload};

pub use error::PackError;
pub use image::ImageOptions as PackImageOptions;
pub use ready::{Committed, Ready};
pub use receive::{PieceData, Receiver, SentPiece};
pub use upload::{List, UnfinishedPack};

/// Maximum number of concurrent uploads of one participant. A stale upload is dropped for a new one.
const MOST_UPLOADS: usize = 16;
/// Idle time after which an upload is dropped.
const IDLE: Duration = Duration::from_secs(600);
/// Idle time after which a new upload may replace this one: its client is most likely gone.
const STALE: Duration = Duration::from_secs(30);
/// Time for which content that no tree references is kept after it was last asked for.
const GRACE: Duration = Duration::from_secs(3600);
/// Memory limit for the file lists of all uploads, in bytes: about four million entries.
const LISTS: usize = 768 << 20;

/// Options of [`PackStore::open`].
pub struct PackOptions {
    /// State directory. Content is stored in its subdirectory `content`, trees in `trees`.
    pub directory: PathBuf,
    pub limits: StoreLimits,
    /// Retention time of trees that no build uses.
    pub keep: Duration,
}

/// Handle to the packs of the room: their content, trees and uploads. Cheap to clone.
#[derive(Clone)]
pub struct Packs(Arc<Shared>);

struct Shared {
    directory: PathBuf,
    keep: Duration,
    store: ContentStore,
    trees: Trees,
    images: Images,
    uploads: Mutex<HashMap<String, Arc<Upload>>>,
    memory: Memory,
    owners: OnceLock<ShareOwners>,
    /// Lock between commits and sweeps. A commit holds it for reading from the check that all content of a tree is
    /// present until the tree is stored, because nothing else marks that content as needed in between. A sweep holds
    /// it for writing.
    keeping: RwLock<()>,
}

/// Selection of what one sweep may remove.
struct Sweep {
    /// Retention time of trees that no build uses.
    keep: Duration,
    /// Participant whose trees are kept for at most [`CONTENT_GRACE`].
    hurried: Option<OwnerKey>,
    /// Time for which content that no tree references is kept after it was last asked for.
    grace: Duration,
    /// Upload whose received content is removed without a grace period.
    ended: Option<Arc<Upload>>,
}

/// Purpose of an upload: what its tree becomes, and for whom.
#[derive(Clone, Debug)]
pub struct Destination {
    /// Participant who owns the tree.
    pub owner: String,
    /// Tag of the image to create in the room. Without a tag and an archive the tree becomes a pack for builds.
    pub tag: Option<Reference>,
    /// Path in room storage for the OCI archive, if one is wanted. The caller writes it: see
    /// [`PreparedPack::archive`].
    pub archive: Option<String>,
    pub image: ImageOptions,
    /// Lineage of the pack, see [`PackContent::Tree`].
    pub lineage: String,
}

impl Destination {
    const fn wants_image(&self) -> bool {
        self.tag.is_some() || self.archive.is_some()
    }

    /// Returns the origin that is recorded for the image built from `tree`.
    fn origin(&self, tree: TreeDigest) -> Origin {
        Origin { owner: self.owner.clone(), tree, way: self.image.way() }
    }
}

/// Result of [`PackStore::begin`].
#[derive(Debug)]
pub enum Begun {
    Done(Box<Ready>),
    Upload(String),
}

impl Packs {
    /// Opens the state directory. This call blocks.
    pub fn open(options: PackOptions, images: Images) -> std::io::Result<Self> {
        let PackOptions { directory, limits, keep } = options;
        let store = ContentStore::open(&directory.join("content"), limits)?;
        let trees = Trees::open(&directory.join("trees"), ListingLimits::default())?;
        let (uploads, memory) = (Mutex::default(), Memory::new(LISTS));
        let keeping = RwLock::default();
        Ok(Self(Arc::new(Shared {
            directory,
            keep,
            store,
            trees,
            images,
            uploads,
            memory,
            owners: OnceLock::new(),
            keeping,
        })))
    }

    /// Begins an upload. Returns `Done` at once if the room has this participant's tree, or the image built from it.
    pub async fn begin(&self, tree: TreeDigest, destination: Destination) -> Result<Begun, PackError> {
        if let Some(ready) = self.made_before(tree, &destination).await? {
            return Ok(Begun::Done(Box::new(ready)));
        }
        let owner = self.count(&destination.owner);
        let known = self.blocking("find tree", move |shared| shared.known(&owner, &tree)).await?;
        if let Some(listing) = known {
            return self.make(listing, &destination).await.map(Box::new).map(Begun::Done);
        }
        let id = format!("{:032x}", rand::random::<u128>());
        let mut uploads = self.0.uploads();
        self.0.make_room(&mut uploads, &owner)?;
        uploads.insert(id.clone(), Arc::new(Upload::new(owner, tree, destination)));
        Ok(Begun::Upload(id))
    }

    /// Sets the lookup that says which participant's quota a caller's packs count against. Called once at startup;
    /// before that, each caller has a quota of its own.
    pub fn share_by(&self, owners: ShareOwners) {
        if self.0.owners.set(owners).is_err() {
            tracing::warn!("the owners of pack quotas are already set");
        }
    }

    /// Counts the content that a service has sent against the quota of the participant who deployed it.
    pub fn count_service(&self, service: &ServiceId) {
        self.count(&format!("{SERVICE_NAME}{service}"));
    }

    fn count(&self, caller: &str) -> OwnerKey {
        let owner = OwnerKey::of(caller);
        if let Some(owners) = self.0.owners.get() {
            let ShareOwner(share) = owners.of(caller);
            if share != caller {
                self.0.store.count_as(owner, OwnerKey::of(&share));
            }
        }
        owner
    }

    /// Returns the number of bytes that a participant has sent and that are still stored.
    pub fn sent_by(&self, caller: &str) -> u64 {
        self.0.store.sent_by(&OwnerKey::of(caller))
    }

    pub fn limits(&self) -> StoreLimits {
        self.0.store.limits()
    }

    /// Returns the uploads that have not ended.
    pub fn unfinished(&self) -> Vec<UnfinishedPack> {
        self.0.uploads().values().map(|upload| upload.unfinished()).collect()
    }

    /// Returns the owner of an upload. The access policy decides with it whether a caller may continue the upload.
    pub fn upload_owner(&self, id: &str) -> Result<String, PackError> {
        let owner = self.0.uploads().get(id).map(|upload| upload.call().destination.owner.clone());
        owner.ok_or_else(|| PackError::no_upload(id))
    }

    /// Starts to receive the file list of an upload.
    pub fn lister(&self, caller: &str, id: &str) -> Result<Lister, PackError> {
        let call = self.0.call(caller, id)?;
        if call.has_list() {
            return Err(PackError::SecondList);
        }
        let writer = ListingWriter::new(ListingLimits::default());
        Ok(Lister { packs: self.clone(), call, writer, memory: self.0.memory.share() })
    }

    /// Records the pieces that large files consist of. Returns the numbers of the missing pieces of each file.
    pub async fn chunks(
        &self,
        caller: &str,
        id: &str,
        files: Vec<(u32, Vec<Piece>)>,
    ) -> Result<Vec<(u32, Vec<u32>)>, PackError> {
        let call = self.0.call(caller, id)?;
        let look = move |shared: &Shared| {
            let mut missing = Vec::with_capacity(files.len());
            for (entry, pieces) in files {
                call.cut(entry, &pieces)?;
                let contents = pieces.iter().map(|piece| (&piece.hash, u64::from(piece.size)));
                let presence = shared.store.look(&call.owner, contents)?;
                missing.push((entry, call.cut_presence(entry, &presence)));
            }
            Ok(missing)
        };
        self.blocking("look for chunks", look).await
    }

    /// Starts to receive content of an upload.
    pub fn receiver(&self, caller: &str, id: &str) -> Result<Receiver, PackError> {
        let call = self.0.call(caller, id)?;
        call.list()?;
        Ok(Receiver::new(self.clone(), call))
    }

    /// Stores the tree of a complete upload and builds its image if one is wanted. [`publish`](Self::publish) then
    /// gives the result its tag or pack id.
    pub async fn commit(&self, caller: &str, id: &str, proof: Option<[u8; 32]>) -> Result<Ready, PackError> {
        let call = self.0.call(caller, id)?;
        let upload = Arc::clone(&call);
        let list = self.blocking("commit upload", move |shared| shared.keep_tree(&upload, proof)).await?;
        let ready = self.make(list.listing.clone(), &call.destination).await?;
        self.0.uploads().remove(id);
        Ok(ready)
    }

    /// Returns the tree of one of `owner`'s packs.
    pub async fn tree(&self, owner: &str, tree: TreeDigest) -> Result<PackTree, PackError> {
        let owner = OwnerKey::of(owner);
        let listing = self.blocking("open tree", move |shared| Ok(shared.trees.get(&owner, &tree)?)).await?;
        let listing = listing.ok_or(PackError::TreeGone { tree: tree.to_string() })?;
        Ok(PackTree::new(listing, Arc::new(self.0.store.reader())))
    }

    /// Drops idle uploads, removes trees past their retention time, and removes content that nothing needs.
    pub async fn sweep(&self) -> Result<Swept, PackError> {
        self.0.uploads().retain(|_, upload| upload.idle() < IDLE);
        self.sweep_now(Sweep { keep: self.0.keep, hurried: None, grace: GRACE, ended: None }).await
    }

    /// Frees space after `error` by removing trees that no build uses. If the quota of `owner` is exhausted, only
    /// `owner`'s trees are removed early.
    async fn free_space(&self, owner: OwnerKey, error: &AppendError) -> Result<(), PackError> {
        let is_own = matches!(error, AppendError::OwnerQuota { .. });
        let (keep, hurried) =
            if is_own { (self.0.keep, Some(owner)) } else { (GRACE.min(self.0.keep), None) };
        self.sweep_now(Sweep { keep, hurried, grace: GRACE, ended: None }).await.map(|_| ())
    }

    /// Ends an upload for which there is no space, and removes the content that it has sent. Content that other
    /// participants have sent as well stays, because their uploads may still be running.
    async fn give_up(&self, upload: &Arc<Upload>) {
        self.0.uploads().retain(|_, other| !Arc::ptr_eq(other, upload));
        let ended = Some(Arc::clone(upload));
        let sweep = Sweep { keep: self.0.keep, hurried: None, grace: GRACE, ended };
        if let Err(error) = self.sweep_now(sweep).await {
            tracing::warn!(%error, "failed to remove the content of an abandoned upload; the next sweep retries");
        }
    }

    async fn sweep_now(&self, sweep: Sweep) -> Result<Swept, PackError> {
        let mut in_use = HashSet::new();
        for pack in self.0.images.packs().await? {
            if let PackContent::Tree { tree, .. } = &pack.content {
                in_use.insert((OwnerKey::of(&pack.owner), *tree));
            }
        }
        self.blocking("sweep packs", move |shared| shared.sweep(&in_use, &sweep)).await
    }

    async fn blocking<T, F>(&self, name: &'static str, work: F) -> Result<T, PackError>
    where
        T: Send + 'static,
        F: FnOnce(&Shared) -> Result<T, PackError> + Send + 'static,
    {
        let shared = Arc::clone(&self.0);
        task::blocking(name, move || work(&shared)).await.unwrap_or(Err(PackError::Ending))
    }
}

impl Shared {
    fn uploads(&self) -> MutexGuard<'_, HashMap<String, Arc<Upload>>> {
        self.uploads.lock()
    }

    /// Finds an upload by its owner and id.
    fn call(&self, caller: &str, id: &str) -> Result<Call, PackError> {
        let owner = OwnerKey::of(caller);
        let uploads = self.uploads();
        let upload = uploads.get(id).filter(|upload| upload.owner == owner);
        upload.map(Upload::call).ok_or_else(|| PackError::no_upload(id))
    }

    fn make_room(
        &self,
        uploads: &mut HashMap<String, Arc<Upload>>,
        owner: &OwnerKey,
    ) -> Result<(), PackError> {
        let own = uploads.iter().filter(|(_, upload)| upload.owner == *owner);
        let own: Vec<(String, Duration)> = own.map(|(id, upload)| (id.clone(), upload.idle())).collect();
        if own.len() < MOST_UPLOADS {
            return Ok(());
        }
        match own.into_iter().max_by_key(|(_, idle)| *idle) {
            Some((id, idle)) if idle >= STALE => {
                uploads.remove(&id);
                Ok(())
            }
            _ => Err(PackError::TooManyUploads { limit: MOST_UPLOADS }),
        }
    }

    /// Returns this participant's tree if all of its content is present.
    fn known(&self, owner: &OwnerKey, tree: &TreeDigest) -> Result<Option<Listing>, PackError> {
        let Some(listing) = self.trees.get(owner, tree)? else { return Ok(None) };
        let presence = self.look(owner, &listing)?;
        Ok(presence.iter().all(|(_, presence)| *presence == Presence::Own).then_some(listing))
    }

    /// Reports for each entry with content whether that content is present.
    fn look(&self, owner: &OwnerKey, listing: &Listing) -> Result<Vec<(u32, Presence)>, PackError> {
        let contents: Vec<(u32, (ContentHash, u64))> = (0..)
            .zip(listing.entries())
            .filter_map(|(entry, listed)| Some((entry, listed.content()?)))
            .collect();
        let presence = self.store.look(owner, contents.iter().map(|(_, (hash, size))| (hash, *size)))?;
        Ok(contents.into_iter().map(|(entry, _)| entry).zip(presence).collect())
    }

    fn sweep(&self, in_use: &HashSet<(OwnerKey, TreeDigest)>, sweep: &Sweep) -> Result<Swept, PackError> {
        let _sweeping = self.keeping.write();
        let hurried = sweep.hurried.map(|owner| owner.hex());
        let keep = |owner: &str| {
            let is_hurried = hurried.as_deref() == Some(owner);
            if is_hurried { sweep.keep.min(GRACE) } else { sweep.keep }
        };
        let (mut live, trees) = self.trees.sweep(in_use, keep)?;
        let uploads: Vec<Arc<Upload>> = self.uploads().values().cloned().collect();
        for upload in uploads {
            live.extend(upload.contents());
        }
        let ended = sweep.ended.as_ref().map(|upload| (upload.owner, upload.contents()));
        let swept = self.store.sweep(&live, sweep.grace, ended.as_ref())?;
        if trees > 0 || swept.contents > 0 {
            tracing::info!(trees, contents = swept.contents, bytes = swept.bytes, "packs swept");
        }
        Ok(swept)
    }
}

/// Receiver for the file list of one upload.
pub struct Lister {
    packs: Packs,
    call: Call,
    writer: ListingWriter,
    memory: Share,
}

impl Lister {
    pub fn push(&mut self, node: &Node<'_>) -> Result<(), PackError> {
        self.writer.push(node)?;
        self.memory.grow_to(self.writer.size())
    }

    /// Verifies the completed list and determines which of its content is missing.
    pub async fn finish(self) -> Result<Arc<List>, PackError> {
        let Self { packs, call, writer, mut memory } = self;
        let look = move |shared: &Shared| {
            let listing = writer.finish()?;
            if listing.digest() != call.tree {
                let (claimed, actual) = (call.tree.to_string(), listing.digest().to_string());
                return Err(PackError::TreeMismatch { claimed, actual });
            }
            // This memory is needed in addition to the list while the missing content is determined.
            memory.grow_to(listing.bytes().len() + 100 * listing.len())?;
            let mut seen = HashSet::new();
            let mut firsts = Vec::new();
            for (entry, listed) in (0u32..).zip(listing.entries()) {
                if let Some((hash, size)) = listed.content()
                    && seen.insert((hash, size))
                {
                    firsts.push((entry, Piece64 { hash, size }));
                }
            }
            let contents = firsts.iter().map(|(_, content)| (&content.hash, content.size));
            let presence = shared.store.look(&call.owner, contents)?;
            call.take_list(listing, &firsts, &presence, memory)
        };
        packs.blocking("take list", look).await
    }
}

#[cfg(test)]
mod tests;
