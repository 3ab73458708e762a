use std::io::{self, Write};
use std::str::FromStr;

use flate2::GzBuilder;
use flate2::write::GzEncoder;
use zstd::stream::write::Encoder as ZstdEncoder;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// Level 3.
    #[default]
    Zstd,
    /// Level 6, for readers that know no zstd.
    Gzip,
    None,
}

impl Compression {
    /// Media type of a layer (OCI image spec, "Layer").
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::None => "application/vnd.oci.image.layer.v1.tar",
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
            other => Err(format!("`{other}` is no compression; use zstd, gzip or none")),
        }
    }
}

pub(super) enum Compressor<W: Write> {
    Zstd(ZstdEncoder<'static, W>),
    Gzip(GzEncoder<W>),
    None(W),
}

/// Each worker holds some 10 MiB; more of them than this outrun the reading.
const MOST_WORKERS: u32 = 16;

impl<W: Write> Compressor<W> {
    pub(super) fn new(compression: Compression, workers: Option<u32>, out: W) -> io::Result<Self> {
        Ok(match compression {
            Compression::Zstd => {
                let cores = || std::thread::available_parallelism().map_or(1, |n| n.get() as u32);
                // Never 0: the output is the same for any number of workers, but 0 means another
                // algorithm, which cuts the input elsewhere.
                let workers = workers.unwrap_or_else(cores).clamp(1, MOST_WORKERS);
                let mut encoder = ZstdEncoder::new(out, 3)?;
                encoder.multithread(workers)?;
                Self::Zstd(encoder)
            }
            Compression::Gzip => {
                Self::Gzip(GzBuilder::new().mtime(0).write(out, flate2::Compression::new(6)))
            }
            Compression::None => Self::None(out),
        })
    }

    pub(super) fn finish(self) -> io::Result<W> {
        let mut out = match self {
            Self::Zstd(encoder) => encoder.finish()?,
            Self::Gzip(encoder) => encoder.finish()?,
            Self::None(out) => out,
        };
        out.flush()?;
        Ok(out)
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Zstd(encoder) => encoder.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::None(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Zstd(encoder) => encoder.flush(),
            Self::Gzip(encoder) => encoder.flush(),
            Self::None(out) => out.flush(),
        }
    }
}
