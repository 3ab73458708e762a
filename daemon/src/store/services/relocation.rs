//! Migration of service images. An earlier version stored images of other registries for services in ordinary
//! repositories, such as `ghcr.io/team/app`, where every repository grant reached them. The migration moves them to the
//! cached images of the creator of the revision, and services continue to use the same content.

use std::collections::BTreeSet;

use rusqlite::Transaction;

use super::{PutOutcome, StateStore, StateStoreError, put};
use crate::image::port::cached::ImageRight;
use crate::model::image::is_cached_name;
use crate::model::service::{ServiceRecord, ServiceRevision};
use crate::model::{Digest, MountOrigin, MountSource as _, Reference, Repository};
use crate::store::images::{tags, touch_if_present};

/// Manifest in an ordinary repository.
type OrdinaryManifest = (Repository, Digest);

impl StateStore {
    /// Moves all of them in one transaction. Returns the number of moved images, which is 0 after the first run.
    pub async fn relocate_service_images(&self) -> Result<usize, StateStoreError> {
        self.transaction(|transaction| {
            let services: Vec<ServiceRecord> = {
                let mut statement = transaction.prepare("SELECT record FROM services")?;
                let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
                rows.map(|text| Ok(serde_json::from_str(&text?)?)).collect::<Result<_, StateStoreError>>()?
            };
            let mut moved = BTreeSet::new();
            for mut service in services {
                let before = moved.len();
                for revision in &mut service.revisions {
                    relocate(transaction, revision, &mut moved)?;
                }
                if moved.len() > before
                    && let PutOutcome::NameTaken(_) | PutOutcome::DomainTaken(..) =
                        put(transaction, &service)?
                {
                    tracing::warn!(service.name = %service.name, "failed to migrate a service's images");
                }
            }
            for (repository, digest) in &moved {
                release(transaction, repository, digest)?;
            }
            Ok(moved.len())
        })
        .await
    }
}

fn relocate(
    transaction: &Transaction<'_>,
    revision: &mut ServiceRevision,
    moved: &mut BTreeSet<OrdinaryManifest>,
) -> Result<(), StateStoreError> {
    let right = ImageRight::Caller(revision.created_by.clone());
    let mut relocated = |image: &Reference, from: &Repository, digest: Digest| {
        // An image of the room is stored in the repository of its reference.
        if *from == image.repository || is_cached_name(from.as_str()) {
            return Ok(None);
        }
        let Some(repository) = right.repository_of(image) else { return Ok(None) };
        if !touch_if_present(transaction, "manifests", from.as_str(), &digest.to_string())? {
            return Ok(None);
        }
        tags::copy_manifest(transaction, from, &digest, &repository)?;
        moved.insert((from.clone(), digest));
        Ok::<_, StateStoreError>(Some(repository))
    };
    let spec = &mut revision.spec;
    if spec.kept_in.is_none() {
        spec.kept_in = relocated(&spec.image, &spec.repository, spec.digest)?;
    }
    for mount in &spec.mounts {
        let MountOrigin::Image(reference) = mount.source.origin() else { continue };
        let Some(pinned) = spec.mounted.get_mut(&mount.target) else { continue };
        if let Some(repository) = relocated(reference, &pinned.repository, pinned.digest)? {
            pinned.repository = repository;
        }
    }
    Ok(())
}

/// Removes a manifest from its ordinary repository, with the blobs that nothing else there needs, unless it has a tag
/// there or an index that was pushed there contains it.
fn release(
    transaction: &Transaction<'_>,
    repository: &Repository,
    digest: &Digest,
) -> Result<(), StateStoreError> {
    let of = (repository.as_str(), digest.to_string());
    let released = transaction
        .prepare_cached(
            "DELETE FROM manifests WHERE repository = ?1 AND digest = ?2
                 AND NOT EXISTS (SELECT 1 FROM tags WHERE repository = ?1 AND digest = ?2)
                 AND NOT EXISTS (SELECT 1 FROM service_images WHERE repository = ?1 AND digest = ?2)
                 AND NOT EXISTS (SELECT 1 FROM manifest_parts WHERE repository = ?1 AND digest = ?2)",
        )?
        .execute((of.0, &of.1))?;
    if released > 0 {
        transaction
            .prepare_cached(
                "DELETE FROM repository_blobs WHERE repository = ?1 AND NOT EXISTS (
                     SELECT 1 FROM manifest_parts part WHERE part.repository = ?1 AND part.digest = repository_blobs.digest
                 )",
            )?
            .execute([of.0])?;
    }
    Ok(())
}
