//! `hearth system df`

use hearth_proto::v1::{CallerDiskUsage, GetDiskUsageResponse, UnfinishedUpload};
use serde::Serialize;

use super::super::{GlobalArgs, connect};
use crate::error::Failure;
use crate::output;

#[derive(Serialize)]
pub(in crate::cli) struct UsageView {
    callers: Vec<CallerView>,
    uploads: Vec<UploadView>,
    quota_bytes: u64,
    pack_quota_bytes: u64,
    free_bytes: u64,
    floor_bytes: u64,
}

#[derive(Serialize)]
struct CallerView {
    caller: String,
    pack_bytes: u64,
    image_bytes: u64,
    file_bytes: u64,
    build_log_bytes: u64,
    cached_bytes: u64,
    unfinished_bytes: u64,
}

#[derive(Serialize)]
struct UploadView {
    caller: String,
    kind: String,
    name: String,
    bytes: u64,
    age_seconds: i64,
}

pub(super) async fn run(globals: &GlobalArgs) -> Result<(), Failure> {
    let usage = UsageView::from(connect(globals).await?.disk_usage().await?);
    if globals.json { output::json(&usage) } else { usage.print() }
}

impl UsageView {
    /// Says in one line how much the callers keep, and how much space is left.
    pub(in crate::cli) fn summary(&self) -> String {
        let sum = |bytes: fn(&CallerView) -> u64| output::size(self.callers.iter().map(bytes).sum());
        format!(
            "disk: {} in images, {} in packs, {} in files, {} in logs; {} free",
            sum(|caller| caller.image_bytes),
            sum(|caller| caller.pack_bytes),
            sum(|caller| caller.file_bytes),
            sum(|caller| caller.build_log_bytes),
            output::size(self.free_bytes)
        )
    }

    fn print(&self) -> Result<(), Failure> {
        let head = ["CALLER", "PACKS", "IMAGES", "FILES", "BUILD LOGS", "CACHED", "UNFINISHED"];
        let row = |caller: &CallerView| {
            let bytes = [
                caller.pack_bytes,
                caller.image_bytes,
                caller.file_bytes,
                caller.build_log_bytes,
                caller.cached_bytes,
                caller.unfinished_bytes,
            ];
            std::iter::once(output::printable(&caller.caller)).chain(bytes.map(output::size)).collect()
        };
        output::table(&head, &self.callers.iter().map(row).collect::<Vec<_>>())?;
        if !self.uploads.is_empty() {
            output::line("")?;
            let row = |upload: &UploadView| {
                let age = format!("{}s", upload.age_seconds);
                let name = output::printable(&upload.name);
                vec![
                    output::printable(&upload.caller),
                    upload.kind.clone(),
                    output::size(upload.bytes),
                    age,
                    name,
                ]
            };
            let rows: Vec<_> = self.uploads.iter().map(row).collect();
            output::table(&["CALLER", "UPLOAD", "SIZE", "AGE", "NAME"], &rows)?;
        }
        output::note(&format!(
            "quota of each caller: {} for images and files, {} for packs; free on the disk: {}, of which uploads must leave {}",
            output::size(self.quota_bytes),
            output::size(self.pack_quota_bytes),
            output::size(self.free_bytes),
            output::size(self.floor_bytes),
        ));
        Ok(())
    }
}

impl From<GetDiskUsageResponse> for UsageView {
    fn from(wire: GetDiskUsageResponse) -> Self {
        let GetDiskUsageResponse { callers, uploads, quota_bytes, pack_quota_bytes, free_bytes, floor_bytes } =
            wire;
        let caller = |wire: CallerDiskUsage| CallerView {
            caller: wire.caller,
            pack_bytes: wire.pack_bytes,
            image_bytes: wire.image_bytes,
            file_bytes: wire.file_bytes,
            build_log_bytes: wire.build_log_bytes,
            cached_bytes: wire.cached_bytes,
            unfinished_bytes: wire.unfinished_bytes,
        };
        let upload = |wire: UnfinishedUpload| UploadView {
            caller: wire.caller,
            kind: wire.kind,
            name: wire.name,
            bytes: wire.bytes,
            age_seconds: wire.age.map_or(0, |age| age.seconds),
        };
        Self {
            callers: callers.into_iter().map(caller).collect(),
            uploads: uploads.into_iter().map(upload).collect(),
            quota_bytes,
            pack_quota_bytes,
            free_bytes,
            floor_bytes,
        }
    }
}
