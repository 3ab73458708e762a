//! Reads an OCI archive from a stream: checks the name and kind of each member and the digest of each blob.

use std::io::{self, Read};

use hearth_oci::OciIndex;
use hearth_value::Digest;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::raw::{RawTar, TarMember};
use super::{ArchiveError, JSON_LIMIT};

/// Receiver for the blobs of an archive.
pub trait ArchiveSink {
    /// Receives one blob. `content` yields exactly `size` bytes. If they do not have `digest`, it fails instead of
    /// yielding the last of them, so content that was read to its end is verified.
    fn blob(&mut self, digest: &Digest, size: u64, content: &mut dyn Read) -> io::Result<()>;
}

/// Index and blob counts of an archive whose blobs have all been passed to the sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadArchive {
    pub index: OciIndex,
    pub blobs: u64,
    pub blob_bytes: u64,
}

/// Reads an archive from its start to its end. Members that do not belong to an image layout are skipped. The memory
/// use of the reader is bounded for any archive; limits on what the sink stores are the sink's own.
pub fn read(archive: impl Read, sink: &mut dyn ArchiveSink) -> Result<ReadArchive, ArchiveError> {
    scan(&mut RawTar::new(archive), &mut |digest, size, _, content| sink.blob(digest, size, content))
}

/// Callback for a blob: digest, size, position in the archive, content.
pub(super) type BlobCallback<'a> = dyn FnMut(&Digest, u64, u64, &mut dyn Read) -> io::Result<()> + 'a;

pub(super) fn scan<R: Read>(
    tar: &mut RawTar<R>,
    take: &mut BlobCallback<'_>,
) -> Result<ReadArchive, ArchiveError> {
    let mut index: Option<OciIndex> = None;
    let mut docker_save = false;
    let (mut blobs, mut blob_bytes) = (0, 0);
    while let Some(member) = tar.next_member()? {
        let role = member_role(&member)?;
        if matches!(role, MemberRole::Other) {
            docker_save |= member.name == b"manifest.json" || member.name == b"repositories";
            continue;
        }
        if !matches!(member.kind, EntryType::Regular | EntryType::Continuous) {
            return Err(member_error(&member, "is not a regular file"));
        }
        match role {
            MemberRole::Layout => {
                let layout: LayoutFile = json(tar, &member)?;
                if !layout.image_layout_version.starts_with("1.") {
                    return Err(member_error(&member, "has an unknown version"));
                }
            }
            MemberRole::Index => {
                if index.replace(json(tar, &member)?).is_some() {
                    return Err(member_error(&member, "occurs twice"));
                }
            }
            MemberRole::Blob(digest) => {
                verify_blob(tar, &digest, member.size, take)?;
                blobs += 1;
                blob_bytes += member.size;
            }
            MemberRole::Other => {}
        }
    }
    match index {
        Some(index) => Ok(ReadArchive { index, blobs, blob_bytes }),
        None if docker_save => Err(ArchiveError::DockerSave),
        None => Err(ArchiveError::NoIndex),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LayoutFile {
    image_layout_version: String,
}

/// Role of an archive member, determined by its name.
enum MemberRole {
    Layout,
    Index,
    Blob(Digest),
    Other,
}

fn member_role(member: &TarMember) -> Result<MemberRole, ArchiveError> {
    let name = member.name.as_slice();
    if name.starts_with(b"/") || name.split(|&byte| byte == b'/').any(|part| part == b"..") {
        return Err(member_error(member, "has a name that leads out of the archive"));
    }
    // Old writers store sparse files in their own format, with extra blocks that other readers do not expect.
    if member.kind == EntryType::GNUSparse {
        return Err(member_error(member, "is a sparse file"));
    }
    Ok(match name {
        b"oci-layout" => MemberRole::Layout,
        b"index.json" => MemberRole::Index,
        _ => match name.strip_prefix(b"blobs/sha256/") {
            None | Some(b"") => MemberRole::Other,
            Some(hex) => {
                let digest =
                    std::str::from_utf8(hex).ok().and_then(|hex| format!("sha256:{hex}").parse().ok());
                MemberRole::Blob(
                    digest.ok_or_else(|| member_error(member, "does not have the name of a blob"))?,
                )
            }
        },
    })
}

fn member_error(member: &TarMember, reason: &'static str) -> ArchiveError {
    ArchiveError::Member { name: member.shown(), reason }
}

fn json<R: Read, T: for<'de> Deserialize<'de>>(
    tar: &mut RawTar<R>,
    member: &TarMember,
) -> Result<T, ArchiveError> {
    if member.size > JSON_LIMIT {
        return Err(ArchiveError::TooLarge { name: member.shown(), size: member.size, limit: JSON_LIMIT });
    }
    let mut text = Vec::with_capacity(member.size as usize);
    tar.read_to_end(&mut text).map_err(read_error)?;
    serde_json::from_slice(&text).map_err(|source| ArchiveError::Json { name: member.shown(), source })
}

fn verify_blob<R: Read>(
    tar: &mut RawTar<R>,
    digest: &Digest,
    size: u64,
    take: &mut BlobCallback<'_>,
) -> Result<(), ArchiveError> {
    let position = tar.position();
    let mut content = VerifyingReader::new(&mut *tar, *digest, size);
    let read = match content.check_empty() {
        Ok(()) => take(digest, size, position, &mut content),
        Err(error) => Err(error),
    };
    // A fault of the archive takes precedence over the sink's error.
    let read = read.and_then(|()| io::copy(&mut content, &mut io::sink()).map(drop));
    match content.fault {
        Some(fault) => Err(fault),
        None => read.map_err(|source| ArchiveError::Sink { digest: *digest, source }),
    }
}

pub(super) fn read_error(source: io::Error) -> ArchiveError {
    match source.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Truncated,
        _ => ArchiveError::Read { source },
    }
}

/// Reader that fails instead of yielding its last bytes if the content does not have the declared digest.
pub(crate) struct VerifyingReader<R> {
    inner: R,
    declared: Digest,
    sum: Sha256,
    left: u64,
    /// Cause of a failed read, for callers that only get an I/O error through another reader or writer.
    pub(crate) fault: Option<ArchiveError>,
}

impl<R: Read> VerifyingReader<R> {
    pub(crate) fn new(inner: R, declared: Digest, size: u64) -> Self {
        Self { inner, declared, sum: Sha256::new(), left: size, fault: None }
    }

    /// Verifies an empty blob before it is read, because it has no last bytes to hold back.
    fn check_empty(&mut self) -> io::Result<()> {
        if self.left == 0 { self.check() } else { Ok(()) }
    }

    fn check(&mut self) -> io::Result<()> {
        let actual = Digest::from_sha256(self.sum.finalize_reset().into());
        if actual == self.declared {
            return Ok(());
        }
        let fault = ArchiveError::Mismatch { declared: self.declared, actual };
        let error = io::Error::new(io::ErrorKind::InvalidData, fault.to_string());
        self.fault = Some(fault);
        Err(error)
    }
}

impl<R: Read> Read for VerifyingReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(fault) = &self.fault {
            return Err(io::Error::new(io::ErrorKind::InvalidData, fault.to_string()));
        }
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if room == 0 {
            return Ok(0);
        }
        let count = match self.inner.read(&mut buffer[..room]) {
            Ok(0) => {
                self.fault = Some(ArchiveError::Truncated);
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Err(error),
            Err(error) => {
                let copy = io::Error::new(error.kind(), error.to_string());
                self.fault = Some(read_error(error));
                return Err(copy);
            }
        };
        self.sum.update(&buffer[..count]);
        self.left -= count as u64;
        if self.left == 0 {
            self.check()?;
        }
        Ok(count)
    }
}
