//! Implementations of the ports in [`super::port`]: the room's images and its files.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use hearth_oci::Descriptor;

use super::dockerfile::Dockerfile;
use super::port::{BuildStatements, ContextSource, ImageRequest, PreparedContext, RoomImages, StoreError};
use crate::context::{
    ContextMount, ContextPreparer, ContextRequest, CopySelection, LayerBlob, OpenedImage, OpenedPack,
    StorageRoot, TreeIdentity,
};
use crate::image::port::PackContent;
use crate::image::{
    BuiltImage, ImageError, ImageForm, ImageStore, RemoteRegistries, SuppliedCache, SuppliedImage,
    SupplyRequest, TransferProgress,
};
use crate::model::access::SymlinkPolicy;
use crate::model::build::{BuildRecipe, BuildSpec, ContextIdentity, MountIdentity};
use crate::model::fault::{Fault, FaultStage};
use crate::model::id::PackId;
use crate::model::image::{ImageInstruction, PinnedImage, VerifiedImage};
use crate::model::secret::RegistryCredential;
use crate::model::{BuildMount, BuildMountSource, CacheImport, CacheLocation, Digest, Reference, Repository};
use crate::packs::{PackError, PackStore};

/// Combines the files of the room and the images among the mounts into one tree.
#[derive(Clone)]
pub struct RoomContexts {
    pub contexts: ContextPreparer,
    pub images: ImageStore,
    pub remote_registries: RemoteRegistries,
    pub packs: PackStore,
    pub room_storage: StorageRoot,
}

#[async_trait]
impl RoomImages for RoomContexts {
    async fn supply(&self, request: ImageRequest) -> Result<SuppliedImage, Fault> {
        let wanted = SupplyRequest {
            reference: &request.reference,
            is_own: request.is_room_image,
            platforms: &request.platforms,
            caller: &request.caller,
            credentials: &request.credentials,
            ask_registry: request.ask_registry,
            transfer: &request.transfer,
        };
        let supplied = self.images.supply(wanted, &self.remote_registries).await;
        supplied.map_err(|error| image_fault(FaultStage::Context, &error))
    }

    async fn supply_cache(
        &self,
        import: &CacheImport,
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<SuppliedCache, Fault> {
        let storage = self.cache_storage();
        let supplied =
            self.images.supply_cache(import, caller, given, &self.remote_registries, storage).await;
        supplied.map_err(|error| image_fault(FaultStage::Context, &error))
    }

    async fn store_cache(&self, cache: &VerifiedImage, location: &CacheLocation) -> Result<(), Fault> {
        let stored = self.images.store_cache(&cache.manifest, location, self.cache_storage()).await;
        stored.map_err(|error| image_fault(FaultStage::Export, &error))
    }

    async fn verify(&self, repository: &Repository, digest: Digest) -> Result<VerifiedImage, Fault> {
        self.images.verify(repository, digest).await.map_err(|error| image_fault(FaultStage::Export, &error))
    }

    async fn finish_built_image(&self, built: &PinnedImage, form: ImageForm) -> Result<BuiltImage, Fault> {
        let finished = self.images.finish_built_image(built, form).await;
        finished.map_err(|error| image_fault(FaultStage::Export, &error))
    }

    async fn attach(
        &self,
        image: VerifiedImage,
        statements: &BuildStatements,
    ) -> Result<VerifiedImage, Fault> {
        self.attach_statements(image, statements).await
    }

    async fn instructions(
        &self,
        repository: &Repository,
        digest: Digest,
    ) -> Result<Vec<ImageInstruction>, Fault> {
        let read = self.images.instructions(repository, digest).await;
        read.map_err(|error| image_fault(FaultStage::Export, &error))
    }

    async fn publish(&self, image: &VerifiedImage, tags: &[Reference]) -> Result<(), Fault> {
        self.images
            .publish(image, tags)
            .await
            .map(|_| ())
            .map_err(|error| image_fault(FaultStage::Publish, &error))
    }

    async fn push_content(
        &self,
        image: &VerifiedImage,
        tags: &[Reference],
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<(), Fault> {
        let pushed = async {
            let remote = self.remote_registries.remote(given)?;
            self.images.push_content(&remote, image, tags, &TransferProgress::default()).await
        };
        pushed.await.map(drop).map_err(|error| image_fault(FaultStage::Publish, &error))
    }

    async fn push_names(
        &self,
        image: &VerifiedImage,
        tags: &[Reference],
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<(), Fault> {
        let pushed = async {
            let remote = self.remote_registries.remote(given)?;
            self.images.push_names(&remote, image, tags).await
        };
        pushed.await.map_err(|error| image_fault(FaultStage::Publish, &error))
    }

    async fn hold_pack(&self, id: &PackId, caller: &str) -> Result<(), Fault> {
        self.images
            .hold_pack(id, caller)
            .await
            .map(|_| ())
            .map_err(|error| image_fault(FaultStage::Context, &error))
    }

    async fn pack_content(&self, id: &PackId, caller: &str) -> Result<Option<String>, StoreError> {
        match self.images.pack(id, caller).await {
            Ok(pack) => Ok(Some(match pack.content {
                PackContent::Image(manifest) => format!("image {}", manifest.digest),
                PackContent::Tree { tree, .. } => format!("tree {tree}"),
            })),
            Err(ImageError::PackNotFound { .. }) => Ok(None),
            Err(error) => Err(StoreError(std::io::Error::other(error))),
        }
    }

    async fn release_pack(&self, id: &PackId) {
        match self.images.release_pack(id).await {
            Ok(layers) => self.contexts.remove_layer_indexes(layers).await,
            Err(error) => {
                tracing::warn!(%error, pack.id = %id, "failed to release a pack; it will expire unused");
            }
        }
    }
}

#[async_trait]
impl ContextSource for RoomContexts {
    async fn prepare(
        &self,
        spec: &BuildSpec,
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<PreparedContext, Fault> {
        let select: fn(&Dockerfile) -> CopySelection = match spec.recipe {
            BuildRecipe::Dockerfile => Dockerfile::context_selection,
            BuildRecipe::Llb(_) | BuildRecipe::TreeImage(_) => |_| CopySelection::default(),
        };
        self.prepare_selected(spec, caller, given, select).await
    }

    async fn prepare_dockerfile(
        &self,
        spec: &BuildSpec,
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<PreparedContext, Fault> {
        self.prepare_selected(spec, caller, given, |_| CopySelection::of([b".dockerignore".to_vec()])).await
    }
}

impl RoomContexts {
    async fn prepare_selected(
        &self,
        spec: &BuildSpec,
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
        select: fn(&Dockerfile) -> CopySelection,
    ) -> Result<PreparedContext, Fault> {
        let mounts = self.open_mounts(&spec.mounts, spec.path_links, caller, given).await?;
        let request = ContextRequest {
            mounts,
            context_path: spec.context_path.clone(),
            dockerfile: spec.dockerfile.clone(),
            target: spec.target.clone(),
            parse: Box::new(move |bytes| {
                let dockerfile = Arc::new(Dockerfile::parse(bytes));
                let selection = select(&dockerfile);
                (dockerfile, selection)
            }),
        };
        let scanned = self.contexts.prepare(request).await.map_err(|error| error.fault())?;
        let dockerfile = Arc::clone(&scanned.dockerfile);
        Ok(PreparedContext {
            identity: recorded_identity(scanned.identity.clone()),
            dockerfile_path: scanned.dockerfile_path.clone(),
            files: scanned.into_files(dockerfile.bytes().to_vec()),
            dockerfile,
        })
    }

    /// Storage of caches. Symbolic links are never followed there, whatever the caller's grants are.
    fn cache_storage(&self) -> StorageRoot {
        self.room_storage.with_links(SymlinkPolicy::Refused)
    }

    /// Opens the images and packs among the mounts. The caller's access was checked before, except for packs.
    pub async fn open_mounts(
        &self,
        specs: &[BuildMount],
        links: SymlinkPolicy,
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<Vec<ContextMount>, Fault> {
        let mut mounts = Vec::with_capacity(specs.len());
        for mount in specs {
            let at_mount = |mut fault: Fault| {
                fault.message = format!("mount `{}`: {}", mount.target, fault.message);
                fault
            };
            let failed = |error: ImageError| at_mount(image_fault(FaultStage::Context, &error));
            let (mut manifest, mut pack) = (None, None);
            match &mount.source {
                BuildMountSource::Image { reference, .. } => {
                    manifest = Some(self.image(reference, caller, given).await.map_err(failed)?);
                }
                BuildMountSource::Pack(id) => match self.pack(id, caller).await.map_err(failed)? {
                    PackContent::Image(image) => manifest = Some(image),
                    PackContent::Tree { tree, lineage } => {
                        let tree = self.packs.tree(caller, tree).await;
                        let tree = tree.map_err(|error| at_mount(pack_fault(&error)))?;
                        let lineage = pack_lineage(caller, &lineage);
                        pack = Some(OpenedPack { tree: Arc::new(tree), lineage });
                    }
                },
                BuildMountSource::Room(_) | BuildMountSource::Project(_) => {}
            }
            let image = match manifest {
                None => None,
                Some(manifest) => Some(self.open(manifest).await.map_err(failed)?),
            };
            mounts.push(ContextMount { spec: mount.clone(), image, pack, links });
        }
        Ok(mounts)
    }

    /// Resolves an image of the room, or pulls one of another registry.
    async fn image(
        &self,
        reference: &Reference,
        caller: &str,
        given: &BTreeMap<String, RegistryCredential>,
    ) -> Result<Descriptor, ImageError> {
        if self.images.room_registries().owns_tag(reference) {
            return self.images.resolve(reference).await;
        }
        let remote = self.remote_registries.remote(given)?;
        self.images.pull_for_mount(&remote, reference, caller).await
    }

    async fn pack(&self, id: &str, caller: &str) -> Result<PackContent, ImageError> {
        let id: PackId = id.parse().map_err(|_| ImageError::NotFound { reference: id.to_owned() })?;
        Ok(self.images.pack(&id, caller).await?.content)
    }

    pub(super) async fn open(&self, manifest: Descriptor) -> Result<OpenedImage, ImageError> {
        let layers = self.images.open_layers(&manifest).await?;
        let blob = |open: crate::image::OpenLayer| LayerBlob {
            digest: open.layer.digest,
            diff_id: open.diff_id,
            media_type: open.layer.media_type,
            file: open.file,
        };
        Ok(OpenedImage { manifest: manifest.digest, layers: layers.into_iter().map(blob).collect() })
    }
}

fn recorded_identity(identity: TreeIdentity) -> ContextIdentity {
    let mount = |(target, digest)| MountIdentity { target, digest };
    ContextIdentity { digest: identity.digest, mounts: identity.mounts.into_iter().map(mount).collect() }
}

/// Lineage key shared only by the packs of one directory of one participant. Empty for a pack without a lineage.
fn pack_lineage(owner: &str, lineage: &str) -> String {
    // Names may contain blanks, so the length of the owner's name makes the key unambiguous.
    if lineage.is_empty() { String::new() } else { format!("{} {owner} {lineage}", owner.len()) }
}

fn pack_fault(error: &PackError) -> Fault {
    Fault::new(FaultStage::Context, error.code(), error.to_string()).maybe_hint(error.hint())
}

pub(super) fn image_fault(stage: FaultStage, error: &ImageError) -> Fault {
    let mut fault = Fault::new(stage, error.code(), error.to_string()).maybe_hint(error.hint());
    fault.retryable = error.retryable();
    fault
}

#[cfg(test)]
mod tests {
    use super::pack_lineage;

    #[test]
    fn packs_of_two_participants_never_have_the_same_lineage() {
        let names = ["a", "a b", "a b c", "b", "b c", "1 a"];
        let pairs: Vec<(&str, &str)> =
            names.iter().flat_map(|owner| names.iter().map(move |lineage| (*owner, *lineage))).collect();
        let lineages: std::collections::BTreeSet<String> =
            pairs.iter().map(|(owner, lineage)| pack_lineage(owner, lineage)).collect();
        assert_eq!(lineages.len(), pairs.len());
        assert_eq!(pack_lineage("a", ""), "");
    }
}
