//! Prefetch of a build's context that runs while the build is being stored.
//!
//! ```text
//! submit, a slot is free:  start --> the build is stored ----> its driver takes the prefetch, unless it is too old
//! driver:                  start --> "running" is stored ---/
//! ```
//!
//! A build reads its files as they are when it is submitted, or later. A build that had to wait for a slot starts its
//! prefetch when it gets one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::super::port::{ContextSource, PreparedContext};
use super::super::service::{ActiveBuild, BuildRuntime};
use crate::model::build::{BuildRecord, BuildSpec};
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::secret::RegistryCredential;
use crate::model::{MountOrigin, MountSource as _};
use crate::task;

/// Maximum age of a prefetch that a driver uses; after that it starts a new one.
const MAX_PREFETCH_AGE: Duration = Duration::from_secs(1);

/// A running context preparation. Dropping the prefetch cancels it.
pub(in crate::build) struct ContextPrefetch {
    started_at: Instant,
    task: JoinHandle<Result<PreparedContext, Fault>>,
}

impl ContextPrefetch {
    pub(in crate::build) fn start(
        contexts: &Arc<dyn ContextSource>,
        spec: &BuildSpec,
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Self {
        let contexts = Arc::clone(contexts);
        let (spec, caller, given) = (spec.clone(), caller.to_owned(), given.clone());
        let task = task::spawn("context", async move { contexts.prepare(&spec, &caller, &given).await });
        Self { started_at: Instant::now(), task }
    }

    /// Reports whether the prefetch may start before the build is accepted: it must not bring anything into the room.
    pub(in crate::build) fn is_local_only(spec: &BuildSpec) -> bool {
        spec.mounts.iter().all(|mount| matches!(mount.source.origin(), MountOrigin::Storage(_)))
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.started_at.elapsed() < MAX_PREFETCH_AGE
    }

    pub(super) async fn prepared(mut self) -> Result<PreparedContext, Fault> {
        match (&mut self.task).await {
            Ok(looked) => looked,
            Err(error) => {
                tracing::error!(%error, "context preparation task panicked");
                let message = "the daemon failed while it prepared the context; its log has the cause";
                Err(Fault::new(FaultStage::Context, ErrorCode::Internal, message))
            }
        }
    }
}

impl BuildRuntime {
    pub(super) fn start_prefetch(&self, active: &ActiveBuild, record: &BuildRecord) -> ContextPrefetch {
        let given = &active.secrets.credentials;
        ContextPrefetch::start(&self.ports.contexts, &record.spec, &record.submitted_by, given)
    }
}

impl Drop for ContextPrefetch {
    fn drop(&mut self) {
        self.task.abort();
    }
}
