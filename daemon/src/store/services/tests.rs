use hearth_oci::Descriptor;
use jiff::Timestamp;

use super::*;
use crate::deploy::port::ServiceStoreError as PortError;
use crate::image::port::{ImageCatalog as _, NewManifest, RemovalOutcome};
use crate::model::image::PinnedImage;
use crate::model::manifest::{ManifestPart, PartKind};
use crate::model::service::{RevisionOutcome, ServiceRevision, ServiceSpec};
use crate::model::{Digest, MountAccess, Repository, ServiceMount, ServiceMountSource};

fn digest(byte: u8) -> Digest {
    Digest::from_sha256([byte; 32])
}

fn store() -> StateStore {
    StateStore::open(std::path::Path::new(":memory:")).unwrap()
}

fn revision(number: u32, domains: &[&str]) -> ServiceRevision {
    let byte = u8::try_from(number).unwrap();
    let spec = ServiceSpec {
        digest: digest(byte),
        manifest: digest(byte),
        domains: domains.iter().map(|domain| domain.parse().unwrap()).collect(),
        ..crate::deploy::tests::spec(80)
    };
    ServiceRevision {
        number,
        spec,
        created_at: Timestamp::UNIX_EPOCH,
        created_by: "ann".to_owned(),
        outcome: RevisionOutcome::Pending,
        generation: 0,
    }
}

fn service(name: &str, revisions: Vec<ServiceRevision>) -> ServiceRecord {
    ServiceRecord {
        id: crate::model::id::ServiceId::random(),
        name: name.parse().unwrap(),
        repository: "web".parse().unwrap(),
        created_at: Timestamp::UNIX_EPOCH,
        created_by: "ann".to_owned(),
        share_owner: None,
        desired: revisions.last().map_or(0, |revision| revision.number),
        live: None,
        revisions,
        removing: false,
    }
}

#[tokio::test]
async fn a_service_is_read_back_as_it_was_stored_and_forgotten_when_removed() {
    let store = store();
    let mut one = service("one", vec![revision(1, &["a.test"])]);
    store.put(&one).await.unwrap();
    assert_eq!(store.services().await.unwrap(), [one.clone()]);
    one.live = Some(1);
    one.revisions.push(revision(2, &[]));
    store.put(&one).await.unwrap();
    assert_eq!(store.services().await.unwrap(), [one.clone()]);
    store.remove(&one).await.unwrap();
    assert!(store.services().await.unwrap().is_empty());
    store.put(&service("two", vec![revision(1, &["a.test"])])).await.unwrap();
}

#[tokio::test]
async fn a_domain_or_name_of_another_service_is_refused_and_nothing_is_stored() {
    let store = store();
    let mut one = service("one", vec![revision(1, &["a.test"])]);
    store.put(&one).await.unwrap();
    let two = service("two", vec![revision(1, &["b.test", "a.test"])]);
    let refused = store.put(&two).await.unwrap_err();
    assert!(
        matches!(&refused, PortError::DomainTaken { domain, holder }
            if domain.as_str() == "a.test" && holder.as_str() == "one"),
        "{refused}"
    );
    let twin = store.put(&service("one", vec![revision(1, &[])])).await.unwrap_err();
    assert!(matches!(twin, PortError::NameTaken(_)), "{twin}");
    assert_eq!(store.services().await.unwrap(), [one.clone()]);
    // The domain belongs to the service as long as a revision with it receives traffic, whatever is deployed next.
    one.live = Some(1);
    one.revisions.push(revision(2, &[]));
    one.desired = 2;
    store.put(&one).await.unwrap();
    assert!(store.put(&two).await.is_err());
    one.live = Some(2);
    store.put(&one).await.unwrap();
    store.put(&two).await.unwrap();
}

#[tokio::test]
async fn an_image_that_a_kept_revision_runs_or_mounts_is_neither_forgotten_nor_removed() {
    let store = store();
    let repository = "web".parse().unwrap();
    let manifest = |byte| NewManifest {
        manifest: Descriptor::new("m", digest(byte), 1),
        parts: Vec::new(),
        subject: None,
        artifact_type: None,
    };
    store.put_manifests(&repository, vec![manifest(1), manifest(2)], None).await.unwrap();
    let assets = "assets".parse().unwrap();
    store.put_manifests(&assets, vec![manifest(3), manifest(4)], None).await.unwrap();
    let mut mounting = revision(1, &[]);
    let pinned = PinnedImage { repository: assets.clone(), digest: digest(3) };
    mounting.spec.mounted = [("/assets".parse().unwrap(), pinned)].into();
    let one = service("one", vec![mounting]);
    store.put(&one).await.unwrap();
    assert_eq!(store.services().await.unwrap(), std::slice::from_ref(&one));
    let later = Timestamp::now().checked_add(jiff::SignedDuration::from_hours(10)).unwrap();
    assert_eq!(store.forget(later).await.unwrap().manifests, 2);
    let removal = store.remove_manifest(&repository, &digest(1)).await.unwrap();
    assert_eq!(removal, RemovalOutcome::Deployed("one".to_owned()));
    let removal = store.remove_manifest(&assets, &digest(3)).await.unwrap();
    assert_eq!(removal, RemovalOutcome::Deployed("one".to_owned()), "it is mounted");
    store.remove(&one).await.unwrap();
    assert_eq!(store.remove_manifest(&repository, &digest(1)).await.unwrap(), RemovalOutcome::Removed);
    assert_eq!(store.remove_manifest(&assets, &digest(3)).await.unwrap(), RemovalOutcome::Removed);
}

#[tokio::test]
async fn images_of_other_registries_that_lie_in_ordinary_repositories_are_moved_to_where_no_grant_reaches() {
    let store = store();
    let (ordinary, tagged): (Repository, Repository) =
        ("ghcr.io/team/app".parse().unwrap(), "ghcr.io/team/files".parse().unwrap());
    let blob = |byte| ManifestPart { digest: digest(byte), size: 1, kind: PartKind::Blob };
    let manifest = |byte, layer| NewManifest {
        manifest: Descriptor::new("m", digest(byte), 1),
        parts: vec![blob(layer)],
        subject: None,
        artifact_type: None,
    };
    store.put_manifests(&ordinary, vec![manifest(1, 11)], None).await.unwrap();
    store.put_manifests(&tagged, vec![manifest(2, 12)], Some("mine".parse().unwrap())).await.unwrap();
    store.put_manifests(&"web".parse().unwrap(), vec![manifest(3, 13)], None).await.unwrap();
    let mut first = revision(1, &[]);
    first.spec.image = "ghcr.io/team/app:1".parse().unwrap();
    first.spec.repository = ordinary.clone();
    let reference = "ghcr.io/team/files:1".parse().unwrap();
    first.spec.mounts = vec![ServiceMount {
        source: ServiceMountSource::Image { reference, subpath: String::new() },
        target: "/files".parse().unwrap(),
        mode: MountAccess::ReadOnly,
        create: false,
    }];
    let pinned = PinnedImage { repository: tagged.clone(), digest: digest(2) };
    first.spec.mounted = std::collections::BTreeMap::from([("/files".parse().unwrap(), pinned)]);
    let mut second = revision(3, &[]);
    second.spec.image = "web:1".parse().unwrap();
    let service = service("app", vec![first, second]);
    store.put(&service).await.unwrap();

    assert_eq!(store.relocate_service_images().await.unwrap(), 2);
    let stored = store.services().await.unwrap().remove(0);
    let spec = &stored.revisions[0].spec;
    let place = spec.kept_in.clone().unwrap();
    assert!(place.as_str().starts_with("cached.hearth/caller-"), "{place}");
    assert_eq!((&spec.repository, &stored.revisions[1]), (&ordinary, &service.revisions[1]));
    let mounted = spec.mounted.values().next().unwrap().repository.clone();
    for (repository, byte) in [(&place, 1), (&mounted, 2)] {
        assert!(store.manifest(repository, &digest(byte)).await.unwrap().is_some(), "{repository}");
        assert!(store.has_blob(repository, &digest(10 + byte)).await.unwrap(), "{repository}");
    }
    assert_eq!(store.manifest(&ordinary, &digest(1)).await.unwrap(), None);
    assert!(!store.has_blob(&ordinary, &digest(11)).await.unwrap());
    assert!(store.manifest(&tagged, &digest(2)).await.unwrap().is_some(), "its tag is somebody's");
    assert_eq!(store.relocate_service_images().await.unwrap(), 0);
}
