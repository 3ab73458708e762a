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
mod ready;
mod receive;
pub mod store;
mod trees;
mod upload;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hearth_pack::identity::{ContentHash, TreeDigest, TreeNode};
use hearth_pack::listing::{ListingLimits, ListingWriter, TreeListing};
use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::context::{ContentPiece, PackTree};
use crate::image::ImageStore;
use crate::image::port::{ImageOrigin, PackContent};
use crate::model::Reference;
use crate::model::access::SERVICE_NAME;
use crate::model::id::ServiceId;
use crate::model::share_owner::{ShareOwner, ShareOwnerResolver};
use crate::task;
use memory::{ListingMemory, MemoryReservation};
use store::{AppendError, ContentPresence, ContentStore, OwnerKey, PackSweepResult, StoreLimits};
use trees::TreeStore;
use upload::{ContentRef, PackUpload, UploadGuard};

pub use error::PackError;
pub use image::PackImageOptions;
pub use ready::{CommittedPack, PreparedPack};
pub use receive::{PieceData, PieceReceiver, SentPiece};
pub use upload::{UnfinishedPack, UploadPlan};

/// Maximum number of concurrent uploads of one participant. A stale upload is dropped for a new one.
const MAX_UPLOADS_PER_OWNER: usize = 16;
/// Idle time after which an upload is dropped.
const UPLOAD_IDLE_LIMIT: Duration = Duration::from_secs(600);
/// Idle time after which a new upload may replace this one: its client is most likely gone.
const UPLOAD_STALE_AFTER: Duration = Duration::from_secs(30);
/// Time for which content that no tree references is kept after it was last asked for.
const CONTENT_GRACE: Duration = Duration::from_secs(3600);
/// Memory limit for the file lists of all uploads, in bytes: about four million entries.
const LISTING_MEMORY: usize = 768 << 20;

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
pub struct PackStore(Arc<PackStoreInner>);

struct PackStoreInner {
    directory: PathBuf,
    keep: Duration,
    store: ContentStore,
    trees: TreeStore,
    images: ImageStore,
    uploads: Mutex<HashMap<String, Arc<PackUpload>>>,
    memory: ListingMemory,
    owners: OnceLock<ShareOwnerResolver>,
    /// Lock between commits and sweeps. A commit holds it for reading from the check that all content of a tree is
    /// present until the tree is stored, because nothing else marks that content as needed in between. A sweep holds
    /// it for writing.
    tree_lock: RwLock<()>,
}

/// Selection of what one sweep may remove.
struct PackSweepPolicy {
    /// Retention time of trees that no build uses.
    keep: Duration,
    /// Participant whose trees are kept for at most [`CONTENT_GRACE`].
    short_lived_owner: Option<OwnerKey>,
    /// Time for which content that no tree references is kept after it was last asked for.
    grace: Duration,
    /// Upload whose received content is removed without a grace period.
    abandoned_upload: Option<Arc<PackUpload>>,
}

/// Purpose of an upload: what its tree becomes, and for whom.
#[derive(Clone, Debug)]
pub struct PackDestination {
    /// Participant who owns the tree.
    pub owner: String,
    /// Tag of the image to create in the room. Without a tag and an archive the tree becomes a pack for builds.
    pub tag: Option<Reference>,
    /// Path in room storage for the OCI archive, if one is wanted. The caller writes it: see
    /// [`PreparedPack::archive`].
    pub archive: Option<String>,
    pub image: PackImageOptions,
    /// Lineage of the pack, see [`PackContent::Tree`].
    pub lineage: String,
}

impl PackDestination {
    const fn wants_image(&self) -> bool {
        self.tag.is_some() || self.archive.is_some()
    }

    /// Returns the origin that is recorded for the image built from `tree`.
    fn origin(&self, tree: TreeDigest) -> ImageOrigin {
        ImageOrigin { owner: self.owner.clone(), tree, recipe: self.image.options_hash() }
    }
}

/// Result of [`PackStore::begin`].
#[derive(Debug)]
pub enum PackBeginOutcome {
    Done(Box<PreparedPack>),
    Upload(String),
}

impl PackStore {
    /// Opens the state directory. This call blocks.
    pub fn open(options: PackOptions, images: ImageStore) -> std::io::Result<Self> {
        let PackOptions { directory, limits, keep } = options;
        let store = ContentStore::open(&directory.join("content"), limits)?;
        let trees = TreeStore::open(&directory.join("trees"), ListingLimits::default())?;
        let (uploads, memory) = (Mutex::default(), ListingMemory::new(LISTING_MEMORY));
        let keeping = RwLock::default();
        Ok(Self(Arc::new(PackStoreInner {
            directory,
            keep,
            store,
            trees,
            images,
            uploads,
            memory,
            owners: OnceLock::new(),
            tree_lock: keeping,
        })))
    }

    /// Begins an upload. Returns `Done` at once if the room has this participant's tree, or the image built from it.
    pub async fn begin(
        &self,
        tree: TreeDigest,
        destination: PackDestination,
    ) -> Result<PackBeginOutcome, PackError> {
        if let Some(ready) = self.find_prepared(tree, &destination).await? {
            return Ok(PackBeginOutcome::Done(Box::new(ready)));
        }
        let owner = self.owner_key(&destination.owner);
        let known = self.blocking("find tree", move |shared| shared.complete_tree(&owner, &tree)).await?;
        if let Some(listing) = known {
            return self.prepare(listing, &destination).await.map(Box::new).map(PackBeginOutcome::Done);
        }
        let id = format!("{:032x}", rand::random::<u128>());
        let mut uploads = self.0.uploads();
        self.0.evict_stale_upload(&mut uploads, &owner)?;
        uploads.insert(id.clone(), Arc::new(PackUpload::new(owner, tree, destination)));
        Ok(PackBeginOutcome::Upload(id))
    }

    /// Sets the lookup that says which participant's quota a caller's packs count against. Called once at startup;
    /// before that, each caller has a quota of its own.
    pub fn set_share_owners(&self, owners: ShareOwnerResolver) {
        if self.0.owners.set(owners).is_err() {
            tracing::warn!("share owner resolver was already set");
        }
    }

    /// Counts the content that a service has sent against the quota of the participant who deployed it.
    pub fn register_service_owner(&self, service: &ServiceId) {
        self.owner_key(&format!("{SERVICE_NAME}{service}"));
    }

    fn owner_key(&self, caller: &str) -> OwnerKey {
        let owner = OwnerKey::of(caller);
        if let Some(owners) = self.0.owners.get() {
            let ShareOwner(share) = owners.owner_of(caller);
            if share != caller {
                self.0.store.set_share(owner, OwnerKey::of(&share));
            }
        }
        owner
    }

    /// Returns the number of bytes that a participant has sent and that are still stored.
    pub fn bytes_sent_by(&self, caller: &str) -> u64 {
        self.0.store.bytes_sent_by(&OwnerKey::of(caller))
    }

    pub fn limits(&self) -> StoreLimits {
        self.0.store.limits()
    }

    /// Returns the uploads that have not ended.
    pub fn unfinished_uploads(&self) -> Vec<UnfinishedPack> {
        self.0.uploads().values().map(|upload| upload.unfinished_upload()).collect()
    }

    /// Returns the owner of an upload. The access policy decides with it whether a caller may continue the upload.
    pub fn upload_owner(&self, id: &str) -> Result<String, PackError> {
        let owner = self.0.uploads().get(id).map(|upload| upload.guard().destination.owner.clone());
        owner.ok_or_else(|| PackError::no_upload(id))
    }

    /// Starts to receive the file list of an upload.
    pub fn listing_receiver(&self, caller: &str, id: &str) -> Result<ListingReceiver, PackError> {
        let call = self.0.find_upload(caller, id)?;
        if call.has_list() {
            return Err(PackError::SecondList);
        }
        let writer = ListingWriter::new(ListingLimits::default());
        Ok(ListingReceiver { packs: self.clone(), call, writer, memory: self.0.memory.reserve() })
    }

    /// Records the pieces that large files consist of. Returns the numbers of the missing pieces of each file.
    pub async fn register_chunks(
        &self,
        caller: &str,
        id: &str,
        files: Vec<(u32, Vec<ContentPiece>)>,
    ) -> Result<Vec<(u32, Vec<u32>)>, PackError> {
        let call = self.0.find_upload(caller, id)?;
        let query = move |shared: &PackStoreInner| {
            let mut missing = Vec::with_capacity(files.len());
            for (entry, pieces) in files {
                call.set_chunks(entry, &pieces)?;
                let contents = pieces.iter().map(|piece| (&piece.hash, u64::from(piece.size)));
                let presence = shared.store.presence(&call.owner, contents)?;
                missing.push((entry, call.mark_present_chunks(entry, &presence)));
            }
            Ok(missing)
        };
        self.blocking("look for chunks", query).await
    }

    /// Starts to receive content of an upload.
    pub fn piece_receiver(&self, caller: &str, id: &str) -> Result<PieceReceiver, PackError> {
        let call = self.0.find_upload(caller, id)?;
        call.list()?;
        Ok(PieceReceiver::new(self.clone(), call))
    }

    /// Stores the tree of a complete upload and builds its image if one is wanted. [`publish`](Self::publish) then
    /// gives the result its tag or pack id.
    pub async fn commit(
        &self,
        caller: &str,
        id: &str,
        proof: Option<[u8; 32]>,
    ) -> Result<PreparedPack, PackError> {
        let call = self.0.find_upload(caller, id)?;
        let upload = Arc::clone(&call);
        let list = self.blocking("commit upload", move |shared| shared.store_tree(&upload, proof)).await?;
        let ready = self.prepare(list.listing.clone(), &call.destination).await?;
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
    pub async fn sweep(&self) -> Result<PackSweepResult, PackError> {
        self.0.uploads().retain(|_, upload| upload.idle_time() < UPLOAD_IDLE_LIMIT);
        self.run_sweep(PackSweepPolicy {
            keep: self.0.keep,
            short_lived_owner: None,
            grace: CONTENT_GRACE,
            abandoned_upload: None,
        })
        .await
    }

    /// Frees space after `error` by removing trees that no build uses. If the quota of `owner` is exhausted, only
    /// `owner`'s trees are removed early.
    async fn free_space(&self, owner: OwnerKey, error: &AppendError) -> Result<(), PackError> {
        let is_own = matches!(error, AppendError::OwnerQuota { .. });
        let (keep, hurried) =
            if is_own { (self.0.keep, Some(owner)) } else { (CONTENT_GRACE.min(self.0.keep), None) };
        self.run_sweep(PackSweepPolicy {
            keep,
            short_lived_owner: hurried,
            grace: CONTENT_GRACE,
            abandoned_upload: None,
        })
        .await
        .map(|_| ())
    }

    /// Ends an upload for which there is no space, and removes the content that it has sent. Content that other
    /// participants have sent as well stays, because their uploads may still be running.
    async fn abandon_upload(&self, upload: &Arc<PackUpload>) {
        self.0.uploads().retain(|_, other| !Arc::ptr_eq(other, upload));
        let ended = Some(Arc::clone(upload));
        let sweep = PackSweepPolicy {
            keep: self.0.keep,
            short_lived_owner: None,
            grace: CONTENT_GRACE,
            abandoned_upload: ended,
        };
        if let Err(error) = self.run_sweep(sweep).await {
            tracing::warn!(%error, "failed to remove the content of an abandoned upload; the next sweep retries");
        }
    }

    async fn run_sweep(&self, sweep: PackSweepPolicy) -> Result<PackSweepResult, PackError> {
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
        F: FnOnce(&PackStoreInner) -> Result<T, PackError> + Send + 'static,
    {
        let shared = Arc::clone(&self.0);
        task::blocking(name, move || work(&shared)).await.unwrap_or(Err(PackError::Ending))
    }
}

impl PackStoreInner {
    fn uploads(&self) -> MutexGuard<'_, HashMap<String, Arc<PackUpload>>> {
        self.uploads.lock()
    }

    /// Finds an upload by its owner and id.
    fn find_upload(&self, caller: &str, id: &str) -> Result<UploadGuard, PackError> {
        let owner = OwnerKey::of(caller);
        let uploads = self.uploads();
        let upload = uploads.get(id).filter(|upload| upload.owner == owner);
        upload.map(PackUpload::guard).ok_or_else(|| PackError::no_upload(id))
    }

    fn evict_stale_upload(
        &self,
        uploads: &mut HashMap<String, Arc<PackUpload>>,
        owner: &OwnerKey,
    ) -> Result<(), PackError> {
        let own = uploads.iter().filter(|(_, upload)| upload.owner == *owner);
        let own: Vec<(String, Duration)> = own.map(|(id, upload)| (id.clone(), upload.idle_time())).collect();
        if own.len() < MAX_UPLOADS_PER_OWNER {
            return Ok(());
        }
        match own.into_iter().max_by_key(|(_, idle)| *idle) {
            Some((id, idle)) if idle >= UPLOAD_STALE_AFTER => {
                uploads.remove(&id);
                Ok(())
            }
            _ => Err(PackError::TooManyUploads { limit: MAX_UPLOADS_PER_OWNER }),
        }
    }

    /// Returns this participant's tree if all of its content is present.
    fn complete_tree(&self, owner: &OwnerKey, tree: &TreeDigest) -> Result<Option<TreeListing>, PackError> {
        let Some(listing) = self.trees.get(owner, tree)? else { return Ok(None) };
        let presence = self.presence_of_listing(owner, &listing)?;
        Ok(presence.iter().all(|(_, presence)| *presence == ContentPresence::Own).then_some(listing))
    }

    /// Reports for each entry with content whether that content is present.
    fn presence_of_listing(
        &self,
        owner: &OwnerKey,
        listing: &TreeListing,
    ) -> Result<Vec<(u32, ContentPresence)>, PackError> {
        let contents: Vec<(u32, (ContentHash, u64))> = (0..)
            .zip(listing.entries())
            .filter_map(|(entry, listed)| Some((entry, listed.content()?)))
            .collect();
        let presence = self.store.presence(owner, contents.iter().map(|(_, (hash, size))| (hash, *size)))?;
        Ok(contents.into_iter().map(|(entry, _)| entry).zip(presence).collect())
    }

    fn sweep(
        &self,
        in_use: &HashSet<(OwnerKey, TreeDigest)>,
        sweep: &PackSweepPolicy,
    ) -> Result<PackSweepResult, PackError> {
        let _sweeping = self.tree_lock.write();
        let hurried = sweep.short_lived_owner.map(|owner| owner.hex());
        let keep = |owner: &str| {
            let is_hurried = hurried.as_deref() == Some(owner);
            if is_hurried { sweep.keep.min(CONTENT_GRACE) } else { sweep.keep }
        };
        let (mut live, trees) = self.trees.sweep(in_use, keep)?;
        let uploads: Vec<Arc<PackUpload>> = self.uploads().values().cloned().collect();
        for upload in uploads {
            live.extend(upload.contents());
        }
        let ended = sweep.abandoned_upload.as_ref().map(|upload| (upload.owner, upload.contents()));
        let swept = self.store.sweep(&live, sweep.grace, ended.as_ref())?;
        if trees > 0 || swept.contents > 0 {
            tracing::info!(trees, contents = swept.contents, bytes = swept.bytes, "packs swept");
        }
        Ok(swept)
    }
}

/// Receiver for the file list of one upload.
pub struct ListingReceiver {
    packs: PackStore,
    call: UploadGuard,
    writer: ListingWriter,
    memory: MemoryReservation,
}

impl ListingReceiver {
    pub fn push(&mut self, node: &TreeNode<'_>) -> Result<(), PackError> {
        self.writer.push(node)?;
        self.memory.grow_to(self.writer.size())
    }

    /// Verifies the completed list and determines which of its content is missing.
    pub async fn finish(self) -> Result<Arc<UploadPlan>, PackError> {
        let Self { packs, call, writer, mut memory } = self;
        let query = move |shared: &PackStoreInner| {
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
                    firsts.push((entry, ContentRef { hash, size }));
                }
            }
            let contents = firsts.iter().map(|(_, content)| (&content.hash, content.size));
            let presence = shared.store.presence(&call.owner, contents)?;
            call.set_list(listing, &firsts, &presence, memory)
        };
        packs.blocking("take list", query).await
    }
}

#[cfg(test)]
mod tests;
