use std::fmt;
use std::str::FromStr;

/// Compression of the layers that a build adds to its base, as flags and requests write it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BuildCompression {
    /// Every container runtime and registry client reads it.
    #[default]
    Gzip,
    Zstd,
    /// gzip with a table of contents, for lazy pulling.
    Estargz,
    /// Plain tar.
    None,
}

impl BuildCompression {
    pub const ALL: [Self; 4] = [Self::Gzip, Self::Zstd, Self::Estargz, Self::None];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Estargz => "estargz",
            Self::None => "none",
        }
    }
}

impl fmt::Display for BuildCompression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the compression of a build is gzip, zstd, estargz or none, not `{0}`")]
pub struct BuildCompressionError(String);

impl FromStr for BuildCompression {
    type Err = BuildCompressionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|one| one.as_str() == text);
        known.ok_or_else(|| BuildCompressionError(text.to_owned()))
    }
}

super::serde_as_text!(BuildCompression);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_compression_is_written_as_it_is_parsed() {
        for one in BuildCompression::ALL {
            assert_eq!(one.as_str().parse(), Ok(one));
        }
        for text in ["", "GZIP", "uncompressed", "gzip:9"] {
            assert!(text.parse::<BuildCompression>().is_err(), "{text}");
        }
    }
}
