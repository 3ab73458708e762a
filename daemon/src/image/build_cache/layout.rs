//! Caches in room storage: an OCI image layout in a directory, or in an archive. All functions block.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use hearth_oci::{Descriptor, MAX_DOCUMENT_BYTES, OciIndex, REF_NAME_ANNOTATION};
use hearth_pack::archive::{ArchiveError, ArchiveLayout};

use super::super::contents::{ImageContents, MAX_INDEX_ENTRIES, read_json};
use super::super::load::{MAX_BLOBS, ReceivedArchive, take_back};
use super::super::port::{BlobStorage, StoredBlob};
use super::super::{ImageError, parse};
use crate::context::{StorageError, StorageRoot, WriteOptions};
use crate::model::manifest::{Manifest, ManifestPart, PartKind};
use crate::model::{Digest, Tag};

const INDEX: &str = "index.json";
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Maximum number of other caches that stay listed in a directory.
const MAX_OTHERS: usize = 64;
const COPY_BYTES: usize = 256 * 1024;

fn failed(path: &str, reason: impl std::fmt::Display) -> ImageError {
    ImageError::CacheFile { path: path.to_owned(), reason: reason.to_string() }
}

fn not_found(path: &str) -> ImageError {
    ImageError::CacheNotFound { path: path.to_owned() }
}

/// Opens a file; a missing file is a missing cache.
fn open(storage: &StorageRoot, path: &str) -> Result<File, ImageError> {
    match storage.read(Path::new(path)) {
        Ok((_, file)) => Ok(file),
        Err(StorageError::NotFound { .. }) => Err(not_found(path)),
        Err(error) => Err(failed(path, error)),
    }
}

pub(super) fn open_archive(storage: &StorageRoot, path: &str) -> Result<File, ImageError> {
    open(storage, path)
}

fn blob_path(directory: &str, digest: &Digest) -> String {
    format!("{directory}/blobs/{}", digest.to_string().replacen(':', "/", 1))
}

/// Stores the cache of a directory that has this tag or digest, with everything below it. On an error, stored blobs are
/// removed again.
pub(super) fn store_directory(
    blobs: &dyn BlobStorage,
    storage: &StorageRoot,
    directory: &str,
    tag: &Tag,
    digest: Option<Digest>,
) -> Result<ReceivedArchive, ImageError> {
    let index = read_index(storage, directory)?.ok_or_else(|| not_found(directory))?;
    let wanted = |entry: &&Descriptor| match digest {
        Some(digest) => entry.digest == digest,
        None => entry.annotations.get(REF_NAME_ANNOTATION).is_some_and(|name| name == tag.as_str()),
    };
    let top = index.manifests.iter().find(wanted).ok_or_else(|| not_found(directory))?.bare();
    let mut stored = Vec::new();
    match store_parts(blobs, storage, directory, &top, &mut stored) {
        Ok(contents) => Ok(ReceivedArchive { manifest: top, contents, stored }),
        Err(error) => {
            take_back(blobs, &stored);
            Err(error)
        }
    }
}

fn store_parts(
    blobs: &dyn BlobStorage,
    storage: &StorageRoot,
    directory: &str,
    top: &Descriptor,
    stored: &mut Vec<StoredBlob>,
) -> Result<ImageContents, ImageError> {
    let mut parts: BTreeSet<ManifestPart> = BTreeSet::new();
    store_blob(blobs, storage, directory, &top.digest, top.size, stored)?;
    let manifest = parse(top, &read_json(blobs, top)?)?;
    parts.extend(manifest.parts());
    if let Manifest::Index(index) = &manifest {
        if index.entries.len() > MAX_INDEX_ENTRIES {
            return Err(ImageError::TooDeep { digest: top.digest, limit: MAX_INDEX_ENTRIES });
        }
        for child in index.manifests() {
            let child = &child.manifest;
            store_blob(blobs, storage, directory, &child.digest, child.size, stored)?;
            parts.extend(parse(child, &read_json(blobs, child)?)?.parts());
        }
    }
    let (digest, count, limit) = (top.digest, parts.len(), MAX_BLOBS);
    if count > limit {
        return Err(ImageError::TooManyBlobs { digest, count, limit });
    }
    for part in parts.iter().filter(|part| part.kind == PartKind::Blob) {
        store_blob(blobs, storage, directory, &part.digest, part.size, stored)?;
    }
    // Only content of the directory itself is accepted: a digest alone must not open another repository's blob.
    let contents = ImageContents::read_untouched(blobs, top)?;
    let brought: BTreeSet<Digest> = stored.iter().map(|stored| stored.digest).collect();
    let foreign = contents.digests().find(|digest| !brought.contains(digest));
    match foreign {
        Some(digest) => Err(ImageError::Archive(ArchiveError::MissingBlob { digest })),
        None => Ok(contents),
    }
}

fn store_blob(
    blobs: &dyn BlobStorage,
    storage: &StorageRoot,
    directory: &str,
    digest: &Digest,
    size: u64,
    stored: &mut Vec<StoredBlob>,
) -> Result<(), ImageError> {
    let path = blob_path(directory, digest);
    let file = open(storage, &path)?;
    // A file that is longer than the manifest says is damaged, and is not read to its end.
    let mut content = file.take(size.saturating_add(1));
    let blob = blobs.put(digest, &mut content).map_err(|error| ImageError::not_stored(*digest, error))?;
    stored.push(blob);
    Ok(())
}

fn read_index(storage: &StorageRoot, directory: &str) -> Result<Option<OciIndex>, ImageError> {
    let path = format!("{directory}/{INDEX}");
    let file = match open(storage, &path) {
        Ok(file) => file,
        Err(ImageError::CacheNotFound { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|error| failed(&path, error))?;
    if bytes.len() > MAX_DOCUMENT_BYTES {
        return Err(failed(&path, format_args!("it has more than {MAX_DOCUMENT_BYTES} bytes")));
    }
    serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(&path, error))
}

/// Writes a cache to a directory, beside those that are there under other tags. The index is written last.
pub(super) fn write_directory(
    blobs: &dyn BlobStorage,
    cache: &Descriptor,
    storage: &StorageRoot,
    directory: &str,
    tag: &Tag,
) -> Result<(), ImageError> {
    let others = read_index(storage, directory)?.map(|index| index.manifests).unwrap_or_default();
    let contents = ImageContents::read_and_touch(blobs, cache)?;
    for digest in contents.digests() {
        let path = blob_path(directory, &digest);
        let (mut content, size) = open_blob(blobs, cache, digest)?;
        // A blob is named by its digest; one of the right size was written by an earlier build.
        if storage.stat(Path::new(&path)).is_ok_and(|entry| entry.size == size) {
            continue;
        }
        write_file(storage, &path, size, &mut |out| io::copy(&mut content, out).map(drop))?;
    }
    let mut entry = cache.bare();
    entry.annotations.insert(REF_NAME_ANNOTATION.to_owned(), tag.to_string());
    let mut entries = vec![entry];
    let is_other = |other: &Descriptor| {
        other.annotations.get(REF_NAME_ANNOTATION).is_some_and(|name| name != tag.as_str())
    };
    entries.extend(others.into_iter().filter(is_other).take(MAX_OTHERS));
    let index = serde_json::to_vec(&OciIndex::new(entries)).map_err(|error| failed(directory, error))?;
    for (name, bytes) in [("oci-layout", LAYOUT), (INDEX, index.as_slice())] {
        let path = format!("{directory}/{name}");
        write_file(storage, &path, bytes.len() as u64, &mut |out| out.write_all(bytes))?;
    }
    Ok(())
}

/// Writes a cache to an archive, which replaces an earlier file.
pub(super) fn write_archive(
    blobs: &dyn BlobStorage,
    cache: &Descriptor,
    storage: &StorageRoot,
    path: &str,
) -> Result<(), ImageError> {
    let contents = ImageContents::read_and_touch(blobs, cache)?;
    let mut parts = Vec::new();
    for digest in contents.digests().filter(|digest| *digest != cache.digest) {
        let (_, size) = open_blob(blobs, cache, digest)?;
        parts.push(Descriptor::new("", digest, size));
    }
    let archive =
        ArchiveLayout::of_stored(cache.bare(), &parts, None).map_err(|error| failed(path, error))?;
    write_file(storage, path, archive.size(), &mut |out| {
        archive.write(out, &|digest| {
            let file = blobs.open_verified(digest)?.ok_or(io::ErrorKind::NotFound)?;
            Ok(Box::new(file) as Box<dyn Read>)
        })
    })
}

fn open_blob(blobs: &dyn BlobStorage, cache: &Descriptor, digest: Digest) -> Result<(File, u64), ImageError> {
    let unread = |source| ImageError::Read { digest, source };
    let missing = ImageError::BlobMissing { manifest: cache.digest, blob: digest };
    let file = blobs.open_verified(&digest).map_err(unread)?.ok_or(missing)?;
    let size = file.metadata().map_err(unread)?.len();
    Ok((file, size))
}

/// Writes a file of storage as a whole: nothing is seen of one that fails.
fn write_file(
    storage: &StorageRoot,
    path: &str,
    size: u64,
    content: &mut dyn FnMut(&mut dyn Write) -> io::Result<()>,
) -> Result<(), ImageError> {
    let options = WriteOptions { size: Some(size), ..WriteOptions::default() };
    let mut writer = storage.write(Path::new(path), options).map_err(|error| failed(path, error))?;
    let append = |bytes: &[u8]| writer.append(bytes).map(|()| bytes.len()).map_err(io::Error::other);
    let mut out = io::BufWriter::with_capacity(COPY_BYTES, AppendTo(append));
    let written = content(&mut out).and_then(|()| out.flush());
    drop(out);
    written.map_err(|error| failed(path, error))?;
    writer.finish().map(drop).map_err(|error| failed(path, error))
}

struct AppendTo<F>(F);

impl<F: FnMut(&[u8]) -> io::Result<usize>> Write for AppendTo<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (self.0)(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
