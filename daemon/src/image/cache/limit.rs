//! Size limits of the image cache, and the order of eviction.

use std::collections::{BTreeMap, HashMap};

use super::super::port::cached::{CachedImage, ImageRight};
use super::{ImageError, ImageStore};

/// Divisor of the cache size: images that were fetched with one caller's credentials may take this part of the whole,
/// because nobody else can use them.
const PRIVATE_CACHE_DIVISOR: u64 = 4;

impl ImageStore {
    /// Sets the maximum total size of cached images, in bytes.
    pub fn limit_cache(&self, bytes: u64) {
        metrics::describe_gauge!(
            "hearth_cached_images_bytes",
            "Size of the cached images of other registries."
        );
        self.shared.cache_limit.store(bytes, std::sync::atomic::Ordering::Relaxed);
    }

    /// Returns the cached images, the least recently used first.
    pub async fn cached_images(&self) -> Result<Vec<CachedImage>, ImageError> {
        Ok(self.shared.catalog.all_cached().await?)
    }

    /// Evicts cached images beyond the limits, the least recently used first, but none that a build uses: first private
    /// ones whose owner exceeds its part of the cache, then any. The next sweep frees content that is no longer
    /// referenced; a service keeps what it runs. Returns the number of evicted images.
    #[expect(clippy::cast_precision_loss, reason = "a gauge; sizes are far below the limit of exact numbers")]
    pub(in crate::image) async fn trim_cache(&self) -> Result<usize, ImageError> {
        let limit = self.shared.cache_limit.load(std::sync::atomic::Ordering::Relaxed);
        let images = self.cached_images().await?;
        let mut private: BTreeMap<String, Vec<&CachedImage>> = BTreeMap::new();
        for image in &images {
            if let ImageRight::Caller(caller) = &image.key.right {
                private.entry(self.owner_of(caller)).or_default().push(image);
            }
        }
        let is_used =
            |image: &CachedImage| self.shared.cached_in_use.holds(&image.repository, &image.manifest.digest);
        let mut gone = Vec::new();
        for of_one in private.values() {
            gone.extend(images_to_evict(of_one, limit / PRIVATE_CACHE_DIVISOR, is_used));
        }
        let rest: Vec<_> =
            images.iter().filter(|image| !gone.iter().any(|gone| gone.key == image.key)).collect();
        gone.extend(images_to_evict(&rest, limit, is_used));
        for image in &gone {
            self.shared.catalog.remove_cached(&image.key).await?;
            tracing::info!(image.name = image.key.name, "cached image evicted; the cache is full");
        }
        let kept = images.iter().filter(|image| !gone.iter().any(|gone| gone.key == image.key));
        metrics::gauge!("hearth_cached_images_bytes").set(bytes_of(kept) as f64);
        Ok(gone.len())
    }
}

/// Returns the images to evict, from the first on, so that the rest fits into `limit`; never one in use.
fn images_to_evict<'i>(
    images: &[&'i CachedImage],
    limit: u64,
    is_used: impl Fn(&CachedImage) -> bool,
) -> Vec<&'i CachedImage> {
    let mut names: HashMap<_, usize> = HashMap::new();
    images.iter().for_each(|image| *names.entry(image.manifest.digest).or_default() += 1);
    let (mut left, mut gone) = (bytes_of(images.iter().copied()), Vec::new());
    for image in images {
        if left <= limit {
            break;
        }
        if is_used(image) {
            continue;
        }
        gone.push(*image);
        if let Some(count) = names.get_mut(&image.manifest.digest) {
            *count -= 1;
            if *count == 0 {
                left = left.saturating_sub(image.size_bytes);
            }
        }
    }
    gone
}

/// Returns the total size; an image with several names counts once.
fn bytes_of<'i>(images: impl Iterator<Item = &'i CachedImage>) -> u64 {
    let sizes: HashMap<_, u64> = images.map(|image| (image.manifest.digest, image.size_bytes)).collect();
    sizes.values().sum()
}
