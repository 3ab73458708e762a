//! An OCI archive in a file: verified once when it is opened, then read by position.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use hearth_oci::{DeclaredPlatform, Descriptor, ImageConfig, Manifest, OciIndex};
use hearth_value::Digest;
use serde::Deserialize;

use super::decompress::decompressed_file;
use super::docker_save::{self, ConvertedImage};
use super::raw::RawTar;
use super::read::{ReadArchive, read_error, scan};
use super::{ArchiveError, BlobSource, JSON_LIMIT};

/// Maximum nesting depth of indexes.
const MAX_INDEX_DEPTH: usize = 4;

/// An archive in a file, all of whose blobs have been verified.
#[derive(Debug)]
pub struct ImageFile {
    file: File,
    index: OciIndex,
    /// Position and size of each blob in the file.
    blobs: HashMap<Digest, (u64, u64)>,
    /// Manifest that was made of the `manifest.json` of `docker save`.
    converted: Option<(Digest, Vec<u8>)>,
}

impl ImageFile {
    /// Opens and verifies an archive; reads it once from start to end.
    pub fn open(path: &Path) -> Result<Self, ArchiveError> {
        let file = File::open(path).map_err(|source| ArchiveError::Read { source })?;
        Self::from_file(file)
    }

    pub fn from_file(file: File) -> Result<Self, ArchiveError> {
        let mut file = decompressed_file(file)?;
        file.seek(SeekFrom::Start(0)).map_err(|source| ArchiveError::Read { source })?;
        let mut blobs = HashMap::new();
        let mut tar = RawTar::new(BufReader::with_capacity(256 * 1024, &file));
        let scanned = scan(&mut tar, &mut |digest, size, position, _| {
            blobs.insert(*digest, (position, size));
            Ok(())
        });
        match scanned {
            Ok(ReadArchive { index, .. }) => Ok(Self { file, index, blobs, converted: None }),
            Err(ArchiveError::DockerSave) => {
                let ConvertedImage { index, blobs, manifest } = docker_save::convert(&file)?;
                Ok(Self { file, index, blobs, converted: Some(manifest) })
            }
            Err(error) => Err(error),
        }
    }

    /// Reports whether the archive is one of the old `docker save`.
    pub(super) fn is_converted(&self) -> bool {
        self.converted.is_some()
    }

    pub fn index(&self) -> &OciIndex {
        &self.index
    }

    /// Returns the manifest for `platform`. If a descriptor names no platform, the one in its config is used. An archive
    /// with several images for the platform is an error; one image may have several names.
    pub fn manifest(&self, platform: &DeclaredPlatform) -> Result<(Descriptor, Manifest), ArchiveError> {
        let mut images: Vec<(Descriptor, Manifest, DeclaredPlatform)> = Vec::new();
        self.search(
            &self.index,
            MAX_INDEX_DEPTH,
            &mut HashSet::new(),
            &mut |descriptor, manifest, declared| {
                images.push((descriptor, manifest, declared));
            },
        )?;
        let Some((best, manifest, own)) = platform.best_match(&images, |(_, _, declared)| Some(declared))
        else {
            let mut found: Vec<String> = images.iter().map(|(_, _, declared)| declared.to_string()).collect();
            found.sort_unstable();
            found.dedup();
            return Err(ArchiveError::NoPlatform {
                wanted: platform.to_string(),
                found: if found.is_empty() { "none".to_owned() } else { found.join(", ") },
            });
        };
        let top: HashSet<&Digest> = self.index.manifests.iter().map(|entry| &entry.digest).collect();
        let equal =
            images.iter().filter(|(image, _, declared)| declared == own && top.contains(&image.digest));
        match equal.count() {
            0 | 1 => Ok((best.clone(), manifest.clone())),
            count => Err(ArchiveError::ImageCount { count }),
        }
    }

    fn search(
        &self,
        index: &OciIndex,
        depth: usize,
        // Each blob is visited once; otherwise a few wide indexes could cause endless work.
        seen: &mut HashSet<Digest>,
        offer: &mut dyn FnMut(Descriptor, Manifest, DeclaredPlatform),
    ) -> Result<(), ArchiveError> {
        for descriptor in &index.manifests {
            if !seen.insert(descriptor.digest) {
                continue;
            }
            if descriptor.is_index() && depth > 0 {
                self.search(&self.json(&descriptor.digest)?, depth - 1, seen, offer)?;
                continue;
            }
            let declared = descriptor.platform.clone();
            // Attestations are manifests for an unknown platform beside the images. A platform that was left out on
            // purpose has no blobs in the archive.
            let unknown = declared.as_ref().is_some_and(|platform| platform.os == "unknown");
            if unknown || !descriptor.is_manifest() || self.blob_size(&descriptor.digest).is_err() {
                continue;
            }
            let manifest: Manifest = self.json(&descriptor.digest)?;
            let declared = match declared.filter(|platform| !platform.architecture.is_empty()) {
                Some(declared) => declared,
                None => self.parsed(&manifest.config.digest, ImageConfig::parse_platform)?,
            };
            offer(descriptor.clone(), manifest, declared);
        }
        Ok(())
    }

    /// Reads a whole blob of at most [`JSON_LIMIT`] bytes.
    pub fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, ArchiveError> {
        let size = self.blob_size(digest)?;
        if size > JSON_LIMIT {
            return Err(ArchiveError::TooLarge { name: digest.to_string(), size, limit: JSON_LIMIT });
        }
        let mut bytes = Vec::with_capacity(size as usize);
        self.reader(digest)?.read_to_end(&mut bytes).map_err(read_error)?;
        Ok(bytes)
    }

    fn json<T: for<'de> Deserialize<'de>>(&self, digest: &Digest) -> Result<T, ArchiveError> {
        self.parsed(digest, |bytes| serde_json::from_slice(bytes))
    }

    fn parsed<T>(
        &self,
        digest: &Digest,
        parse: impl FnOnce(&[u8]) -> serde_json::Result<T>,
    ) -> Result<T, ArchiveError> {
        parse(&self.read_blob(digest)?)
            .map_err(|source| ArchiveError::Json { name: digest.to_string(), source })
    }

    pub(crate) fn blob_size(&self, digest: &Digest) -> Result<u64, ArchiveError> {
        match (self.blobs.get(digest), self.made(digest)) {
            (Some((_, size)), _) => Ok(*size),
            (None, Some(bytes)) => Ok(bytes.len() as u64),
            (None, None) => Err(ArchiveError::MissingBlob { digest: *digest }),
        }
    }

    fn made(&self, digest: &Digest) -> Option<&[u8]> {
        self.converted.as_ref().filter(|(made, _)| made == digest).map(|(_, bytes)| bytes.as_slice())
    }

    fn reader(&self, digest: &Digest) -> Result<Box<dyn Read + '_>, ArchiveError> {
        match (self.blobs.get(digest), self.made(digest)) {
            (Some(&(position, left)), _) => Ok(Box::new(FileRange { file: &self.file, position, left })),
            (None, Some(bytes)) => Ok(Box::new(bytes)),
            (None, None) => Err(ArchiveError::MissingBlob { digest: *digest }),
        }
    }
}

impl BlobSource for ImageFile {
    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read + '_>> {
        self.reader(digest).map_err(|error| io::Error::new(io::ErrorKind::NotFound, error.to_string()))
    }
}

/// A part of a file, read without moving the file's own position.
pub(crate) struct FileRange<'a> {
    pub(crate) file: &'a File,
    pub(crate) position: u64,
    pub(crate) left: u64,
}

impl Read for FileRange<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        let count = std::os::unix::fs::FileExt::read_at(self.file, &mut buffer[..room], self.position)?;
        self.position += count as u64;
        self.left -= count as u64;
        Ok(count)
    }
}
