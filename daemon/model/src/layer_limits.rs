/// Limits for the layers of an image, wherever the image is used: by a build, a service or a mount.
///
/// Layers are untrusted: a few megabytes of gzip can hold terabytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerLimits {
    /// Maximum size of one decompressed layer in bytes.
    pub layer_bytes: u64,
    /// Maximum ratio of decompressed to compressed bytes. gzip cannot exceed about 1000, and real layers stay far below
    /// this limit.
    pub ratio: u64,
    /// Decompressed bytes up to which any ratio is harmless.
    pub ratio_floor: u64,
    /// Maximum number of entries of one image, including directories that no entry names.
    pub entries: usize,
    /// Maximum index size of one image in bytes: names, link targets, extended attributes, sparse maps.
    pub index_bytes: u64,
    /// Maximum size of all cached indexes in bytes.
    pub kept_bytes: u64,
}

impl Default for LayerLimits {
    fn default() -> Self {
        Self {
            layer_bytes: 32 << 30,
            ratio: 200,
            ratio_floor: 1 << 30,
            entries: 1_000_000,
            index_bytes: 256 << 20,
            kept_bytes: 2 << 30,
        }
    }
}

impl LayerLimits {
    /// Reports whether the decompressed size is out of proportion to the stored size.
    pub const fn is_decompression_bomb(&self, unpacked: u64, stored: u64) -> bool {
        unpacked > self.ratio_floor && unpacked > stored.saturating_mul(self.ratio)
    }
}
