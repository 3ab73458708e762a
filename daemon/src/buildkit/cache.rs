//! Size of BuildKit's cache, and freeing parts of it.

use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::{DiskUsageRequest, PruneRequest};
use hearth_proto::status::innermost;
use tokio::time::timeout;

use super::BuildKit;

/// For BuildKit to add up what it has.
const MEASURE_LIMIT: Duration = Duration::from_secs(30);
/// For the removal of what is pruned.
const PRUNE_LIMIT: Duration = Duration::from_secs(600);

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cache of BuildKit: {0}")]
pub struct CacheError(String);

impl BuildKit {
    /// Bytes that the cache takes.
    pub async fn disk_usage(&self) -> Result<u64, CacheError> {
        let mut control = self.control.clone();
        let answer = timeout(MEASURE_LIMIT, control.disk_usage(DiskUsageRequest::default())).await;
        let usage = answer
            .map_err(|_| CacheError("no answer in time".to_owned()))?
            .map_err(|status| CacheError(innermost(&status)))?;
        let sizes =
            usage.into_inner().record.into_iter().map(|record| u64::try_from(record.size).unwrap_or(0));
        Ok(sizes.fold(0, u64::saturating_add))
    }

    /// Frees what was used least, and is not in use now, until no more than `keep` bytes are left.
    pub async fn prune(&self, keep: u64) -> Result<(), CacheError> {
        let mut control = self.control.clone();
        // BuildKit takes zero for no bound, and then frees everything.
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
            .map_err(|status: tonic::Status| CacheError(innermost(&status)))
    }
}
