//! Compression of a layer frame by frame, so that several threads share the work and the bytes do not depend on the
//! number of threads.
//!
//! - zstd: each frame is a separate zstd frame. A seek table follows in a skippable frame, which every
//!   decoder ignores (zstd's `contrib/seekable_format`, version 0.1.0). A reader that supports it can start
//!   at any frame.
//! - gzip: one member. Each frame is a run of deflate blocks that does not refer to earlier data and ends at
//!   a byte boundary (as a sync flush does, and as pigz joins its blocks). The checksums are combined at the end.

use std::io;
use std::str::FromStr;

use flate2::{Compress, Crc, FlushCompress, Status};

/// Compression format of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// Zstd at level 3.
    #[default]
    Zstd,
    /// Gzip at level 6, for readers without zstd support.
    Gzip,
    None,
}

const ZSTD_LEVEL: i32 = 3;
const GZIP_LEVEL: u32 = 6;

impl Compression {
    /// Returns the media type of a layer (OCI image spec, "Layer").
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::None => "application/vnd.oci.image.layer.v1.tar",
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Zstd => "zstd",
            Self::Gzip => "gzip",
            Self::None => "none",
        }
    }
}

impl FromStr for Compression {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "zstd" => Ok(Self::Zstd),
            "gzip" => Ok(Self::Gzip),
            "none" => Ok(Self::None),
            other => Err(format!("`{other}` is not a compression; use zstd, gzip or none")),
        }
    }
}

/// Compressor for frames, one for each thread.
pub(super) enum FrameCompressor {
    Zstd(zstd::bulk::Compressor<'static>),
    Gzip(Box<Compress>),
    None,
}

impl FrameCompressor {
    pub(super) fn new(compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::Zstd => Self::Zstd(zstd::bulk::Compressor::new(ZSTD_LEVEL)?),
            Compression::Gzip => {
                Self::Gzip(Box::new(Compress::new(flate2::Compression::new(GZIP_LEVEL), false)))
            }
            Compression::None => Self::None,
        })
    }

    /// Replaces the content of `out` with the compressed frame, and returns the checksum for formats that have one.
    /// Without compression `out` stays empty: the frame itself is the output.
    pub(super) fn compress_frame(&mut self, tar: &[u8], out: &mut Vec<u8>) -> io::Result<Crc> {
        out.clear();
        let mut crc = Crc::new();
        match self {
            Self::Zstd(zstd) => {
                out.reserve(zstd::zstd_safe::compress_bound(tar.len()));
                zstd.compress_to_buffer(tar, out)?;
            }
            Self::Gzip(deflate) => {
                crc.update(tar);
                deflate.reset();
                // Deflate may emit stored blocks for incompressible data: at most 5 bytes for each 64 KiB.
                out.reserve(tar.len() + tar.len() / 1000 + 1024);
                let mut consumed = 0;
                // A flush is complete when it leaves free space in the output.
                while consumed < tar.len() || out.len() == out.capacity() {
                    out.reserve(4096);
                    let before = deflate.total_in();
                    let status = deflate
                        .compress_vec(&tar[consumed..], out, FlushCompress::Sync)
                        .map_err(io::Error::other)?;
                    consumed += usize::try_from(deflate.total_in() - before).unwrap_or(usize::MAX);
                    if status != Status::Ok {
                        break;
                    }
                }
                if consumed < tar.len() {
                    return Err(io::Error::other("deflate stopped inside a frame"));
                }
            }
            Self::None => {}
        }
        Ok(crc)
    }
}

/// Bytes before and after the frames, as the format requires.
pub(super) enum LayerEnvelope {
    Zstd { sizes: Vec<(u32, u32)> },
    Gzip { crc: Crc },
    None,
}

/// Fixed fields of a gzip header: deflate, no flags, no time, no operating system.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
/// Final deflate block without content.
const DEFLATE_END: [u8; 2] = [3, 0];

const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
/// Seek table without checksums: the layer's digest covers the frames, and frames are decoded from verified blobs.
const SEEK_TABLE_DESCRIPTOR: u8 = 0;

impl LayerEnvelope {
    pub(super) fn new(compression: Compression) -> Self {
        match compression {
            Compression::Zstd => Self::Zstd { sizes: Vec::new() },
            Compression::Gzip => Self::Gzip { crc: Crc::new() },
            Compression::None => Self::None,
        }
    }

    /// Returns the bytes before the first frame.
    pub(super) fn start(&self) -> &'static [u8] {
        match self {
            Self::Gzip { .. } => &GZIP_HEADER,
            Self::Zstd { .. } | Self::None => &[],
        }
    }

    /// Records a frame that was written.
    pub(super) fn add_frame(&mut self, compressed: usize, tar: usize, frame_crc: &Crc) -> io::Result<()> {
        match self {
            Self::Zstd { sizes } => {
                let size = |size| u32::try_from(size).map_err(io::Error::other);
                sizes.push((size(compressed)?, size(tar)?));
            }
            Self::Gzip { crc } => crc.combine(frame_crc),
            Self::None => {}
        }
        Ok(())
    }

    /// Returns the bytes after the last frame of a tar of `length` bytes.
    pub(super) fn end(self, length: u64) -> io::Result<Vec<u8>> {
        let mut end = Vec::new();
        match self {
            Self::Zstd { sizes } => {
                let number = |number: usize| u32::try_from(number).map_err(io::Error::other);
                end.extend_from_slice(&SKIPPABLE_MAGIC.to_le_bytes());
                end.extend_from_slice(&number(sizes.len() * 8 + 9)?.to_le_bytes());
                for (compressed, tar) in &sizes {
                    end.extend_from_slice(&compressed.to_le_bytes());
                    end.extend_from_slice(&tar.to_le_bytes());
                }
                end.extend_from_slice(&number(sizes.len())?.to_le_bytes());
                end.push(SEEK_TABLE_DESCRIPTOR);
                end.extend_from_slice(&SEEKABLE_MAGIC.to_le_bytes());
            }
            Self::Gzip { crc } => {
                end.extend_from_slice(&DEFLATE_END);
                end.extend_from_slice(&crc.sum().to_le_bytes());
                // Gzip stores the length modulo 2^32.
                end.extend_from_slice(&(length as u32).to_le_bytes());
            }
            Self::None => {}
        }
        Ok(end)
    }
}
