//! Commit of an upload: first all content is verified and made durable, then the tree is stored, and at last it gets
//! its tag or pack id.

use std::sync::Arc;

use bytes::Bytes;
use hearth_pack::identity::{ContentHash, TreeDigest};
use hearth_pack::listing::TreeListing;

use super::ready::{CommittedPack, PreparedImage, PreparedPack, StoredImage};
use super::store::{ContentPresence, ContentStoreReader, OwnerKey};
use super::upload::{ChunkedFile, PackUpload, UploadPlan, display_path};
use super::{PackDestination, PackError, PackStore, PackStoreInner, image};
use crate::context::{ContentPiece, PackContentSource};
use crate::task;

impl PackStore {
    /// Builds the image of a stored tree if one is wanted.
    pub(super) async fn prepare(
        &self,
        listing: TreeListing,
        destination: &PackDestination,
    ) -> Result<PreparedPack, PackError> {
        let tree = listing.digest();
        let mut image = None;
        if destination.wants_image() {
            let (packs, asked) = (self.clone(), destination.clone());
            let assemble = task::blocking("assemble image", move || {
                image::assemble(listing, &packs.0.store, &asked, &packs.0.directory)
            });
            let packed = assemble.await.map_err(|_| PackError::Ending)??;
            image = Some(PreparedImage::Assembled(Arc::new(packed)));
        }
        Ok(PreparedPack { tree, destination: destination.clone(), image })
    }

    /// Finds an image that was built earlier from this tree with the same options, if it still exists.
    pub(super) async fn find_prepared(
        &self,
        tree: TreeDigest,
        destination: &PackDestination,
    ) -> Result<Option<PreparedPack>, PackError> {
        if !destination.wants_image() {
            return Ok(None);
        }
        let found = self.0.images.find_by_origin(destination.origin(tree)).await?;
        let Some(stored) = found.and_then(|found| StoredImage::from_found(found, destination)) else {
            return Ok(None);
        };
        let owner = OwnerKey::of(&destination.owner);
        self.blocking("use tree", move |shared| Ok(shared.trees.touch(&owner, &tree)?)).await?;
        let image = Some(PreparedImage::Stored(Arc::new(stored)));
        Ok(Some(PreparedPack { tree, destination: destination.clone(), image }))
    }

    /// Gives the image its tag, or the tree its pack id.
    pub async fn publish(&self, ready: PreparedPack) -> Result<CommittedPack, PackError> {
        let PreparedPack { tree, destination, image: made } = ready;
        let (mut pack, mut image) = (None, None);
        match (&destination.tag, &made) {
            (Some(tag), Some(PreparedImage::Assembled(packed))) => {
                image = self.0.images.store_packed(Arc::clone(packed), tag.clone()).await?;
                let origin = destination.origin(tree);
                self.0.images.record_origin(&tag.repository, packed.digest(), origin).await?;
            }
            (Some(tag), Some(PreparedImage::Stored(stored))) => {
                let named = self.0.images.publish(stored.image(), std::slice::from_ref(tag)).await?;
                image = named.into_iter().next();
            }
            _ => {
                let PackDestination { owner, lineage, .. } = destination;
                pack = Some(self.0.images.add_tree_pack(&owner, tree, lineage).await?);
            }
        }
        Ok(CommittedPack { pack, image, made: made.map(|made| made.digests()) })
    }
}

impl PackStoreInner {
    /// Verifies that all content is present and owned by this participant, and stores the tree.
    pub(super) fn store_tree(
        &self,
        upload: &PackUpload,
        proof: Option<[u8; 32]>,
    ) -> Result<Arc<UploadPlan>, PackError> {
        let list = upload.list()?;
        let proven = proof.is_some() && !list.prove.is_empty();
        upload.check_complete(proven)?;
        for whole in upload.complete_chunked_files() {
            self.store_recipe(&upload.owner, &list, &whole)?;
        }
        if let Some(proof) = proof.filter(|_| proven) {
            self.check_proof(&upload.owner, &list, proof)?;
        }
        self.store.sync()?;
        // The lock keeps sweeps out between this check and the write of the tree. Once written, the tree marks its
        // content as needed.
        let _keeping = self.tree_lock.read();
        let losses = self.store.losses()?;
        let gone = self.presence_of_listing(&upload.owner, &list.listing)?;
        if let Some((entry, _)) = gone.iter().find(|(_, presence)| *presence != ContentPresence::Own) {
            return Err(PackError::ContentGone { path: display_path(&list.listing, *entry) });
        }
        // The check may have seen content of another upload that is not durable yet.
        self.store.sync_seen(losses)?;
        self.trees.put(&upload.owner, &list.listing)?;
        Ok(list)
    }

    /// Verifies that the pieces of a large file add up to its content hash, and stores its recipe.
    fn store_recipe(
        &self,
        owner: &OwnerKey,
        list: &UploadPlan,
        whole: &ChunkedFile,
    ) -> Result<(), PackError> {
        let mut sum = blake3::Hasher::new();
        let reader = self.store.reader();
        for piece in &whole.pieces {
            let content = reader.piece(&piece.hash)?;
            let content = content
                .ok_or_else(|| PackError::ContentGone { path: display_path(&list.listing, whole.entry) })?;
            sum.update(&content);
        }
        if ContentHash::from_bytes(sum.finalize().into()) != whole.content {
            return Err(PackError::ContentMismatch { path: display_path(&list.listing, whole.entry) });
        }
        Ok(self.store.put_recipe(owner, &whole.content, &whole.pieces)?)
    }

    fn check_proof(&self, owner: &OwnerKey, list: &UploadPlan, proof: [u8; 32]) -> Result<(), PackError> {
        let mut sum = blake3::Hasher::new_keyed(&list.proof_key);
        let mut proven = Vec::new();
        let reader = self.store.reader();
        for &entry in &list.prove {
            let gone = || PackError::ContentGone { path: display_path(&list.listing, entry) };
            let Some((content, _)) = list.listing.entry(entry as usize).content() else { continue };
            proven.push(content);
            for piece in reader.pieces(&content)?.ok_or_else(gone)? {
                sum.update(&reader.piece(&piece.hash)?.ok_or_else(gone)?);
                proven.push(piece.hash);
            }
        }
        // Comparing `blake3::Hash` values takes constant time.
        if sum.finalize() != blake3::Hash::from_bytes(proof) {
            return Err(PackError::Proof);
        }
        Ok(self.store.add_owner(owner, &proven)?)
    }
}

impl PackContentSource for ContentStoreReader {
    fn pieces(&self, content: &ContentHash) -> std::io::Result<Option<Vec<ContentPiece>>> {
        Self::pieces(self, content)
    }

    fn piece(&self, piece: &ContentHash) -> std::io::Result<Option<Bytes>> {
        Self::piece(self, piece)
    }
}
