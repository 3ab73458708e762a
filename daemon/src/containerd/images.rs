//! Unpacked images: one snapshot per layer, named by its chain id, so that images share them.
//!
//! ```text
//! manifest -> config -> diff ids, verified against the layers -> chain ids
//! layer i: snapshot exists?  yes: next
//!                            no:  content -> Prepare(parent) -> Diff.Apply, digest checked -> Commit(chain id)
//! lease of the image: holds the top snapshot, which holds the others
//! ```
//!
//! The content is deleted once it is unpacked, since the room's registry has it.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use containerd_client::services::v1 as services;
use containerd_client::services::v1::snapshots as wire;
use containerd_client::types;
use hearth_oci::{Descriptor, DocumentHeader, ImageConfig, OCI_MANIFEST_TYPE};
use services::{
    AddResourceRequest, ApplyRequest, CreateRequest, DeleteRequest, ListRequest, ListResourcesRequest,
    PluginsRequest, Resource,
};
use sha2::{Digest as _, Sha256};

use super::channel::{ContainerdConnection, call, limit};
use super::failure::{ContainerdFault, unless_missing};
use super::spec::image::{ProcessDefaults, platform_mismatch};
use super::{ContainerdContext, content, labels};
use crate::deploy::port::{InstanceImage, RuntimeError};
use crate::image::port::RejectedImage;
use crate::model::Digest;
use crate::model::image::Platform;
use crate::model::manifest::Manifest;

/// An image of the room, as read from its manifest and config.
pub(super) struct SnapshotImage {
    /// Layers, the base first.
    pub layers: Vec<SnapshotLayer>,
    pub config: ProcessDefaults,
}

/// A layer with its DiffID and the name of its snapshot, which is its ChainID.
pub(super) struct SnapshotLayer {
    pub blob: Descriptor,
    pub diff_id: Digest,
    pub chain: String,
}

impl SnapshotImage {
    /// Returns the snapshot from which instances start; `None` for an image without layers.
    pub fn top(&self) -> Option<&str> {
        self.layers.last().map(|layer| layer.chain.as_str())
    }
}

/// Computes the chain ids by the OCI image spec, "Layer ChainID".
fn chain_ids(diff_ids: &[Digest]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => diff_id.to_string(),
            Some(parent) => format!("sha256:{}", hex::encode(Sha256::digest(format!("{parent} {diff_id}")))),
        });
    }
    chain
}

fn lease_of(image: &Digest) -> String {
    format!("hearth-image-{}", image.hex())
}

impl ContainerdContext {
    /// Reads an image's manifest and config from the room, and checks that the layers match the DiffIDs of the config,
    /// by which snapshots are found.
    pub(super) async fn read_checked(&self, image: &InstanceImage) -> Result<SnapshotImage, RuntimeError> {
        let (stored, manifest) = self.read_image(image).await?;
        match self.layers.check(&manifest).await {
            Ok(()) => Ok(stored),
            Err(RejectedImage { reason, transient: true, .. }) => Err(RuntimeError::Other(reason)),
            Err(RejectedImage { code, reason, .. }) => Err(RuntimeError::CorruptImage { code, reason }),
        }
    }

    async fn read_image(&self, image: &InstanceImage) -> Result<(SnapshotImage, Descriptor), RuntimeError> {
        let (blobs, manifest) = (Arc::clone(&self.blobs), image.manifest);
        let read = crate::task::blocking("read-image", move || {
            let bytes = content::read_small_blob(blobs.as_ref(), &manifest)?;
            let invalid =
                |error: &dyn std::fmt::Display| RuntimeError::UnusableImage(format!("{manifest}: {error}"));
            let head: DocumentHeader = serde_json::from_slice(&bytes).map_err(|error| invalid(&error))?;
            let media_type = head.media_type.unwrap_or_else(|| OCI_MANIFEST_TYPE.to_owned());
            let parsed = Manifest::parse(&media_type, &bytes).map_err(|error| invalid(&error))?;
            let Manifest::Image(parsed) = parsed else {
                return Err(RuntimeError::UnusableImage(format!(
                    "{manifest} is an index, not the image of one platform"
                )));
            };
            let config = content::read_small_blob(blobs.as_ref(), &parsed.config.digest)?;
            let config = ImageConfig::parse_unambiguous(&config).map_err(|error| invalid(&error))?;
            if let Some(why) =
                platform_mismatch(Platform::declared(&config.platform).as_ref(), &Platform::host())
            {
                return Err(RuntimeError::UnusableImage(why));
            }
            let (blobs, diff_ids) = (parsed.layers, config.rootfs.diff_ids);
            if blobs.len() != diff_ids.len() {
                let text = format!("it has {} layers, and its config names {}", blobs.len(), diff_ids.len());
                return Err(RuntimeError::UnusableImage(text));
            }
            let chain = chain_ids(&diff_ids);
            let layers = blobs.into_iter().zip(diff_ids).zip(chain);
            let layers =
                layers.map(|((blob, diff_id), chain)| SnapshotLayer { blob, diff_id, chain }).collect();
            let config = ProcessDefaults::from_config(config.config).map_err(|error| invalid(&error))?;
            let descriptor = Descriptor::new(&media_type, manifest, bytes.len() as u64);
            Ok((SnapshotImage { layers, config }, descriptor))
        });
        read.await.map_err(|error| RuntimeError::Other(error.to_string()))?
    }

    pub(super) async fn prepare(&self, image: &InstanceImage) -> Result<(), RuntimeError> {
        let stored = self.read_checked(image).await?;
        let _one = self.unpacking.lock().await;
        let snapshotter = self.snapshotter().await.map_err(ContainerdFault::into_runtime_error)?;
        let lease = lease_of(&image.manifest);
        let labels = HashMap::from([(labels::IMAGE.to_owned(), image.manifest.to_string())]);
        let request = CreateRequest { id: lease.clone(), labels };
        match call(limit::RECORD, self.connection.leases().create(request)).await {
            Ok(_) | Err(ContainerdFault::AlreadyExists(_)) => {}
            Err(fault) => return Err(fault.into_runtime_error()),
        }
        let leased = self.connection.leased(&lease);
        let mut parent = String::new();
        for layer in &stored.layers {
            if !snapshot_exists(&leased, snapshotter, &layer.chain)
                .await
                .map_err(ContainerdFault::into_runtime_error)?
            {
                self.unpack(&leased, snapshotter, layer, &parent).await?;
            }
            parent.clone_from(&layer.chain);
        }
        match stored.top() {
            Some(top) => self
                .hold_top_snapshot(lease, snapshotter, top)
                .await
                .map_err(ContainerdFault::into_runtime_error),
            None => Ok(()),
        }
    }

    /// Adds the top snapshot to the image's lease, since it may have been created for another image.
    async fn hold_top_snapshot(
        &self,
        lease: String,
        snapshotter: &str,
        top: &str,
    ) -> Result<(), ContainerdFault> {
        let resource = Resource { id: top.to_owned(), r#type: format!("snapshots/{snapshotter}") };
        let request = ListResourcesRequest { id: lease.clone() };
        let held = call(limit::RECORD, self.connection.leases().list_resources(request)).await?.resources;
        if held.contains(&resource) {
            return Ok(());
        }
        let request = AddResourceRequest { id: lease, resource: Some(resource) };
        call(limit::RECORD, self.connection.leases().add_resource(request)).await
    }

    async fn unpack(
        &self,
        leased: &ContainerdConnection,
        snapshotter: &str,
        layer: &SnapshotLayer,
        parent: &str,
    ) -> Result<(), RuntimeError> {
        content::copy_blob(leased, Arc::clone(&self.blobs), &layer.blob).await?;
        // Unpacking is serialized, so an existing snapshot of this name is a leftover of an interrupted one.
        let key = format!("unpack-{}", layer.chain);
        let unpacked = apply(leased, snapshotter, layer, parent, &key).await;
        if unpacked.is_err()
            && let Err(fault) = self.remove_unpacked(leased, snapshotter, &key).await
        {
            tracing::warn!(error = %fault, snapshot.key = key, "failed to remove a partially unpacked layer");
        }
        if let Err(fault) = content::delete_content(leased, &layer.blob.digest).await {
            tracing::warn!(error = %fault, blob.digest = %layer.blob.digest, "failed to delete the content of a layer");
        }
        unpacked
    }

    /// Removes a partially unpacked snapshot, even on a full disk.
    async fn remove_unpacked(
        &self,
        leased: &ContainerdConnection,
        snapshotter: &str,
        key: &str,
    ) -> Result<(), ContainerdFault> {
        match (remove_snapshot(leased, snapshotter, key).await, &self.reserve) {
            (Err(ContainerdFault::DiskFull), Some(reserve)) => {
                reserve.release();
                let removed = remove_snapshot(leased, snapshotter, key).await;
                reserve.allocate();
                removed
            }
            (removed, _) => removed,
        }
    }

    pub(super) async fn keep_images(&self, wanted: &BTreeSet<Digest>) -> Result<(), RuntimeError> {
        let _one = self.unpacking.lock().await;
        let filters = vec![format!("labels.\"{}\"", labels::IMAGE)];
        let listed = call(limit::RECORD, self.connection.leases().list(ListRequest { filters })).await;
        let leases = listed.map_err(ContainerdFault::into_runtime_error)?.leases;
        let kept: BTreeSet<String> = wanted.iter().map(lease_of).collect();
        let mut gone: Vec<String> =
            leases.into_iter().map(|lease| lease.id).filter(|id| !kept.contains(id)).collect();
        let last = gone.pop();
        let requests = gone.into_iter().map(|id| DeleteRequest { id, sync: false });
        // The last deletion waits until the files are gone.
        let requests = requests.chain(last.map(|id| DeleteRequest { id, sync: true }));
        for request in requests {
            let limit = if request.sync { limit::COLLECT } else { limit::RECORD };
            let deleted = call(limit, self.connection.leases().delete(request)).await;
            unless_missing(deleted).map_err(ContainerdFault::into_runtime_error)?;
        }
        Ok(())
    }

    /// Returns the snapshotter: overlayfs, or native (copies of all files) if the state directory's file system does
    /// not support overlayfs.
    pub(super) async fn snapshotter(&self) -> Result<&'static str, ContainerdFault> {
        let chosen = self.snapshotter.get_or_try_init(|| async {
            let filters = vec!["type==io.containerd.snapshotter.v1".to_owned()];
            let request = PluginsRequest { filters };
            let plugins =
                call(limit::RECORD, self.connection.introspection().plugins(request)).await?.plugins;
            let works = |id: &str| plugins.iter().any(|plugin| plugin.id == id && plugin.init_err.is_none());
            match ["overlayfs", "native"].into_iter().find(|id| works(id)) {
                Some("native") => {
                    tracing::warn!(
                        "containerd refused overlayfs; every instance gets a copy of its image's files"
                    );
                    Ok("native")
                }
                Some(id) => Ok(id),
                None => Err(ContainerdFault::Other(
                    "containerd has neither the overlayfs nor the native snapshotter".to_owned(),
                )),
            }
        });
        chosen.await.copied()
    }
}

async fn snapshot_exists(
    connection: &ContainerdConnection,
    snapshotter: &str,
    key: &str,
) -> Result<bool, ContainerdFault> {
    let request = wire::StatSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    Ok(unless_missing(call(limit::RECORD, connection.snapshots().stat(request)).await)?.is_some())
}

pub(super) async fn remove_snapshot(
    connection: &ContainerdConnection,
    snapshotter: &str,
    key: &str,
) -> Result<(), ContainerdFault> {
    let request = wire::RemoveSnapshotRequest { snapshotter: snapshotter.to_owned(), key: key.to_owned() };
    unless_missing(call(limit::PROCESS, connection.snapshots().remove(request)).await).map(|_| ())
}

/// Prepares a writable snapshot on a parent, replacing a leftover of the same name.
pub(super) async fn prepare_snapshot(
    connection: &ContainerdConnection,
    snapshotter: &str,
    key: &str,
    parent: &str,
    labels: HashMap<String, String>,
) -> Result<Vec<types::Mount>, ContainerdFault> {
    let request = wire::PrepareSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: key.to_owned(),
        parent: parent.to_owned(),
        labels,
    };
    let prepared = call(limit::PROCESS, connection.snapshots().prepare(request.clone())).await;
    let prepared = match prepared {
        Err(ContainerdFault::AlreadyExists(_)) => {
            remove_snapshot(connection, snapshotter, key).await?;
            call(limit::PROCESS, connection.snapshots().prepare(request)).await
        }
        other => other,
    };
    Ok(prepared?.mounts)
}

async fn apply(
    leased: &ContainerdConnection,
    snapshotter: &str,
    layer: &SnapshotLayer,
    parent: &str,
    key: &str,
) -> Result<(), RuntimeError> {
    let mounts = prepare_snapshot(leased, snapshotter, key, parent, HashMap::new())
        .await
        .map_err(ContainerdFault::into_runtime_error)?;
    let diff = types::Descriptor {
        media_type: layer.blob.media_type.clone(),
        digest: layer.blob.digest.to_string(),
        size: i64::try_from(layer.blob.size).unwrap_or(i64::MAX),
        ..types::Descriptor::default()
    };
    let request = ApplyRequest { diff: Some(diff), mounts, ..ApplyRequest::default() };
    let applied = call(limit::LAYER, leased.diff().apply(request)).await;
    let applied = applied.map_err(|fault| match fault {
        ContainerdFault::Other(text) => {
            RuntimeError::UnusableImage(format!("layer {}: {text}", layer.blob.digest))
        }
        other => other.into_runtime_error(),
    })?;
    let found = applied.applied.unwrap_or_default().digest;
    if found != layer.diff_id.to_string() {
        let (blob, declared) = (layer.blob.digest, layer.diff_id);
        return Err(RuntimeError::UnusableImage(format!(
            "layer {blob} holds {found}, and the config says {declared}"
        )));
    }
    let request = wire::CommitSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        name: layer.chain.clone(),
        key: key.to_owned(),
        ..wire::CommitSnapshotRequest::default()
    };
    match call(limit::PROCESS, leased.snapshots().commit(request)).await {
        Ok(()) | Err(ContainerdFault::AlreadyExists(_)) => Ok(()),
        Err(fault) => Err(fault.into_runtime_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_id_names_all_layers_below() {
        let ids = [[1; 32], [2; 32]].map(Digest::from_sha256);
        let found = chain_ids(&ids);
        assert_eq!(found[0], ids[0].to_string());
        // printf '%s %s' sha256:0101... sha256:0202... | sha256sum
        let expected = hex::encode(Sha256::digest(format!("{} {}", ids[0], ids[1])));
        assert_eq!(found[1], format!("sha256:{expected}"));
        assert_eq!(chain_ids(&[]), Vec::<String>::new());
        assert_ne!(chain_ids(&[ids[1], ids[0]])[1], found[1]);
    }
}
