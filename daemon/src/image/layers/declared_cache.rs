//! Declarations of a build cache about its layers: the DiffID of each is an annotation of its descriptor.

use hearth_oci::{Descriptor, OciIndex};

use super::super::ImageError;
use super::declared::{DeclaredImage, LayerForm, layer_form};
use crate::model::Digest;

/// Media type of the list of steps in a cache.
const CACHE_CONFIG_TYPE: &str = "application/vnd.buildkit.cacheconfig.v0";
const DIFF_ID_ANNOTATION: &str = "containerd.io/uncompressed";
/// Maximum number of layers of one cache. They are never mounted all together.
const MAX_CACHE_LAYERS: usize = 4096;

/// Returns the layers of a cache; `None` if the manifest or index is not that of a cache.
pub(super) fn declared_cache(top: &Descriptor, bytes: &[u8]) -> Result<Option<DeclaredImage>, ImageError> {
    let layers = if top.is_index() {
        let index = parse_index(top, bytes)?;
        let (configs, layers): (Vec<_>, Vec<_>) =
            index.manifests.into_iter().partition(|entry| entry.media_type == CACHE_CONFIG_TYPE);
        match configs.len() {
            0 => return Ok(None),
            1 => layers,
            _ => return Err(invalid(top, "it has several lists of steps")),
        }
    } else {
        let manifest: hearth_oci::Manifest =
            serde_json::from_slice(bytes).map_err(|error| json(top, error))?;
        if manifest.config.media_type != CACHE_CONFIG_TYPE {
            return Ok(None);
        }
        manifest.layers
    };
    if layers.len() > MAX_CACHE_LAYERS {
        let reason = format!("it has {} layers; {MAX_CACHE_LAYERS} are taken", layers.len());
        return Err(ImageError::ImageTooLarge { manifest: top.digest, reason });
    }
    let diff_ids = layers.iter().map(|layer| diff_id(top, layer)).collect::<Result<_, _>>()?;
    let with_urls = layers.iter().find(|layer| !layer.urls.is_empty()).map(|layer| layer.digest);
    let layers = layers.iter().map(Descriptor::bare).collect();
    Ok(Some(DeclaredImage { manifest: top.digest, layers, diff_ids, with_urls, is_cache: true }))
}

/// Checks an index that BuildKit is to read as a cache. Its importer reads every entry as a manifest, whatever the media
/// type says, and only entries that are declared as manifests were checked.
pub(in super::super) fn check_importable_index(top: &Descriptor, bytes: &[u8]) -> Result<(), ImageError> {
    if !top.is_index() || declared_cache(top, bytes)?.is_some() {
        return Ok(());
    }
    match parse_index(top, bytes)?.manifests.iter().all(Descriptor::is_manifest) {
        true => Ok(()),
        false => Err(invalid(top, "it has entries that are no image manifests")),
    }
}

fn diff_id(top: &Descriptor, layer: &Descriptor) -> Result<Digest, ImageError> {
    if !matches!(layer_form(&layer.media_type), LayerForm::CompressedTar | LayerForm::PlainTar) {
        return Err(invalid(top, &format!("layer {} is not of a type that is unpacked", layer.digest)));
    }
    let stated = layer.annotations.get(DIFF_ID_ANNOTATION).and_then(|text| text.parse().ok());
    stated.ok_or_else(|| invalid(top, &format!("layer {} states no DiffID", layer.digest)))
}

fn parse_index(top: &Descriptor, bytes: &[u8]) -> Result<OciIndex, ImageError> {
    serde_json::from_slice(bytes).map_err(|error| json(top, error))
}

fn json(top: &Descriptor, error: serde_json::Error) -> ImageError {
    ImageError::Manifest { digest: top.digest, source: error.into() }
}

fn invalid(top: &Descriptor, reason: &str) -> ImageError {
    ImageError::InvalidCache { manifest: top.digest, reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use hearth_oci::{DOCKER_INDEX_TYPE, OCI_INDEX_TYPE, OCI_MANIFEST_TYPE, sha256};
    use serde_json::{Value, json};

    use super::*;

    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

    fn entry(media_type: &str, name: &str, annotations: &Value) -> Value {
        json!({"mediaType": media_type, "digest": sha256(name.as_bytes()), "size": 1, "annotations": annotations})
    }

    fn layer(name: &str) -> Value {
        entry(LAYER, name, &json!({DIFF_ID_ANNOTATION: sha256(name.as_bytes())}))
    }

    fn declared(media_type: &str, document: &Value) -> Result<Option<DeclaredImage>, ImageError> {
        let bytes = document.to_string();
        declared_cache(&Descriptor::new(media_type, sha256(bytes.as_bytes()), 1), bytes.as_bytes())
    }

    #[test]
    fn each_form_of_a_cache_declares_the_diff_ids_of_its_layers() {
        let config = entry(CACHE_CONFIG_TYPE, "config", &json!({}));
        let index = json!({"schemaVersion": 2, "manifests": [layer("a"), layer("b"), config]});
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer("a"), layer("b")]});
        for (media_type, document) in
            [(OCI_INDEX_TYPE, &index), (DOCKER_INDEX_TYPE, &index), (OCI_MANIFEST_TYPE, &manifest)]
        {
            let cache = declared(media_type, document).unwrap().unwrap();
            assert_eq!(cache.diff_ids, [sha256(b"a"), sha256(b"b")]);
            assert_eq!(cache.layers.len(), 2);
        }
        let image = json!({"schemaVersion": 2, "config": entry("x/y", "c", &json!({})), "layers": []});
        assert!(declared(OCI_MANIFEST_TYPE, &image).unwrap().is_none());
    }

    #[test]
    fn a_cache_whose_layers_cannot_be_checked_is_invalid() {
        let config = entry(CACHE_CONFIG_TYPE, "config", &json!({}));
        for layers in [
            vec![entry(LAYER, "a", &json!({}))],
            vec![entry(LAYER, "a", &json!({DIFF_ID_ANNOTATION: "x"}))],
            vec![entry(OCI_MANIFEST_TYPE, "a", &json!({DIFF_ID_ANNOTATION: sha256(b"a")}))],
            vec![entry("application/octet-stream", "a", &json!({DIFF_ID_ANNOTATION: sha256(b"a")}))],
            vec![config.clone()],
        ] {
            let entries: Vec<Value> = layers.into_iter().chain([config.clone()]).collect();
            let index = json!({"schemaVersion": 2, "manifests": entries});
            assert!(
                matches!(declared(OCI_INDEX_TYPE, &index), Err(ImageError::InvalidCache { .. })),
                "{index}"
            );
        }
    }

    #[test]
    fn an_index_that_hides_a_manifest_as_a_blob_is_not_importable() {
        let check = |media_type: &str| {
            let index = json!({"schemaVersion": 2, "manifests": [entry(media_type, "a", &json!({}))]});
            let bytes = index.to_string();
            let top = Descriptor::new(OCI_INDEX_TYPE, sha256(bytes.as_bytes()), 1);
            check_importable_index(&top, bytes.as_bytes())
        };
        assert!(check(OCI_MANIFEST_TYPE).is_ok());
        assert!(check("application/octet-stream").is_err());
        assert!(check(OCI_INDEX_TYPE).is_err());
    }
}
