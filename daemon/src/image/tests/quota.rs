//! Limits for one caller's images, and for one image.

use hearth_oci::Descriptor;

use super::pull::{digest_of, pull, registry};
use super::*;
use crate::disk::{DiskLedger, DiskLimits};
use crate::model::share_owner::ShareOwnerResolver;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// Creates a room that counts what callers upload.
fn room_with_quota(per_caller: u64) -> (ImageFixture, DiskLedger) {
    let ImageFixture { directory, blobs, store, .. } = room();
    let limits = DiskLimits { per_caller, per_image: u64::MAX, min_free: 0 };
    let disk = DiskLedger::open(&directory.path().join("ledger"), limits).unwrap();
    let blobs = blobs.with_disk_shares(disk.clone());
    let inspector = Arc::new(LayerInspection::new(LayerLimits::default()));
    let images = ImageStore::new(
        RoomRegistries::default(),
        Arc::new(blobs.clone()),
        Arc::new(store.clone()),
        inspector,
    );
    (ImageFixture { directory, images, blobs, store }, disk)
}

fn tag(name: &str) -> ImageDestination {
    ImageDestination::Tag(Reference::parse_tag(name).unwrap())
}

#[tokio::test]
async fn what_is_fetched_for_a_caller_counts_for_its_owner() {
    let content = layers::tar("file", &[7; 100_000]);
    let layer = Descriptor::new(LAYER, digest_of(&content), content.len() as u64);
    let (host, _server) = registry(layer, Some(content)).await;
    let (small, disk) = room_with_quota(50_000);
    let error = pull(&small, &host, tag("mine:1")).await.unwrap_err();
    assert_eq!(error.code(), "quota_exceeded", "{error}");
    // Concurrent transfers end on threads of their own.
    for _ in 0..500 {
        if disk.unfinished().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(disk.unfinished().is_empty(), "{:?}", disk.unfinished());
    let (large, disk) = room_with_quota(500_000);
    let owners = ShareOwnerResolver::default();
    owners.set_service_creators(|_| None);
    owners.set_build_submitters(|_| None);
    large.images.set_share_owners(owners);
    pull(&large, &host, tag("mine:1")).await.unwrap();
    assert!(disk.kept()["ann"].images > 100_000, "{:?}", disk.kept());
}

#[tokio::test]
async fn an_image_that_is_larger_than_one_may_be_is_refused_whichever_way_it_comes() {
    let content = layers::tar("file", &[7; 100_000]);
    let layer = Descriptor::new(LAYER, digest_of(&content), content.len() as u64);
    // The content is not even requested.
    let (host, _server) = registry(layer, None).await;
    let room = room();
    room.images.limit_images(50_000);
    let error = pull(&room, &host, tag("mine:1")).await.unwrap_err();
    assert_eq!(error.code(), "image_too_large", "{error}");
    room.images.limit_images(100);
    let error = room.load(archive("loaded"), "mine:2").await.unwrap_err();
    assert_eq!(error.code(), "image_too_large", "{error}");
    assert!(room.images.resolve(&"mine:2".parse().unwrap()).await.is_err());
    room.images.limit_images(50_000);
    room.load(archive("loaded"), "mine:2").await.unwrap();
}
