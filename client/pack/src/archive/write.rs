//! Writes an OCI archive. The layout is computed first, so that its length and the offset of each blob are known.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, Write};

use hearth_oci::{
    DeclaredPlatform, Descriptor, IMAGE_NAME_ANNOTATION, Manifest, OciIndex, REF_NAME_ANNOTATION, sha256,
};
use hearth_value::Digest;
use tar::EntryType;

use super::read::VerifyingReader;
use crate::layer::header::{END_BLOCKS, TarHeader, encode, padding};

const OCI_LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Source of blob content when an archive is written.
pub trait BlobSource: std::fmt::Debug + Send + Sync {
    fn open(&self, digest: &Digest) -> io::Result<Box<dyn Read + '_>>;
}

/// Callback that opens any blob of a layout.
pub type OpenBlob<'a> = dyn Fn(&Digest) -> io::Result<Box<dyn Read + 'a>> + 'a;

/// Callback that may skip the space of a blob of the given size instead of having it written. Returns whether it
/// skipped.
type SkipBlob<'a, W> = dyn FnMut(&mut W, (&Digest, u64)) -> io::Result<bool> + 'a;

/// Members of an archive in order, with their sizes. Small members are held in memory, layers by digest.
#[derive(Debug, Clone)]
pub struct ArchiveLayout {
    members: Vec<PlannedMember>,
    manifest: Descriptor,
}

#[derive(Debug, Clone)]
struct PlannedMember {
    path: String,
    content: MemberContent,
}

#[derive(Debug, Clone)]
enum MemberContent {
    Dir,
    Bytes(Vec<u8>),
    Blob { digest: Digest, size: u64 },
}

/// Name of an image without a tag. Readers such as containerd and umoci import nothing that has no name.
const DEFAULT_NAME: &str = "latest";

/// Adds the annotations in which readers of an index look for an image's name.
fn annotate_tag(descriptor: &mut Descriptor, tag: Option<&str>) {
    let mut annotate = |key: &str, name: &str| descriptor.annotations.insert(key.to_owned(), name.to_owned());
    annotate(REF_NAME_ANNOTATION, tag.unwrap_or(DEFAULT_NAME));
    if let Some(tag) = tag {
        annotate(IMAGE_NAME_ANNOTATION, tag);
    }
}

impl ArchiveLayout {
    /// Lays out one image. `config` and `manifest` are the exact bytes, `parsed` is the parsed manifest; `tag` is the
    /// whole reference, and without one the image is named `latest`; `docker` adds the `manifest.json` that `docker load` needs.
    pub fn new(
        config: &[u8],
        manifest: &[u8],
        parsed: &Manifest,
        platform: &DeclaredPlatform,
        tag: Option<&str>,
        docker: bool,
    ) -> serde_json::Result<Self> {
        let digest = sha256(manifest);
        let mut descriptor =
            Descriptor::new(parsed.media_type.as_deref().unwrap_or_default(), digest, manifest.len() as u64);
        descriptor.platform = Some(platform.clone());
        annotate_tag(&mut descriptor, tag);
        let index = serde_json::to_vec(&OciIndex::new(vec![descriptor.clone()]))?;

        let bytes = |path: &str, bytes: &[u8]| PlannedMember {
            path: path.to_owned(),
            content: MemberContent::Bytes(bytes.to_vec()),
        };
        let dir = |path: &str| PlannedMember { path: path.to_owned(), content: MemberContent::Dir };
        let mut members = vec![bytes("oci-layout", OCI_LAYOUT), bytes("index.json", &index)];
        if docker {
            members.push(bytes("manifest.json", &docker_manifest(parsed, tag)?));
        }
        members.extend([dir("blobs/"), dir("blobs/sha256/")]);
        members.push(bytes(&blob_path(&digest), manifest));
        members.push(bytes(&blob_path(&parsed.config.digest), config));
        for layer in &parsed.layers {
            let path = blob_path(&layer.digest);
            // A layer that occurs twice in an image is stored once.
            if members.iter().all(|member| member.path != path) {
                let content = MemberContent::Blob { digest: layer.digest, size: layer.size };
                members.push(PlannedMember { path, content });
            }
        }
        Ok(Self { members, manifest: descriptor })
    }

    /// Lays out a stored image or a whole index: `top` is its descriptor, `blobs` are all blobs below it, manifests
    /// first. Equal lists give equal bytes.
    pub fn of_stored(top: Descriptor, blobs: &[Descriptor], tag: Option<&str>) -> serde_json::Result<Self> {
        let mut descriptor = top;
        annotate_tag(&mut descriptor, tag);
        let index = serde_json::to_vec(&OciIndex::new(vec![descriptor.clone()]))?;
        let bytes = |path: &str, bytes: &[u8]| PlannedMember {
            path: path.to_owned(),
            content: MemberContent::Bytes(bytes.to_vec()),
        };
        let dir = |path: &str| PlannedMember { path: path.to_owned(), content: MemberContent::Dir };
        let mut members = vec![bytes("oci-layout", OCI_LAYOUT), bytes("index.json", &index)];
        members.extend([dir("blobs/"), dir("blobs/sha256/")]);
        let mut seen = std::collections::HashSet::new();
        for blob in std::iter::once(&descriptor).chain(blobs) {
            if seen.insert(blob.digest) {
                let content = MemberContent::Blob { digest: blob.digest, size: blob.size };
                members.push(PlannedMember { path: blob_path(&blob.digest), content });
            }
        }
        Ok(Self { members, manifest: descriptor })
    }

    /// Returns the image's descriptor as written in the index.
    pub fn manifest(&self) -> &Descriptor {
        &self.manifest
    }

    /// Returns the length of the whole archive in bytes.
    pub fn size(&self) -> u64 {
        let member = |member: &PlannedMember| {
            let size = member.content.size();
            member.header().len() as u64 + size + padding(size) as u64
        };
        self.members.iter().map(member).sum::<u64>() + END_BLOCKS.len() as u64
    }

    /// Returns the offset of a blob's content in the archive.
    pub(crate) fn blob_position(&self, wanted: &Digest) -> Option<u64> {
        let mut position = 0;
        for member in &self.members {
            position += member.header().len() as u64;
            match &member.content {
                MemberContent::Blob { digest, .. } if digest == wanted => return Some(position),
                content => position += content.size() + padding(content.size()) as u64,
            }
        }
        None
    }

    /// Writes the archive. Each blob is verified again while it is written.
    pub fn write(&self, out: &mut dyn Write, open: &OpenBlob<'_>) -> io::Result<()> {
        self.write_members(out, open, &mut |_, _| Ok(false))
    }

    /// Completes an archive in a file that already contains the blob `present` at its offset.
    pub(crate) fn write_around(&self, file: &File, present: &Digest, open: &OpenBlob<'_>) -> io::Result<()> {
        let mut out = BufWriter::with_capacity(256 * 1024, file);
        out.rewind()?;
        self.write_members(&mut out, open, &mut |out, (digest, size)| {
            if digest != present {
                return Ok(false);
            }
            let size = i64::try_from(size).map_err(io::Error::other)?;
            out.seek_relative(size).map(|()| true)
        })
    }

    /// Writes all members. `skip` may skip the space of a blob instead of having it written.
    fn write_members<W: Write + ?Sized>(
        &self,
        out: &mut W,
        open: &OpenBlob<'_>,
        skip: &mut SkipBlob<'_, W>,
    ) -> io::Result<()> {
        let mut buffer = vec![0u8; 256 * 1024];
        for member in &self.members {
            out.write_all(&member.header())?;
            match &member.content {
                MemberContent::Dir => {}
                MemberContent::Bytes(bytes) => out.write_all(bytes)?,
                MemberContent::Blob { digest, size } if skip(out, (digest, *size))? => {}
                MemberContent::Blob { digest, size } => {
                    let mut content = VerifyingReader::new(open(digest)?, *digest, *size);
                    loop {
                        match content.read(&mut buffer) {
                            Ok(0) => break,
                            Ok(count) => out.write_all(&buffer[..count])?,
                            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                            Err(error) => return Err(error),
                        }
                    }
                }
            }
            out.write_all(&END_BLOCKS[..padding(member.content.size())])?;
        }
        out.write_all(&END_BLOCKS)?;
        out.flush()
    }
}

impl MemberContent {
    fn size(&self) -> u64 {
        match self {
            Self::Dir => 0,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Blob { size, .. } => *size,
        }
    }
}

impl PlannedMember {
    fn header(&self) -> Vec<u8> {
        let (kind, mode) = match self.content {
            MemberContent::Dir => (EntryType::Directory, 0o755),
            _ => (EntryType::Regular, 0o644),
        };
        let path = self.path.clone().into_bytes();
        encode(&TarHeader { path, link: b"", kind, mode, size: self.content.size(), mtime: 0 }, &[])
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

#[derive(serde::Serialize)]
#[serde(rename_all = "PascalCase")]
struct DockerManifest {
    config: String,
    repo_tags: Vec<String>,
    layers: Vec<String>,
}

fn docker_manifest(manifest: &Manifest, tag: Option<&str>) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&[DockerManifest {
        config: blob_path(&manifest.config.digest),
        repo_tags: tag.map(str::to_owned).into_iter().collect(),
        layers: manifest.layers.iter().map(|layer| blob_path(&layer.digest)).collect(),
    }])
}
