//! Removes blobs that nothing references and that were not touched recently. [`crate::image::port`] explains
//! why this never removes a blob that a running push relies on.

use std::collections::HashSet;
use std::path::Path;
use std::time::SystemTime;
use std::{fs, io};

use super::{BlobStore, found};
use crate::image::port::Swept;
use crate::model::Digest;

pub(super) fn sweep(store: &BlobStore, live: &HashSet<Digest>, before: SystemTime) -> io::Result<Swept> {
    let mut swept = Swept::default();
    for directory in fs::read_dir(&store.inner.blobs)? {
        for entry in fs::read_dir(directory?.path())? {
            let entry = entry?;
            let Some(digest) = named(&entry.file_name()) else {
                tracing::warn!(path = %entry.path().display(), "found a file in the blob store that is not a blob");
                continue;
            };
            if !live.contains(&digest)
                && let Some(bytes) = remove_untouched(store, &entry.path(), before)?
            {
                store.forget(&digest);
                swept.blobs += 1;
                swept.bytes += bytes;
            }
        }
    }
    Ok(swept)
}

fn named(file: &std::ffi::OsStr) -> Option<Digest> {
    format!("sha256:{}", file.to_str()?).parse().ok()
}

/// Removes a blob unless it was touched. The lock is held for one file only, so that pushes continue during a sweep.
fn remove_untouched(store: &BlobStore, path: &Path, before: SystemTime) -> io::Result<Option<u64>> {
    let _held = store.no_removal();
    let Some(metadata) = found(fs::metadata(path))? else { return Ok(None) };
    if metadata.modified()? >= before {
        return Ok(None);
    }
    fs::remove_file(path)?;
    Ok(Some(metadata.len()))
}
