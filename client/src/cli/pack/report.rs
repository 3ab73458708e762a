//! Summary of a pack, as text and as JSON.

use std::path::Path;
use std::time::Duration;

use hearth_pack::{PackSummary, PackedImage};
use hearth_proto::v1::{LoadImageResponse, PackResult};
use serde::Serialize;

use crate::client::SentPack;
use crate::{duration, output};

/// Prints the size of the pack, its largest files unless it is to be brief, and paths that an ignore file should
/// probably exclude.
pub(in crate::cli) fn print_summary(summary: &PackSummary, brief: bool) {
    let reused = match summary.reused_bytes {
        0 => String::new(),
        _ => ", unchanged since it was packed before".to_owned(),
    };
    output::note(&format!(
        "packed {}, {}{reused}",
        output::count(summary.files, "file"),
        output::size(summary.bytes)
    ));
    for (path, bytes) in summary.largest.iter().filter(|_| !brief) {
        output::note(&format!("  {:>10}  {}", output::size(*bytes), shown(path)));
    }
    if let Some(file) = &summary.all_excluded_by {
        output::note(&format!(
            "warning: `{}` excludes every file; at most the Dockerfile and the ignore file are packed",
            shown(file)
        ));
    }
    for found in &summary.suspicious {
        let (path, size) = (shown(&found.path), output::size(found.bytes));
        let files = output::count(found.files, "file");
        output::note(&format!(
            "hint: the pack contains `{path}` ({files}, {size}); a line `{path}` in .dockerignore keeps it out"
        ));
    }
}

fn shown(path: &[u8]) -> String {
    output::printable(&String::from_utf8_lossy(path))
}

/// JSON form of the summary and the result of a pack.
#[derive(Serialize)]
pub(super) struct PackView {
    pub(super) digest: String,
    layer: String,
    diff_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    archive_bytes: u64,
    files: u64,
    directories: u64,
    links: u64,
    bytes: u64,
    /// Bytes of content that an earlier pack had already read and compressed.
    unchanged_bytes: u64,
    /// Bytes that were sent to the room. `reused_bytes` counts the bytes that the room already had.
    #[serde(skip_serializing_if = "Option::is_none")]
    sent_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reused_bytes: Option<u64>,
    seconds: f64,
    largest: Vec<PathView>,
    /// Directories that an ignore file usually excludes.
    suspicious: Vec<PathView>,
    /// Ignore file that excludes every file.
    #[serde(skip_serializing_if = "Option::is_none")]
    all_excluded_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
}

#[derive(Serialize)]
struct PathView {
    path: String,
    bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    files: Option<u64>,
}

impl PackView {
    pub(super) fn new(packed: &PackedImage, output: Option<&Path>) -> Self {
        Self {
            digest: packed.digest().to_string(),
            layer: packed.layer.digest.to_string(),
            diff_id: packed.layer.diff_id.to_string(),
            output: output.map(|path| path.display().to_string()),
            archive_bytes: packed.archive_size(),
            ..Self::from_summary(&packed.summary)
        }
    }

    /// View of an image that the room assembled.
    pub(super) fn from_room(summary: &PackSummary, made: &PackResult) -> Self {
        Self {
            digest: made.digest.clone(),
            layer: made.layer.clone(),
            diff_id: made.diff_id.clone(),
            archive_bytes: made.archive_bytes,
            ..Self::from_summary(summary)
        }
    }

    fn from_summary(summary: &PackSummary) -> Self {
        let path = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
        Self {
            digest: String::new(),
            layer: String::new(),
            diff_id: String::new(),
            output: None,
            archive_bytes: 0,
            files: summary.files,
            directories: summary.dirs,
            links: summary.links,
            bytes: summary.bytes,
            unchanged_bytes: summary.reused_bytes,
            sent_bytes: None,
            reused_bytes: None,
            seconds: 0.0,
            largest: summary
                .largest
                .iter()
                .map(|(name, bytes)| PathView { path: path(name), bytes: *bytes, files: None })
                .collect(),
            suspicious: summary
                .suspicious
                .iter()
                .map(|dir| PathView { path: path(&dir.path), bytes: dir.bytes, files: Some(dir.files) })
                .collect(),
            all_excluded_by: summary.all_excluded_by.as_deref().map(path),
            reference: None,
        }
    }

    /// Records the room's answer to an uploaded archive.
    pub(super) fn set_archive_result(&mut self, loaded: LoadImageResponse) {
        self.sent_bytes = Some(loaded.size_bytes);
        self.reused_bytes = Some(loaded.reused_bytes);
        self.reference = loaded.image.map(|image| image.reference);
    }

    /// Records the result of a tree that was sent by content.
    pub(super) fn set_upload_result(&mut self, sent: SentPack) {
        self.sent_bytes = Some(sent.wire_bytes);
        self.reused_bytes = Some(self.bytes.saturating_sub(sent.content_bytes));
        self.reference = sent.result.image.map(|image| image.reference);
    }

    /// Records the total time and prints it.
    pub(super) fn finish(&mut self, time: Duration) {
        self.seconds = (time.as_secs_f64() * 1000.0).round() / 1000.0;
        output::note(&format!("done in {}", duration::format_short(time)));
    }
}
