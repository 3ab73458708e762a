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
use super::super::service::{Active, Shared};
use crate::model::MountSource;
use crate::model::build::{BuildRecord, BuildSpec};
use crate::model::fault::{Fault, Stage};
use crate::model::secret::Credential;
use crate::task;

/// Maximum age of a prefetch that a driver uses; after that it starts a new one.
const MOST_AGE: Duration = Duration::from_secs(1);

/// A running context preparation. Dropping the prefetch cancels it.
pub(in crate::build) struct Early {
    begun: Instant,
    look: JoinHandle<Result<Box<dyn PreparedContext>, Fault>>,
}

impl Early {
    pub(in crate::build) fn begin(
        contexts: &Arc<dyn ContextSource>,
        spec: &BuildSpec,
        caller: &str,
        given: &BTreeMap<String, Credential>,
    ) -> Self {
        let contexts = Arc::clone(contexts);
        let (spec, caller, given) = (spec.clone(), caller.to_owned(), given.clone());
        let look = task::spawn("context", async move { contexts.prepare(&spec, &caller, &given).await });
        Self { begun: Instant::now(), look }
    }

    /// Reports whether the prefetch may start before the build is accepted: it must not bring anything into the room.
    pub(in crate::build) fn is_harmless(spec: &BuildSpec) -> bool {
        let is_here = |source: &MountSource| {
            matches!(source, MountSource::Room(_) | MountSource::Project(_) | MountSource::EmptyDir)
        };
        spec.mounts.iter().all(|mount| is_here(&mount.source))
    }

    pub(super) fn is_young(&self) -> bool {
        self.begun.elapsed() < MOST_AGE
    }

    pub(super) async fn prepared(mut self) -> Result<Box<dyn PreparedContext>, Fault> {
        match (&mut self.look).await {
            Ok(looked) => looked,
            Err(error) => {
                tracing::error!(%error, "context preparation task panicked");
                let message = "the daemon failed while it prepared the context; its log has the cause";
                Err(Fault::new(Stage::Context, "internal", message))
            }
        }
    }
}

impl Shared {
    pub(super) fn look(&self, active: &Active, record: &BuildRecord) -> Early {
        let given = &active.secrets.credentials;
        Early::begin(&self.ports.contexts, &record.spec, &record.submitted_by, given)
    }
}

impl Drop for Early {
    fn drop(&mut self) {
        self.look.abort();
    }
}
