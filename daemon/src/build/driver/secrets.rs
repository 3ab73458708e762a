//! Values of the room's secrets, read when a build starts: a build that waited, or that a restart of the daemon runs
//! again, gets the current ones.

use super::super::service::{ActiveBuild, BuildRuntime};
use crate::model::build::BuildSpec;
use crate::model::fault::Fault;
use crate::model::secret::Secret;

impl BuildRuntime {
    pub(super) async fn reveal_room_secrets(
        &self,
        active: &ActiveBuild,
        spec: &BuildSpec,
    ) -> Result<(), Fault> {
        for (id, name) in &spec.room_secrets {
            let value = self.ports.secrets.reveal_for_build(name).await?;
            active.add_room_secret(id, Secret::new(value.reveal().clone().into_bytes()));
        }
        Ok(())
    }
}
