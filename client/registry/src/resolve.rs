//! Resolves a reference to the manifest of one platform.

use std::collections::HashSet;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hearth_oci::{
    DOCKER_INDEX_TYPE, DOCKER_MANIFEST_TYPE, DeclaredPlatform, Descriptor, DocumentHeader, ImageConfig,
    MAX_DOCUMENT_BYTES, Manifest, OCI_INDEX_TYPE, OCI_MANIFEST_TYPE, OciIndex, sha256,
};
use hearth_value::{Digest, Reference};
use reqwest::header::{ACCEPT, CONTENT_TYPE, HeaderValue};
use serde::Deserialize;

use super::RegistryClient;
use super::error::{MirrorFailure, RemoteError};
use super::host::{RegistryHost, redacted_url, repository};
use super::transport::{RegistryRequest, answer_bytes};

const ACCEPTED_TYPES: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";
/// Response header with the digest of a manifest.
const DIGEST_HEADER: &str = "docker-content-digest";
/// Maximum nesting depth of indexes.
const MAX_INDEX_DEPTH: usize = 4;

/// Source of an image: its repository, and the hosts that are tried in turn.
#[derive(Clone, Debug)]
pub struct PullSource {
    pub(super) hosts: Vec<RegistryHost>,
    pub(super) repository: String,
    /// Original reference, for messages.
    pub(super) reference: String,
}

impl PullSource {
    /// Returns the full name, such as `docker.io/library/python`, also for an image from a mirror.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry(), self.repository)
    }

    /// Returns the key of the referenced registry, also for an image from a mirror.
    pub(super) fn registry(&self) -> &str {
        self.hosts.first().map_or("", |host| host.mirror_of.as_deref().unwrap_or(&host.key))
    }

    pub(super) fn scope(&self) -> String {
        format!("repository:{}:pull", self.repository)
    }
}

/// A manifest or index of a registry. Its bytes have the descriptor's digest.
#[derive(Clone, Debug)]
pub struct ResolvedManifest {
    pub source: PullSource,
    pub descriptor: Descriptor,
    pub bytes: Vec<u8>,
}

/// A resolved image for one platform.
#[derive(Clone, Debug)]
pub struct RemoteImage {
    pub source: PullSource,
    pub descriptor: Descriptor,
    pub manifest_bytes: Vec<u8>,
    pub manifest: Manifest,
    pub config: Vec<u8>,
}

impl RegistryClient {
    /// Resolves a reference to a manifest or an index. Mirrors are tried first.
    pub async fn resolve_manifest(&self, reference: &Reference) -> Result<ResolvedManifest, RemoteError> {
        let (mut source, name) = self.source(reference);
        let (at, (descriptor, bytes)) = {
            let (pull_source, name) = (&source, name.as_str());
            let fetch = |host| self.manifest_at(host, pull_source, name, reference.digest.as_ref()).boxed();
            self.try_hosts(pull_source, fetch).await?
        };
        // Further requests go first to the host that answered.
        source.hosts[..=at].rotate_right(1);
        Ok(ResolvedManifest { source, descriptor, bytes })
    }

    /// Returns the current digest of a reference. The manifest is fetched only if the registry does not send the
    /// digest in a header.
    pub async fn resolve_digest(&self, reference: &Reference) -> Result<Digest, RemoteError> {
        let (source, name) = self.source(reference);
        let (source, name) = (&source, name.as_str());
        let fetch = |host| self.digest_at(host, source, name, reference.digest).boxed();
        Ok(self.try_hosts(source, fetch).await?.1)
    }

    async fn digest_at(
        &self,
        host: &RegistryHost,
        source: &PullSource,
        name: &str,
        wanted: Option<Digest>,
    ) -> Result<Digest, RemoteError> {
        let url = host.url(&source.repository, &format!("manifests/{name}"));
        let call =
            RegistryRequest::head(url.clone()).header(ACCEPT, HeaderValue::from_static(ACCEPTED_TYPES));
        let answer = match self.send(host, &source.scope(), &call).await {
            Err(RemoteError::Refused { status: 404, .. }) => return Err(not_found(source, &host.key)),
            answer => answer?,
        };
        let reported =
            answer.headers().get(DIGEST_HEADER).and_then(|value| value.to_str().ok()?.parse().ok());
        match (reported, wanted) {
            (Some(reported), Some(wanted)) if reported != wanted => {
                Err(RemoteError::Mismatch { url: redacted_url(&url), declared: wanted, actual: reported })
            }
            (Some(reported), _) => Ok(reported),
            (None, wanted) => Ok(self.manifest_at(host, source, name, wanted.as_ref()).await?.0.digest),
        }
    }

    /// Returns the repository and hosts for a reference, and its tag or digest.
    fn source(&self, reference: &Reference) -> (PullSource, String) {
        let hosts =
            self.mirrors.hosts(reference).into_iter().map(|host| self.mark_operator_host(host)).collect();
        let source =
            PullSource { repository: repository(reference), reference: reference.to_string(), hosts };
        let name = match (&reference.digest, reference.tag_or_latest()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.map_or_else(|| "latest".to_owned(), |tag| tag.to_string()),
        };
        (source, name)
    }

    /// Tries the hosts of a source in turn until one succeeds. Returns the index of that host and its result.
    async fn try_hosts<'a, T>(
        &self,
        source: &'a PullSource,
        ask: impl Fn(&'a RegistryHost) -> BoxFuture<'a, Result<T, RemoteError>>,
    ) -> Result<(usize, T), RemoteError> {
        let mut mirrors = Vec::new();
        let mut last = None;
        for (at, host) in source.hosts.iter().enumerate() {
            match ask(host).await {
                Ok(answer) => return Ok((at, answer)),
                Err(error) => match &host.mirror_of {
                    Some(registry) => {
                        tracing::warn!(mirror = host.key, registry, %error, "failed to fetch from a mirror; trying the next host");
                        mirrors.push(MirrorFailure { mirror: host.key.clone(), error });
                    }
                    None => last = Some(error),
                },
            }
        }
        let own = last.unwrap_or_else(|| not_found(source, source.registry()));
        Err(own.with_mirror_failures(mirrors, source.registry()))
    }

    /// Fetches a manifest that is listed in an index of `source`.
    pub async fn fetch_child_manifest(
        &self,
        source: &PullSource,
        child: &Descriptor,
    ) -> Result<Vec<u8>, RemoteError> {
        let name = child.digest.to_string();
        let name = name.as_str();
        let fetch = |host| self.manifest_at(host, source, name, Some(&child.digest)).boxed();
        Ok(self.try_hosts(source, fetch).await?.1.1)
    }

    async fn manifest_at(
        &self,
        host: &RegistryHost,
        source: &PullSource,
        name: &str,
        expected: Option<&Digest>,
    ) -> Result<(Descriptor, Vec<u8>), RemoteError> {
        let url = host.url(&source.repository, &format!("manifests/{name}"));
        let call = RegistryRequest::get(url.clone()).header(ACCEPT, HeaderValue::from_static(ACCEPTED_TYPES));
        let answer = match self.send(host, &source.scope(), &call).await {
            Err(RemoteError::Refused { status: 404, .. }) => return Err(not_found(source, &host.key)),
            answer => answer?,
        };
        let declared = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let declared = declared.and_then(|text| text.split(';').next()).unwrap_or_default().trim().to_owned();
        let bytes = answer_bytes(answer, MAX_DOCUMENT_BYTES, self.retry.stall).await?;
        let actual = sha256(&bytes);
        if let Some(expected) = expected.filter(|expected| **expected != actual) {
            return Err(RemoteError::Mismatch { url: redacted_url(&url), declared: *expected, actual });
        }
        let media_type = media_type(&declared, &bytes, &redacted_url(&url))?;
        let descriptor = Descriptor::new(&media_type, actual, bytes.len() as u64);
        Ok((descriptor, bytes))
    }

    /// Resolves `reference` to an image for `platform`, including its variant.
    pub async fn resolve_image(
        &self,
        reference: &Reference,
        platform: &DeclaredPlatform,
    ) -> Result<RemoteImage, RemoteError> {
        let ResolvedManifest { source, descriptor, bytes } = self.resolve_manifest(reference).await?;
        self.select_image(source, descriptor, bytes, platform).await
    }

    /// Resolves a manifest or index that was fetched before to the image for `platform`.
    pub async fn select_image(
        &self,
        source: PullSource,
        mut descriptor: Descriptor,
        mut bytes: Vec<u8>,
        platform: &DeclaredPlatform,
    ) -> Result<RemoteImage, RemoteError> {
        let mut seen = HashSet::new();
        for _ in 0..=MAX_INDEX_DEPTH {
            if !descriptor.is_index() {
                break;
            }
            seen.insert(descriptor.digest);
            let index: OciIndex = parse_json(&source, &bytes)?;
            let child = select_platform(&source, &index, platform)?;
            if !seen.insert(child.digest) {
                return Err(invalid_answer(&source, "its index contains itself"));
            }
            bytes = self.fetch_child_manifest(&source, &child).await?;
            descriptor = child;
        }
        if !descriptor.is_manifest() {
            return Err(invalid_answer(&source, "its indexes are nested too deeply"));
        }
        let manifest: Manifest = parse_json(&source, &bytes)?;
        let config = self.fetch_bytes(&source, &manifest.config).await?;
        let declared = ImageConfig::parse_platform(&config)
            .map_err(|error| invalid_answer(&source, &error.to_string()))?;
        if !declared.satisfies(platform) {
            let found = declared.to_string();
            return Err(RemoteError::NoPlatform {
                reference: source.reference,
                wanted: platform.to_string(),
                found,
            });
        }
        Ok(RemoteImage { source, descriptor, manifest_bytes: bytes, manifest, config })
    }
}

fn select_platform(
    source: &PullSource,
    index: &OciIndex,
    platform: &DeclaredPlatform,
) -> Result<Descriptor, RemoteError> {
    if index.manifests.len() > hearth_oci::MAX_INDEX_ENTRIES {
        return Err(invalid_answer(source, "its index has too many images"));
    }
    index.for_platform(platform).cloned().map_err(|found| RemoteError::NoPlatform {
        reference: source.reference.clone(),
        wanted: platform.to_string(),
        found,
    })
}

/// Returns the media type of a manifest: its own field, or else the declared content type. Unknown types are an
/// error.
fn media_type(declared: &str, bytes: &[u8], url: &str) -> Result<String, RemoteError> {
    let head: DocumentHeader = serde_json::from_slice(bytes)
        .map_err(|error| RemoteError::Answer { url: url.to_owned(), reason: error.to_string() })?;
    let own = head.media_type.filter(|own| !own.is_empty()).unwrap_or_else(|| declared.to_owned());
    let known =
        [OCI_MANIFEST_TYPE, OCI_INDEX_TYPE, DOCKER_MANIFEST_TYPE, DOCKER_INDEX_TYPE].contains(&own.as_str());
    if known && head.schema_version == Some(2) {
        return Ok(own);
    }
    let media_type =
        if head.schema_version == Some(1) { "schema 1".to_owned() } else { own.chars().take(100).collect() };
    Err(RemoteError::MediaType { what: format!("the manifest at {url}"), media_type })
}

fn parse_json<T: for<'de> Deserialize<'de>>(source: &PullSource, bytes: &[u8]) -> Result<T, RemoteError> {
    serde_json::from_slice(bytes).map_err(|error| invalid_answer(source, &error.to_string()))
}

fn invalid_answer(source: &PullSource, reason: &str) -> RemoteError {
    RemoteError::Answer { url: source.reference.clone(), reason: reason.to_owned() }
}

/// Returns the error for a reference that `registry`, perhaps a mirror, does not have.
pub(super) fn not_found(source: &PullSource, registry: &str) -> RemoteError {
    RemoteError::NotFound { reference: source.reference.clone(), registry: registry.to_owned() }
}
