//! Manifests and indexes as values (OCI image spec, "Image Manifest" and "Image Index"; Docker's schema 2 is the same
//! under other media types).
//!
//! Only the fields that affect the room's decisions are read; the bytes are stored and served as they were pushed.

use std::collections::{BTreeMap, BTreeSet};

use hearth_proto::value::{Digest, MountTarget};
use serde::Deserialize;
use serde_json::Value;

use super::exact_names::other_spelling;
use super::image::{Descriptor, ImageDefaults, Platform};

/// Maximum size of a manifest in bytes, here and in most registries.
pub const MAX_MANIFEST_BYTES: usize = 4 * 1024 * 1024;

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Manifest of one of the four media types that the room accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    pub manifests: Vec<IndexEntry>,
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

impl Manifest {
    /// Reports whether the room accepts this media type.
    pub fn is_accepted_media_type(media_type: &str) -> bool {
        is_image(media_type) || is_index(media_type)
    }

    /// Parses a manifest that is declared as `media_type`.
    pub fn parse(media_type: &str, bytes: &[u8]) -> Result<Self, ManifestError> {
        if !Self::is_accepted_media_type(media_type) {
            return Err(ManifestError::MediaType(media_type.chars().take(200).collect()));
        }
        check_names(bytes, is_index(media_type))?;
        let head: ManifestHeaderJson = serde_json::from_slice(bytes)?;
        if head.schema_version != 2 {
            return Err(ManifestError::SchemaVersion(head.schema_version));
        }
        if let Some(said) = head.media_type.filter(|said| said != media_type) {
            return Err(ManifestError::OtherMediaType {
                said: said.chars().take(200).collect(),
                declared: media_type.to_owned(),
            });
        }
        let about = |config: Option<&Descriptor>| ManifestMetadata {
            subject: head.subject.map(|subject| subject.digest),
            artifact_type: head
                .artifact_type
                .filter(|kind| !kind.is_empty())
                .or_else(|| config.map(|config| config.media_type.clone())),
            annotations: head.annotations.unwrap_or_default(),
        };
        if is_index(media_type) {
            let index: IndexJson = serde_json::from_slice(bytes)?;
            let manifests = index.manifests.unwrap_or_default().into_iter().map(IndexEntry::from).collect();
            return Ok(Self::Index(ImageIndex { manifests, about: about(None) }));
        }
        let image: ImageJson = serde_json::from_slice(bytes)?;
        let mut foreign = BTreeSet::new();
        let mut needed = BTreeSet::from([image.config.digest]);
        let mut with_urls = None;
        let mut layers = Vec::new();
        for layer in image.layers.unwrap_or_default() {
            let has_urls = layer.urls.is_some_and(|urls| !urls.is_empty());
            if has_urls && with_urls.is_none() {
                with_urls = Some(layer.digest);
            }
            let elsewhere =
                layer.media_type.contains("nondistributable") || layer.media_type.contains("foreign");
            if elsewhere && has_urls {
                foreign.insert(layer.digest);
            }
            if !(elsewhere && has_urls) {
                needed.insert(layer.digest);
            }
            layers.push(Descriptor { media_type: layer.media_type, digest: layer.digest, size: layer.size });
        }
        // A foreign layer that the manifest also names in another role must be present.
        let foreign = &foreign - &needed;
        let about = about(Some(&image.config));
        Ok(Self::Image(ImageManifest { config: image.config, layers, foreign, with_urls, about }))
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
                index.manifests.iter().map(|child| part(&child.manifest, PartKind::Manifest)).collect()
            }
        };
        parts.sort_unstable();
        parts.dedup();
        parts
    }
}

impl ImageIndex {
    /// Returns the image for `platform`, or the only image.
    pub fn for_platform(&self, platform: &Platform) -> Option<&IndexEntry> {
        let mut images = self.manifests.iter().filter(|child| !child.is_attestation);
        let exact = images.clone().find(|child| child.platform.as_ref() == Some(platform));
        exact
            .or_else(|| {
                images.clone().find(|child| child.platform.as_ref().is_some_and(|own| covers(platform, own)))
            })
            .or_else(|| match (images.next(), images.next()) {
                (Some(only), None) => Some(only),
                _ => None,
            })
    }
}

/// Reports whether `own` is a variant of `wanted`: `linux/arm64` covers all its variants.
fn covers(wanted: &Platform, own: &Platform) -> bool {
    own.as_str().strip_prefix(wanted.as_str()).is_some_and(|rest| rest.starts_with('/'))
}

/// Field names that decide the contents of an image.
const MANIFEST_NAMES: &[&str] = &["schemaVersion", "mediaType", "config", "layers", "manifests", "fsLayers"];
const DESCRIPTOR_NAMES: &[&str] = &["mediaType", "digest", "size", "urls", "data", "platform"];
const CONFIG_NAMES: &[&str] = &["rootfs", "os", "architecture", "variant", "config"];
const ROOTFS_NAMES: &[&str] = &["type", "diff_ids"];

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
        .try_for_each(|descriptor| check_spelling(descriptor, DESCRIPTOR_NAMES))
}

fn check_config_names(bytes: &[u8]) -> Result<(), ManifestError> {
    let Value::Object(top) = serde_json::from_slice(bytes)? else { return Ok(()) };
    check_spelling(&top, CONFIG_NAMES)?;
    top.get("rootfs").and_then(Value::as_object).map_or(Ok(()), |rootfs| check_spelling(rootfs, ROOTFS_NAMES))
}

fn check_spelling(object: &serde_json::Map<String, Value>, names: &[&str]) -> Result<(), ManifestError> {
    other_spelling(object, names)
        .map_or(Ok(()), |name| Err(ManifestError::AmbiguousName(name.chars().take(200).collect())))
}

fn is_image(media_type: &str) -> bool {
    matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
}

fn is_index(media_type: &str) -> bool {
    matches!(media_type, OCI_INDEX | DOCKER_LIST)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ManifestHeaderJson {
    schema_version: u64,
    media_type: Option<String>,
    subject: Option<Descriptor>,
    artifact_type: Option<String>,
    annotations: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct ImageJson {
    config: Descriptor,
    layers: Option<Vec<LayerJson>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayerJson {
    media_type: String,
    digest: Digest,
    size: u64,
    urls: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct IndexJson {
    manifests: Option<Vec<IndexEntryJson>>,
}

#[derive(Deserialize)]
struct IndexEntryJson {
    #[serde(flatten)]
    manifest: Descriptor,
    platform: Option<PlatformJson>,
}

/// Platform fields, as in an index entry and at the top of an image config.
#[derive(Deserialize)]
struct PlatformJson {
    os: Option<String>,
    architecture: Option<String>,
    variant: Option<String>,
}

impl From<IndexEntryJson> for IndexEntry {
    fn from(child: IndexEntryJson) -> Self {
        let unknown = |word: &Option<String>| word.as_deref() == Some("unknown");
        let is_attestation =
            child.platform.as_ref().is_some_and(|own| unknown(&own.os) && unknown(&own.architecture));
        Self {
            manifest: child.manifest,
            platform: child.platform.and_then(PlatformJson::platform),
            is_attestation,
        }
    }
}

impl PlatformJson {
    fn platform(self) -> Option<Platform> {
        let (os, architecture) = (self.os?, self.architecture?);
        match self.variant.filter(|variant| !variant.is_empty()) {
            Some(variant) => Platform::parse(&format!("{os}/{architecture}/{variant}")),
            None => Platform::parse(&format!("{os}/{architecture}")),
        }
    }
}

/// Fields of an image config that the room uses.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    pub platform: Option<Platform>,
    /// Digests of the uncompressed layers, in the order of the manifest's layers.
    pub diff_ids: Vec<Digest>,
    /// TCP ports of `ExposedPorts`, ascending; other protocols and malformed entries are left out.
    pub exposed: Vec<u16>,
    /// Paths of `Volumes`; malformed paths are left out.
    pub volumes: Vec<MountTarget>,
    pub defaults: ImageDefaults,
}

impl ImageConfig {
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct ImageConfigJson {
            #[serde(flatten)]
            platform: PlatformJson,
            rootfs: Option<RootFs>,
            config: Option<RunConfigJson>,
        }
        /// Runtime configuration. The values of the maps have no meaning.
        #[derive(Default, Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct RunConfigJson {
            exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
            volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
            env: Option<Vec<String>>,
            on_build: Option<Vec<String>>,
        }
        #[derive(Deserialize)]
        struct RootFs {
            diff_ids: Option<Vec<Digest>>,
        }
        check_config_names(bytes)?;
        let config: ImageConfigJson = serde_json::from_slice(bytes)?;
        let run = config.config.unwrap_or_default();
        let exposed: BTreeSet<u16> =
            run.exposed_ports.unwrap_or_default().keys().filter_map(|port| tcp_port(port)).collect();
        let volumes = run.volumes.unwrap_or_default();
        Ok(Self {
            platform: config.platform.platform(),
            diff_ids: config.rootfs.and_then(|rootfs| rootfs.diff_ids).unwrap_or_default(),
            exposed: exposed.into_iter().collect(),
            volumes: volumes.keys().filter_map(|path| path.parse().ok()).collect(),
            defaults: ImageDefaults {
                environment: run.env.unwrap_or_default(),
                triggers: run.on_build.unwrap_or_default(),
            },
        })
    }
}

/// Parses `80` or `80/tcp`.
fn tcp_port(text: &str) -> Option<u16> {
    let number = match text.split_once('/') {
        Some((number, protocol)) if protocol.eq_ignore_ascii_case("tcp") => number,
        Some(_) => return None,
        None => text,
    };
    number.parse().ok().filter(|number| *number > 0)
}

#[cfg(test)]
mod tests {
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
            let manifest = Manifest::parse(OCI_MANIFEST, text.as_bytes()).unwrap();
            assert_eq!(manifest.parts().len(), 1);
        }
        let config =
            json!({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": null}, "history": null});
        let config = ImageConfig::parse(config.to_string().as_bytes()).unwrap();
        assert_eq!((config.platform, config.diff_ids), (Platform::parse("linux/amd64"), vec![]));
    }

    #[test]
    fn udp_ports_and_what_is_no_port_are_not_exposed() {
        let config = json!({"os": "linux", "architecture": "amd64", "config": {
            "ExposedPorts": {"8080/tcp": {}, "53/udp": {}, "80": {}, "0/tcp": {}, "x/tcp": {}, "70000/tcp": {}},
            "Volumes": {"/data": {}, "relative": {}, "/a/../b": {}, "/var/lib/x/": {}}}});
        let config = ImageConfig::parse(config.to_string().as_bytes()).unwrap();
        assert_eq!(config.exposed, [80, 8080]);
        let volumes: Vec<&str> = config.volumes.iter().map(MountTarget::as_str).collect();
        assert_eq!(volumes, ["/data", "/var/lib/x"]);
        for none in [json!({}), json!({"config": null}), json!({"config": {"ExposedPorts": null}})] {
            let config = ImageConfig::parse(none.to_string().as_bytes()).unwrap();
            assert!(config.exposed.is_empty() && config.volumes.is_empty());
        }
    }

    #[test]
    fn a_layer_that_comes_twice_is_needed_once() {
        let layers = json!([descriptor(2), descriptor(2), descriptor(3)]);
        let text = json!({"schemaVersion": 2, "config": descriptor(1), "layers": layers}).to_string();
        let manifest = Manifest::parse(DOCKER_MANIFEST, text.as_bytes()).unwrap();
        assert_eq!(manifest.parts().len(), 3);
    }

    #[test]
    fn a_layer_that_lies_elsewhere_is_not_needed_here() {
        let layers = json!([{"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "digest": digest(9), "size": 1, "urls": ["https://example.com/x"]}]);
        let text = json!({"schemaVersion": 2, "config": descriptor(1), "layers": layers}).to_string();
        let parts = Manifest::parse(DOCKER_MANIFEST, text.as_bytes()).unwrap().parts();
        assert_eq!(parts.iter().map(|part| part.digest).collect::<Vec<_>>(), [digest(1)]);
    }

    #[test]
    fn what_is_named_as_a_layer_elsewhere_and_as_something_else_is_needed_here() {
        let elsewhere = |byte| {
            let mut layer = descriptor(byte);
            layer["mediaType"] = json!("application/vnd.oci.image.layer.nondistributable.v1.tar");
            layer["urls"] = json!(["https://example.com/x"]);
            layer
        };
        let layers = json!([elsewhere(1), elsewhere(2), descriptor(2), elsewhere(3)]);
        let text = json!({"schemaVersion": 2, "config": descriptor(1), "layers": layers}).to_string();
        let parts = Manifest::parse(OCI_MANIFEST, text.as_bytes()).unwrap().parts();
        assert_eq!(parts.iter().map(|part| part.digest).collect::<Vec<_>>(), [digest(1), digest(2)]);
    }

    #[test]
    fn what_is_not_what_it_is_declared_as_is_refused() {
        let image = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptor(1)});
        let refused = |media_type: &str, value: &serde_json::Value| {
            Manifest::parse(media_type, value.to_string().as_bytes()).unwrap_err()
        };
        assert!(matches!(refused(DOCKER_MANIFEST, &image), ManifestError::OtherMediaType { .. }));
        assert!(matches!(refused("text/html", &image), ManifestError::MediaType(_)));
        assert!(matches!(
            refused(OCI_MANIFEST, &json!({"schemaVersion": 1})),
            ManifestError::SchemaVersion(1)
        ));
        assert!(matches!(refused(OCI_MANIFEST, &json!({"schemaVersion": 2})), ManifestError::Json(_)));
        assert!(matches!(refused(OCI_MANIFEST, &json!([])), ManifestError::Json(_)));
    }

    #[test]
    fn an_index_gives_the_image_of_a_platform_and_never_an_attestation() {
        let child = |byte, os: &str, architecture: &str, variant: Option<&str>| {
            let mut child = descriptor(byte);
            child["platform"] = json!({"os": os, "architecture": architecture, "variant": variant});
            child
        };
        let index = |manifests: serde_json::Value| {
            let text = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
            match Manifest::parse(OCI_INDEX, text.as_bytes()).unwrap() {
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
        assert_eq!(of(&both, "linux/s390x"), None);
        let one = index(json!([child(1, "linux", "amd64", None), attestation]));
        assert_eq!(of(&one, "linux/arm64"), Some(digest(1)));
    }
}
