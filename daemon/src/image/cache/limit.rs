//! How much of the disk cached images may take, and which go first.

use std::collections::HashSet;

use super::super::port::cached::CachedImage;
use super::{ImageError, Images};

impl Images {
    /// Sets how many bytes cached images may take together.
    pub fn limit_cache(&self, bytes: u64) {
        self.shared.cache_limit.store(bytes, std::sync::atomic::Ordering::Relaxed);
    }

    /// Cached images, the least recently used first.
    pub async fn cached_images(&self) -> Result<Vec<CachedImage>, ImageError> {
        Ok(self.shared.catalog.all_cached().await?)
    }

    /// Forgets cached images beyond the limit, the least recently used first, but none that a build uses. The next
    /// sweep frees what nothing else names; a service keeps what it runs. Answers how many were forgotten.
    #[expect(clippy::cast_precision_loss, reason = "a gauge; sizes are far below the limit of exact numbers")]
    pub(in crate::image) async fn trim_cache(&self) -> Result<usize, ImageError> {
        let limit = self.shared.cache_limit.load(std::sync::atomic::Ordering::Relaxed);
        let images = self.cached_images().await?;
        // Several names of one image take its space once.
        let mut counted = HashSet::new();
        let total: u64 = images
            .iter()
            .filter(|image| counted.insert(image.manifest.digest))
            .map(|image| image.size_bytes)
            .sum();
        let (mut left, mut forgotten) = (total, 0);
        for (at, image) in images.iter().enumerate() {
            if left <= limit {
                break;
            }
            if self.shared.used.holds(&image.repository, &image.manifest.digest) {
                continue;
            }
            self.shared.catalog.remove_cached(&image.key).await?;
            forgotten += 1;
            let again = |other: &CachedImage| other.manifest.digest == image.manifest.digest;
            if !images[at + 1..].iter().any(again) {
                left = left.saturating_sub(image.size_bytes);
            }
            tracing::info!(image = image.key.name, "a cached image was forgotten: the cache is full");
        }
        metrics::gauge!("hearth_cached_images_bytes").set(left as f64);
        Ok(forgotten)
    }
}
