//! Archives that are compressed as a whole, as by `docker save | gzip`.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::os::unix::fs::FileExt;

use super::docker_save;
use super::{ArchiveError, ArchiveLayout, ImageFile, read_error};
use crate::layer::header::TAR_BLOCK;

/// Maximum size of a decompressed archive, in bytes.
const MAX_ARCHIVE: u64 = 1 << 40;
const BUFFER: usize = 256 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamCompression {
    None,
    Gzip,
    Zstd,
}

impl StreamCompression {
    /// Recognises the compression by the first four bytes.
    pub(super) fn detect(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    fn decoder<'a>(self, stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        let stream = BufReader::with_capacity(BUFFER, stream);
        Ok(match self {
            Self::None => Box::new(stream),
            Self::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(stream)),
            Self::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(stream)?),
        })
    }
}

/// Reports whether an archive is compressed. Fails for a stream without positions.
pub fn is_compressed(archive: &File) -> io::Result<bool> {
    Ok(compression_of(archive)? != StreamCompression::None)
}

fn compression_of(file: &File) -> io::Result<StreamCompression> {
    let mut start = [0; 4];
    let count = file.read_at(&mut start, 0)?;
    Ok(StreamCompression::detect(&start[..count]))
}

/// Returns the file itself, or an unnamed file with its decompressed content.
pub(super) fn decompressed_file(file: File) -> Result<File, ArchiveError> {
    match compression_of(&file).map_err(read_error)? {
        StreamCompression::None => Ok(file),
        compression => spool(compression.decoder(file).map_err(read_error)?),
    }
}

/// Copies an archive with one image as an uncompressed OCI archive. `archive` is read from its position; an archive of
/// the old `docker save` is converted, and any other archive is copied as it is.
pub fn copy_as_oci_archive(mut archive: File, out: &mut dyn Write) -> Result<(), ArchiveError> {
    let start = first_bytes(&mut archive, 4)?;
    let compression = StreamCompression::detect(start.get_ref());
    let is_file = archive.metadata().is_ok_and(|metadata| metadata.is_file());
    let whole = start.chain(archive.try_clone().map_err(read_error)?);
    let mut plain = compression.decoder(whole).map_err(read_error)?;
    let block = first_bytes(&mut plain, TAR_BLOCK)?;
    if !docker_save::may_begin_with(block.get_ref()) {
        return copy(&mut block.chain(plain), out);
    }
    let mut file =
        if is_file && compression == StreamCompression::None { archive } else { spool(block.chain(plain))? };
    let image = ImageFile::from_file(file.try_clone().map_err(read_error)?)?;
    let Some(top) = image.index().manifests.first().filter(|_| image.is_converted()) else {
        file.rewind().map_err(read_error)?;
        return copy(&mut file, out);
    };
    let platform = top.platform.clone().unwrap_or_default();
    let (descriptor, manifest) = image.manifest(&platform)?;
    let (config, bytes) = (image.read_blob(&manifest.config.digest)?, image.read_blob(&descriptor.digest)?);
    let layout = ArchiveLayout::new(&config, &bytes, &manifest, &platform, None, false)
        .map_err(|source| ArchiveError::Json { name: "index.json".to_owned(), source })?;
    let open = |digest: &_| super::BlobSource::open(&image, digest);
    layout.write(out, &open).map_err(read_error)
}

/// Returns up to `count` bytes from the start of a stream.
fn first_bytes(stream: &mut impl Read, count: usize) -> Result<io::Cursor<Vec<u8>>, ArchiveError> {
    let mut bytes = Vec::with_capacity(count);
    stream.take(count as u64).read_to_end(&mut bytes).map_err(read_error)?;
    Ok(io::Cursor::new(bytes))
}

fn copy(from: &mut impl Read, out: &mut dyn Write) -> Result<(), ArchiveError> {
    io::copy(from, out).map(drop).map_err(read_error)
}

fn spool(content: impl Read) -> Result<File, ArchiveError> {
    let mut file = tempfile::tempfile().map_err(read_error)?;
    let copied = io::copy(&mut content.take(MAX_ARCHIVE + 1), &mut file).map_err(read_error)?;
    if copied > MAX_ARCHIVE {
        let name = "the decompressed archive".to_owned();
        return Err(ArchiveError::TooLarge { name, size: copied, limit: MAX_ARCHIVE });
    }
    Ok(file)
}
