//! Translates a build into attributes of BuildKit's Dockerfile frontend and image exporter.

use std::collections::HashMap;

use bollard_buildkit_proto::moby::buildkit::v1 as api;
use bollard_buildkit_proto::pb;
use hearth_llb::SolveSettings;
use prost::Message as _;

use super::{caches, policy};
use crate::build::port::{SolveProgram, SolveRequest};
use crate::model::BuildCompression;
use crate::model::build::{BuildNetwork, NoCache};
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::image::Platform;

/// BuildKit's own frontend for Dockerfiles.
pub(in crate::buildkit) const DOCKERFILE_FRONTEND: &str = "dockerfile.v0";
/// Period of the kernel's scheduler in which a step may use its quota of processor time.
const CPU_PERIOD_MICROSECONDS: u64 = 100_000;

/// Build arguments that BuildKit interprets as instructions to itself: they select another frontend, another build's
/// cache mounts, or images to run beside the build.
const RESERVED: [&str; 4] =
    ["BUILDKIT_SYNTAX", "BUILDKIT_CACHE_MOUNT_NS", "BUILDKIT_MULTI_PLATFORM", "BUILDKIT_ATTEST_"];

pub(in crate::buildkit) fn reserved_argument_fault(request: &SolveRequest) -> Option<Fault> {
    let name =
        request.spec.build_args.keys().find(|name| RESERVED.iter().any(|word| name.starts_with(word)))?;
    let message =
        format!("build argument `{name}` is an instruction to the builder, which a build may not give");
    Some(
        Fault::new(FaultStage::Request, ErrorCode::BuildArgReserved, message)
            .hint(format!("leave out `--build-arg {name}`")),
    )
}

/// Builds the solve request. `shared` marks a builder that is used by several trust domains.
pub(super) fn solve_request(request: &SolveRequest, own: &str, shared: bool) -> api::SolveRequest {
    let opened = api::SolveRequest {
        exporters: vec![exporter(request)],
        cache: Some(caches::options(request)),
        ..open_request(request, own)
    };
    match &request.program {
        SolveProgram::Dockerfile => api::SolveRequest {
            frontend: DOCKERFILE_FRONTEND.to_owned(),
            frontend_attrs: frontend(request, shared),
            ..opened
        },
        SolveProgram::Llb { graph, .. } => {
            let settings = SolveSettings {
                context_session: &request.files.context_session.id,
                without_network: request.spec.network == BuildNetwork::None,
                ignore_cache: request.spec.no_cache == NoCache::Everything,
                cache_namespace: shared.then(|| request.domain.as_str()),
            };
            // What the crate encodes is a definition.
            let definition = pb::Definition::decode(graph.encode_for(settings).as_slice()).ok();
            api::SolveRequest { definition, ..opened }
        }
    }
}

/// Builds a solve request without frontend and result, with the session and the source policy of the build.
pub(in crate::buildkit) fn open_request(request: &SolveRequest, own: &str) -> api::SolveRequest {
    api::SolveRequest {
        r#ref: format!("hearth-{}-{:08x}", request.build, rand::random::<u32>()),
        session: own.to_owned(),
        // Not recorded in BuildKit's history, which would contain build arguments: the daemon keeps its own history.
        internal: true,
        source_policy: Some(policy::source_policy(request)),
        ..api::SolveRequest::default()
    }
}

pub(in crate::buildkit) fn frontend(request: &SolveRequest, shared: bool) -> HashMap<String, String> {
    let mut attributes: HashMap<String, String> = HashMap::new();
    let mut set = |key: String, value: &str| attributes.insert(key, value.to_owned());
    set("filename".into(), &request.files.dockerfile_name);
    // With `cmdline`, the frontend assumes that a `# syntax=` line selected it, and does not follow another such line,
    // which could name any image.
    set("cmdline".into(), DOCKERFILE_FRONTEND);
    set("local-sessionid:context".into(), &request.files.context_session.id);
    set("local-sessionid:dockerfile".into(), &request.files.dockerfile_session.id);
    for (name, value) in &request.spec.build_args {
        set(format!("build-arg:{name}"), value);
    }
    if shared {
        set("build-arg:BUILDKIT_CACHE_MOUNT_NS".into(), request.domain.as_str());
    }
    for (name, value) in &request.spec.labels {
        set(format!("label:{name}"), value);
    }
    if let Some(target) = &request.spec.target {
        set("target".into(), target);
    }
    if !request.spec.platforms.is_empty() {
        let platforms: Vec<&str> = request.spec.platforms.iter().map(Platform::as_str).collect();
        set("platform".into(), &platforms.join(","));
    }
    match &request.spec.no_cache {
        NoCache::Nothing => {}
        NoCache::Everything => {
            set("no-cache".into(), "");
        }
        // An empty list would mean all stages.
        NoCache::Stages(stages) if stages.is_empty() => {}
        NoCache::Stages(stages) => {
            set("no-cache".into(), &stages.join(","));
        }
    }
    // Limits are not part of BuildKit's cache keys.
    if let Some(memory) = request.spec.step_limits.memory_bytes {
        set("memory".into(), &memory.to_string());
        // This limit counts memory and swap together, so the step gets no swap beyond its memory.
        set("memswap".into(), &memory.to_string());
    }
    if let Some(millis) = request.spec.step_limits.cpu_millis {
        set("cpuperiod".into(), &CPU_PERIOD_MICROSECONDS.to_string());
        set("cpuquota".into(), &(u64::from(millis) * CPU_PERIOD_MICROSECONDS / 1000).to_string());
    }
    if let Some(imports) = caches::imports_attribute(request).filter(|_| !shared) {
        set("cache-imports".into(), &imports);
    }
    if request.spec.network == BuildNetwork::None {
        set("force-network-mode".into(), "none");
    }
    attributes
}

fn exporter(request: &SolveRequest) -> api::Exporter {
    let compression = match request.spec.compression {
        BuildCompression::Gzip => "gzip",
        BuildCompression::Zstd => "zstd",
        BuildCompression::Estargz => "estargz",
        BuildCompression::None => "uncompressed",
    };
    let attributes = [
        // Without `force-compression`, it applies to layers that the builder has not exported yet.
        ("compression", compression.to_owned()),
        ("force-compression", request.converts_layers.to_string()),
        ("name", format!("{}/{}", request.registry, request.repository)),
        ("push", "true".to_owned()),
        // Pushed without a tag: the daemon sets the tag itself, last.
        ("push-by-digest", "true".to_owned()),
        ("oci-mediatypes", "true".to_owned()),
    ];
    let config = match &request.program {
        SolveProgram::Llb { config: Some(config), .. } => {
            Some(("containerimage.config", String::from_utf8_lossy(config).into_owned()))
        }
        SolveProgram::Llb { config: None, .. } | SolveProgram::Dockerfile => None,
    };
    let attributes = attributes.into_iter().chain(config);
    api::Exporter {
        r#type: "image".to_owned(),
        attrs: attributes.map(|(key, value)| (key.to_owned(), value)).collect(),
    }
}
