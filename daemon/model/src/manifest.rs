//! Manifests and indexes as values (OCI image spec, "Image Manifest" and "Image Index"; Docker's schema 2 is the same
//! under other media types).
//!
//! Only the fields that affect the room's decisions are read; the bytes are stored and served as they were pushed.

use std::collections::{BTreeMap, BTreeSet};

use hearth_oci as oci;
use hearth_oci::{Descriptor, DocumentError, check_spelling, is_index_type, is_manifest_type};
use hearth_value::Digest;
use serde_json::Value;

use super::image::Platform;

/// Manifest of one of the four media types that the room accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "a manifest is parsed, read and dropped; no list holds them")]
pub enum Manifest {
    Image(ImageManifest),
    Index(ImageIndex),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageManifest {
    pub config: Descriptor,
    /// Layers, the base's first.
    pub layers: Vec<Descriptor>,
    /// Layers that are stored elsewhere by agreement (`urls`, "non-distributable") and need not be in the room.
    pub foreign: BTreeSet<Digest>,
    /// First layer that has URLs to fetch it from.
    pub with_urls: Option<Digest>,
    pub about: ManifestMetadata,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageIndex {
    pub entries: Vec<IndexEntry>,
    pub about: ManifestMetadata,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    pub manifest: Descriptor,
    pub platform: Option<Platform>,
    /// True if the entry is an attestation: BuildKit marks these with the platform `unknown/unknown`.
    pub is_attestation: bool,
}

/// Metadata that both kinds of manifest may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestMetadata {
    /// Manifest that this one refers to, such as the signed image of a signature.
    pub subject: Option<Digest>,
    pub artifact_type: Option<String>,
    pub annotations: BTreeMap<String, String>,
}

/// Content that a manifest requires in its own repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ManifestPart {
    pub digest: Digest,
    pub size: u64,
    pub kind: PartKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PartKind {
    Blob,
    Manifest,
}

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("media type `{0}` is not one of an image manifest or index")]
    MediaType(String),
    #[error("the manifest says mediaType `{said}`, and is declared as `{declared}`")]
    OtherMediaType { said: String, declared: String },
    #[error("schemaVersion is {0}; only 2 is known")]
    SchemaVersion(u64),
    #[error("the manifest is not valid: {0}")]
    Json(#[from] serde_json::Error),
    #[error("the manifest names `{0}` as a digest")]
    Digest(String),
    #[error("`{0}`: other programs may read this name as another spelling of a known field")]
    AmbiguousName(String),
    #[error("it has `{0}`, which makes it a manifest and an index at once")]
    ManifestAndIndex(&'static str),
}

impl From<DocumentError> for ManifestError {
    fn from(error: DocumentError) -> Self {
        match error {
            DocumentError::Json(error) => Self::Json(error),
            DocumentError::AmbiguousName(name) => Self::AmbiguousName(name),
        }
    }
}

impl Manifest {
    /// Reports whether the room accepts this media type.
    fn is_accepted_media_type(media_type: &str) -> bool {
        is_manifest_type(media_type) || is_index_type(media_type)
    }

    /// Parses a manifest that is declared as `media_type`.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Self, ManifestError> {
        if !Self::is_accepted_media_type(media_type) {
            return Err(ManifestError::MediaType(media_type.chars().take(200).collect()));
        }
        check_names(bytes, is_index_type(media_type))?;
        let head: oci::DocumentHeader = serde_json::from_slice(bytes)?;
        match head.schema_version {
            Some(2) => {}
            Some(other) => return Err(ManifestError::SchemaVersion(other)),
            None => {
                return Err(<serde_json::Error as serde::de::Error>::missing_field("schemaVersion").into());
            }
        }
        if let Some(said) = head.media_type.filter(|said| said != media_type) {
            return Err(ManifestError::OtherMediaType {
                said: said.chars().take(200).collect(),
                declared: media_type.to_owned(),
            });
        }
        let stated = |kind: Option<String>| kind.filter(|kind| !kind.is_empty());
        if is_index_type(media_type) {
            let index: oci::OciIndex = serde_json::from_slice(bytes)?;
            let about = ManifestMetadata {
                subject: index.subject.map(|subject| subject.digest),
                artifact_type: stated(index.artifact_type),
                annotations: index.annotations,
            };
            let entries = index.manifests.into_iter().map(IndexEntry::from).collect();
            return Ok(Self::Index(ImageIndex { entries, about }));
        }
        let image: oci::Manifest = serde_json::from_slice(bytes)?;
        let mut foreign = BTreeSet::new();
        let mut needed = BTreeSet::from([image.config.digest]);
        for layer in &image.layers {
            let elsewhere = layer.is_foreign_layer() && !layer.urls.is_empty();
            let role = if elsewhere { &mut foreign } else { &mut needed };
            role.insert(layer.digest);
        }
        // A foreign layer that the manifest also names in another role must be present.
        let foreign = &foreign - &needed;
        let about = ManifestMetadata {
            subject: image.subject.map(|subject| subject.digest),
            artifact_type: stated(image.artifact_type).or_else(|| Some(image.config.media_type.clone())),
            annotations: image.annotations,
        };
        let with_urls = image.layers.iter().find(|layer| !layer.urls.is_empty()).map(|layer| layer.digest);
        let layers = image.layers.iter().map(Descriptor::bare).collect();
        Ok(Self::Image(ImageManifest { config: image.config.bare(), layers, foreign, with_urls, about }))
    }

    pub fn metadata(&self) -> &ManifestMetadata {
        match self {
            Self::Image(image) => &image.about,
            Self::Index(index) => &index.about,
        }
    }

    /// Returns everything that the repository must have for this manifest to be complete, each once.
    pub fn parts(&self) -> Vec<ManifestPart> {
        let part = |descriptor: &Descriptor, kind| ManifestPart {
            digest: descriptor.digest,
            size: descriptor.size,
            kind,
        };
        let mut parts: Vec<ManifestPart> = match self {
            Self::Image(image) => std::iter::once(&image.config)
                .chain(&image.layers)
                .filter(|descriptor| !image.foreign.contains(&descriptor.digest))
                .map(|descriptor| part(descriptor, PartKind::Blob))
                .collect(),
            Self::Index(index) => {
                index.entries.iter().map(|entry| part(&entry.manifest, entry.part_kind())).collect()
            }
        };
        parts.sort_unstable();
        parts.dedup();
        parts
    }
}

impl ImageIndex {
    /// Returns the entries that are manifests or indexes. The others are blobs, such as the layers that BuildKit lists
    /// in the index of a cache (`image-manifest=false`).
    pub fn manifests(&self) -> impl Iterator<Item = &IndexEntry> + Clone {
        self.entries.iter().filter(|entry| entry.part_kind() == PartKind::Manifest)
    }

    /// Returns the image for `platform`, or the only image if it declares no platform: its config has it then.
    pub fn for_platform(&self, platform: &Platform) -> Option<&IndexEntry> {
        let images = self.images().filter_map(|entry| Some((entry, entry.platform.as_ref()?.to_declared())));
        let best = platform.to_declared().best_match(images, |(_, own)| Some(own));
        best.map(|(entry, _)| entry).or_else(|| self.only_image().filter(|only| only.platform.is_none()))
    }

    /// Returns the only image, whatever its platform.
    pub fn only_image(&self) -> Option<&IndexEntry> {
        let mut images = self.images();
        images.next().filter(|_| images.next().is_none())
    }

    fn images(&self) -> impl Iterator<Item = &IndexEntry> + Clone {
        self.manifests().filter(|entry| !entry.is_attestation)
    }

    /// Lists the platforms of the images, for an error message.
    pub fn offered_platforms(&self) -> String {
        let platforms: BTreeSet<&str> =
            self.images().filter_map(|entry| Some(entry.platform.as_ref()?.as_str())).collect();
        if platforms.is_empty() {
            "none".to_owned()
        } else {
            platforms.into_iter().collect::<Vec<_>>().join(", ")
        }
    }
}

impl IndexEntry {
    /// Kind of the content, by its media type.
    fn part_kind(&self) -> PartKind {
        if Manifest::is_accepted_media_type(&self.manifest.media_type) {
            PartKind::Manifest
        } else {
            PartKind::Blob
        }
    }
}

/// Field names that decide the contents of an image.
const MANIFEST_NAMES: &[&str] = &["schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers"];
const DESCRIPTOR_NAMES: &[&str] = &["mediaType", "digest", "size", "urls", "data", "platform", "annotations"];

/// Rejects a document that other programs may read as a different one. Later parsing detects all other errors.
fn check_names(bytes: &[u8], is_index: bool) -> Result<(), ManifestError> {
    let Value::Object(top) = serde_json::from_slice(bytes)? else { return Ok(()) };
    check_spelling(&top, MANIFEST_NAMES)?;
    let others: &[&'static str] = if is_index { &["config", "layers"] } else { &["manifests"] };
    if let Some(name) = others.iter().find(|name| top.get(**name).is_some_and(|value| !value.is_null())) {
        return Err(ManifestError::ManifestAndIndex(name));
    }
    let lists = ["layers", "manifests"].iter().filter_map(|name| top.get(*name)?.as_array()).flatten();
    let descriptors = top.get("config").into_iter().chain(lists);
    descriptors
        .filter_map(Value::as_object)
        .try_for_each(|descriptor| Ok(check_spelling(descriptor, DESCRIPTOR_NAMES)?))
}

impl From<oci::Descriptor> for IndexEntry {
    fn from(child: oci::Descriptor) -> Self {
        let declared = child.platform.as_ref();
        let is_attestation = declared.is_some_and(|own| own.os == "unknown" && own.architecture == "unknown");
        Self { manifest: child.bare(), platform: declared.and_then(Platform::declared), is_attestation }
    }
}

#[cfg(test)]
mod tests {
    use hearth_oci::{DOCKER_MANIFEST_TYPE, OCI_INDEX_TYPE, OCI_MANIFEST_TYPE};
    use serde_json::json;

    use super::*;

    fn digest(byte: u8) -> Digest {
        Digest::from_sha256([byte; 32])
    }

    fn descriptor(byte: u8) -> serde_json::Value {
        json!({"mediaType": "application/x", "digest": digest(byte), "size": 10})
    }

    #[test]
    fn an_image_without_layers_is_whole_with_its_config() {
        for layers in [json!(null), json!([])] {
            let text = json!({"schemaVersion": 2, "config": descriptor(1), "layers": layers}).to_string();
            let manifest = Manifest::parse(OCI_MANIFEST_TYPE, text.as_bytes()).unwrap();
            assert_eq!(manifest.parts().len(), 1);
        }
        let config =
            json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": null}, "history": null});
        let config = oci::ImageConfig::parse_unambiguous(config.to_string().as_bytes()).unwrap();
        let platform = Platform::declared(&config.platform);
        assert_eq!((platform, config.rootfs.diff_ids), (Platform::parse("linux/amd64"), vec![]));
    }

    #[test]
    fn a_layer_that_comes_twice_is_needed_once() {
        let layers = json!([descriptor(2), descriptor(2), descriptor(3)]);
        let text = json!({"schemaVersion": 2, "config": descriptor(1), "layers": layers}).to_string();
        let manifest = Manifest::parse(DOCKER_MANIFEST_TYPE, text.as_bytes()).unwrap();
        assert_eq!(manifest.parts().len(), 3);
    }

    #[test]
    fn a_foreign_layer_is_not_required_in_the_room() {
        let layers = json!([{"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "digest": digest(9), "size": 1, "urls": ["https://example.com/x"]}]);
        let text = json!({"schemaVersion": 2, "config": descriptor(1), "layers": layers}).to_string();
        let parts = Manifest::parse(DOCKER_MANIFEST_TYPE, text.as_bytes()).unwrap().parts();
        assert_eq!(parts.iter().map(|part| part.digest).collect::<Vec<_>>(), [digest(1)]);
    }

    #[test]
    fn a_foreign_layer_that_is_also_other_content_is_required_in_the_room() {
        let elsewhere = |byte| {
            let mut layer = descriptor(byte);
            layer["mediaType"] = json!("application/vnd.oci.image.layer.nondistributable.v1.tar");
            layer["urls"] = json!(["https://example.com/x"]);
            layer
        };
        let layers = json!([elsewhere(1), elsewhere(2), descriptor(2), elsewhere(3)]);
        let text = json!({"schemaVersion": 2, "config": descriptor(1), "layers": layers}).to_string();
        let parts = Manifest::parse(OCI_MANIFEST_TYPE, text.as_bytes()).unwrap().parts();
        assert_eq!(parts.iter().map(|part| part.digest).collect::<Vec<_>>(), [digest(1), digest(2)]);
    }

    #[test]
    fn entries_of_an_index_that_are_no_manifests_are_blobs_and_never_the_image() {
        let typed = |byte, media_type: &str| {
            let mut entry = descriptor(byte);
            entry["mediaType"] = json!(media_type);
            entry
        };
        let layer = typed(1, "application/vnd.oci.image.layer.v1.tar+gzip");
        let cache = typed(2, "application/vnd.buildkit.cacheconfig.v0");
        let text = json!({"schemaVersion": 2, "manifests": [layer, cache, typed(3, OCI_MANIFEST_TYPE)]});
        let manifest = Manifest::parse(OCI_INDEX_TYPE, text.to_string().as_bytes()).unwrap();
        let kinds: Vec<_> = manifest.parts().iter().map(|part| part.kind).collect();
        assert_eq!(kinds, [PartKind::Blob, PartKind::Blob, PartKind::Manifest]);
        let Manifest::Index(index) = manifest else { panic!("not an index") };
        let image = index.for_platform(&Platform::host()).map(|entry| entry.manifest.digest);
        assert_eq!(image, Some(digest(3)));
    }

    #[test]
    fn what_is_not_what_it_is_declared_as_is_refused() {
        let image = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST_TYPE, "config": descriptor(1)});
        let refused = |media_type: &str, value: &serde_json::Value| {
            Manifest::parse(media_type, value.to_string().as_bytes()).unwrap_err()
        };
        assert!(matches!(refused(DOCKER_MANIFEST_TYPE, &image), ManifestError::OtherMediaType { .. }));
        assert!(matches!(refused("text/html", &image), ManifestError::MediaType(_)));
        assert!(matches!(
            refused(OCI_MANIFEST_TYPE, &json!({"schemaVersion": 1})),
            ManifestError::SchemaVersion(1)
        ));
        assert!(matches!(refused(OCI_MANIFEST_TYPE, &json!({"schemaVersion": 2})), ManifestError::Json(_)));
        assert!(matches!(refused(OCI_MANIFEST_TYPE, &json!([])), ManifestError::Json(_)));
    }

    #[test]
    fn an_index_gives_the_image_of_a_platform_and_never_an_attestation() {
        let child = |byte, os: &str, architecture: &str, variant: Option<&str>| {
            let mut child = descriptor(byte);
            child["mediaType"] = json!(OCI_MANIFEST_TYPE);
            child["platform"] = json!({"os": os, "architecture": architecture, "variant": variant});
            child
        };
        let index = |manifests: serde_json::Value| {
            let text = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
            match Manifest::parse(OCI_INDEX_TYPE, text.as_bytes()).unwrap() {
                Manifest::Index(index) => index,
                Manifest::Image(_) => panic!("not an index"),
            }
        };
        let of = |index: &ImageIndex, platform: &str| {
            index.for_platform(&Platform::parse(platform).unwrap()).map(|child| child.manifest.digest)
        };
        let attestation = child(9, "unknown", "unknown", None);
        let both = index(json!([
            child(1, "linux", "amd64", None),
            child(2, "linux", "arm64", Some("v8")),
            attestation.clone()
        ]));
        assert_eq!(of(&both, "linux/amd64"), Some(digest(1)));
        assert_eq!(of(&both, "linux/arm64"), Some(digest(2)));
        assert_eq!(of(&both, "linux/amd64/v1"), Some(digest(1)));
        assert_eq!(of(&both, "linux/s390x"), None);
        let one = index(json!([child(1, "linux", "amd64", None), attestation]));
        assert_eq!(of(&one, "linux/amd64"), Some(digest(1)));
        assert_eq!(of(&one, "linux/arm64"), None);
        assert_eq!(
            (one.offered_platforms(), both.offered_platforms()),
            ("linux/amd64".to_owned(), "linux/amd64, linux/arm64/v8".to_owned())
        );
    }
}
