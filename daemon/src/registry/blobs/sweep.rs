//! Removes blobs that nothing references and that were not touched recently. [`crate::image::port`] explains
//! why this never removes a blob that a running push relies on.

use std::collections::HashSet;
use std::path::Path;
use std::time::SystemTime;
use std::{fs, io};

use super::{BlobStore, none_if_missing};
use crate::image::port::SweptBlobs;
use crate::model::Digest;

pub(super) fn sweep(store: &BlobStore, live: &HashSet<Digest>, before: SystemTime) -> io::Result<SweptBlobs> {
    let mut swept = SweptBlobs::default();
    for directory in fs::read_dir(&store.directories.blobs)? {
        for entry in fs::read_dir(directory?.path())? {
            let entry = entry?;
            let Some(digest) = digest_of_file(&entry.file_name()) else {
                tracing::warn!(path = %entry.path().display(), "found a file in the blob store that is not a blob");
                continue;
            };
            if !live.contains(&digest)
                && let Some(bytes) = remove_untouched(store, &entry.path(), before)?
            {
                store.forget_share(&digest);
                swept.blobs += 1;
                swept.bytes += bytes;
            }
        }
    }
    for entry in fs::read_dir(&store.directories.quarantine)? {
        if let Some(digest) = digest_of_file(&entry?.file_name())
            && !live.contains(&digest)
        {
            store.discard_quarantined(&digest);
            store.forget_share(&digest);
        }
    }
    Ok(swept)
}

pub(super) fn digest_of_file(file: &std::ffi::OsStr) -> Option<Digest> {
    format!("sha256:{}", file.to_str()?).parse().ok()
}

/// Removes a blob unless it was touched. The lock is held for one file only, so that pushes continue during a sweep.
fn remove_untouched(store: &BlobStore, path: &Path, before: SystemTime) -> io::Result<Option<u64>> {
    let _held = store.lock_removal();
    let Some(metadata) = none_if_missing(fs::metadata(path))? else { return Ok(None) };
    if metadata.modified()? >= before {
        return Ok(None);
    }
    fs::remove_file(path)?;
    Ok(Some(metadata.len()))
}
