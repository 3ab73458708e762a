//! Identity of submissions under an idempotency key.
//!
//! Two submissions are the same if their specs are the same, with these exceptions: a pack is compared by its content,
//! since each upload of the same files has an id of its own, and the rights of the caller are not compared. What the
//! caller names is compared by its name: a path of storage or a tag whose content has changed is the same request.

use sha2::{Digest as _, Sha256};

use super::port::{IdempotencyKey, InsertOutcome, StoreError};
use super::service::BuildRuntime;
use super::submit::{SubmitBuild, SubmitError, SubmittedBuild};
use crate::model::access::SymlinkPolicy;
use crate::model::build::BuildSpec;
use crate::model::{BuildMountSource, Digest};

impl BuildRuntime {
    /// Returns the idempotency key of a request that has one.
    pub(super) async fn idempotency_key(
        &self,
        request: &SubmitBuild,
    ) -> Result<Option<IdempotencyKey>, SubmitError> {
        let Some(key) = &request.idempotency_key else { return Ok(None) };
        let mut compared = BuildSpec { path_links: SymlinkPolicy::default(), ..request.spec.clone() };
        for mount in &mut compared.mounts {
            // A pack that does not exist is compared by its id, and refused when it is held.
            if let BuildMountSource::Pack(source) = &mut mount.source
                && let Ok(id) = source.parse()
                && let Some(content) = self.ports.images.pack_content(&id, &request.caller).await?
            {
                *source = content;
            }
        }
        let text = serde_json::to_vec(&compared).map_err(|error| StoreError(error.into()))?;
        let request_digest = Digest::from_sha256(Sha256::digest(text).into());
        Ok(Some(IdempotencyKey { caller: request.caller.clone(), key: key.clone(), request: request_digest }))
    }

    /// Returns the build that `earlier` names, or an error if it was made by another request.
    pub(super) async fn existing_build(
        &self,
        earlier: InsertOutcome,
        spec: &BuildSpec,
    ) -> Result<SubmittedBuild, SubmitError> {
        let build = match earlier {
            InsertOutcome::Existing(id) => return Ok(SubmittedBuild { id, created: false }),
            InsertOutcome::Conflict(build) => build,
            // Only a store that answers `New` without storing the build gets here.
            InsertOutcome::New => {
                return Err(SubmitError::Store(StoreError(std::io::Error::other("a build was not stored"))));
            }
        };
        // A call is repeated with its own pack, whose content is no longer known once the build has ended.
        match self.ports.store.get(&build).await? {
            Some(record) if record.spec == *spec => Ok(SubmittedBuild { id: build, created: false }),
            _ => Err(SubmitError::KeyReused { build }),
        }
    }
}
