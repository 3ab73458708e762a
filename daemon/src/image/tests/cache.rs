use std::collections::BTreeMap;
use std::io::Cursor;
use std::time::Duration;

use hearth_registry::MirrorList;
use jiff::Timestamp;

use super::*;
use crate::image::cache::{cached_repository, normalized_name};
use crate::image::port::cached::{CachedImage, CachedImageKey, ImageRight};
use crate::model::egress::EgressPolicy;
use crate::model::image::Platform;

fn key(name: &str) -> CachedImageKey {
    CachedImageKey { name: name.to_owned(), platform: Platform::host(), right: ImageRight::Public }
}

/// Puts an image into the cache, last used that many seconds ago.
async fn cached(room: &ImageFixture, name: &str, content: &str, seconds_ago: i64) -> CachedImage {
    cached_by(room, key(name), content, seconds_ago).await
}

async fn cached_by(room: &ImageFixture, key: CachedImageKey, content: &str, seconds_ago: i64) -> CachedImage {
    let name = key.name.clone();
    let repository = cached_repository(&name.parse().unwrap(), &key.right).unwrap();
    let destination = ImageDestination::Untagged(repository.clone());
    let loaded = room.images.load(Cursor::new(archive(content)), destination, "ann").await.unwrap();
    let used_at = Timestamp::now() - jiff::SignedDuration::from_secs(seconds_ago);
    let image = CachedImage {
        key,
        repository,
        upstream: loaded.manifest.digest,
        manifest: loaded.manifest,
        size_bytes: loaded.size_bytes,
        checked_at: used_at,
        used_at,
    };
    room.images.shared.catalog.put_cached(image.clone()).await.unwrap();
    image
}

async fn names(room: &ImageFixture) -> Vec<String> {
    let images = room.images.cached_images().await.unwrap();
    images.into_iter().map(|image| image.key.name).collect()
}

/// Registry of these tests: configured by the operator, and unreachable.
fn remote_registries() -> RemoteRegistries {
    let itself = "127.0.0.1:1=http://127.0.0.1:1".parse().unwrap();
    RemoteRegistries::new(MirrorList::new(vec![itself]), None, EgressPolicy::default())
}

async fn supply(
    room: &ImageFixture,
    name: &str,
    platforms: &[Platform],
) -> Result<SuppliedImage, ImageError> {
    let (reference, given) = (name.parse().unwrap(), BTreeMap::new());
    let wanted = SupplyRequest {
        reference: &reference,
        is_own: false,
        platforms,
        caller: "ann",
        credentials: &given,
        ask_registry: false,
        transfer: &TransferProgress::default(),
    };
    room.images.supply(wanted, &remote_registries()).await
}

#[tokio::test]
async fn the_least_recently_used_images_go_first_and_none_that_a_build_uses() {
    let room = room();
    let old = cached(&room, "127.0.0.1:1/old:1", "old", 30).await;
    cached(&room, "127.0.0.1:1/middle:1", "middle", 20).await;
    cached(&room, "127.0.0.1:1/new:1", "new", 10).await;
    assert_eq!(room.images.trim_cache().await.unwrap(), 0);
    let build = supply(&room, "127.0.0.1:1/old:1", &[Platform::host()]).await.unwrap();
    assert_eq!((build.digest, &build.origin), (old.manifest.digest, &SupplyOrigin::Cached));
    room.images.limit_cache(old.size_bytes + 1);
    assert_eq!(room.images.trim_cache().await.unwrap(), 2);
    assert_eq!(names(&room).await, ["127.0.0.1:1/old:1"]);
    room.images.limit_cache(0);
    assert_eq!(room.images.trim_cache().await.unwrap(), 0, "a build uses it");
    drop(build);
    assert_eq!(room.images.trim_cache().await.unwrap(), 1);
}

#[tokio::test]
async fn what_is_cached_stays_in_the_registry_and_goes_when_it_is_forgotten() {
    let room = room();
    let image = cached(&room, "127.0.0.1:1/a:1", "a", 10).await;
    let later = Timestamp::now() + jiff::SignedDuration::from_hours(30);
    let clock = std::time::SystemTime::now() + Duration::from_secs(30 * 3600);
    room.images.collect_before(later, clock, Duration::from_secs(3600)).await.unwrap();
    room.images.verify(&image.repository, image.manifest.digest).await.unwrap();
    room.images.limit_cache(0);
    room.images.collect_before(later, clock, Duration::from_secs(3600)).await.unwrap();
    assert!(room.images.verify(&image.repository, image.manifest.digest).await.is_err());
    assert_eq!(room.blob_count(), 0);
}

#[tokio::test]
async fn a_registry_that_is_away_is_not_missed_where_the_image_is_known() {
    let room = room();
    let image = cached(&room, "127.0.0.1:1/a:1", "a", 3600).await;
    let supplied = supply(&room, "127.0.0.1:1/a:1", &[Platform::host()]).await.unwrap();
    assert_eq!(supplied.digest, image.manifest.digest);
    assert!(matches!(supplied.origin, SupplyOrigin::Unchecked { .. }), "{:?}", supplied.origin);
    let error = supply(&room, "127.0.0.1:1/a:2", &[Platform::host()]).await.unwrap_err();
    assert_eq!(error.code(), "registry_unreachable", "{error}");
    // An image by digest does not depend on its registry.
    let pinned = format!("127.0.0.1:1/a@{}", image.manifest.digest);
    cached(&room, &pinned, "a", 3600).await;
    let supplied = supply(&room, &pinned, &[Platform::host()]).await.unwrap();
    assert_eq!(supplied.origin, SupplyOrigin::Cached);
}

#[tokio::test]
async fn a_cached_image_that_lost_content_is_fetched_again() {
    let room = room();
    let image = cached(&room, "127.0.0.1:1/a:1", "a", 1).await;
    room.images.shared.catalog.remove_manifest(&image.repository, &image.manifest.digest).await.unwrap();
    let error = supply(&room, "127.0.0.1:1/a:1", &[Platform::host()]).await.unwrap_err();
    assert_eq!(error.code(), "registry_unreachable", "{error}");
}

#[test]
fn a_name_says_by_which_grant_it_is_pulled_and_where_it_lies() {
    for (name, registry_name, repository) in [
        ("alpine:3", "docker.io/library/alpine", "cached.hearth/public/docker.io/library/alpine"),
        ("localhost:5000/a", "localhost:5000/a", "cached.hearth/public/localhost---5000/a"),
    ] {
        let reference: Reference = name.parse().unwrap();
        assert_eq!(key(&normalized_name(&reference)).registry_name(), registry_name);
        assert_eq!(cached_repository(&reference, &ImageRight::Public).unwrap().as_str(), repository);
    }
    let digest = format!("ghcr.io/a/b@sha256:{}", "0a".repeat(32));
    assert_eq!(key(&digest).registry_name(), "ghcr.io/a/b");
    let of = |name: &str| {
        let right = ImageRight::Caller(name.to_owned());
        assert_eq!(ImageRight::from_text(&right.to_text()), Some(right.clone()));
        cached_repository(&"ghcr.io/a/b".parse().unwrap(), &right).unwrap()
    };
    assert_ne!(of("ann"), of("bob"));
}

#[tokio::test]
async fn copies_that_one_caller_alone_uses_do_not_push_out_what_all_use() {
    let room = room();
    let shared = cached(&room, "127.0.0.1:1/base:1", "base", 1000).await;
    let of = |caller: &str, n: i64| CachedImageKey {
        right: ImageRight::Caller(caller.to_owned()),
        ..key(&format!("127.0.0.1:1/{caller}/{n}:1"))
    };
    let mut size = 0;
    for n in 0..6 {
        let image = cached_by(&room, of("eve", n), &format!("{n}"), 100 - n).await;
        size = image.size_bytes.max(size);
    }
    cached_by(&room, of("bob", 0), "bob", 500).await;
    // Everything fits except one image; a quarter has room for two of eve's.
    room.images.limit_cache(8 * size.max(shared.size_bytes) + 3);
    room.images.trim_cache().await.unwrap();
    let expected = ["base", "bob/0", "eve/4", "eve/5"].map(|name| format!("127.0.0.1:1/{name}:1"));
    assert_eq!(names(&room).await, expected);
}
