/// How large the layers of an image may be, wherever the image is used: by a build, a service or a mount.
///
/// Layers come from strangers: a few megabytes of gzip can hold terabytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerLimits {
    /// Of one decompressed layer.
    pub layer_bytes: u64,
    /// Decompressed over compressed bytes: gzip cannot do over about 1000 and what real layers do is
    /// far below this.
    pub ratio: u64,
    /// Decompressed bytes up to which any ratio is harmless.
    pub ratio_floor: u64,
    /// Of one image, directories that no entry names included.
    pub entries: usize,
    /// Of the index of one image: names, link targets, extended attributes, sparse maps.
    pub index_bytes: u64,
    /// Of all indexes kept.
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
    /// Whether content of this size is out of proportion to what it is stored as.
    pub const fn is_bomb(&self, unpacked: u64, stored: u64) -> bool {
        unpacked > self.ratio_floor && unpacked > stored.saturating_mul(self.ratio)
    }
}
