//! Conversion and validation of build specs.

mod annotations;
mod caches;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use hearth_proto::v1;

use super::super::error::ApiError;
use super::mounts::build_mounts;
use super::{duration, registry_credentials};
use crate::model::access::SymlinkPolicy;
use crate::model::build::{
    BuildNetwork, BuildRecipe, BuildSecrets, BuildSpec, DockerfilePath, NoCache, StepLimits, TreeImage,
};
use crate::model::fault::ErrorCode;
use crate::model::image::Platform;
use crate::model::secret::{Secret, SecretName};
use crate::model::{
    BuildCompression, BuildCompressionError, BuildMount, MountTarget, ProvenanceModeError, Reference,
    RoomRegistries,
};

// Limits of a build request. Each is far above practical use.
const MAX_TAGS: usize = 32;
const MAX_PLATFORMS: usize = 16;
const MAX_PAIRS: usize = 1024;
const MAX_TEXT: usize = 128 * 1024;
const MAX_SECRETS: usize = 64;
/// Maximum size of a secret, which is also BuildKit's limit.
const MAX_SECRET_BYTES: usize = 500 * 1024;
/// Minimum memory of a step in bytes: runc itself needs some of it to start the step.
const MIN_STEP_MEMORY: u64 = 8 << 20;
/// Maximum that BuildKit reads, a signed number.
const MAX_STEP_MEMORY: u64 = i64::MAX as u64;
/// Minimum of the kernel, which is a quota of 1 ms in a period of 100 ms.
const MIN_STEP_CPU: u32 = 10;
/// Maximum size of a definition as it is stored with its build.
const MAX_DEFINITION: usize = 1 << 20;
const MAX_COMMANDS: usize = 64;

/// Settings that a build spec is validated against.
pub struct SpecContext<'a> {
    pub rooms: &'a RoomRegistries,
    pub max_timeout: Duration,
    /// Policy for symbolic links in the caller's storage paths.
    pub path_links: SymlinkPolicy,
}

/// Validates a build spec and separates its secrets. The returned spec is stored; the secrets stay in memory.
pub fn build_spec(
    wire: v1::BuildSpec,
    context: &SpecContext<'_>,
) -> Result<(BuildSpec, BuildSecrets), ApiError> {
    let tags = tags(&wire, context.rooms)?;
    let has_dockerfile = wire.definition.is_empty() && wire.tree_image.is_none();
    if !has_dockerfile {
        refuse_dockerfile_options(&wire)?;
    }
    let mounts = match wire.mounts.is_empty() && !wire.definition.is_empty() {
        true => Vec::new(),
        false => build_mounts(wire.mounts, "spec.mounts", "a build needs at least one mount")?,
    };
    let context_path = context_path(&wire.context_path, &mounts)?;
    let dockerfile = match has_dockerfile {
        true => dockerfile(&wire.dockerfile_path, &context_path)?,
        false => DockerfilePath::Absent,
    };
    let timeout = duration("spec.timeout", wire.timeout)?;
    if timeout.is_some_and(|timeout| timeout.is_zero() || timeout > context.max_timeout) {
        let max = context.max_timeout.as_secs();
        return Err(ApiError::invalid(
            "spec.timeout",
            ErrorCode::InvalidTimeout,
            format!("timeout must be between 1 s and {max} s"),
        ));
    }
    let (mut secrets, room_secrets) = secrets(wire.secrets)?;
    let platforms = platforms(&wire.platform, &wire.platforms)?;
    let annotations = annotations::image_annotations(wire.annotations, &platforms)?;
    if let Some(tag) = tags.first() {
        let given = registry_credentials("spec.credentials", wire.credentials, tag, context.rooms)?;
        secrets.credentials.extend(given);
    }
    let recipe = match (wire.definition.is_empty(), wire.tree_image) {
        (true, None) => BuildRecipe::Dockerfile,
        (true, Some(image)) => BuildRecipe::TreeImage(Box::new(tree_image(image)?)),
        (false, None) => BuildRecipe::Llb(definition(&wire.definition, &secrets)?),
        (false, Some(_)) => {
            return Err(definition_error(
                "spec.tree_image",
                "a build has a definition or a tree image, not both",
            ));
        }
    };
    let spec = BuildSpec {
        tags,
        mounts,
        path_links: context.path_links,
        context_path,
        dockerfile,
        build_args: pairs("spec.build_args", wire.build_args)?,
        target: Some(wire.target).filter(|target| !target.is_empty()),
        platforms,
        annotations,
        labels: pairs("spec.labels", wire.labels)?,
        no_cache: match (wire.no_cache, wire.no_cache_stages) {
            (true, _) => NoCache::Everything,
            (false, stages) if stages.is_empty() => NoCache::Nothing,
            (false, stages) => NoCache::Stages(no_cache_stages(stages)?),
        },
        pull: wire.pull,
        network: network(&wire.network)?,
        compression: compression(&wire.compression)?,
        provenance: wire.provenance.parse().map_err(|error: ProvenanceModeError| {
            ApiError::invalid("spec.provenance", ErrorCode::InvalidProvenance, error.to_string())
        })?,
        sbom: wire.sbom,
        timeout,
        secret_ids: secrets.values.keys().cloned().collect(),
        room_secrets,
        step_limits: step_limits(wire.step_memory_bytes, wire.step_cpu_millis)?,
        cache_from: caches::imports(wire.cache_from, context.rooms)?,
        cache_to: caches::exports(wire.cache_to, context.rooms)?,
        recipe,
    };
    Ok((spec, secrets))
}

/// Refuses the options that only a Dockerfile gives a meaning.
fn refuse_dockerfile_options(wire: &v1::BuildSpec) -> Result<(), ApiError> {
    let given = [
        ("spec.dockerfile_path", !wire.dockerfile_path.is_empty()),
        ("spec.build_args", !wire.build_args.is_empty()),
        ("spec.target", !wire.target.is_empty()),
        ("spec.platform", !wire.platform.is_empty()),
        ("spec.platforms", !wire.platforms.is_empty()),
        ("spec.labels", !wire.labels.is_empty()),
        ("spec.no_cache_stages", !wire.no_cache_stages.is_empty()),
        ("spec.step_memory_bytes", wire.step_memory_bytes.is_some()),
        ("spec.step_cpu_millis", wire.step_cpu_millis.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((field, _)) => {
            Err(definition_error(field, "the build has no Dockerfile, which alone uses this option"))
        }
        None => Ok(()),
    }
}

fn definition_error(field: &str, message: impl Into<String>) -> ApiError {
    ApiError::invalid(field, ErrorCode::InvalidDefinition, message.into())
}

/// Checks a definition and returns what remains of it.
fn definition(bytes: &[u8], secrets: &BuildSecrets) -> Result<Vec<u8>, ApiError> {
    let ids = secrets.values.keys().cloned().collect();
    let checked = crate::build::checked_definition(bytes, &ids);
    let encoded =
        checked.map_err(|error| definition_error("spec.definition", error.to_string()))?.graph().encode();
    if encoded.len() > MAX_DEFINITION {
        let message = format!("a definition has at most {} KiB", MAX_DEFINITION >> 10);
        return Err(definition_error("spec.definition", message));
    }
    Ok(encoded)
}

fn tree_image(wire: v1::TreeImage) -> Result<TreeImage, ApiError> {
    let field = "spec.tree_image.commands";
    let bytes: usize = wire.commands.iter().map(String::len).sum();
    if wire.commands.is_empty() || wire.commands.len() > MAX_COMMANDS || bytes > MAX_TEXT {
        let message = format!("1 to {MAX_COMMANDS} commands with at most {MAX_TEXT} bytes");
        return Err(definition_error(field, message));
    }
    if wire.commands.iter().any(|command| command.trim().is_empty() || command.contains('\0')) {
        return Err(definition_error(field, "a command is empty or contains a NUL byte"));
    }
    let base = match wire.base.as_str() {
        "" => None,
        text => Some(
            text.parse()
                .map_err(|error| definition_error("spec.tree_image.base", format!("base image: {error}")))?,
        ),
    };
    let config = super::config_flags(wire.config.unwrap_or_default(), "spec.tree_image.config")?;
    Ok(TreeImage { base, commands: wire.commands, config })
}

fn tree_image_to_wire(image: TreeImage) -> v1::TreeImage {
    let command = |words: Option<Vec<String>>| words.map(|words| v1::PackCommand { words });
    let config = image.config;
    v1::TreeImage {
        base: image.base.map(|base| base.to_string()).unwrap_or_default(),
        commands: image.commands,
        config: Some(v1::PackConfig {
            entrypoint: command(config.entrypoint),
            cmd: command(config.cmd),
            env: config.env,
            workdir: config.workdir.unwrap_or_default(),
            user: config.user.unwrap_or_default(),
            labels: config.labels,
            expose: config.expose,
            volumes: config.volumes,
        }),
    }
}

fn step_limits(memory_bytes: Option<u64>, cpu_millis: Option<u32>) -> Result<StepLimits, ApiError> {
    if memory_bytes.is_some_and(|bytes| !(MIN_STEP_MEMORY..=MAX_STEP_MEMORY).contains(&bytes)) {
        let message = format!("a step's memory is at least {} MiB", MIN_STEP_MEMORY >> 20);
        return Err(ApiError::invalid("spec.step_memory_bytes", ErrorCode::InvalidStepLimit, message));
    }
    if cpu_millis.is_some_and(|millis| millis < MIN_STEP_CPU) {
        let message = "a step's processor time is at least 0.01 of a processor";
        return Err(ApiError::invalid("spec.step_cpu_millis", ErrorCode::InvalidStepLimit, message));
    }
    Ok(StepLimits { memory_bytes, cpu_millis })
}

/// Returns the platforms of the result. `one` is the field of requests for a single platform.
fn platforms(one: &str, several: &[String]) -> Result<Vec<Platform>, ApiError> {
    let invalid = |field: &str, message| ApiError::invalid(field, ErrorCode::InvalidPlatform, message);
    if several.len() > MAX_PLATFORMS {
        let message = format!("at most {MAX_PLATFORMS} platforms");
        return Err(ApiError::invalid("spec.platforms", ErrorCode::TooMany, message));
    }
    if !one.is_empty() && !several.is_empty() {
        return Err(invalid("spec.platform", "give either `platform` or `platforms`".to_owned()));
    }
    let one = Some(("spec.platform".to_owned(), one)).filter(|(_, text)| !text.is_empty());
    let several = several.iter().enumerate().map(|(i, text)| (format!("spec.platforms[{i}]"), text.as_str()));
    let mut platforms: Vec<Platform> = Vec::new();
    for (field, text) in one.into_iter().chain(several) {
        let platform = Platform::parse_requested(text).ok_or_else(|| {
            let text: String = text.chars().take(100).collect();
            invalid(&field, format!("platform `{text}`: expected `os/arch[/variant]` with a known architecture, such as `linux/arm64`"))
        })?;
        if let Some(same) = platforms.iter().find(|other| other.is_same(&platform)) {
            return Err(invalid(
                &field,
                format!("platform `{text}` is given twice; it is the same as `{}`", same.as_str()),
            ));
        }
        platforms.push(platform);
    }
    Ok(platforms)
}

fn compression(text: &str) -> Result<BuildCompression, ApiError> {
    if text.is_empty() {
        return Ok(BuildCompression::default());
    }
    text.parse().map_err(|error: BuildCompressionError| {
        ApiError::invalid("spec.compression", ErrorCode::InvalidCompression, error.to_string())
    })
}

fn tags(wire: &v1::BuildSpec, rooms: &RoomRegistries) -> Result<Vec<Reference>, ApiError> {
    if wire.also_tags.len() >= MAX_TAGS {
        return Err(ApiError::invalid(
            "spec.also_tags",
            ErrorCode::TooMany,
            format!("at most {MAX_TAGS} tags"),
        ));
    }
    let more = wire.also_tags.iter().enumerate().map(|(i, tag)| (format!("spec.also_tags[{i}]"), tag));
    let mut seen = BTreeSet::new();
    let mut tags = Vec::new();
    for (field, text) in std::iter::once(("spec.tag".to_owned(), &wire.tag)).chain(more) {
        let reference = rooms.qualify(super::tag(&field, text)?);
        if seen.insert(reference.clone()) {
            tags.push(reference);
        }
    }
    Ok(tags)
}

/// Returns the given context path, or the target of the only mount.
fn context_path(text: &str, mounts: &[BuildMount]) -> Result<MountTarget, ApiError> {
    if !text.is_empty() {
        return text.parse().map_err(|error| {
            ApiError::invalid(
                "spec.context_path",
                ErrorCode::InvalidContextPath,
                format!("context path: {error}"),
            )
        });
    }
    match mounts {
        [mount] => Ok(mount.target.clone()),
        [] => "/".parse().map_err(|error| {
            ApiError::invalid(
                "spec.context_path",
                ErrorCode::InvalidContextPath,
                format!("context path: {error}"),
            )
        }),
        _ => Err(ApiError::invalid(
            "spec.context_path",
            ErrorCode::ContextPathMissing,
            format!("with {} mounts the context path must be given", mounts.len()),
        )),
    }
}

fn dockerfile(text: &str, context_path: &MountTarget) -> Result<DockerfilePath, ApiError> {
    if text.is_empty() {
        return Ok(DockerfilePath::Search);
    }
    let path = if text.starts_with('/') { text.parse() } else { context_path.join(text) };
    path.map(DockerfilePath::At).map_err(|error| {
        ApiError::invalid(
            "spec.dockerfile_path",
            ErrorCode::InvalidDockerfilePath,
            format!("Dockerfile path: {error}"),
        )
    })
}

pub fn pairs(field: &str, pairs: BTreeMap<String, String>) -> Result<BTreeMap<String, String>, ApiError> {
    if pairs.len() > MAX_PAIRS
        || pairs.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > MAX_TEXT
    {
        return Err(ApiError::invalid(
            field,
            ErrorCode::TooMany,
            format!("at most {MAX_PAIRS} pairs and {MAX_TEXT} bytes"),
        ));
    }
    match pairs.keys().find(|key| key.is_empty() || key.contains(['=', '\0'])) {
        Some(key) => {
            let key: String = key.chars().take(100).collect();
            Err(ApiError::invalid(field, ErrorCode::InvalidKey, format!("`{key}` cannot be a key")))
        }
        None => Ok(pairs),
    }
}

fn no_cache_stages(stages: Vec<String>) -> Result<Vec<String>, ApiError> {
    match stages.iter().find(|stage| stage.is_empty() || stage.contains([',', ' '])) {
        Some(stage) => Err(ApiError::invalid(
            "spec.no_cache_stages",
            ErrorCode::InvalidStage,
            format!("`{stage}` is not the name of a stage"),
        )),
        None => Ok(stages),
    }
}

fn network(text: &str) -> Result<BuildNetwork, ApiError> {
    match text {
        "" | "default" => Ok(BuildNetwork::Default),
        "none" => Ok(BuildNetwork::None),
        _ => Err(ApiError::invalid(
            "spec.network",
            ErrorCode::InvalidNetwork,
            format!("network `{text}`: expected `default` or `none`"),
        )),
    }
}

/// Returns the values that came with the request, and the secrets of the room, by secret id.
fn secrets(secrets: Vec<v1::BuildSecret>) -> Result<(BuildSecrets, BTreeMap<String, SecretName>), ApiError> {
    if secrets.len() > MAX_SECRETS {
        return Err(ApiError::invalid(
            "spec.secrets",
            ErrorCode::TooMany,
            format!("at most {MAX_SECRETS} secrets"),
        ));
    }
    let (mut checked, mut of_room) = (BuildSecrets::default(), BTreeMap::new());
    for (i, secret) in secrets.into_iter().enumerate() {
        let invalid = |message: String| {
            ApiError::invalid(format!("spec.secrets[{i}]"), ErrorCode::InvalidSecret, message)
        };
        if secret.id.is_empty() || secret.id.len() > 256 {
            return Err(invalid("a secret's id is 1 to 256 characters".to_owned()));
        }
        if secret.value.len() > MAX_SECRET_BYTES {
            return Err(invalid(format!("secret `{}` is over {} KiB", secret.id, MAX_SECRET_BYTES / 1024)));
        }
        if checked.values.contains_key(&secret.id) || of_room.contains_key(&secret.id) {
            return Err(invalid(format!("secret `{}` is given twice", secret.id)));
        }
        if secret.room_secret.is_empty() {
            checked.values.insert(secret.id, Secret::new(secret.value.to_vec()));
        } else if !secret.value.is_empty() {
            return Err(invalid(format!("secret `{}` has both a value and a secret of the room", secret.id)));
        } else {
            let name = secret.room_secret.parse::<SecretName>().map_err(|error| {
                let field = format!("spec.secrets[{i}].room_secret");
                ApiError::invalid(field, ErrorCode::InvalidSecretName, error.to_string())
            })?;
            of_room.insert(secret.id, name);
        }
    }
    Ok((checked, of_room))
}

fn room_secret(id: String, name: &SecretName) -> v1::BuildSecret {
    v1::BuildSecret { id, room_secret: name.as_str().to_owned(), ..v1::BuildSecret::default() }
}

/// Converts a stored spec to its wire form, which contains no secrets.
pub fn to_wire(spec: BuildSpec) -> v1::BuildSpec {
    let mut tags = spec.tags.iter().map(Reference::to_string);
    v1::BuildSpec {
        tag: tags.next().unwrap_or_default(),
        also_tags: tags.collect(),
        mounts: spec.mounts.into_iter().map(Into::into).collect(),
        context_path: spec.context_path.to_string(),
        dockerfile_path: match spec.dockerfile {
            DockerfilePath::Search | DockerfilePath::Absent => String::new(),
            DockerfilePath::At(path) => path.to_string(),
        },
        build_args: spec.build_args,
        target: spec.target.unwrap_or_default(),
        platform: match spec.platforms.as_slice() {
            [platform] => platform.as_str().to_owned(),
            _ => String::new(),
        },
        platforms: match spec.platforms.len() {
            0 | 1 => Vec::new(),
            _ => spec.platforms.iter().map(|platform| platform.as_str().to_owned()).collect(),
        },
        annotations: spec.annotations.into_iter().map(annotations::to_wire).collect(),
        labels: spec.labels,
        no_cache: spec.no_cache == NoCache::Everything,
        no_cache_stages: match spec.no_cache {
            NoCache::Stages(stages) => stages,
            NoCache::Nothing | NoCache::Everything => Vec::new(),
        },
        pull: spec.pull,
        network: match spec.network {
            BuildNetwork::Default => "default".to_owned(),
            BuildNetwork::None => "none".to_owned(),
        },
        compression: spec.compression.to_string(),
        provenance: spec.provenance.to_string(),
        sbom: spec.sbom,
        timeout: spec.timeout.map(super::to_duration),
        secret_ids: spec.secret_ids,
        secrets: spec.room_secrets.into_iter().map(|(id, name)| room_secret(id, &name)).collect(),
        credentials: Vec::new(),
        step_memory_bytes: spec.step_limits.memory_bytes,
        step_cpu_millis: spec.step_limits.cpu_millis,
        cache_from: spec.cache_from.iter().map(ToString::to_string).collect(),
        cache_to: spec.cache_to.iter().map(ToString::to_string).collect(),
        definition: Vec::new().into(),
        tree_image: match spec.recipe {
            BuildRecipe::TreeImage(image) => Some(tree_image_to_wire(*image)),
            BuildRecipe::Dockerfile | BuildRecipe::Llb(_) => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::MountAccess;

    fn context(rooms: &RoomRegistries) -> SpecContext<'_> {
        SpecContext { rooms, max_timeout: Duration::from_secs(100), path_links: SymlinkPolicy::Followed }
    }

    fn check(change: impl FnOnce(&mut v1::BuildSpec)) -> Result<(BuildSpec, BuildSecrets), ApiError> {
        let mut wire = v1::BuildSpec {
            tag: "my-app:dev".to_owned(),
            mounts: vec![room("apps", "")],
            ..v1::BuildSpec::default()
        };
        change(&mut wire);
        let rooms = RoomRegistries::default();
        build_spec(wire, &context(&rooms))
    }

    fn room(path: &str, target: &str) -> v1::Mount {
        v1::Mount {
            source: Some(v1::mount::Source::RoomPath(path.to_owned())),
            target: target.to_owned(),
            ..v1::Mount::default()
        }
    }

    #[test]
    fn a_bare_tag_is_the_rooms_and_a_lone_mount_is_the_context() {
        let (spec, _) = check(|_| {}).unwrap();
        assert_eq!(spec.tags[0].to_string(), "room.meshagent.com/my-app:dev");
        assert_eq!(spec.context_path.as_str(), "/context");
        assert_eq!(spec.mounts[0].mode, MountAccess::ReadWrite);
        assert_eq!(spec.dockerfile, DockerfilePath::Search);
    }

    #[test]
    fn a_relative_dockerfile_path_starts_at_the_context() {
        let (spec, _) = check(|wire| {
            wire.context_path = "/context/web".to_owned();
            wire.dockerfile_path = "docker/Dockerfile".to_owned();
        })
        .unwrap();
        assert_eq!(spec.dockerfile, DockerfilePath::At("/context/web/docker/Dockerfile".parse().unwrap()));
    }

    #[test]
    fn every_fault_names_its_field() {
        type Change = fn(&mut v1::BuildSpec);
        let cases: &[(&str, Change)] = &[
            ("spec.tag", |wire| wire.tag = "UPPER".to_owned()),
            ("spec.tag", |wire| wire.tag = String::new()),
            ("spec.tag", |wire| wire.tag = format!("a@sha256:{}", "0a".repeat(32))),
            ("spec.also_tags[0]", |wire| wire.also_tags = vec!["a:.b".to_owned()]),
            ("spec.mounts", |wire| wire.mounts.clear()),
            ("spec.mounts[0].target", |wire| wire.mounts[0].target = "relative".to_owned()),
            ("spec.mounts[0].target", |wire| wire.mounts[0].target = "/a/../b".to_owned()),
            ("spec.mounts[1].target", |wire| wire.mounts.push(room("b", "/context/"))),
            ("spec.mounts[0].room_path", |wire| wire.mounts[0] = room("../x", "")),
            ("spec.mounts[0]", |wire| wire.mounts[0].source = None),
            ("spec.mounts[0].mode", |wire| wire.mounts[0].mode = 9),
            ("spec.mounts[0].empty_dir", |wire| {
                wire.mounts[0].source = Some(v1::mount::Source::EmptyDir(v1::EmptyDirSource {}));
            }),
            ("spec.mounts[0].file", |wire| {
                let text = "x".to_owned();
                wire.mounts[0].source = Some(v1::mount::Source::File(v1::FileSource { text }));
            }),
            ("spec.mounts[0].pack_id", |wire| {
                wire.mounts[0].source = Some(v1::mount::Source::PackId("../../x".to_owned()));
            }),
            ("spec.context_path", |wire| wire.mounts.push(room("b", "/b"))),
            ("spec.context_path", |wire| wire.context_path = "x".to_owned()),
            ("spec.dockerfile_path", |wire| wire.dockerfile_path = "../x".to_owned()),
            ("spec.platform", |wire| wire.platform = "arm64".to_owned()),
            ("spec.platforms[1]", |wire| {
                wire.platforms = ["linux/arm64", "linux/arm64/v8"].map(str::to_owned).into();
            }),
            ("spec.platforms", |wire| wire.platforms = vec!["linux/arm64".to_owned(); 17]),
            ("spec.provenance", |wire| wire.provenance = "mode=mid".to_owned()),
            ("spec.network", |wire| wire.network = "host".to_owned()),
            ("spec.timeout", |wire| wire.timeout = Some(prost_types::Duration { seconds: 101, nanos: 0 })),
            ("spec.timeout", |wire| wire.timeout = Some(prost_types::Duration { seconds: -1, nanos: 0 })),
            ("spec.build_args", |wire| wire.build_args = [(String::new(), "x".to_owned())].into()),
            ("spec.secrets[0]", |wire| wire.secrets = vec![v1::BuildSecret::default()]),
            ("spec.secrets[0].room_secret", |wire| {
                wire.secrets = vec![v1::BuildSecret {
                    id: "a".to_owned(),
                    room_secret: "no name".to_owned(),
                    ..v1::BuildSecret::default()
                }];
            }),
            ("spec.secrets[0]", |wire| {
                wire.secrets = vec![v1::BuildSecret {
                    id: "a".to_owned(),
                    value: "x".into(),
                    room_secret: "name".to_owned(),
                }];
            }),
            ("spec.annotations[0].key", |wire| wire.annotations = vec![v1::ImageAnnotation::default()]),
            ("spec.step_memory_bytes", |wire| wire.step_memory_bytes = Some(1 << 20)),
            ("spec.step_memory_bytes", |wire| wire.step_memory_bytes = Some(u64::MAX)),
            ("spec.step_cpu_millis", |wire| wire.step_cpu_millis = Some(9)),
            ("spec.cache_from[0]", |wire| wire.cache_from = vec!["type=gha".to_owned()]),
            ("spec.cache_to[1]", |wire| {
                wire.cache_to = vec!["type=inline".to_owned(), "type=local,dest=../x".to_owned()];
            }),
            ("spec.cache_to[1]", |wire| {
                wire.cache_to = vec!["a:c".to_owned(), "type=registry,ref=b:c,mode=max".to_owned()];
            }),
        ];
        for (field, change) in cases {
            let status = tonic::Status::from(check(change).unwrap_err());
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{field}");
            let details = String::from_utf8_lossy(status.details()).into_owned();
            assert!(details.contains(field), "{field}: {status:?}");
        }
    }

    #[test]
    fn what_is_shown_of_a_spec_is_the_spec_without_its_secrets() {
        let secret = |id: &str, value: &str, room_secret: &str| v1::BuildSecret {
            id: id.to_owned(),
            value: value.to_owned().into(),
            room_secret: room_secret.to_owned(),
        };
        let (spec, secrets) = check(|wire| {
            wire.also_tags = vec!["b:1".to_owned()];
            wire.secrets = vec![secret("token", "canary", ""), secret("npm", "", "npm-token")];
            wire.platforms = ["linux/amd64", "linux/arm64"].map(str::to_owned).into();
            wire.annotations =
                vec![v1::ImageAnnotation { key: "a".to_owned(), ..v1::ImageAnnotation::default() }];
            wire.no_cache_stages = vec!["deps".to_owned()];
            wire.cache_from = vec!["my-app:cache".to_owned()];
            wire.cache_to = vec!["type=local,dest=caches/a,mode=max".to_owned()];
        })
        .unwrap();
        assert_eq!(secrets.values["token"].reveal(), b"canary");
        let shown = to_wire(spec.clone());
        assert!(!format!("{shown:?}{spec:?}{secrets:?}").contains("canary"));
        let rooms = RoomRegistries::default();
        let (again, _) = build_spec(shown, &context(&rooms)).unwrap();
        assert_eq!(BuildSpec { secret_ids: Vec::new(), ..spec }, again);
    }

    #[test]
    fn the_compression_is_one_that_builds_know_and_gzip_by_default() {
        for (text, expected) in [("", BuildCompression::Gzip), ("zstd", BuildCompression::Zstd)] {
            let (spec, _) = check(|wire| wire.compression = text.to_owned()).unwrap();
            assert_eq!(spec.compression, expected);
            assert_eq!(to_wire(spec).compression, expected.as_str());
        }
        let error = check(|wire| wire.compression = "xz".to_owned()).unwrap_err();
        assert!(format!("{error:?}").contains("spec.compression"), "{error:?}");
    }
}
