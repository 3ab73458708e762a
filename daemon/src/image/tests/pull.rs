//! Registry whose manifest lists content that is not its own.

use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use hearth_oci::{Descriptor, Manifest as OciManifest, OCI_CONFIG_TYPE, OCI_MANIFEST_TYPE};
use hearth_registry::{MirrorList, RegistryClient, RetryPolicy};
use sha2::{Digest as _, Sha256};

use super::*;
use crate::task;

pub(super) fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

/// Serves a manifest with this layer, with or without the layer's content.
pub(super) async fn registry(
    layer: Descriptor,
    content: Option<Vec<u8>>,
) -> (String, task_handle::TestRegistryServer) {
    // The layer is not compressed, whatever its media type says.
    let rootfs = format!(r#"{{"type":"layers","diff_ids":["{}"]}}"#, layer.digest);
    let config = format!(r#"{{"os":"linux","architecture":"amd64","rootfs":{rootfs}}}"#).into_bytes();
    let wanted = layer.digest.to_string();
    let manifest = OciManifest::new(
        Descriptor::new(OCI_CONFIG_TYPE, digest_of(&config), config.len() as u64),
        vec![layer],
    );
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let app = Router::new().fallback(move |uri: Uri| {
        let (config, manifest, wanted, content) =
            (config.clone(), manifest.clone(), wanted.clone(), content.clone());
        async move {
            let path = uri.path();
            let found: Option<Response> = if path.contains("/manifests/") {
                Some(([("content-type", OCI_MANIFEST_TYPE)], manifest).into_response())
            } else if path.ends_with(&digest_of(&config).to_string()) {
                Some(config.into_response())
            } else if path.ends_with(&wanted) {
                content.map(|content| content.into_response())
            } else {
                None
            };
            found.unwrap_or_else(|| StatusCode::NOT_FOUND.into_response())
        }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let server = task::spawn("registry", async move {
        axum::serve(listener, app).await.unwrap();
    });
    (host, task_handle::TestRegistryServer(server))
}

pub(super) mod task_handle {
    /// Server task that ends with the test.
    pub struct TestRegistryServer(pub(super) tokio::task::JoinHandle<()>);

    impl Drop for TestRegistryServer {
        fn drop(&mut self) {
            self.0.abort();
        }
    }
}

fn remote() -> RegistryClient {
    let retry = RetryPolicy { attempts: 2, first_pause: Duration::from_millis(2), ..RetryPolicy::default() };
    RegistryClient::new(MirrorList::default()).with_retry_policy(retry)
}

fn amd64() -> PlatformSelection {
    PlatformSelection::One(Platform::parse("linux/amd64").unwrap())
}

pub(super) async fn pull(
    room: &ImageFixture,
    host: &str,
    destination: ImageDestination,
) -> Result<LoadedImage, ImageError> {
    let reference = format!("{host}/theirs:1").parse().unwrap();
    let pull = ImagePull {
        remote: &remote(),
        reference: &reference,
        caller: "ann",
        platforms: amd64(),
        destination,
    };
    room.images.pull(pull, &TransferProgress::default()).await
}

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

#[tokio::test]
async fn a_manifest_of_another_registry_opens_no_blob_of_the_room() {
    let room = room();
    let secret = room.load(archive("the secret of another repository"), "secret:1").await.unwrap();
    let layer = room.images.open_layers(&secret.manifest).await.unwrap().remove(0).layer;
    let layer = Descriptor::new(LAYER, layer.digest, layer.size);
    let (host, _server) = registry(layer, None).await;
    let tag = ImageDestination::Tag(Reference::parse_tag("mine:1").unwrap());
    for destination in [tag, ImageDestination::Pack { owner: "eve".to_owned() }] {
        let error = pull(&room, &host, destination).await.unwrap_err();
        assert_eq!(error.code(), "registry_refused", "{error}");
    }
    let error = room.images.pull_for_mount(&remote(), &format!("{host}/x:1").parse().unwrap(), "eve").await;
    assert!(error.is_err());
    assert!(room.images.resolve(&"mine:1".parse().unwrap()).await.is_err());
}

#[tokio::test]
async fn what_a_mount_brought_is_reused_by_its_participant_and_by_nobody_else() {
    let room = room();
    let content = layers::tar("file", &[7; 100_000]);
    let layer = Descriptor::new(LAYER, digest_of(&content), content.len() as u64);
    let reused = async |owner: &str, host: &str| {
        let destination = ImageDestination::Pack { owner: format!("image mounts of {owner}") };
        pull(&room, host, destination).await.map(|loaded| loaded.reused_bytes >= 100_000)
    };
    let (full, _server) = registry(layer.clone(), Some(content)).await;
    assert!(!reused("ann", &full).await.unwrap());
    // The content is gone from the registry: only a caller who has it already can reuse it.
    let (empty, _second) = registry(layer, None).await;
    assert!(reused("ann", &empty).await.unwrap());
    assert!(reused("bob", &empty).await.is_err());
    let reference = format!("{empty}/theirs:1").parse().unwrap();
    room.images.pull_for_mount(&remote(), &reference, "ann").await.unwrap();
    room.images.pull_for_mount(&remote(), &reference, "ann").await.unwrap();
    let packs = room.images.shared.catalog.packs().await.unwrap();
    assert_eq!(packs.len(), 1, "one record for one image: {packs:?}");
}

#[tokio::test]
async fn content_that_is_not_what_it_says_leaves_nothing() {
    let room = room();
    let layer = Descriptor::new(LAYER, digest_of(b"declared"), 8);
    let (host, _server) = registry(layer, Some(b"decl4red".to_vec())).await;
    let tag = ImageDestination::Tag(Reference::parse_tag("mine:1").unwrap());
    let error = pull(&room, &host, tag).await.unwrap_err();
    assert_eq!(error.code(), "blob_mismatch", "{error}");
    assert!(room.images.resolve(&"mine:1".parse().unwrap()).await.is_err());
    assert!(room.blobs.size(&digest_of(b"declared")).unwrap().is_none());
}
