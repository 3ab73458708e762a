//! Disk usage of callers, collected from all stores.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use hearth_proto::v1;
use tonic::Status;

use super::super::error::ApiError;
use crate::build;
use crate::disk::{DiskLedger, UploadKind};
use crate::image::ImageStore;
use crate::packs::PackStore;
use crate::task;

/// Sources of the disk usage.
pub struct DiskUsage {
    pub disk: DiskLedger,
    pub packs: PackStore,
    pub images: ImageStore,
    pub builds: build::Handle,
    /// State directory, whose file system's free space is reported.
    pub state_dir: PathBuf,
}

impl DiskUsage {
    /// Reports the disk usage of the caller `only`, or of all callers.
    pub(super) async fn report(&self, only: Option<&str>) -> Result<v1::GetDiskUsageResponse, Status> {
        let kept = self.disk.kept();
        let logs = self.builds.log_bytes().await.map_err(ApiError::from)?;
        let cached = self.images.pack_bytes().await.map_err(ApiError::from)?;
        let packs = self.images.packs().await.map_err(ApiError::from)?;
        let mut uploads = self.uploads();
        let names: BTreeSet<&str> = (kept.keys().chain(logs.keys()).chain(cached.keys()))
            .map(String::as_str)
            .chain(uploads.iter().map(|upload| upload.caller.as_str()))
            .chain(packs.iter().filter(|pack| pack.image().is_none()).map(|pack| pack.owner.as_str()))
            .chain(only)
            .filter(|name| only.is_none_or(|only| only == *name))
            .collect();
        let of = |bytes: &BTreeMap<String, u64>, name: &str| bytes.get(name).copied().unwrap_or_default();
        let callers = names.into_iter().map(|name| {
            let own = kept.get(name).cloned().unwrap_or_default();
            let open = uploads.iter().filter(|upload| upload.caller == name && upload.kind != "pack");
            v1::CallerDiskUsage {
                caller: name.to_owned(),
                pack_bytes: self.packs.bytes_sent_by(name),
                image_bytes: own.images,
                file_bytes: own.files,
                build_log_bytes: of(&logs, name),
                cached_bytes: of(&cached, name),
                unfinished_bytes: open.map(|upload| upload.bytes).sum(),
            }
        });
        let callers = callers.collect();
        uploads.retain(|upload| only.is_none_or(|only| only == upload.caller));
        let state_dir = self.state_dir.clone();
        let disk = task::blocking("free space", move || rustix::fs::statvfs(&state_dir)).await;
        let disk = disk.map_err(|error| ApiError::internal("the disk could not be looked at", error))?;
        let disk = disk.map_err(|error| ApiError::internal("the disk could not be looked at", error))?;
        Ok(v1::GetDiskUsageResponse {
            callers,
            uploads,
            quota_bytes: self.disk.limits().per_caller,
            pack_quota_bytes: self.packs.limits().per_owner,
            free_bytes: disk.f_bavail.saturating_mul(disk.f_frsize),
            floor_bytes: self.disk.limits().min_free,
        })
    }

    fn uploads(&self) -> Vec<v1::UnfinishedUpload> {
        let upload = |caller, kind: &str, name, bytes, age| v1::UnfinishedUpload {
            caller,
            kind: kind.to_owned(),
            name,
            bytes,
            age: Some(duration(age)),
        };
        let packs = self.packs.unfinished_uploads().into_iter();
        let packs =
            packs.map(|pack| upload(pack.caller, "pack", pack.tree.to_string(), pack.bytes, pack.age));
        let others = self.disk.unfinished().into_iter().map(|open| {
            let kind = match open.kind {
                UploadKind::Blob => "blob",
                UploadKind::File => "file",
                UploadKind::Archive => "archive",
            };
            upload(open.caller, kind, open.name, open.bytes, open.age)
        });
        others.chain(packs).collect()
    }
}

fn duration(age: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(age.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(age.subsec_nanos()).unwrap_or_default(),
    }
}
