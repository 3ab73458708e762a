//! The end of an upload: everything is there, verified and durable; then the tree is kept; then it gets a name.

use std::sync::Arc;

use bytes::Bytes;
use hearth_pack::Packed;
use hearth_pack::identity::{ContentHash, TreeDigest};
use hearth_pack::layer::Layer;
use hearth_pack::listing::Listing;

use super::port::Contents;
use super::store::{ContentStore, OwnerKey, Piece, Presence};
use super::upload::{List, Upload, Whole, path};
use super::{Destination, PackError, Packs, Shared, image};
use crate::model::Digest;
use crate::model::id::PackId;
use crate::model::image::TaggedImage;
use crate::task;

/// What an upload became.
#[derive(Debug)]
pub struct Committed {
    /// Of a pack for builds.
    pub pack: Option<PackId>,
    /// Of an image.
    pub image: Option<TaggedImage>,
    /// The image, where one was made.
    pub made: Option<Made>,
}

/// A tree that is kept, and its image where one is wanted. It has no name yet: whoever asked for an
/// archive stores that first.
#[derive(Debug)]
pub struct Ready {
    tree: TreeDigest,
    destination: Destination,
    packed: Option<Arc<Packed>>,
}

impl Ready {
    /// The archive, where it is wanted, and the file that it goes to.
    pub fn archive(&self) -> Option<(Arc<Packed>, &str)> {
        let path = self.destination.archive.as_deref()?;
        self.packed.as_ref().map(|packed| (Arc::clone(packed), path))
    }
}

/// An image that was assembled.
#[derive(Debug)]
pub struct Made {
    /// Of its manifest.
    pub digest: Digest,
    pub layer: Layer,
    pub archive_bytes: u64,
}

impl Packs {
    /// Makes the image of a tree that is kept, where one was asked for.
    pub(super) async fn make(&self, listing: Listing, destination: &Destination) -> Result<Ready, PackError> {
        let tree = listing.digest();
        let mut packed = None;
        if destination.tag.is_some() || destination.archive.is_some() {
            let (packs, asked) = (self.clone(), destination.clone());
            let assemble = task::blocking("assemble image", move || {
                image::assemble(listing, packs.0.store.clone(), &asked, &packs.0.directory)
            });
            packed = Some(Arc::new(assemble.await.map_err(|_| PackError::Ending)??));
        }
        Ok(Ready { tree, destination: destination.clone(), packed })
    }

    /// Gives the image its tag, or the tree the id of a pack.
    pub async fn name(&self, ready: Ready) -> Result<Committed, PackError> {
        let Ready { tree, destination, packed } = ready;
        let made = packed.as_ref().map(|packed| Made {
            digest: packed.digest(),
            layer: packed.layer.clone(),
            archive_bytes: packed.archive_size(),
        });
        let (mut pack, mut image) = (None, None);
        match (destination.tag, packed) {
            (Some(tag), Some(packed)) => image = self.0.images.store(packed, tag).await?,
            _ => {
                let Destination { owner, lineage, .. } = destination;
                pack = Some(self.0.images.add_tree_pack(&owner, tree, lineage).await?);
            }
        }
        Ok(Committed { pack, image, made })
    }
}

impl Shared {
    /// Verifies that all content is there and this participant's, and keeps the tree.
    pub(super) fn keep_tree(&self, upload: &Upload, proof: Option<[u8; 32]>) -> Result<Arc<List>, PackError> {
        let list = upload.list()?;
        let proven = proof.is_some() && !list.prove.is_empty();
        upload.check_complete(proven)?;
        for whole in upload.wholes() {
            self.keep_whole(&upload.owner, &list, &whole)?;
        }
        if let Some(proof) = proof.filter(|_| proven) {
            self.check_proof(&upload.owner, &list, proof)?;
        }
        self.store.sync()?;
        // Once more under the lock that a sweep takes: from here on it is all kept for its grace period.
        let gone = self.look(&upload.owner, &list.listing)?;
        if let Some((entry, _)) = gone.iter().find(|(_, presence)| *presence != Presence::Own) {
            return Err(PackError::ContentGone { path: path(&list.listing, *entry) });
        }
        self.trees.put(&upload.owner, &list.listing)?;
        Ok(list)
    }

    /// A large file is what its pieces are one after the other, or it is refused.
    fn keep_whole(&self, owner: &OwnerKey, list: &List, whole: &Whole) -> Result<(), PackError> {
        let mut sum = blake3::Hasher::new();
        for piece in &whole.pieces {
            let content = self.store.piece(&piece.hash)?;
            let content =
                content.ok_or_else(|| PackError::ContentGone { path: path(&list.listing, whole.entry) })?;
            sum.update(&content);
        }
        if ContentHash::from_bytes(sum.finalize().into()) != whole.content {
            return Err(PackError::ContentMismatch { path: path(&list.listing, whole.entry) });
        }
        Ok(self.store.put_recipe(owner, &whole.content, &whole.pieces)?)
    }

    fn check_proof(&self, owner: &OwnerKey, list: &List, proof: [u8; 32]) -> Result<(), PackError> {
        let mut sum = blake3::Hasher::new_keyed(&list.proof_key);
        let mut proven = Vec::new();
        for &entry in &list.prove {
            let gone = || PackError::ContentGone { path: path(&list.listing, entry) };
            let Some((content, _)) = list.listing.entry(entry as usize).content() else { continue };
            proven.push(content);
            for piece in self.store.pieces(&content)?.ok_or_else(gone)? {
                sum.update(&self.store.piece(&piece.hash)?.ok_or_else(gone)?);
                proven.push(piece.hash);
            }
        }
        // The comparison of these takes the same time wherever they differ.
        if sum.finalize() != blake3::Hash::from_bytes(proof) {
            return Err(PackError::Proof);
        }
        Ok(self.store.add_owner(owner, &proven)?)
    }
}

impl Contents for ContentStore {
    fn pieces(&self, content: &ContentHash) -> std::io::Result<Option<Vec<Piece>>> {
        Self::pieces(self, content)
    }

    fn piece(&self, piece: &ContentHash) -> std::io::Result<Option<Bytes>> {
        Self::piece(self, piece)
    }
}
