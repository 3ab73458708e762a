//! Checks layers against their image's config: the digest of each uncompressed tar must be the declared DiffID.

use std::io::{self, Read};

use hearth_oci::Descriptor;
use hearth_value::Digest;
use sha2::{Digest as _, Sha256};

use super::{BaseError, BlobCache};
use crate::archive::BlobSource;

/// Maximum uncompressed size of a layer, in bytes.
const MAX_TAR: u64 = 1 << 40;

/// Checks every layer. DiffIDs that were computed before are taken from `known`.
pub(super) fn check(
    layers: &[Descriptor],
    diff_ids: &[Digest],
    blobs: &dyn BlobSource,
    known: Option<&BlobCache>,
) -> Result<(), BaseError> {
    for (layer, declared) in layers.iter().zip(diff_ids) {
        let remembered = known.and_then(|cache| cache.diff_id(&layer.digest));
        let actual = match remembered {
            Some(actual) => actual,
            None => {
                let actual = diff_id(layer, blobs)
                    .map_err(|source| BaseError::Layer { digest: layer.digest, source })?;
                if let Some(cache) = known {
                    cache.set_diff_id(&layer.digest, &actual);
                }
                actual
            }
        };
        if actual != *declared {
            return Err(BaseError::DiffId { digest: layer.digest, declared: *declared, actual });
        }
    }
    Ok(())
}

fn diff_id(layer: &Descriptor, blobs: &dyn BlobSource) -> io::Result<Digest> {
    // The blob itself was verified before; this reads it a second time.
    let blob = io::BufReader::with_capacity(256 * 1024, blobs.open(&layer.digest)?);
    let tar: Box<dyn Read + '_> = match layer.media_type.rsplit_once('+').map(|(_, kind)| kind) {
        Some("gzip") => Box::new(flate2::bufread::MultiGzDecoder::new(blob)),
        Some("zstd") => Box::new(zstd::stream::read::Decoder::with_buffer(blob)?),
        _ => Box::new(blob),
    };
    let mut tar = tar.take(MAX_TAR + 1);
    let mut sum = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut size = 0;
    loop {
        match tar.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                sum.update(&buffer[..count]);
                size += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    if size > MAX_TAR {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("its uncompressed size is more than {MAX_TAR} bytes"),
        ));
    }
    Ok(Digest::from_sha256(sum.finalize().into()))
}
