//! Garbage collection of unreferenced content. [`super::port`] documents which content stays.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::port::PackContent;
use super::{ImageError, ImageStore};
use crate::task;

/// Minimum age of content to be removed since it was pushed or looked up, because BuildKit pushes by digest and sets
/// the tag later.
const GRACE: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    pub packs: usize,
    /// Number of evicted cached images.
    pub cached: usize,
    pub manifests: u64,
    pub blobs: u64,
    pub bytes: u64,
}

impl ImageStore {
    /// Runs one pass: removes unused packs, unreferenced manifests, and blobs that nothing requires.
    pub async fn collect_garbage(&self) -> Result<GcReport, ImageError> {
        self.collect_before(Timestamp::now(), SystemTime::now(), GRACE).await
    }

    pub(super) async fn collect_before(
        &self,
        now: Timestamp,
        clock: SystemTime,
        grace: Duration,
    ) -> Result<GcReport, ImageError> {
        let packs = self.sweep_packs(now).await?;
        let cached = self.trim_cache().await?;
        let before = now.saturating_sub(grace).unwrap_or(Timestamp::MIN);
        let forgotten = self.shared.catalog.forget(before).await?;
        let mut live = self.shared.catalog.live_digests().await?;
        for pack in self.shared.catalog.packs().await? {
            let PackContent::Image(manifest) = pack.content else { continue };
            live.insert(manifest.digest);
            match self.contents(&manifest).await {
                Ok(contents) => live.extend(contents.digests()),
                // A read error may be temporary: nothing is removed until the pack can be read.
                Err(error @ (ImageError::Read { .. } | ImageError::Ending)) => return Err(error),
                // No build can use the pack any more; each attempt reports the reason.
                Err(error) => tracing::warn!(pack.id = %pack.id, %error, "failed to read a damaged pack"),
            }
        }
        self.shared.catalog.forget_checks(live.clone()).await?;
        self.shared.inspections.forget_marks();
        let shared = Arc::clone(&self.shared);
        let before = clock.checked_sub(grace).unwrap_or(SystemTime::UNIX_EPOCH);
        let swept = task::blocking("sweep blobs", move || shared.blobs.sweep(&live, before)).await;
        let swept = swept.map_err(|_| ImageError::Ending)?.map_err(ImageError::Sweep)?;
        Ok(GcReport { packs, cached, manifests: forgotten.manifests, blobs: swept.blobs, bytes: swept.bytes })
    }
}
