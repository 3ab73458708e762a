//! Entry points to the parsers of this module for tests, over bytes in memory. No parser may
//! panic, hang, or use a disproportionate amount of memory.

use std::io;
use std::sync::Arc;

use super::access_points::BlobFormat;
use super::blob::SharedBlob;
use super::encoding::DamagedIndex;
use super::entries::EntryReader;
use super::index::LayerIndex;
use super::pass::index_layer;
use super::reader::{DecodedCache, LayerReader};
use super::tar_parser::TarParser;
use super::{LayerError, LayerLimits};

/// Parses a tar and returns the number of its entries.
pub fn tar(bytes: &[u8]) -> Result<usize, LayerError> {
    let mut parser = TarParser::new();
    let mut count = 0;
    parser.feed(bytes, &mut |_| {
        count += 1;
        Ok(())
    })?;
    parser.finish()?;
    Ok(count)
}

/// Decodes the body of an index, without its checksum, and all of its entries. Returns their number.
pub fn index(body: &[u8]) -> Result<usize, DamagedIndex> {
    let index = LayerIndex::decode_body(body)?;
    EntryReader::new(&index.entries).try_fold(0, |count, entry| entry.map(|_| count + 1))
}

/// Indexes a blob of any compression and reads the last bytes of its tar. Returns the length of the tar.
pub fn layer(blob: &[u8]) -> Result<u64, LayerError> {
    let limits = LayerLimits { layer_bytes: 16 << 20, index_bytes: 1 << 20, ..LayerLimits::default() };
    let format = BlobFormat::of(blob);
    let blob: SharedBlob = Arc::new(blob.to_vec());
    let passed = index_layer(&blob, format, &limits, &mut io::sink())?;
    let length = passed.length;
    // Without decoder states, as if all of them were damaged.
    let reader =
        LayerReader::new(blob, None, (format, passed.points, length), Arc::<DecodedCache>::default());
    let mut last = [0; 64];
    reader.read_at(&mut last, length.saturating_sub(64))?;
    Ok(length)
}
