//! Images that services run.

use std::collections::BTreeMap;

use super::*;
use crate::deploy::port::ServiceStore as _;
use crate::image::RemoteRegistries;
use crate::model::egress::EgressPolicy;
use crate::model::service::ServiceSpec;

fn remote_registries() -> RemoteRegistries {
    RemoteRegistries::new(hearth_registry::MirrorList::default(), None, EgressPolicy::default())
}

async fn runnable(
    room: &ImageFixture,
    reference: &str,
) -> Result<crate::model::deploy::ImageFacts, ImageError> {
    let platform = Platform::host();
    let caller =
        RegistryCaller { name: "ann", credentials: &BTreeMap::new(), registries: &remote_registries() };
    room.images.runnable(&reference.parse().unwrap(), &platform, caller).await
}

fn options(architecture: Option<&str>) -> hearth_pack::PackOptions {
    let mut options = hearth_pack::PackOptions::default();
    options.config.expose = vec!["8080/tcp".to_owned(), "53/udp".to_owned()];
    options.config.volumes = vec!["/data".to_owned()];
    if let Some(architecture) = architecture {
        options.platform = hearth_oci::DeclaredPlatform::linux(architecture, None);
    }
    options
}

#[tokio::test]
async fn an_image_says_its_ports_and_volumes_and_is_pinned_by_its_digest() {
    let room = room();
    let loaded = room.load(archive_with("x", &options(None)), "a/b:1").await.unwrap();
    let facts = runnable(&room, "room.meshagent.com/a/b:1").await.unwrap();
    assert_eq!((facts.digest, facts.manifest), (loaded.manifest.digest, loaded.manifest.digest));
    assert_eq!((facts.repository.as_str(), facts.exposed.as_slice()), ("a/b", [8080].as_slice()));
    assert_eq!(facts.volumes.iter().map(|path| path.as_str()).collect::<Vec<_>>(), ["/data"]);
    let missing = runnable(&room, "a/b:2").await.unwrap_err();
    assert_eq!(missing.code(), "image_not_found");
}

#[tokio::test]
async fn an_image_for_another_platform_is_an_error_of_its_own() {
    let room = room();
    room.load(archive_with("x", &options(Some("s390x"))), "a:1").await.unwrap();
    let error = runnable(&room, "a:1").await.unwrap_err();
    assert_eq!(error.code(), "platform_mismatch");
    assert!(error.to_string().contains("linux/s390x"), "{error}");
}

#[tokio::test]
async fn an_image_to_be_mounted_is_pinned_whatever_machine_it_is_for() {
    let room = room();
    let loaded = room.load(archive_with("x", &options(Some("s390x"))), "a/b:1").await.unwrap();
    let mountable = async |reference: &str| {
        let (reference, platform) = (reference.parse().unwrap(), Platform::host());
        let caller =
            RegistryCaller { name: "ann", credentials: &BTreeMap::new(), registries: &remote_registries() };
        room.images.mountable(&reference, &platform, caller).await
    };
    let pinned = mountable("room.meshagent.com/a/b:1").await.unwrap();
    assert_eq!((pinned.repository.as_str(), pinned.digest), ("a/b", loaded.manifest.digest));
    assert_eq!(mountable("a/b:2").await.unwrap_err().code(), "image_not_found");
}

#[tokio::test]
async fn an_image_that_a_service_runs_outlives_its_tag_and_the_sweep() {
    let room = room();
    room.load(archive("kept"), "web:1").await.unwrap();
    let facts = runnable(&room, "web:1").await.unwrap();
    let spec =
        ServiceSpec { digest: facts.digest, manifest: facts.manifest, ..crate::deploy::tests::spec(80) };
    let service = crate::deploy::tests::service(spec);
    room.store.put(&service).await.unwrap();
    room.images.remove(&"web:1".parse().unwrap()).await.unwrap();
    let hours = Duration::from_secs(7200);
    let sweep = async || {
        let now = jiff::Timestamp::now() + hours;
        let clock = std::time::SystemTime::now() + hours;
        room.images.collect_before(now, clock, Duration::from_secs(3600)).await.unwrap()
    };
    let report = sweep().await;
    assert_eq!((report.manifests, report.blobs), (0, 0), "{report:?}");
    let by_digest = format!("web@{}", facts.digest);
    assert_eq!(runnable(&room, &by_digest).await.unwrap(), facts);
    room.store.remove(&service).await.unwrap();
    let report = sweep().await;
    assert_eq!((report.manifests, report.blobs), (1, 3), "{report:?}");
}
