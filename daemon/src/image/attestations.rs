//! Attestations of images: in-toto statements, each in a manifest whose subject is the image (OCI image spec 1.1,
//! "referrers").
//!
//! A referrer is kept and removed with its subject. A new statement of a build takes the place of the oldest ones, since
//! the same image may be built any number of times.

use std::collections::BTreeMap;
use std::sync::Arc;

use hearth_oci as oci;
use hearth_oci::{Descriptor, OCI_MANIFEST_TYPE};
use jiff::Timestamp;

use super::built_image::compose_index;
use super::contents::{ImageContents, read_json, store_document};
use super::port::{BlobStorage, NewManifest, ReferrerQuery};
use super::{ImageError, ImageStore, parse};
use crate::model::attestation::{AttachedStatement, IN_TOTO_TYPE, PREDICATE_TYPE_ANNOTATION, Predicate};
use crate::model::image::VerifiedImage;
use crate::model::manifest::Manifest;
use crate::model::{Digest, Reference, Repository};
use crate::task;

/// Media type and content of a config that a manifest has only because it must have one.
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const EMPTY_DOCUMENT: &[u8] = b"{}";
/// Artifact type of a manifest in an index that attaches statements to another manifest of it, as BuildKit writes them.
const ATTESTATION_MANIFEST_TYPE: &str = "application/vnd.docker.attestation.manifest.v1+json";
/// Annotations of its descriptor in the index.
const REFERENCE_DIGEST_ANNOTATION: &str = "vnd.docker.reference.digest";
const REFERENCE_TYPE_ANNOTATION: &str = "vnd.docker.reference.type";
const ATTESTATION_REFERENCE: &str = "attestation-manifest";
const CREATED_ANNOTATION: &str = "org.opencontainers.image.created";
/// Annotation of a manifest by which a build attached a statement: the daemon may replace it.
const BUILD_ANNOTATION: &str = "hearth.build.attestation";
/// Maximum number of statements of one kind that builds leave attached to one image.
const MAX_BUILD_STATEMENTS: usize = 4;
/// Maximum number of referrers of an image that are read.
const MAX_REFERRERS: usize = 100;

/// Statements about an image for one platform.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageStatements {
    /// Manifest of the image, with its platform.
    pub manifest: Descriptor,
    pub predicates: Vec<Predicate>,
}

/// A manifest that refers to an image, with the statements in it.
struct Referrer {
    manifest: Descriptor,
    is_of_build: bool,
    statements: Vec<AttachedStatement>,
}

impl ImageStore {
    /// Attaches statements about an image to it, in the image's repository. `names` are names of the image.
    pub async fn attach(
        &self,
        image: &VerifiedImage,
        names: &[String],
        predicates: &[Predicate],
    ) -> Result<(), ImageError> {
        let (shared, subject) = (Arc::clone(&self.shared), image.manifest.bare());
        let statements: Vec<(&'static str, Vec<u8>)> = predicates
            .iter()
            .map(|predicate| (predicate.kind, predicate.statement(&subject.digest, names).to_string().into()))
            .collect();
        let stored = task::blocking("attach statements", move || {
            let created = Timestamp::now().to_string();
            let store = |(kind, statement): &(&str, Vec<u8>)| {
                store_statement(&*shared.blobs, &subject, kind, statement, &created)
            };
            statements.iter().map(store).collect::<Result<Vec<_>, _>>()
        });
        let manifests = stored.await.map_err(|_| ImageError::Ending)??;
        self.shared.catalog.put_manifests(&image.repository, manifests, None).await?;
        if let Err(error) = self.remove_old_statements(&image.repository, image.manifest.digest).await {
            // The image is complete. The next build of it tries again.
            tracing::warn!(%error, image.digest = %image.manifest.digest, "failed to remove earlier statements about an image");
        }
        Ok(())
    }

    /// Returns the manifests of the images below a manifest or index, each with its platform.
    pub async fn platform_images(&self, top: &Descriptor) -> Result<Vec<Descriptor>, ImageError> {
        let (shared, top) = (Arc::clone(&self.shared), top.clone());
        let read = task::blocking("read images", move || platform_images(&*shared.blobs, &top));
        read.await.map_err(|_| ImageError::Ending)?
    }

    /// Makes the index that lists these images and, after them, their statements. Returns it, in the repository of `image`.
    pub async fn list_statements(
        &self,
        image: &VerifiedImage,
        names: &[String],
        images: &[ImageStatements],
    ) -> Result<VerifiedImage, ImageError> {
        let (shared, top) = (Arc::clone(&self.shared), image.manifest.clone());
        let (names, images) = (names.to_vec(), images.to_vec());
        let composed = task::blocking("compose index", move || {
            let blobs = &*shared.blobs;
            let mut manifests: Vec<Descriptor> = images.iter().map(|one| one.manifest.clone()).collect();
            for one in &images {
                manifests.push(store_attestation_manifest(blobs, one, &names)?);
            }
            let annotations = if top.is_index() {
                serde_json::from_slice::<oci::OciIndex>(&read_json(blobs, &top)?)
                    .map_err(|error| ImageError::Manifest { digest: top.digest, source: error.into() })?
                    .annotations
            } else {
                BTreeMap::new()
            };
            let index = compose_index(blobs, &top, manifests, annotations)?;
            Ok::<_, ImageError>((ImageContents::read_and_touch(blobs, &index)?, index))
        });
        let (contents, manifest) = composed.await.map_err(|_| ImageError::Ending)??;
        self.shared.catalog.put_manifests(&image.repository, contents.manifests, None).await?;
        Ok(VerifiedImage { repository: image.repository.clone(), manifest, size_bytes: contents.size_bytes })
    }

    async fn remove_old_statements(
        &self,
        repository: &Repository,
        subject: Digest,
    ) -> Result<(), ImageError> {
        let mut kept: BTreeMap<String, usize> = BTreeMap::new();
        for referrer in self.referrers(repository, subject).await? {
            let Some(statement) = referrer.statements.first().filter(|_| referrer.is_of_build) else {
                continue;
            };
            let count = kept.entry(statement.predicate_type.clone()).or_default();
            *count += 1;
            if *count > MAX_BUILD_STATEMENTS {
                self.shared.catalog.remove_manifest(repository, &referrer.manifest.digest).await?;
            }
        }
        Ok(())
    }

    /// Lists the statements that are attached to an image, the newest first: those of its referrers, and those that its
    /// index contains.
    pub async fn attestations(&self, reference: &Reference) -> Result<Vec<AttachedStatement>, ImageError> {
        let top = self.resolve(reference).await?;
        let referrers = self.referrers(&reference.repository, top.digest).await?;
        let mut found: Vec<_> = referrers.into_iter().flat_map(|referrer| referrer.statements).collect();
        if top.is_index() {
            let shared = Arc::clone(&self.shared);
            let read = task::blocking("read attestations", move || listed_statements(&*shared.blobs, &top));
            found.extend(read.await.map_err(|_| ImageError::Ending)??);
        }
        Ok(found)
    }

    /// Returns the manifests by which builds attached statements to an image.
    pub(super) async fn build_statements(
        &self,
        repository: &Repository,
        subject: Digest,
    ) -> Result<Vec<Descriptor>, ImageError> {
        let referrers = self.referrers(repository, subject).await?;
        Ok(referrers.into_iter().filter(|one| one.is_of_build).map(|one| one.manifest).collect())
    }

    /// Returns the referrers of a manifest, the newest first.
    async fn referrers(&self, repository: &Repository, subject: Digest) -> Result<Vec<Referrer>, ImageError> {
        let query = ReferrerQuery {
            repository: repository.clone(),
            subject,
            artifact_type: Some(IN_TOTO_TYPE.to_owned()),
            after: None,
            limit: MAX_REFERRERS,
        };
        let descriptors = self.shared.catalog.referrers(query).await?;
        let shared = Arc::clone(&self.shared);
        let read = task::blocking("read referrers", move || {
            let read = |descriptor: &Descriptor| read_referrer(&*shared.blobs, descriptor);
            descriptors.iter().map(read).collect::<Result<Vec<_>, _>>()
        });
        let mut referrers = read.await.map_err(|_| ImageError::Ending)??;
        let created = |referrer: &Referrer| referrer.statements.first().and_then(|one| one.created_at);
        referrers.sort_by_key(|referrer| std::cmp::Reverse(created(referrer)));
        Ok(referrers)
    }
}

/// Blocking.
fn platform_images(blobs: &dyn BlobStorage, top: &Descriptor) -> Result<Vec<Descriptor>, ImageError> {
    match parse(top, &read_json(blobs, top)?)? {
        Manifest::Image(image) => {
            let config = read_json(blobs, &image.config)?;
            let platform = oci::ImageConfig::parse_platform(&config).map_err(|error| ImageError::Config {
                digest: image.config.digest,
                reason: error.to_string(),
            })?;
            Ok(vec![Descriptor { platform: Some(platform), ..top.clone() }])
        }
        Manifest::Index(_) => {
            let index: oci::OciIndex = serde_json::from_slice(&read_json(blobs, top)?)
                .map_err(|error| ImageError::Manifest { digest: top.digest, source: error.into() })?;
            let is_image = |entry: &Descriptor| {
                let is_unknown = entry.platform.as_ref().is_some_and(|platform| platform.os == "unknown");
                entry.is_manifest() && !is_unknown
            };
            Ok(index.manifests.into_iter().filter(is_image).collect())
        }
    }
}

/// Stores the statements about an image and the manifest that lists them. Returns its descriptor for the index.
fn store_attestation_manifest(
    blobs: &dyn BlobStorage,
    about: &ImageStatements,
    names: &[String],
) -> Result<Descriptor, ImageError> {
    let config = store_document(blobs, EMPTY_TYPE, EMPTY_DOCUMENT)?;
    let digest = about.manifest.digest;
    let store = |predicate: &Predicate| {
        store_layer(blobs, predicate.kind, predicate.statement(&digest, names).to_string().as_bytes())
    };
    let layers = about.predicates.iter().map(store).collect::<Result<_, _>>()?;
    let mut manifest = oci::Manifest::new(config, layers);
    manifest.artifact_type = Some(ATTESTATION_MANIFEST_TYPE.to_owned());
    manifest.subject = Some(about.manifest.bare());
    let mut stored = store_manifest(blobs, &manifest, digest)?;
    stored.platform = Some(oci::DeclaredPlatform {
        architecture: "unknown".to_owned(),
        os: "unknown".to_owned(),
        variant: None,
    });
    stored.annotations = [
        (REFERENCE_DIGEST_ANNOTATION, digest.to_string()),
        (REFERENCE_TYPE_ANNOTATION, ATTESTATION_REFERENCE.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    Ok(stored)
}

fn store_layer(blobs: &dyn BlobStorage, kind: &str, statement: &[u8]) -> Result<Descriptor, ImageError> {
    let mut layer = store_document(blobs, IN_TOTO_TYPE, statement)?;
    layer.annotations.insert(PREDICATE_TYPE_ANNOTATION.to_owned(), kind.to_owned());
    Ok(layer)
}

fn store_manifest(
    blobs: &dyn BlobStorage,
    manifest: &oci::Manifest,
    subject: Digest,
) -> Result<Descriptor, ImageError> {
    let bytes = serde_json::to_vec(manifest)
        .map_err(|error| ImageError::Manifest { digest: subject, source: error.into() })?;
    store_document(blobs, OCI_MANIFEST_TYPE, &bytes)
}

/// Stores a statement, and the manifest that attaches it to `subject`.
fn store_statement(
    blobs: &dyn BlobStorage,
    subject: &Descriptor,
    kind: &str,
    statement: &[u8],
    created: &str,
) -> Result<NewManifest, ImageError> {
    let config = store_document(blobs, EMPTY_TYPE, EMPTY_DOCUMENT)?;
    let layer = store_layer(blobs, kind, statement)?;
    let mut manifest = oci::Manifest::new(config, vec![layer]);
    manifest.artifact_type = Some(IN_TOTO_TYPE.to_owned());
    manifest.subject = Some(subject.clone());
    manifest.annotations =
        [(CREATED_ANNOTATION, created), (PREDICATE_TYPE_ANNOTATION, kind), (BUILD_ANNOTATION, "true")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    let stored = store_manifest(blobs, &manifest, subject.digest)?;
    let mut contents = ImageContents::read_and_touch(blobs, &stored)?;
    contents.manifests.pop().ok_or(ImageError::BlobMissing { manifest: stored.digest, blob: stored.digest })
}

fn read_referrer(blobs: &dyn BlobStorage, descriptor: &Descriptor) -> Result<Referrer, ImageError> {
    if !descriptor.is_manifest() {
        return Ok(Referrer { manifest: descriptor.clone(), is_of_build: false, statements: Vec::new() });
    }
    let oci::Manifest { layers, annotations, .. } = serde_json::from_slice(&read_json(blobs, descriptor)?)
        .map_err(|error| ImageError::Manifest { digest: descriptor.digest, source: error.into() })?;
    let created_at = annotations.get(CREATED_ANNOTATION).and_then(|time| time.parse().ok());
    let statement = |layer: Descriptor| {
        let predicate_type = layer.annotations.get(PREDICATE_TYPE_ANNOTATION)?.clone();
        let is_statement = layer.media_type == IN_TOTO_TYPE;
        let Descriptor { digest, size, .. } = layer;
        is_statement.then_some(AttachedStatement { predicate_type, digest, size, created_at })
    };
    Ok(Referrer {
        manifest: descriptor.clone(),
        is_of_build: annotations.contains_key(BUILD_ANNOTATION),
        statements: layers.into_iter().filter_map(statement).collect(),
    })
}

/// Returns the statements of the attestation manifests that an index contains.
fn listed_statements(
    blobs: &dyn BlobStorage,
    top: &Descriptor,
) -> Result<Vec<AttachedStatement>, ImageError> {
    let Manifest::Index(index) = parse(top, &read_json(blobs, top)?)? else { return Ok(Vec::new()) };
    let mut statements = Vec::new();
    for entry in index.entries.iter().filter(|entry| entry.is_attestation) {
        statements.extend(read_referrer(blobs, &entry.manifest)?.statements);
    }
    Ok(statements)
}
