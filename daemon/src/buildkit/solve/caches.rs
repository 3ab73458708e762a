//! Caches of build steps. BuildKit reads and writes them as caches of the room's registry, whatever the build asked for:
//! the daemon brings them there, and takes them from there.

use std::collections::HashMap;

use bollard_buildkit_proto::moby::buildkit::v1 as api;
use serde_json::json;

use crate::build::port::SolveRequest;
use crate::model::Digest;
use crate::model::fault::{ErrorCode, Fault, FaultStage};

/// Tag under which BuildKit pushes a cache. The registry stores the manifest without it, because a build sets no tags.
const PUSHED_TAG: &str = "build-cache";

pub(super) fn options(request: &SolveRequest) -> api::CacheOptions {
    let caches = &request.caches;
    let inline = caches.inline.then(|| entry("inline", HashMap::new()));
    let pushed = caches.export.map(|format| {
        let attributes = [
            ("ref", format!("{}/{}:{PUSHED_TAG}", request.registry, request.repository)),
            ("mode", if format.all_steps { "max" } else { "min" }.to_owned()),
            ("image-manifest", format.image_manifest.to_string()),
            ("oci-mediatypes", format.oci_media_types.to_string()),
        ];
        entry("registry", attributes.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    });
    let imports = references(request)
        .map(|reference| entry("registry", HashMap::from([("ref".to_owned(), reference)])));
    api::CacheOptions {
        exports: inline.into_iter().chain(pushed).collect(),
        imports: imports.collect(),
        ..api::CacheOptions::default()
    }
}

/// Returns the caches for the Dockerfile frontend, which passes them on to the solver.
pub(super) fn imports_attribute(request: &SolveRequest) -> Option<String> {
    let imports: Vec<_> = references(request)
        .map(|reference| json!({"Type": "registry", "Attrs": {"ref": reference}}))
        .collect();
    (!imports.is_empty()).then(|| json!(imports).to_string())
}

fn references(request: &SolveRequest) -> impl Iterator<Item = String> + '_ {
    let imports = request.caches.imports.iter();
    imports.map(|cache| format!("{}/{}@{}", request.registry, cache.repository, cache.digest))
}

fn entry(kind: &str, attrs: HashMap<String, String>) -> api::CacheOptionsEntry {
    api::CacheOptionsEntry { r#type: kind.to_owned(), attrs }
}

/// Returns the digest of the cache that BuildKit has pushed; `None` if there was nothing to write.
pub(super) fn written(response: &HashMap<String, String>) -> Option<Digest> {
    let descriptor: serde_json::Value = serde_json::from_str(response.get("cache.manifest")?).ok()?;
    descriptor.get("digest")?.as_str()?.parse().ok()
}

/// Returns the fault of a build that would fill the cache of other trust domains with steps that did not run.
pub(super) fn shared_builder_fault() -> Fault {
    let message = "the builder is shared by several trust domains, so a build may not read caches into it";
    Fault::new(FaultStage::Request, ErrorCode::BuildCacheRefused, message)
}
