//! Measures and prunes BuildKit's cache.

use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::{DiskUsageRequest, PruneRequest};
use hearth_proto::status::root_cause_message;
use tokio::time::timeout;

use super::BuildKitClient;

/// Time limit for BuildKit to add up its cache.
const MEASURE_LIMIT: Duration = Duration::from_secs(30);
/// Time limit for pruning.
const PRUNE_LIMIT: Duration = Duration::from_secs(600);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cache of BuildKit: {0}")]
pub struct CacheError(String);

impl BuildKitClient {
    /// Returns the size of the cache in bytes.
    pub async fn disk_usage(&self) -> Result<u64, CacheError> {
        let mut control = self.control.clone();
        let answer = timeout(MEASURE_LIMIT, control.disk_usage(DiskUsageRequest::default())).await;
        let usage = answer
            .map_err(|_| CacheError("no answer in time".to_owned()))?
            .map_err(|status| CacheError(root_cause_message(&status)))?;
        let sizes =
            usage.into_inner().record.into_iter().map(|record| u64::try_from(record.size).unwrap_or(0));
        Ok(sizes.fold(0, u64::saturating_add))
    }

    /// Removes the least recently used entries that are not in use, until at most `keep` bytes are left.
    pub async fn prune(&self, keep: u64) -> Result<(), CacheError> {
        let mut control = self.control.clone();
        // BuildKit treats zero as no limit, and would then remove everything.
        let keep = i64::try_from(keep).unwrap_or(i64::MAX);
        let request = PruneRequest { all: true, max_used_space: keep, ..PruneRequest::default() };
        let pruned = timeout(PRUNE_LIMIT, async {
            let mut freed = control.prune(request).await?.into_inner();
            while freed.message().await?.is_some() {}
            Ok(())
        });
        pruned
            .await
            .map_err(|_| CacheError("pruning takes too long".to_owned()))?
            .map_err(|status: tonic::Status| CacheError(root_cause_message(&status)))
    }
}
