//! Packs: untagged images that builds use as context. A pack is removed when the last build that holds it ends, or when
//! no build has held it for an hour.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use hearth_pack::identity::TreeDigest;
use jiff::Timestamp;
use tokio::sync::Mutex;

use super::port::{PackContent, PackRecord, StoredBlob};
use super::{ImageError, ImageStore};
use crate::model::Digest;
use crate::model::access::BUILD_MOUNTS_OWNER;
use crate::model::id::PackId;
use crate::task;

/// Time after which a pack that no build holds is removed.
pub const UNUSED_PACK_TTL: Duration = Duration::from_secs(3600);

/// State of packs beside their records. The lock is held while a pack is looked up and while one is removed, so that no
/// build gets a pack that is being removed.
#[derive(Default)]
pub(super) struct HeldPacks(Mutex<HashMap<PackId, PackUse>>);

#[derive(Default)]
struct PackUse {
    /// Number of builds that hold the pack.
    builds: usize,
    /// Blobs that arrived with the pack and that the room did not have before. They are removed with the pack, unless
    /// they were touched since. After a restart they are not known, and the sweep frees them.
    new_blobs: Vec<StoredBlob>,
}

impl ImageStore {
    /// Holds a pack of `owner` until it is released as often as it was held.
    pub async fn hold_pack(&self, id: &PackId, owner: &str) -> Result<PackRecord, ImageError> {
        let mut held = self.shared.held.0.lock().await;
        let pack = self.pack(id, owner).await?;
        held.entry(id.clone()).or_default().builds += 1;
        Ok(pack)
    }

    /// Returns the owner of a pack, or `None` if there is no such pack.
    pub async fn pack_owner(&self, id: &PackId) -> Result<Option<String>, ImageError> {
        Ok(self.shared.catalog.pack(id).await?.map(|pack| pack.owner))
    }

    /// Returns a pack by its owner and id. A pack of another owner is reported as missing.
    pub async fn pack(&self, id: &PackId, owner: &str) -> Result<PackRecord, ImageError> {
        let pack = self.shared.catalog.pack(id).await?;
        pack.filter(|pack| pack.owner == owner).ok_or_else(|| ImageError::PackNotFound { id: id.clone() })
    }

    /// Releases a pack; the last release removes it, and returns the DiffIDs of the removed layers.
    pub async fn release_pack(&self, id: &PackId) -> Result<Vec<Digest>, ImageError> {
        let mut held = self.shared.held.0.lock().await;
        let Some(used) = held.get_mut(id) else { return Ok(Vec::new()) };
        used.builds = used.builds.saturating_sub(1);
        if used.builds > 0 {
            return Ok(Vec::new());
        }
        let used = held.remove(id).unwrap_or_default();
        let pack = self.shared.catalog.pack(id).await?;
        let layers = match pack.map(|pack| pack.content) {
            Some(PackContent::Image(manifest)) => self.open_layers(&manifest).await.unwrap_or_else(|error| {
                tracing::warn!(pack.id = %id, %error, "failed to read the layers of a removed pack");
                Vec::new()
            }),
            Some(PackContent::Tree { .. }) | None => Vec::new(),
        };
        self.drop_pack(id, used).await?;
        Ok(layers.into_iter().map(|layer| layer.diff_id).collect())
    }

    /// Adds a pack of `owner` that refers to a tree.
    pub async fn add_tree_pack(
        &self,
        owner: &str,
        tree: TreeDigest,
        lineage: String,
    ) -> Result<PackId, ImageError> {
        let (id, created_at) = (PackId::random(), Timestamp::now());
        let content = PackContent::Tree { tree, lineage };
        let pack = PackRecord { id: id.clone(), content, owner: owner.to_owned(), created_at };
        self.shared.catalog.put_pack(pack).await?;
        Ok(id)
    }

    /// Returns all packs.
    pub async fn packs(&self) -> Result<Vec<PackRecord>, ImageError> {
        Ok(self.shared.catalog.packs().await?)
    }

    /// Returns the size in bytes of each participant's image packs, mostly base images that builds mount.
    pub async fn pack_bytes(&self) -> Result<BTreeMap<String, u64>, ImageError> {
        let mut bytes: BTreeMap<String, u64> = BTreeMap::new();
        for pack in self.packs().await? {
            let Some(manifest) = pack.image() else { continue };
            // A damaged pack is reported where it is used.
            let Ok(contents) = self.contents(manifest).await else { continue };
            let owner = pack.owner.strip_prefix(BUILD_MOUNTS_OWNER).unwrap_or(&pack.owner);
            *bytes.entry(owner.to_owned()).or_default() += contents.size_bytes;
        }
        Ok(bytes)
    }

    pub(super) async fn remember_new_blobs(&self, id: &PackId, stored: &[StoredBlob]) {
        let brought = stored.iter().filter(|stored| stored.fresh.is_some()).copied().collect();
        self.shared.held.0.lock().await.insert(id.clone(), PackUse { builds: 0, new_blobs: brought });
    }

    async fn drop_pack(&self, id: &PackId, used: PackUse) -> Result<(), ImageError> {
        self.shared.catalog.remove_pack(id).await?;
        let shared = Arc::clone(&self.shared);
        let freed = task::blocking("free pack", move || {
            used.new_blobs.iter().try_for_each(|stored| shared.blobs.undo_put(stored))
        });
        if !matches!(freed.await, Ok(Ok(()))) {
            tracing::warn!(pack.id = %id, "failed to remove the blobs of a removed pack; the next sweep removes them");
        }
        Ok(())
    }

    /// Removes packs that no build has held for an hour. Returns their number.
    pub async fn sweep_packs(&self, now: Timestamp) -> Result<usize, ImageError> {
        let mut held = self.shared.held.0.lock().await;
        let mut dropped = 0;
        for pack in self.shared.catalog.packs().await? {
            let age = now.duration_since(pack.created_at).unsigned_abs();
            let unused = held.get(&pack.id).is_none_or(|used| used.builds == 0);
            if unused && age >= UNUSED_PACK_TTL && now > pack.created_at {
                let used = held.remove(&pack.id).unwrap_or_default();
                self.drop_pack(&pack.id, used).await?;
                dropped += 1;
            }
        }
        Ok(dropped)
    }
}
