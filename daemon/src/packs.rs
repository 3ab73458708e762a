//! Packs that are sent by content: a client names a tree, says what is in it, and sends what the room lacks.
//!
//! ```text
//! begin --> the room has the tree of this participant, or the image that is made of it: done
//!       '-> upload -- list --> what is missing -- receive* --> commit --> tree kept --> pack or image
//! ```
//!
//! Content lies in [`store`], shared by all; trees lie in files of their own, by participant. A tree is kept
//! for some time after its last use, so that the next pack of a directory sends what changed. Content that no
//! tree names goes an hour after somebody asked for it: what arrived of an upload that was cut off is there when
//! its client tries again.
//!
//! Nobody gets at content by its hash alone: what a participant has never sent is either proven to be in his
//! hands, by a hash over all of it with a key that nobody knew before, or it is sent.

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

/// Uploads of one participant at a time. One that is idle makes room for a new one.
const MOST_UPLOADS: usize = 16;
/// An upload that nobody speaks to is forgotten.
const IDLE: Duration = Duration::from_secs(600);
/// After this long of silence an upload may have to make room: its client is gone, most likely.
const STALE: Duration = Duration::from_secs(30);
/// Content that no tree names stays this long after somebody asked for it.
const GRACE: Duration = Duration::from_secs(3600);
/// Memory for the lists of all uploads: some four million entries.
const LISTS: usize = 768 << 20;

pub struct PackOptions {
    /// Content in `content`, trees in `trees` below it.
    pub directory: PathBuf,
    pub limits: StoreLimits,
    /// Trees that no build uses are kept this long.
    pub keep: Duration,
}

/// A handle on the packs of the room; cheap to clone.
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
    /// Held for reading from the look whether all of a tree is there until the tree is kept, and for writing by a
    /// sweep: between the two, nothing else says that its content is needed.
    keeping: RwLock<()>,
}

/// What a sweep may remove.
struct Sweep {
    /// Trees that no build uses are kept this long.
    keep: Duration,
    /// Trees of this participant are kept for [`GRACE`] at most.
    hurried: Option<OwnerKey>,
    /// Content that no tree names is kept this long after somebody asked for it.
    grace: Duration,
    /// What has arrived of this upload is not kept.
    ended: Option<Arc<Upload>>,
}

/// What becomes of a tree.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The participant whose it is.
    pub owner: String,
    /// An image of the room; none is a pack for builds.
    pub tag: Option<Reference>,
    /// The file of room storage that the OCI archive goes to, where it is wanted too. Whoever asks for it
    /// writes it: see [`Ready::archive`].
    pub archive: Option<String>,
    pub image: ImageOptions,
    /// See [`PackContent::Tree`].
    pub lineage: String,
}

impl Destination {
    const fn wants_image(&self) -> bool {
        self.tag.is_some() || self.archive.is_some()
    }

    /// What the image of `tree` is made of.
    fn origin(&self, tree: TreeDigest) -> Origin {
        Origin { owner: self.owner.clone(), tree, way: self.image.way() }
    }
}

/// The answer to a digest.
#[derive(Debug)]
pub enum Begun {
    Done(Box<Ready>),
    Upload(String),
}

impl Packs {
    /// Blocking.
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

    /// Ends at once when the room has this tree of this participant, or the image that is made of it.
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

    /// Whose quota a caller's packs count for is asked here from now on. Said once, at the start; until then each caller
    /// has its own.
    pub fn share_by(&self, owners: ShareOwners) {
        if self.0.owners.set(owners).is_err() {
            tracing::warn!("it was said already whose quota packs count for");
        }
    }

    /// Has what a service has sent count for whoever deployed it.
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

    /// Bytes of content that a participant has sent and that are still there.
    pub fn sent_by(&self, caller: &str) -> u64 {
        self.0.store.sent_by(&OwnerKey::of(caller))
    }

    pub fn limits(&self) -> StoreLimits {
        self.0.store.limits()
    }

    /// Uploads that have not ended.
    pub fn unfinished(&self) -> Vec<UnfinishedPack> {
        self.0.uploads().values().map(|upload| upload.unfinished()).collect()
    }

    /// Whose an upload is: the policy is asked whether the caller may go on with it.
    pub fn upload_owner(&self, id: &str) -> Result<String, PackError> {
        let owner = self.0.uploads().get(id).map(|upload| upload.call().destination.owner.clone());
        owner.ok_or_else(|| PackError::no_upload(id))
    }

    /// Takes the list of an upload.
    pub fn lister(&self, caller: &str, id: &str) -> Result<Lister, PackError> {
        let call = self.0.call(caller, id)?;
        if call.has_list() {
            return Err(PackError::SecondList);
        }
        let writer = ListingWriter::new(ListingLimits::default());
        Ok(Lister { packs: self.clone(), call, writer, memory: self.0.memory.share() })
    }

    /// Says what large files are made of; gives the numbers of the pieces that are missing of each.
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

    /// Takes contents of an upload.
    pub fn receiver(&self, caller: &str, id: &str) -> Result<Receiver, PackError> {
        let call = self.0.call(caller, id)?;
        call.list()?;
        Ok(Receiver::new(self.clone(), call))
    }

    /// Makes of an upload what it was begun for, but for its name.
    pub async fn commit(&self, caller: &str, id: &str, proof: Option<[u8; 32]>) -> Result<Ready, PackError> {
        let call = self.0.call(caller, id)?;
        let upload = Arc::clone(&call);
        let list = self.blocking("commit upload", move |shared| shared.keep_tree(&upload, proof)).await?;
        let ready = self.make(list.listing.clone(), &call.destination).await?;
        self.0.uploads().remove(id);
        Ok(ready)
    }

    /// A tree that a pack of `owner` stands for.
    pub async fn tree(&self, owner: &str, tree: TreeDigest) -> Result<PackTree, PackError> {
        let owner = OwnerKey::of(owner);
        let listing = self.blocking("open tree", move |shared| Ok(shared.trees.get(&owner, &tree)?)).await?;
        let listing = listing.ok_or(PackError::TreeGone { tree: tree.to_string() })?;
        Ok(PackTree::new(listing, Arc::new(self.0.store.reader())))
    }

    /// Forgets uploads that are idle, trees that nobody used for long, and content that nothing needs.
    pub async fn sweep(&self) -> Result<Swept, PackError> {
        self.0.uploads().retain(|_, upload| upload.idle() < IDLE);
        self.sweep_now(Sweep { keep: self.0.keep, hurried: None, grace: GRACE, ended: None }).await
    }

    /// Makes room after `error`: trees that are only kept for later go, those of `owner` alone where it is his quota.
    async fn free_space(&self, owner: OwnerKey, error: &AppendError) -> Result<(), PackError> {
        let is_own = matches!(error, AppendError::OwnerQuota { .. });
        let (keep, hurried) =
            if is_own { (self.0.keep, Some(owner)) } else { (GRACE.min(self.0.keep), None) };
        self.sweep_now(Sweep { keep, hurried, grace: GRACE, ended: None }).await.map(|_| ())
    }

    /// Ends an upload for which there is no room. What has arrived of it serves nobody and goes. What others have
    /// sent stays: theirs may be under way, too.
    async fn give_up(&self, upload: &Arc<Upload>) {
        self.0.uploads().retain(|_, other| !Arc::ptr_eq(other, upload));
        let ended = Some(Arc::clone(upload));
        let sweep = Sweep { keep: self.0.keep, hurried: None, grace: GRACE, ended };
        if let Err(error) = self.sweep_now(sweep).await {
            tracing::warn!(%error, "content of an upload that found no room stays until the next sweep");
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

    /// An upload by its owner and id.
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

    /// A tree of this participant with all that is in it.
    fn known(&self, owner: &OwnerKey, tree: &TreeDigest) -> Result<Option<Listing>, PackError> {
        let Some(listing) = self.trees.get(owner, tree)? else { return Ok(None) };
        let presence = self.look(owner, &listing)?;
        Ok(presence.iter().all(|(_, presence)| *presence == Presence::Own).then_some(listing))
    }

    /// What is there of each entry's content.
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

/// The list of an upload as it arrives.
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

    /// The end of the list: what of it is missing.
    pub async fn finish(self) -> Result<Arc<List>, PackError> {
        let Self { packs, call, writer, mut memory } = self;
        let look = move |shared: &Shared| {
            let listing = writer.finish()?;
            if listing.digest() != call.tree {
                let (claimed, actual) = (call.tree.to_string(), listing.digest().to_string());
                return Err(PackError::TreeMismatch { claimed, actual });
            }
            // Beside the list itself, while the answer is found.
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
