//! Packs: images without a tag that builds use as context. A pack goes when the last build that
//! holds it ends, or when no build has held it for an hour.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Mutex;

use super::port::Pack;
use super::{ImageError, Images};
use crate::model::id::PackId;

/// A pack that no build holds is dropped after this long.
pub const UNUSED: Duration = Duration::from_secs(3600);

/// How many builds hold each pack. Locked while one is looked up and while one is removed, so that
/// no build is given a pack that is going.
#[derive(Default)]
pub(super) struct Held(Mutex<HashMap<PackId, usize>>);

impl Images {
    /// Keeps a pack of `owner` until it is released as often as it was held.
    pub async fn hold_pack(&self, id: &PackId, owner: &str) -> Result<Pack, ImageError> {
        let mut held = self.shared.held.0.lock().await;
        let pack = self.shared.catalog.pack(id).await?;
        // Another's pack and none are the same answer.
        let pack = pack
            .filter(|pack| pack.owner == owner)
            .ok_or_else(|| ImageError::PackNotFound { id: id.clone() })?;
        *held.entry(id.clone()).or_default() += 1;
        Ok(pack)
    }

    /// A pack that is held.
    pub async fn pack(&self, id: &PackId, owner: &str) -> Result<Pack, ImageError> {
        let pack = self.shared.catalog.pack(id).await?;
        pack.filter(|pack| pack.owner == owner).ok_or_else(|| ImageError::PackNotFound { id: id.clone() })
    }

    /// The last release drops the pack.
    pub async fn release_pack(&self, id: &PackId) -> Result<(), ImageError> {
        let mut held = self.shared.held.0.lock().await;
        let Some(count) = held.get_mut(id) else { return Ok(()) };
        *count -= 1;
        if *count == 0 {
            held.remove(id);
            self.shared.catalog.remove_pack(id).await?;
        }
        Ok(())
    }

    /// Drops packs that no build has held for long.
    pub async fn sweep_packs(&self, now: Timestamp) -> Result<usize, ImageError> {
        let held = self.shared.held.0.lock().await;
        let mut dropped = 0;
        for pack in self.shared.catalog.packs().await? {
            let age = now.duration_since(pack.created_at).unsigned_abs();
            if !held.contains_key(&pack.id) && age >= UNUSED && now > pack.created_at {
                self.shared.catalog.remove_pack(&pack.id).await?;
                dropped += 1;
            }
        }
        Ok(dropped)
    }
}
