//! Tests with a scripted registry: which requests are sent, which answers are accepted, and who gets which
//! credentials.

use std::io::{Read as _, Seek as _, Write as _};
use std::time::Duration;

use base64::Engine as _;
use hearth_oci::{
    DeclaredPlatform, Descriptor, Manifest, OCI_CONFIG_TYPE, OCI_INDEX_TYPE, OCI_MANIFEST_TYPE, OciIndex,
    sha256,
};
use hearth_value::{Digest, Reference};
use tokio::sync::mpsc;

use super::*;

mod scripted;

use scripted::{Answer, Registry, Request};

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image with one layer.
struct Sample {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

impl Sample {
    fn new(architecture: &str, variant: Option<&str>) -> Self {
        let layer: Vec<u8> = format!("layer of {architecture} {variant:?} ").into_bytes().repeat(3000);
        let config = serde_json::json!({"os": "linux", "architecture": architecture, "variant": variant,
            "rootfs": {"type": "layers", "diff_ids": [sha256(&layer)]}});
        let config = serde_json::to_vec(&config).unwrap();
        let manifest = Manifest::new(
            Descriptor::new(OCI_CONFIG_TYPE, sha256(&config), config.len() as u64),
            vec![Descriptor::new(LAYER, sha256(&layer), layer.len() as u64)],
        );
        Self { layer, config, manifest: serde_json::to_vec(&manifest).unwrap() }
    }

    fn layer(&self) -> Descriptor {
        Descriptor::new(LAYER, sha256(&self.layer), self.layer.len() as u64)
    }

    fn blob(&self, path: &str) -> Option<&[u8]> {
        let all = [&self.layer, &self.config];
        let wanted = path.split_once("/blobs/")?.1.split('?').next()?;
        all.into_iter().find(|bytes| sha256(bytes).to_string() == wanted).map(Vec::as_slice)
    }

    fn serve(&self, request: &Request) -> Answer {
        let path = request.path.split('?').next().unwrap();
        if path.contains("/manifests/") {
            return Answer::new(200, self.manifest.clone()).header("content-type", OCI_MANIFEST_TYPE);
        }
        match self.blob(path) {
            Some(bytes) => Answer::new(200, bytes),
            None => Answer::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"no such blob"}]}"#),
        }
    }
}

fn sample() -> Sample {
    Sample::new("amd64", None)
}

fn remote() -> RegistryClient {
    let retry = RetryPolicy {
        first_pause: Duration::from_millis(2),
        longest_pause: Duration::from_millis(50),
        stall: Duration::from_secs(5),
        ..RetryPolicy::default()
    };
    RegistryClient::new(MirrorList::default()).with_retry_policy(retry)
}

fn password(name: &str) -> HostCredential {
    HostCredential::Password { username: name.to_owned(), password: "hunter2".to_owned() }
}

fn reference(registry: &Registry) -> Reference {
    format!("{}/team/app:1", registry.host()).parse().unwrap()
}

fn amd64() -> DeclaredPlatform {
    DeclaredPlatform::linux("amd64", None)
}

async fn fetch(
    remote: &RegistryClient,
    source: &PullSource,
    blob: &Descriptor,
) -> (Result<(), RemoteError>, Vec<u8>) {
    let (send, mut chunks) = mpsc::channel(4);
    let fetch = async {
        let fetched = remote.fetch_blob(source, blob, &send).await;
        drop(send);
        fetched
    };
    let collect = async {
        let mut all = Vec::new();
        while let Some(chunk) = chunks.recv().await {
            all.extend_from_slice(&chunk);
        }
        all
    };
    tokio::join!(fetch, collect)
}

#[tokio::test]
async fn an_image_is_resolved_and_its_blobs_are_fetched() {
    let image = sample();
    let (layer, content) = (image.layer(), image.layer.clone());
    let registry = Registry::start(move |request, _| image.serve(request));
    let remote = remote();
    let found = remote.resolve_image(&reference(&registry), &amd64()).await.unwrap();
    assert_eq!(found.manifest.layers, std::slice::from_ref(&layer));
    let (fetched, bytes) = fetch(&remote, &found.source, &layer).await;
    fetched.unwrap();
    assert!(bytes == content);
    assert_eq!(registry.log()[0], "GET /v2/team/app/manifests/1");
}

#[tokio::test]
async fn a_bearer_challenge_is_answered_once_and_its_token_kept_for_the_next_request() {
    let image = sample();
    let host = Arc::new(std::sync::OnceLock::<String>::new());
    let own = Arc::clone(&host);
    let registry = Registry::start(move |request, _| {
        if request.path.starts_with("/token") {
            return Answer::new(200, r#"{"token":"t1"}"#);
        }
        if request.authorization() == Some("Bearer t1") {
            return image.serve(request);
        }
        let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", own.get().unwrap());
        Answer::new(401, "").header("www-authenticate", &realm)
    });
    host.set(registry.host()).unwrap();
    let remote =
        remote().with_credentials(HostCredentials::default().with(&registry.host(), password("ann")));
    remote.resolve_image(&reference(&registry), &amd64()).await.unwrap();
    let asked = registry.asked();
    let tokens: Vec<&Request> = asked.iter().filter(|request| request.path.starts_with("/token")).collect();
    assert_eq!(tokens.len(), 1, "{:?}", registry.log());
    assert!(
        tokens[0].path.contains("scope=repository%3Ateam%2Fapp%3Apull")
            && tokens[0].path.contains("service=s")
    );
    let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode("ann:hunter2"));
    assert_eq!(tokens[0].authorization(), Some(basic.as_str()));
}

#[tokio::test]
async fn a_token_that_expired_is_refreshed_once_and_one_that_never_opens_is_denied() {
    let image = sample();
    let host = Arc::new(std::sync::OnceLock::<String>::new());
    let own = Arc::clone(&host);
    let registry = Registry::start(move |request, before| {
        if request.path.starts_with("/token") {
            return Answer::new(200, format!("{{\"access_token\":\"t{before}\"}}"));
        }
        // The first token gives access to the manifest only.
        let manifest = request.path.contains("/manifests/");
        match request.authorization() {
            Some("Bearer t0") if manifest && !request.path.contains("closed") => image.serve(request),
            Some("Bearer t1") if !request.path.contains("closed") => image.serve(request),
            _ => {
                let realm = format!("Bearer realm=\"http://{}/token\"", own.get().unwrap());
                Answer::new(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"no"}]}"#)
                    .header("www-authenticate", &realm)
            }
        }
    });
    host.set(registry.host()).unwrap();
    let remote = remote();
    remote.resolve_image(&reference(&registry), &amd64()).await.unwrap();
    let closed: Reference = format!("{}/closed:1", registry.host()).parse().unwrap();
    let error = remote.resolve_image(&closed, &amd64()).await.unwrap_err();
    assert_eq!(
        (error.code().as_str(), error.spec_code()),
        ("registry_denied", Some("UNAUTHORIZED")),
        "{error}"
    );
    let tries = registry.log().iter().filter(|line| line.contains("/closed/")).count();
    assert_eq!(tries, 2, "{:?}", registry.log());
}

#[tokio::test]
async fn a_realm_on_another_host_never_sees_credentials() {
    let thief = Registry::start(|_, _| Answer::new(200, r#"{"token":"t"}"#));
    // The same machine under another name counts as another host.
    let realm = format!("http://localhost:{}/token", thief.host().rsplit_once(':').unwrap().1);
    let registry = Registry::start(move |_, _| {
        Answer::new(401, "").header("www-authenticate", &format!("Bearer realm=\"{realm}\""))
    });
    for credentials in
        [HostCredentials::default(), HostCredentials::default().with(&registry.host(), password("ann"))]
    {
        let remote = remote().with_credentials(credentials);
        let error = remote.resolve_image(&reference(&registry), &amd64()).await.unwrap_err();
        assert!(matches!(error, RemoteError::Realm { .. }), "{error}");
        assert!(!error.to_string().contains("hunter2"));
    }
    assert!(thief.asked().is_empty());
}

#[tokio::test]
async fn busy_and_broken_answers_are_asked_again_and_denials_are_not() {
    let image = sample();
    let registry =
        Registry::start(move |request, before| match (request.path.contains("/manifests/"), before) {
            (true, 0) => Answer::new(429, r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}"#),
            (true, 1) => Answer::new(500, "oh"),
            _ => image.serve(request),
        });
    remote().resolve_image(&reference(&registry), &amd64()).await.unwrap();

    let closed = Registry::start(|_, _| {
        Answer::new(403, r#"{"errors":[{"code":"DENIED","message":"not yours\u001b[2J"}]}"#)
    });
    let error = remote().resolve_image(&reference(&closed), &amd64()).await.unwrap_err();
    assert_eq!(error.spec_code(), Some("DENIED"));
    assert!(!error.retryable() && !error.to_string().contains('\u{1b}'), "{error}");
    assert_eq!(closed.asked().len(), 1);

    let busy = Registry::start(|_, _| Answer::new(429, "").header("retry-after", "0"));
    let error = remote().resolve_image(&reference(&busy), &amd64()).await.unwrap_err();
    assert_eq!(error.code(), "registry_busy");
    assert_eq!(busy.asked().len(), RetryPolicy::default().attempts as usize);
}

#[tokio::test]
async fn a_blob_that_is_cut_off_is_taken_up_where_it_was() {
    for ranges in [true, false] {
        let image = sample();
        let (layer, content) = (image.layer(), image.layer.clone());
        let registry = Registry::start(move |request, before| {
            let Some(bytes) = image.blob(&request.path).filter(|bytes| bytes.len() > 1000) else {
                return image.serve(request);
            };
            let from: usize = request
                .header("range")
                .filter(|_| ranges)
                .map_or(0, |range| range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap());
            let answer = if from > 0 {
                let range = format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len());
                Answer::new(206, &bytes[from..]).header("content-range", &range)
            } else {
                Answer::new(200, bytes)
            };
            if before < 3 { answer.cut(5_000 * (before + 1)) } else { answer }
        });
        let remote = remote();
        let found = remote.resolve_image(&reference(&registry), &amd64()).await.unwrap();
        let (fetched, bytes) = fetch(&remote, &found.source, &layer).await;
        fetched.unwrap();
        assert!(bytes == content, "ranges: {ranges}");
        let asked = registry.asked();
        let resumed = asked.iter().filter(|request| request.header("range").is_some()).count();
        assert_eq!(resumed, 3);
    }
}

#[tokio::test]
async fn content_with_another_digest_or_size_is_refused_and_never_handed_out_whole() {
    let image = sample();
    let layer = image.layer();
    let length = image.layer.len();
    for (wrong, is_size) in [
        (vec![7; length], false),
        (image.layer[..length - 1].to_vec(), true),
        ([image.layer.as_slice(), b"x"].concat(), true),
    ] {
        let image = sample();
        let served = wrong.clone();
        let registry = Registry::start(move |request, _| {
            if image.blob(&request.path).is_some_and(|bytes| bytes.len() == length) {
                return Answer::new(200, served.clone());
            }
            image.serve(request)
        });
        let remote = remote();
        let found = remote.resolve_image(&reference(&registry), &amd64()).await.unwrap();
        let (fetched, bytes) = fetch(&remote, &found.source, &layer).await;
        let error = fetched.unwrap_err();
        match is_size {
            false => assert!(matches!(error, RemoteError::Mismatch { .. }), "{error}"),
            // Too few bytes are first treated as an interrupted connection.
            true => assert!(
                matches!(error, RemoteError::Size { .. } | RemoteError::Unreachable { .. }),
                "{error}"
            ),
        }
        assert!(bytes.len() < length, "{} of {length}", bytes.len());
    }
}

#[tokio::test]
async fn a_manifest_that_is_not_its_digest_is_refused() {
    let image = sample();
    let other = Digest::from_sha256([7; 32]);
    let registry = Registry::start(move |request, _| image.serve(request));
    let pinned: Reference = format!("{}/team/app@{other}", registry.host()).parse().unwrap();
    let error = remote().resolve_image(&pinned, &amd64()).await.unwrap_err();
    assert!(matches!(error, RemoteError::Mismatch { .. }), "{error}");
}

#[tokio::test]
async fn a_redirect_to_another_host_carries_no_authorization_and_shows_no_signature() {
    let image = sample();
    let (layer, content) = (image.layer(), image.layer.clone());
    let served = content.clone();
    let storage = Registry::start(move |request, _| {
        if request.path.contains("gone") {
            Answer::new(403, "expired")
        } else {
            Answer::new(200, served.clone())
        }
    });
    let place = storage.host();
    let registry = Registry::start(move |request, before| {
        if request.authorization().is_none() {
            return Answer::new(401, "").header("www-authenticate", "Basic realm=\"x\"");
        }
        if image.blob(&request.path).is_some_and(|bytes| bytes.len() > 1000) {
            let at = if before > 0 { "gone" } else { "here" };
            return Answer::new(307, "")
                .header("location", &format!("http://{place}/{at}?X-Signature=s3cret"));
        }
        image.serve(request)
    });
    let remote =
        remote().with_credentials(HostCredentials::default().with(&registry.host(), password("ann")));
    let found = remote.resolve_image(&reference(&registry), &amd64()).await.unwrap();
    let (fetched, bytes) = fetch(&remote, &found.source, &layer).await;
    fetched.unwrap();
    assert!(bytes == content);
    let (fetched, _) = fetch(&remote, &found.source, &layer).await;
    let error = fetched.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("s3cret"), "{error}");
    let asked = storage.asked();
    assert_eq!(asked.len(), 2);
    assert!(asked.iter().all(|request| request.authorization().is_none()));
}

#[tokio::test]
async fn endless_answers_and_redirects_have_an_end() {
    let endless = Registry::start(|_, _| {
        Answer::new(200, vec![b' '; 5 * 1024 * 1024]).header("content-type", OCI_MANIFEST_TYPE)
    });
    let error = remote().resolve_image(&reference(&endless), &amd64()).await.unwrap_err();
    assert!(matches!(error, RemoteError::TooLarge { .. }), "{error}");
    let circle = Registry::start(|request, _| Answer::new(302, "").header("location", &request.path));
    let error = remote().resolve_image(&reference(&circle), &amd64()).await.unwrap_err();
    assert!(matches!(error, RemoteError::Redirect { .. }), "{error}");
    let astray = Registry::start(|_, _| Answer::new(302, "").header("location", "file:///etc/passwd"));
    let error = remote().resolve_image(&reference(&astray), &amd64()).await.unwrap_err();
    assert!(matches!(error, RemoteError::Redirect { .. }), "{error}");
}

#[tokio::test]
async fn the_variant_of_a_platform_is_honoured() {
    let platforms =
        [("arm", Some("v6")), ("arm", Some("v7")), ("arm64", Some("v8")), ("amd64", None), ("unknown", None)];
    let images: Vec<Sample> = platforms.iter().map(|(arch, variant)| Sample::new(arch, *variant)).collect();
    let children = platforms.iter().zip(&images).map(|((arch, variant), image)| {
        let mut child =
            Descriptor::new(OCI_MANIFEST_TYPE, sha256(&image.manifest), image.manifest.len() as u64);
        let mut platform = DeclaredPlatform::linux(arch, *variant);
        if *arch == "unknown" {
            platform.os = "unknown".to_owned();
        }
        child.platform = Some(platform);
        child
    });
    let index = serde_json::to_vec(&OciIndex::new(children.collect())).unwrap();
    let digests: Vec<Digest> = images.iter().map(|image| sha256(&image.manifest)).collect();
    let registry = Registry::start(move |request, _| {
        if request.path.ends_with("/manifests/1") {
            return Answer::new(200, index.clone()).header("content-type", OCI_INDEX_TYPE);
        }
        let of = |image: &&Sample| {
            request.path.ends_with(&sha256(&image.manifest).to_string())
                || image.blob(&request.path).is_some()
        };
        images.iter().find(of).map_or_else(|| Answer::new(404, ""), |image| image.serve(request))
    });
    let remote = remote();
    for (wanted, expected) in [
        ("arm/v7", Some(1)),
        ("arm/v6", Some(0)),
        ("arm", Some(1)),
        ("arm64", Some(2)),
        ("arm64/v8", Some(2)),
        ("amd64", Some(3)),
        ("arm/v5", None),
        ("s390x", None),
    ] {
        let found = remote.resolve_image(&reference(&registry), &wanted.parse().unwrap()).await;
        match expected {
            Some(at) => assert_eq!(found.unwrap().descriptor.digest, digests[at], "{wanted}"),
            None => {
                let error = found.unwrap_err();
                assert!(error.to_string().contains("linux/arm/v6"), "{error}");
                assert_eq!(error.code(), "platform_mismatch");
            }
        }
    }
}

#[tokio::test]
async fn a_registry_at_an_internal_address_is_asked_only_when_its_operator_knows_it() {
    let image = sample();
    let registry = Registry::start(move |request, _| image.serve(request));
    let host = registry.host();
    let port = host.rsplit_once(':').unwrap().1;
    let guards = |configured: bool| AddressGuards {
        configured: AddressGuard::new(move |address| configured || !address.is_loopback()),
        unconfigured: AddressGuard::new(|address| !address.is_loopback()),
    };
    let retry = remote().retry;
    let with = |mirrors: &[String], configured| {
        let mirrors = mirrors.iter().map(|mirror| mirror.parse().unwrap()).collect();
        RegistryClient::guarded(MirrorList::new(mirrors), guards(configured)).with_retry_policy(retry)
    };
    let given = HostCredentials::default().with(&host, password("ann"));
    let stranger = with(&[], true).with_credentials(given);
    for name in [host.clone(), format!("localhost:{port}"), format!("127.0.0.2:{port}")] {
        let named = format!("{name}/team/app:1").parse().unwrap();
        let error = stranger.resolve_image(&named, &amd64()).await.unwrap_err();
        assert_eq!(error.code(), "registry_address_refused", "{error}");
        assert!(error.to_string().contains("127.0.0."), "{error}");
    }
    // A configured name must not resolve to an address that the guard refuses.
    let localhost = format!("localhost:{port}");
    let named = format!("{localhost}/team/app:1").parse().unwrap();
    let itself = [format!("{localhost}=http://{localhost}")];
    let error = with(&itself, false).resolve_image(&named, &amd64()).await.unwrap_err();
    assert_eq!(error.code(), "registry_address_refused", "{error}");
    assert!(registry.asked().is_empty(), "{:?}", registry.log());

    with(&itself, true).resolve_image(&named, &amd64()).await.unwrap();
    with(&[], true)
        .with_operator_registries([host.as_str()])
        .resolve_image(&reference(&registry), &amd64())
        .await
        .unwrap();
    // An address that is configured literally is allowed.
    let itself = [format!("{host}=http://{host}")];
    with(&itself, false).resolve_image(&reference(&registry), &amd64()).await.unwrap();
}

#[tokio::test]
async fn only_a_registry_of_the_configuration_leads_to_an_internal_address() {
    let image = sample();
    let inner = Registry::start(move |request, _| image.serve(request));
    let to = inner.host();
    let outer = Registry::start(move |request, _| {
        Answer::new(307, "").header("location", &format!("http://{to}{}", request.path))
    });
    let guards = AddressGuards {
        configured: AddressGuard::new(|_| true),
        unconfigured: AddressGuard::new(|address| !address.is_loopback()),
    };
    let host = outer.host();
    let known = RegistryClient::guarded(MirrorList::default(), guards.clone())
        .with_operator_registries([host.as_str()]);
    let error = known.resolve_image(&reference(&outer), &amd64()).await.unwrap_err();
    assert_eq!(error.code(), "registry_redirect_refused", "{error}");
    assert!(inner.asked().is_empty() && !outer.asked().is_empty());
    let itself = MirrorList::new(vec![format!("{host}=http://{host}").parse().unwrap()]);
    RegistryClient::guarded(itself, guards).resolve_image(&reference(&outer), &amd64()).await.unwrap();
}

#[tokio::test]
async fn a_mirror_is_asked_first_and_the_registry_when_it_has_nothing() {
    let (image, other) = (sample(), sample());
    let full = Registry::start(move |request, _| image.serve(request));
    let empty = Registry::start(|_, _| Answer::new(404, ""));
    let registry = Registry::start(move |request, _| other.serve(request));
    let mirrors = |first: &Registry| {
        let mirror = format!("{}=http://{}", registry.host(), first.host());
        RegistryClient::new(MirrorList::new(vec![mirror.parse().unwrap()])).with_retry_policy(remote().retry)
    };
    mirrors(&full).resolve_image(&reference(&registry), &amd64()).await.unwrap();
    assert!(registry.asked().is_empty());
    assert!(full.log()[0].contains("ns="), "{:?}", full.log());
    let found = mirrors(&empty).resolve_image(&reference(&registry), &amd64()).await.unwrap();
    assert_eq!(empty.asked().len(), 1);
    assert!(found.source.name().starts_with(&registry.host()));
}

#[tokio::test]
async fn pushing_sends_what_is_missing_and_mounts_what_lies_beside() {
    let image = sample();
    let layer = image.layer();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all(&image.layer).unwrap();
    let path = file.path().to_owned();
    let content = OpenContent::new(layer.digest, move || std::fs::File::open(&path));
    // A 202 answer to a mount is a session for an ordinary upload, whose first attempt fails.
    let registry = Registry::start(move |request, before| {
        let path = request.path.as_str();
        match request.method.as_str() {
            "HEAD" if path.contains("/there/") => Answer::new(200, ""),
            "HEAD" => Answer::new(404, ""),
            "POST" if path.contains("/mounts/") => Answer::new(201, ""),
            "POST" => Answer::new(202, "").header("location", "/v2/upload/7?state=abc"),
            "PUT" if path.contains("/upload/") && before == 0 => Answer::new(503, ""),
            "PUT" => Answer::new(201, ""),
            _ => Answer::new(405, ""),
        }
    });
    let remote = remote();
    let target = |name: &str| remote.target(&format!("{}/{name}:1", registry.host()).parse().unwrap());
    let from = target("from");
    for (name, from, expected) in [
        ("there", None, PushOutcome::AlreadyPresent),
        ("mounts", Some(&from), PushOutcome::Mounted),
        ("sent", Some(&from), PushOutcome::Uploaded),
    ] {
        let pushed = remote.push_blob(&target(name), &layer, from, &content).await.unwrap();
        assert_eq!(pushed, expected, "{name}");
    }
    let asked = registry.asked();
    let put: Vec<&Request> = asked.iter().filter(|request| request.method == "PUT").collect();
    assert_eq!(put.len(), 2, "{:?}", registry.log());
    assert!(put[1].body == image.layer);
    assert!(put[1].path.starts_with("/v2/upload/7?state=abc&digest=sha256"), "{}", put[1].path);
    assert!(asked.iter().any(|request| request.method == "POST" && request.path.contains("from=from")));

    remote.push_manifest(&target("sent"), "1", OCI_MANIFEST_TYPE, image.manifest.clone()).await.unwrap();
    let last = registry.asked().pop().unwrap();
    assert_eq!((last.method.as_str(), last.path.as_str()), ("PUT", "/v2/sent/manifests/1"));
    assert_eq!(last.header("content-type"), Some(OCI_MANIFEST_TYPE));
    assert!(last.body == image.manifest);
}

#[tokio::test]
async fn an_upload_that_leads_to_another_host_carries_no_authorization() {
    let image = sample();
    let layer = image.layer();
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all(&image.layer).unwrap();
    let path = file.path().to_owned();
    let content = OpenContent::new(layer.digest, move || std::fs::File::open(&path));
    let storage = Registry::start(|_, _| Answer::new(201, ""));
    let place = storage.host();
    let registry =
        Registry::start(move |request, _| match (request.authorization(), request.method.as_str()) {
            (None, _) => Answer::new(401, "").header("www-authenticate", "Basic realm=\"x\""),
            (_, "HEAD") => Answer::new(404, ""),
            _ => Answer::new(202, "").header("location", &format!("http://{place}/upload")),
        });
    let remote =
        remote().with_credentials(HostCredentials::default().with(&registry.host(), password("ann")));
    let target = remote.target(&reference(&registry));
    assert_eq!(remote.push_blob(&target, &layer, None, &content).await.unwrap(), PushOutcome::Uploaded);
    let asked = storage.asked();
    assert!(asked.len() == 1 && asked[0].authorization().is_none() && asked[0].body == image.layer);
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_unreachable_and_that_may_pass() {
    let gone = Registry::start(|_, _| Answer::new(200, "")).host();
    let error = remote().resolve_image(&format!("{gone}/x:1").parse().unwrap(), &amd64()).await.unwrap_err();
    assert!(matches!(error, RemoteError::Unreachable { .. }) && error.retryable(), "{error}");
    assert!(error.to_string().contains(&gone), "{error}");
}

#[tokio::test]
async fn a_retried_request_is_logged_in_its_span_without_the_query() {
    let mut file = tempfile::tempfile().unwrap();
    // The subscriber is global: one of this thread would miss what another test has logged first.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(Arc::new(file.try_clone().unwrap()))
        .init();
    let busy = Registry::start(|_, _| Answer::new(429, ""));
    remote().resolve_image(&reference(&busy), &amd64()).await.unwrap_err();
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    let host = busy.host();
    let span = format!(
        r#"remote_registry{{registry="{host}" method=GET url="http://{host}/v2/team/app/manifests/1"}}: "#
    );
    let retries = text.lines().filter(|line| line.contains("retrying") && line.contains(&span)).count();
    assert_eq!(retries + 1, RetryPolicy::default().attempts as usize, "{text}");
}
