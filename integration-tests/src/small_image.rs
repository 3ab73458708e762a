//! Hand-made images of a few bytes, and a registry that serves them.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::scripted::{Asked, Reply};
use crate::sources::sha256;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// Content of a registry: blobs and manifests by digest, and the digests that its tags name.
#[derive(Clone, Debug, Default)]
pub struct SmallRegistry {
    blobs: BTreeMap<String, Vec<u8>>,
    manifests: BTreeMap<String, (&'static str, Vec<u8>)>,
    /// Digests by `repository:tag`.
    tags: BTreeMap<String, String>,
}

impl SmallRegistry {
    /// Adds an image with one file, and returns its digest. `config` is the runtime part of the image config.
    pub fn image(&mut self, architecture: &str, file: (&str, &str), config: &Value) -> String {
        let mut layer = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(file.1.len() as u64);
        layer.append_data(&mut header, file.0, file.1.as_bytes()).expect("a layer");
        let layer = layer.into_inner().expect("a layer");
        let diff_id = sha256(&layer);
        let config = json!({"os": "linux", "architecture": architecture, "config": config,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]}})
        .to_string()
        .into_bytes();
        let descriptor = |media_type: &str, content: &[u8]| json!({"mediaType": media_type, "digest": sha256(content), "size": content.len()});
        let manifest = json!({"schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar", &layer)]});
        for blob in [config, layer] {
            self.blobs.insert(sha256(&blob), blob);
        }
        self.manifest(MANIFEST, &manifest)
    }

    /// Adds an index of images by architecture, and returns its digest.
    pub fn index(&mut self, images: &[(&str, &str)]) -> String {
        let children: Vec<Value> = images
            .iter()
            .map(|(architecture, digest)| {
                json!({"mediaType": MANIFEST, "digest": digest, "size": self.manifests[*digest].1.len(),
                    "platform": {"os": "linux", "architecture": architecture}})
            })
            .collect();
        self.manifest(INDEX, &json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": children}))
    }

    fn manifest(&mut self, media_type: &'static str, manifest: &Value) -> String {
        let bytes = manifest.to_string().into_bytes();
        let digest = sha256(&bytes);
        self.manifests.insert(digest.clone(), (media_type, bytes));
        digest
    }

    /// Tags an image as `repository:tag`.
    pub fn tag(&mut self, name: &str, digest: &str) {
        self.tags.insert(name.to_owned(), digest.to_owned());
    }

    /// Answers like a registry that requires no authentication.
    pub fn answer(&self, asked: &Asked) -> Reply {
        let path = asked.path.split('?').next().unwrap_or_default();
        let path = path.strip_prefix("/v2/").unwrap_or_default();
        if let Some((repository, name)) = path.split_once("/manifests/") {
            let digest = self.tags.get(&format!("{repository}:{name}")).map_or(name, String::as_str);
            if let Some((media_type, bytes)) = self.manifests.get(digest) {
                let reply = Reply::new(200, bytes.clone()).header("content-type", media_type);
                return reply.header("docker-content-digest", digest);
            }
        }
        let blob = path.split_once("/blobs/").and_then(|(_, digest)| self.blobs.get(digest));
        match blob {
            Some(blob) => Reply::new(200, blob.clone()),
            None => Reply::new(404, r#"{"errors": [{"code": "NAME_UNKNOWN"}]}"#),
        }
    }
}
