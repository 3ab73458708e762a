//! Reconciliation of the upload ledger with the stored content: services and sweeps remove content without updating the
//! ledger.

use std::io;
use std::path::Path;

use crate::context::{StorageError, StorageRoot, StorageRoots};
use crate::disk::{DiskLedger, KeptContent};
use crate::image::port::BlobStorage as _;
use crate::registry::blobs::BlobStore;
use crate::task;

pub(super) struct UploadLedgerCheck {
    pub(super) blobs: BlobStore,
    pub(super) storage: StorageRoots,
    pub(super) disk: DiskLedger,
}

impl UploadLedgerCheck {
    pub(super) async fn compare(&self) {
        let (blobs, storage, disk) = (self.blobs.clone(), self.storage.clone(), self.disk.clone());
        let compared = task::blocking("compare uploads", move || {
            disk.compare(|content| match content {
                KeptContent::Blob(digest) => blobs.size(digest),
                KeptContent::RoomFile(path) => size(&storage.room, path),
                KeptContent::ProjectFile(path) => size(&storage.project, path),
            })
        });
        if let Err(error) = compared.await.map_err(io::Error::other).flatten() {
            tracing::warn!(%error, "failed to compare the upload ledger with stored content; the next pass retries");
        }
    }
}

/// Returns the size of a file in bytes, or `None` if there is no such regular file.
fn size(root: &StorageRoot, path: &Path) -> io::Result<Option<u64>> {
    use StorageError::{IsLink, NotADirectory, NotAFile, NotFound};
    match root.open_mount_source(path) {
        Ok((_, true)) | Err(NotFound { .. } | NotADirectory { .. } | NotAFile { .. } | IsLink { .. }) => {
            Ok(None)
        }
        Ok((file, false)) => Ok(Some(u64::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or_default())),
        Err(error) => Err(io::Error::other(error)),
    }
}
