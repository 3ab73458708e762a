//! Conversion between protocol messages and the domain. All request validation happens here, and each error
//! names the field.

mod context;
mod deploy;
mod deploy_event;
mod mounts;
mod service;
mod spec;
mod why;

pub use context::{context, path_in};
pub use deploy::{arguments, deploy_spec, domain};
pub use deploy_event::{action, deploy_event, exit, instance_log_line};
pub use service::{IngressAddress, route, service, service_spec};
pub use spec::{SpecContext, build_spec, pairs};
pub use why::why_response;

use std::collections::{BTreeMap, HashMap};

use hearth_pack::image::ConfigFlags;
use hearth_proto::v1;
use jiff::Timestamp;

use super::error::{ApiError, fault_detail};
use crate::build::port::{SolveAnswer, SolveQuestion};
use crate::build::{PruneBuilds, QueuePlace, damage_text};
use crate::image::port::ImageMark;
use crate::image::port::cached::CachedImage;
use crate::model::attestation::AttachedStatement;
use crate::model::build::{
    BuildEvent, BuildEventKind, BuildRecord, BuildSource, BuildState, LogStream, MountIdentity, StepSummary,
};
use crate::model::fault::{DockerfileRange, ErrorCode};
use crate::model::image::TaggedImage;
use crate::model::secret::{RegistryCredential, Secret};
use crate::model::{LinePattern, Reference, RoomRegistries};

const MAX_CREDENTIALS: usize = 64;

/// Returns the page size: `default` if `asked` is 0, and at most `max`.
pub fn page_size(asked: u32, default: usize, max: usize) -> usize {
    match asked as usize {
        0 => default,
        asked => asked.min(max),
    }
}

/// Converts and checks the flags of an image's config.
pub fn config_flags(config: v1::PackConfig, field: &str) -> Result<ConfigFlags, ApiError> {
    let words = |command: Option<v1::PackCommand>| command.map(|command| command.words);
    let flags = ConfigFlags {
        entrypoint: words(config.entrypoint),
        cmd: words(config.cmd),
        env: config.env,
        workdir: Some(config.workdir).filter(|text| !text.is_empty()),
        user: Some(config.user).filter(|text| !text.is_empty()),
        labels: config.labels,
        expose: config.expose,
        volumes: config.volumes,
    };
    let checked =
        flags.check().map_err(|error| ApiError::invalid(field, ErrorCode::InvalidConfig, error.to_string()));
    checked.map(|()| flags)
}

/// Parses a tag.
pub fn tag(field: &str, text: &str) -> Result<Reference, ApiError> {
    Reference::parse_tag(text)
        .map_err(|error| ApiError::invalid(field, ErrorCode::InvalidTag, format!("tag {error}")))
}

/// Parses the pattern that lines of a log must match: a literal text or a regular expression.
pub fn line_pattern(contains: &str, matches: &str) -> Result<Option<LinePattern>, ApiError> {
    let (field, pattern) = match (contains, matches) {
        ("", "") => return Ok(None),
        (text, "") => ("contains", LinePattern::literal(text)),
        ("", text) => ("matches", LinePattern::regex(text)),
        _ => {
            let message = "`contains` and `matches` exclude each other";
            return Err(ApiError::invalid("matches", ErrorCode::InvalidPattern, message));
        }
    };
    pattern.map(Some).map_err(|error| ApiError::invalid(field, ErrorCode::InvalidPattern, error.to_string()))
}

pub fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() }
}

/// Converts a time; one out of range is refused.
pub fn time(field: &str, value: Option<prost_types::Timestamp>) -> Result<Option<Timestamp>, ApiError> {
    value
        .map(|value| {
            Timestamp::new(value.seconds, value.nanos).map_err(|_| {
                ApiError::invalid(field, ErrorCode::InvalidTime, format!("{field}: the time is out of range"))
            })
        })
        .transpose()
}

/// Converts a duration; a negative one, or one out of range, is refused.
pub fn duration(
    field: &str,
    value: Option<prost_types::Duration>,
) -> Result<Option<std::time::Duration>, ApiError> {
    value
        .map(|value| {
            std::time::Duration::try_from(value).map_err(|_| {
                ApiError::invalid(
                    field,
                    ErrorCode::InvalidDuration,
                    format!("{field}: the duration is negative or out of range"),
                )
            })
        })
        .transpose()
}

fn to_duration(value: std::time::Duration) -> prost_types::Duration {
    // The seconds of a measured duration always fit.
    prost_types::Duration::try_from(value).unwrap_or_default()
}

pub fn dockerfile_range(range: DockerfileRange) -> v1::DockerfileRange {
    v1::DockerfileRange {
        path: range.path.to_string(),
        start_line: range.start_line,
        end_line: range.end_line,
        text: range.text,
    }
}

const fn log_stream(stream: LogStream) -> v1::LogStream {
    match stream {
        LogStream::Stdout => v1::LogStream::Stdout,
        LogStream::Stderr => v1::LogStream::Stderr,
    }
}

/// Converts credentials, keyed by registry. One without a registry is for that of `image`, or for Docker Hub if the
/// image has none or is in the room.
pub fn registry_credentials(
    field: &str,
    wire: Vec<v1::RegistryCredential>,
    image: &Reference,
    rooms: &RoomRegistries,
) -> Result<BTreeMap<String, RegistryCredential>, ApiError> {
    if wire.len() > MAX_CREDENTIALS {
        let message = format!("at most {MAX_CREDENTIALS} credentials");
        return Err(ApiError::invalid(field, ErrorCode::TooMany, message));
    }
    let spoken_to = image.registry.as_ref().filter(|registry| !rooms.contains(registry));
    let spoken_to = spoken_to.map_or("docker.io", |registry| registry.as_str());
    let credential = |credential: v1::RegistryCredential| {
        let password = Secret::new(credential.password);
        let registry = match credential.registry {
            registry if !registry.is_empty() => registry,
            _ => spoken_to.to_owned(),
        };
        (registry, RegistryCredential { username: credential.username, password })
    };
    Ok(wire.into_iter().map(credential).collect())
}

pub const fn build_state(state: BuildState) -> v1::BuildState {
    match state {
        BuildState::Queued => v1::BuildState::Queued,
        BuildState::Running => v1::BuildState::Running,
        BuildState::Succeeded => v1::BuildState::Succeeded,
        BuildState::Failed => v1::BuildState::Failed,
        BuildState::Cancelled => v1::BuildState::Cancelled,
        BuildState::Interrupted => v1::BuildState::Interrupted,
    }
}

pub fn build_state_from_wire(state: v1::BuildState) -> Option<BuildState> {
    Some(match state {
        v1::BuildState::Unspecified => return None,
        v1::BuildState::Queued => BuildState::Queued,
        v1::BuildState::Running => BuildState::Running,
        v1::BuildState::Succeeded => BuildState::Succeeded,
        v1::BuildState::Failed => BuildState::Failed,
        v1::BuildState::Cancelled => BuildState::Cancelled,
        v1::BuildState::Interrupted => BuildState::Interrupted,
    })
}

pub fn build(record: BuildRecord) -> v1::Build {
    let (context_digest, mount_digests) = match record.context {
        Some(context) => (context.digest.to_string(), context.mounts.iter().map(mount_digest).collect()),
        None => (String::new(), Vec::new()),
    };
    v1::Build {
        context_digest,
        mount_digests,
        sources: record.sources.into_iter().map(source).collect(),
        build_id: record.id.to_string(),
        state: build_state(record.state).into(),
        tags: record.spec.tags.iter().map(Reference::to_string).collect(),
        created_at: Some(timestamp(record.created_at)),
        started_at: record.started_at.map(timestamp),
        finished_at: record.finished_at.map(timestamp),
        submitted_by: record.submitted_by,
        result: record.result.map(|result| v1::BuildResult {
            digest: result.digest.to_string(),
            size_bytes: result.size_bytes,
            cached_steps: result.cached_steps,
            total_steps: result.total_steps,
            duration: Some(to_duration(result.duration)),
            descriptor: result.descriptor.map(|descriptor| v1::ImageDescriptor {
                media_type: descriptor.media_type,
                digest: descriptor.digest.to_string(),
                size_bytes: descriptor.size,
                annotations: descriptor.annotations,
            }),
        }),
        error: record.fault.map(fault_detail),
        last_sequence: record.last_sequence,
        spec: Some(spec::to_wire(record.spec)),
        queue: None,
        had_confidential_values: record.has_secrets,
        pinned: record.pinned,
    }
}

/// Returns the steps of a build.
pub fn build_steps(record: BuildRecord) -> v1::BuildSteps {
    let step = |step: StepSummary| v1::StepRecord {
        name: step.name,
        duration: Some(to_duration(step.duration)),
        cached: step.cached,
        layer_bytes: step.layer_bytes,
    };
    v1::BuildSteps {
        build_id: record.id.to_string(),
        state: build_state(record.state).into(),
        finished_at: record.finished_at.map(timestamp),
        // A step that was stopped or failed says nothing about how long it takes.
        steps: record.steps.into_iter().filter(|step| step.succeeded).map(step).collect(),
    }
}

pub fn queue_place(place: &QueuePlace, expected_wait: Option<std::time::Duration>) -> v1::QueuePlace {
    v1::QueuePlace {
        ahead: u32::try_from(place.ahead.len()).unwrap_or(u32::MAX),
        reason: place.wait.to_string(),
        expected_wait: expected_wait.map(to_duration),
    }
}

pub fn build_question(question: v1::BuildQuestion) -> Result<SolveQuestion, ApiError> {
    match question {
        v1::BuildQuestion::Lint => Ok(SolveQuestion::Lint),
        v1::BuildQuestion::Outline => Ok(SolveQuestion::Outline),
        v1::BuildQuestion::Targets => Ok(SolveQuestion::Targets),
        v1::BuildQuestion::Unspecified => {
            Err(ApiError::invalid("question", ErrorCode::InvalidRequest, "the question is missing"))
        }
    }
}

/// Maximum size of an answer about a Dockerfile, as JSON and as text.
const MAX_INSPECTION: usize = 1 << 20;

pub fn inspection(mut answer: SolveAnswer) -> Result<v1::InspectBuildResponse, ApiError> {
    let mut text = |name: &str| match answer.metadata.remove(name) {
        Some(bytes) if bytes.len() <= MAX_INSPECTION => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Some(_) => {
            let message = format!("the answer about the Dockerfile has more than {MAX_INSPECTION} bytes");
            Err(ApiError::new(ErrorCode::TooMany, message))
        }
        None => Err(ApiError::new(ErrorCode::Internal, format!("the builder's answer has no `{name}`"))),
    };
    Ok(v1::InspectBuildResponse { json: text("result.json")?, text: text("result.txt")? })
}

/// Converts a request to remove ended builds of `owner`, or of everybody. It says how many builds, or of what age: a
/// request without either must not mean all of them.
pub fn prune_selection(
    request: &v1::PruneBuildsRequest,
    owner: Option<&str>,
) -> Result<PruneBuilds, ApiError> {
    let age = duration("older_than", request.older_than)?;
    if request.all == (request.keep.is_some() || age.is_some()) {
        let message = "give either `all`, or `keep` and `older_than`, or one of these";
        return Err(ApiError::invalid("all", ErrorCode::InvalidRequest, message));
    }
    Ok(PruneBuilds {
        submitted_by: owner.map(str::to_owned),
        keep: request.keep.and_then(|keep| usize::try_from(keep).ok()).unwrap_or_default(),
        older_than: age.unwrap_or_default(),
        dry_run: request.dry_run,
    })
}

fn source(source: BuildSource) -> v1::BuildSource {
    let digest = source.digest.map(|digest| digest.to_string()).unwrap_or_default();
    v1::BuildSource { name: source.name, digest }
}

pub fn cached_image(image: CachedImage) -> v1::CachedImage {
    v1::CachedImage {
        right: image.key.right.to_text(),
        name: image.key.name,
        platform: image.key.platform.as_str().to_owned(),
        digest: image.manifest.digest.to_string(),
        size_bytes: image.size_bytes,
        last_used_at: Some(timestamp(image.used_at)),
        checked_at: Some(timestamp(image.checked_at)),
        repository: image.repository.to_string(),
    }
}

pub fn attestation(statement: AttachedStatement) -> v1::Attestation {
    v1::Attestation {
        predicate_type: statement.predicate_type,
        digest: statement.digest.to_string(),
        size_bytes: statement.size,
        created_at: statement.created_at.map(timestamp),
    }
}

fn mount_digest(mount: &MountIdentity) -> v1::MountDigest {
    v1::MountDigest { target: mount.target.to_string(), digest: mount.digest.to_string() }
}

/// Converts a build event. `record` is the build's record, and is only needed for the last event.
pub fn event(event: BuildEvent, record: Option<BuildRecord>) -> v1::BuildEvent {
    use v1::build_event::Event;
    let damaged_events = match event.kind {
        BuildEventKind::Damaged { events, .. } => events,
        _ => 0,
    };
    let kind =
        match event.kind {
            BuildEventKind::StateChanged { state } => Event::StateChanged(build_state(state).into()),
            BuildEventKind::StepStarted { step, name } => Event::StepStarted(v1::StepStarted { step, name }),
            BuildEventKind::StepLog { step, stream, data, dropped_bytes } => Event::StepLog(v1::StepLog {
                step,
                stream: log_stream(stream).into(),
                data: data.into(),
                dropped_bytes,
            }),
            BuildEventKind::StepProgress { step, name, current, total } => {
                Event::StepProgress(v1::StepProgress { step, name, current, total })
            }
            BuildEventKind::StepFinished { step, cached, duration, error } => {
                Event::StepFinished(v1::StepFinished {
                    step,
                    cached,
                    duration: Some(to_duration(duration)),
                    error: error.unwrap_or_default(),
                })
            }
            BuildEventKind::Warning { message, url, dockerfile } => Event::Warning(v1::BuildWarning {
                message,
                url: url.unwrap_or_default(),
                dockerfile: dockerfile.map(dockerfile_range),
            }),
            BuildEventKind::Damaged { events, bytes } => Event::Warning(v1::BuildWarning {
                message: damage_text(events, bytes),
                ..v1::BuildWarning::default()
            }),
            BuildEventKind::Finished { state } => Event::Finished(record.map_or_else(
                || v1::Build { state: build_state(state).into(), ..v1::Build::default() },
                build,
            )),
        };
    v1::BuildEvent {
        sequence: event.sequence,
        time: Some(timestamp(event.time)),
        event: Some(kind),
        damaged_events,
    }
}

pub fn image(image: &TaggedImage, rooms: &RoomRegistries) -> v1::Image {
    let name = format!("{}:{}", image.repository, image.tag);
    let reference = match rooms.names().first() {
        Some(registry) => format!("{registry}/{name}"),
        None => name,
    };
    v1::Image {
        repository: image.repository.to_string(),
        tag: image.tag.to_string(),
        digest: image.manifest.digest.to_string(),
        size_bytes: image.size_bytes,
        updated_at: Some(timestamp(image.updated_at)),
        reference,
        ..v1::Image::default()
    }
}

/// Adds the marks of unusable images.
pub fn add_marks(images: &mut [v1::Image], marks: &[ImageMark]) {
    let marks: HashMap<String, &ImageMark> =
        marks.iter().map(|mark| (mark.manifest.to_string(), mark)).collect();
    for image in images {
        if let Some(mark) = marks.get(&image.digest) {
            mark.code.as_str().clone_into(&mut image.unusable);
            image.unusable_reason.clone_from(&mark.reason);
        }
    }
}
