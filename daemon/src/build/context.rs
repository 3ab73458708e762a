//! The context module as builds use it.

use async_trait::async_trait;

use super::port::{ContextSource, PreparedContext, RoomImages};
use crate::context::port::ContextFiles;
use crate::context::{ContextMount, ContextRequest, Contexts, Prepared};
use crate::model::build::BuildSpec;
use crate::model::fault::{Fault, Stage};
use crate::model::{MountSource, MountSpec, MountTarget};

/// What a build asks of the context module, with the images and packs among its mounts opened.
pub(super) async fn request_of(
    spec: &BuildSpec,
    caller: &str,
    images: &dyn RoomImages,
) -> Result<ContextRequest, Fault> {
    let mut mounts = Vec::with_capacity(spec.mounts.len());
    for mount in &spec.mounts {
        let image = match &mount.source {
            MountSource::Image { reference, .. } => Some(images.open_image(reference).await?),
            MountSource::Pack(id) => {
                let id = id.parse().map_err(|_| no_such_pack(mount, id))?;
                Some(images.open_pack(&id, caller).await?)
            }
            MountSource::Room(_) | MountSource::Project(_) | MountSource::EmptyDir => None,
        };
        mounts.push(ContextMount { spec: mount.clone(), image });
    }
    Ok(ContextRequest {
        mounts,
        context_path: spec.context_path.clone(),
        dockerfile: spec.dockerfile.clone(),
        target: spec.target.clone(),
    })
}

fn no_such_pack(mount: &MountSpec, id: &str) -> Fault {
    let id: String = id.chars().take(40).collect();
    Fault::new(Stage::Context, "pack_not_found", format!("mount `{}`: there is no pack `{id}`", mount.target))
        .hint("send the pack again, and use the id that the answer has")
}

#[async_trait]
impl ContextSource for Contexts {
    async fn prepare(&self, request: ContextRequest) -> Result<Box<dyn PreparedContext>, Fault> {
        match Contexts::prepare(self, request).await {
            Ok(prepared) => Ok(Box::new(prepared)),
            Err(error) => Err(error.fault()),
        }
    }
}

impl PreparedContext for Prepared {
    fn dockerfile_path(&self) -> &MountTarget {
        &self.dockerfile_path
    }

    fn dockerfile(&self) -> &[u8] {
        &self.dockerfile
    }

    fn into_files(self: Box<Self>, dockerfile: Vec<u8>) -> ContextFiles {
        Prepared::into_files(*self, dockerfile)
    }
}
