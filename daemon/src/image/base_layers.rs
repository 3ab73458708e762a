//! Form of the layers of a built image: those of the base have the form that they have in the base.
//!
//! BuildKit knows a base by the content of its layers. Once it has a base with zstd layers, it uses them for the same
//! base with gzip layers too, and the other way round. Therefore a built image could have other layers than its base,
//! depending on what the builder had seen before. The manifest of such an image is written again, with the layers of
//! the base. Its config names layers by their uncompressed content, which only a conversion to estargz changes: the
//! table of contents is a file of the layer.

use std::collections::BTreeMap;

use hearth_oci as oci;
use hearth_oci::Descriptor;
use serde_json::value::{RawValue, to_raw_value};

use super::ImageError;
use super::built_image::ImageForm;
use super::contents::{platform_manifest, read_json, store_document};
use super::port::BlobStorage;
use crate::model::image::Platform;
use crate::model::{BuildCompression, Digest};

/// Annotation of a layer that has a table of contents for lazy pulling.
pub(super) const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";
/// Annotations of layers that BuildKit keeps.
const KEPT_ANNOTATIONS: [&str; 2] = [TOC_DIGEST, "io.containers.estargz.uncompressed-size"];

/// Manifest of one built image after its base layers were restored.
pub(super) struct RestoredManifest {
    pub(super) manifest: Descriptor,
    pub(super) begins_with_base: bool,
    pub(super) has_other_compression: bool,
}

/// Restores the layers of the base, which is given with the platform for which the build used it, in the image of one
/// platform, and adds annotations to its manifest. Stores the new manifest if there is one. Blocking.
pub(super) fn restore(
    blobs: &dyn BlobStorage,
    built: &Descriptor,
    base: Option<(&Descriptor, &Platform)>,
    form: &ImageForm,
    annotations: BTreeMap<String, String>,
) -> Result<RestoredManifest, ImageError> {
    let mut manifest: oci::Manifest = parse(built, &read_json(blobs, built)?)?;
    let config = read_json(blobs, &manifest.config)?;
    let parsed: oci::ImageConfig = parse(&manifest.config, &config)?;
    let mut root = parsed.rootfs;
    let own = match base {
        Some((base, platform)) => BaseLayers::read(blobs, base, platform)?,
        None => BaseLayers::default(),
    };
    let own =
        if own.are_below(&root.diff_ids, &manifest, form.converted) { own } else { BaseLayers::default() };
    let (lower, upper) = manifest.layers.split_at_mut(own.layers.len());
    let mut restored = RestoredManifest {
        manifest: built.clone(),
        begins_with_base: !own.layers.is_empty(),
        has_other_compression: !upper.iter().all(|layer| has_form(layer, form.compression)),
    };
    let is_annotated = annotations.iter().all(|(key, value)| manifest.annotations.get(key) == Some(value));
    if lower == own.layers && is_annotated {
        return Ok(restored);
    }
    lower.clone_from_slice(&own.layers);
    manifest.annotations.extend(annotations);
    if !root.diff_ids.starts_with(&own.diff_ids) {
        root.diff_ids[..own.diff_ids.len()].copy_from_slice(&own.diff_ids);
        let config = with_root(&config, &root).map_err(|error| invalid(&manifest.config, error))?;
        manifest.config = store_document(blobs, &manifest.config.media_type, &config)?;
    }
    let bytes = to_go_json(&manifest).map_err(|error| invalid(built, error))?;
    let stored = store_document(blobs, &built.media_type, &bytes)?;
    restored.manifest = Descriptor { digest: stored.digest, size: stored.size, ..built.clone() };
    Ok(restored)
}

/// Layers of a base as BuildKit writes them into images.
#[derive(Default)]
struct BaseLayers {
    layers: Vec<Descriptor>,
    diff_ids: Vec<Digest>,
}

impl BaseLayers {
    /// Reads the layers of the base. None, if its manifest and its config do not agree, or if some are stored elsewhere.
    fn read(blobs: &dyn BlobStorage, base: &Descriptor, platform: &Platform) -> Result<Self, ImageError> {
        let (_, image) = platform_manifest(blobs, base, platform)?;
        let config: oci::ImageConfig = parse(&image.config, &read_json(blobs, &image.config)?)?;
        let diff_ids = config.rootfs.diff_ids;
        if diff_ids.len() != image.layers.len() || !image.foreign.is_empty() {
            return Ok(Self::default());
        }
        Ok(Self { layers: image.layers.iter().map(as_buildkit_writes_it).collect(), diff_ids })
    }

    fn are_below(&self, diff_ids: &[Digest], built: &oci::Manifest, converted: bool) -> bool {
        let begins = diff_ids.starts_with(&self.diff_ids);
        built.layers.len() == diff_ids.len() && (begins || converted && diff_ids.len() >= self.layers.len())
    }
}

/// Returns a config with another `rootfs`, and all other fields as they are.
pub(super) fn with_root(config: &[u8], root: &oci::RootFs) -> serde_json::Result<Vec<u8>> {
    let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(config)?;
    fields.insert("rootfs".to_owned(), to_raw_value(root)?);
    serde_json::to_vec(&fields)
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(
    descriptor: &Descriptor,
    bytes: &[u8],
) -> Result<T, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| invalid(descriptor, error))
}

pub(super) fn invalid(descriptor: &Descriptor, error: serde_json::Error) -> ImageError {
    ImageError::Manifest { digest: descriptor.digest, source: error.into() }
}

/// Returns the descriptor of a base's layer as BuildKit writes it into an image: with the media type of OCI, and the
/// annotations of lazy pulling only.
pub(super) fn as_buildkit_writes_it(layer: &Descriptor) -> Descriptor {
    let media_type = match layer.media_type.as_str() {
        "application/vnd.docker.image.rootfs.diff.tar" => "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => "application/vnd.oci.image.layer.v1.tar+zstd",
        other => other,
    };
    let mut own = Descriptor::new(media_type, layer.digest, layer.size);
    let kept = layer.annotations.iter().filter(|(name, _)| KEPT_ANNOTATIONS.contains(&name.as_str()));
    own.annotations = kept.map(|(name, value)| (name.clone(), value.clone())).collect();
    own
}

pub(super) fn has_form(layer: &Descriptor, compression: BuildCompression) -> bool {
    let is_estargz = layer.annotations.contains_key(TOC_DIGEST);
    match compression {
        BuildCompression::Gzip => layer.media_type.ends_with("+gzip") && !is_estargz,
        BuildCompression::Zstd => layer.media_type.ends_with("+zstd"),
        BuildCompression::Estargz => is_estargz,
        BuildCompression::None => layer.media_type.ends_with(".tar"),
    }
}

/// Writes a manifest or index as BuildKit does (Go's `json.MarshalIndent`), so that its digest is the same as that of a
/// build whose layers needed no change.
pub(super) fn to_go_json(document: &impl serde::Serialize) -> serde_json::Result<Vec<u8>> {
    let text = serde_json::to_string_pretty(document)?;
    // These characters occur in strings only. Go escapes them, so that JSON can be embedded in HTML and JavaScript.
    let escapes = [
        ("&", "\\u0026"),
        ("<", "\\u003c"),
        (">", "\\u003e"),
        ("\u{2028}", "\\u2028"),
        ("\u{2029}", "\\u2029"),
    ];
    Ok(escapes.iter().fold(text, |text, (character, escape)| text.replace(character, escape)).into_bytes())
}
