//! A look at a build's files that goes on while something else is waited for.
//!
//! ```text
//! submit, a slot is free:  begin --> the build is stored ----> its driver takes the look, unless it is old by then
//! driver:                  begin --> "running" is stored ---/
//! ```
//!
//! A build reads its files as they are when it is submitted, or later. One that had to wait looks when its turn has
//! come.

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

/// A driver that begins later than this looks again.
const MOST_AGE: Duration = Duration::from_secs(1);

/// Dropped, it is given up.
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

    /// Whether a look at the files of a build may begin before the build is accepted: it brings nothing into the room.
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
                tracing::error!(%error, "the look at the files of a build ended by itself");
                let message = "the daemon failed while it looked at the files; its log has the cause";
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
