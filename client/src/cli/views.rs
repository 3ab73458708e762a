//! Output of `--json`: stable field names, bytes as numbers, times as RFC 3339, lengths of time in
//! seconds.

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_proto::v1::{
    Build, BuildState, CachedImage, FileEntry, FileKind, Image, ImageDescriptor, InspectImageResponse,
    LoadImageResponse, ReadBuildLogResponse,
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

use crate::error::Failure;
use crate::progress::state_name;
use crate::{duration, exit, output};

#[derive(Serialize)]
pub(super) struct BuildView {
    pub build_id: String,
    pub state: String,
    pub tags: Vec<String>,
    pub digest: Option<String>,
    pub size_bytes: Option<u64>,
    /// Descriptor of the manifest or index, with its annotations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub descriptor: Option<Value>,
    pub duration_seconds: Option<f64>,
    pub cached_steps: Option<u32>,
    pub total_steps: Option<u32>,
    pub created_at: Option<String>,
    pub started_at: Option<String>,
    pub finished_at: Option<String>,
    pub submitted_by: String,
    pub last_sequence: u64,
    /// Kept whatever its age.
    pub pinned: bool,
    /// Digest of the context; null until the context was read.
    pub context_digest: Option<String>,
    /// Digests of the mounts, by mount target.
    pub mount_digests: BTreeMap<String, String>,
    /// Digests of the images and files that the Dockerfile names, by name. The digest is empty when only
    /// the builder read the source.
    pub sources: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<Value>,
}

/// Returns a descriptor in the form of the OCI image spec.
fn descriptor_view(descriptor: &ImageDescriptor) -> Value {
    let mut view = json!({
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size_bytes,
    });
    if !descriptor.annotations.is_empty() {
        view["annotations"] = json!(descriptor.annotations);
    }
    view
}

impl From<&Build> for BuildView {
    fn from(build: &Build) -> Self {
        let time = |time: &Option<prost_types::Timestamp>| {
            output::timestamp(time.as_ref()).map(|time| time.to_string())
        };
        let result = build.result.as_ref();
        Self {
            build_id: build.build_id.clone(),
            state: state_name(build.state),
            tags: build.tags.clone(),
            digest: result.map(|result| result.digest.clone()),
            size_bytes: result.map(|result| result.size_bytes),
            descriptor: result.and_then(|result| result.descriptor.as_ref()).map(descriptor_view),
            duration_seconds: ended_after(build).map(|took| took.as_secs_f64()),
            cached_steps: result.map(|result| result.cached_steps),
            total_steps: result.map(|result| result.total_steps),
            created_at: time(&build.created_at),
            started_at: time(&build.started_at),
            finished_at: time(&build.finished_at),
            submitted_by: build.submitted_by.clone(),
            last_sequence: build.last_sequence,
            pinned: build.pinned,
            context_digest: Some(build.context_digest.clone()).filter(|digest| !digest.is_empty()),
            mount_digests: build
                .mount_digests
                .iter()
                .map(|mount| (mount.target.clone(), mount.digest.clone()))
                .collect(),
            sources: build
                .sources
                .iter()
                .map(|source| (source.name.clone(), source.digest.clone()))
                .collect(),
            error: build.error.as_ref().and_then(|detail| {
                let failure =
                    Failure::from_detail(crate::error::FailureKind::Failed, Box::new(detail.clone()));
                let value = serde_json::to_value(exit::error_document(&failure)).ok()?;
                value.get("error").cloned()
            }),
        }
    }
}

/// Returns how long a build that has ended took from its start, however it ended. A build that never ran has no
/// duration.
fn ended_after(build: &Build) -> Option<Duration> {
    let stated = build.result.as_ref().and_then(|result| result.duration).map(duration::from_wire);
    stated.or_else(|| time_between(build, output::timestamp(build.finished_at.as_ref())?))
}

/// Returns how long a build took, or how long it has been running.
pub(super) fn took(build: &Build, now: Timestamp) -> Option<Duration> {
    match build.state() {
        BuildState::Queued => None,
        BuildState::Running => time_between(build, now),
        _ => ended_after(build),
    }
}

fn time_between(build: &Build, end: Timestamp) -> Option<Duration> {
    let started = output::timestamp(build.started_at.as_ref())?;
    Some(Duration::try_from(end.duration_since(started)).unwrap_or_default())
}

#[derive(Serialize)]
pub(super) struct LogView {
    lines: Vec<String>,
    omitted_lines: u64,
    next_sequence: u64,
}

impl From<ReadBuildLogResponse> for LogView {
    fn from(log: ReadBuildLogResponse) -> Self {
        Self { lines: log.lines, omitted_lines: log.omitted_lines, next_sequence: log.next_sequence }
    }
}

#[derive(Serialize)]
pub(super) struct ImageView {
    reference: String,
    repository: String,
    tag: String,
    digest: String,
    size_bytes: u64,
    updated_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unusable: Option<UnusableView>,
}

/// Reason why the room does not use an image.
#[derive(Serialize)]
struct UnusableView {
    code: String,
    message: String,
}

impl From<&Image> for ImageView {
    fn from(image: &Image) -> Self {
        Self {
            reference: image.reference.clone(),
            repository: image.repository.clone(),
            tag: image.tag.clone(),
            digest: image.digest.clone(),
            size_bytes: image.size_bytes,
            updated_at: output::timestamp(image.updated_at.as_ref()).map(|time| time.to_string()),
            unusable: (!image.unusable.is_empty()).then(|| UnusableView {
                code: image.unusable.clone(),
                message: image.unusable_reason.clone(),
            }),
        }
    }
}

#[derive(Serialize)]
pub(super) struct CachedImageView {
    name: String,
    platform: String,
    digest: String,
    size_bytes: u64,
    last_used_at: Option<String>,
    checked_at: Option<String>,
    right: String,
    repository: String,
}

impl From<&CachedImage> for CachedImageView {
    fn from(image: &CachedImage) -> Self {
        let time = |time: &Option<prost_types::Timestamp>| {
            output::timestamp(time.as_ref()).map(|time| time.to_string())
        };
        Self {
            name: image.name.clone(),
            platform: image.platform.clone(),
            digest: image.digest.clone(),
            size_bytes: image.size_bytes,
            last_used_at: time(&image.last_used_at),
            checked_at: time(&image.checked_at),
            right: image.right.clone(),
            repository: image.repository.clone(),
        }
    }
}

#[derive(Serialize)]
pub(super) struct LoadView {
    digest: String,
    size_bytes: u64,
    reused_bytes: u64,
    image: Option<ImageView>,
}

impl From<&LoadImageResponse> for LoadView {
    fn from(loaded: &LoadImageResponse) -> Self {
        Self {
            digest: loaded.digest.clone(),
            size_bytes: loaded.size_bytes,
            reused_bytes: loaded.reused_bytes,
            image: loaded.image.as_ref().map(ImageView::from),
        }
    }
}

#[derive(Serialize)]
pub(super) struct InspectView {
    image: Option<ImageView>,
    media_type: String,
    platform: String,
    layers: Vec<LayerView>,
    manifest: Value,
    config: Value,
}

#[derive(Serialize)]
struct LayerView {
    digest: String,
    media_type: String,
    size_bytes: u64,
}

impl InspectView {
    pub(super) fn new(found: &InspectImageResponse) -> Self {
        // Invalid JSON is shown as plain text.
        let json = |text: &str| serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
        let layer = |layer: &hearth_proto::v1::Layer| LayerView {
            digest: layer.digest.clone(),
            media_type: layer.media_type.clone(),
            size_bytes: layer.size_bytes,
        };
        Self {
            image: found.image.as_ref().map(ImageView::from),
            media_type: found.media_type.clone(),
            platform: found.platform.clone(),
            layers: found.layers.iter().map(layer).collect(),
            manifest: json(&found.manifest_json),
            config: json(&found.config_json),
        }
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        if let Some(image) = &self.image {
            text += &format!("{}\n", image.reference);
            text += &format!("  digest    {}\n", image.digest);
            text += &format!("  size      {}\n", output::size(image.size_bytes));
            if let Some(unusable) = &image.unusable {
                text += &format!("  unusable  {}: {}\n", unusable.code, unusable.message);
            }
        }
        text += &format!("  type      {}\n  platform  {}\n", self.media_type, self.platform);
        for (number, layer) in (1..).zip(&self.layers) {
            text += &format!("  layer {number:<3} {}  {}\n", layer.digest, output::size(layer.size_bytes));
        }
        text + "  config    " + &output::to_json(&self.config).replace('\n', "\n            ")
    }
}

#[derive(Serialize)]
pub(super) struct FileView {
    path: String,
    kind: &'static str,
    size_bytes: u64,
    /// Octal, such as "0644".
    mode: String,
    modified_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    link_target: Option<String>,
}

/// Returns the name of a file kind in the JSON output.
pub(super) const fn file_kind_name(kind: FileKind) -> &'static str {
    match kind {
        FileKind::File => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Other | FileKind::Unspecified => "other",
    }
}

impl From<&FileEntry> for FileView {
    fn from(entry: &FileEntry) -> Self {
        Self {
            path: entry.path.clone(),
            kind: file_kind_name(entry.kind()),
            size_bytes: entry.size_bytes,
            mode: format!("{:04o}", entry.mode & 0o7777),
            modified_at: output::timestamp(entry.modified_at.as_ref()).map(|time| time.to_string()),
            link_target: Some(entry.link_target.clone()).filter(|target| !target.is_empty()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_build_that_ran_took_some_time_however_it_ended() {
        let at = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
        let now = Timestamp::from_second(150).unwrap();
        let build = |state: BuildState, started, finished| Build {
            state: state.into(),
            started_at: started,
            finished_at: finished,
            ..Build::default()
        };
        let seconds = |build: &Build| took(build, now).map(|took| took.as_secs());
        for state in [BuildState::Failed, BuildState::Cancelled, BuildState::Interrupted] {
            assert_eq!(seconds(&build(state, at(100), at(107))), Some(7), "{state:?}");
        }
        assert_eq!(seconds(&build(BuildState::Running, at(100), None)), Some(50));
        assert_eq!(seconds(&build(BuildState::Queued, None, None)), None);
        assert_eq!(seconds(&build(BuildState::Cancelled, None, at(107))), None);
        assert_eq!(BuildView::from(&build(BuildState::Failed, at(1), at(3))).duration_seconds, Some(2.0));
    }
}
