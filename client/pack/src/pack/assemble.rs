//! Assembles an image around its layer: config, manifest, and the layout of the archive.

use hearth_oci::{Descriptor, ImageConfig, Manifest, OCI_CONFIG_TYPE, sha256};
use hearth_value::{Digest, Reference};

use super::{PackError, PackOptions};
use crate::archive::ArchiveLayout;
use crate::layer::{Compression, PackedLayer};

const CREATED_BY: &str = "hearth pack";

/// Parts of the image that are known before its layer is made.
pub(super) struct ImageAssembly<'a> {
    options: &'a PackOptions,
    config: ImageConfig,
    below: Vec<Descriptor>,
    created: String,
}

/// An image without the content of its layers.
#[derive(Debug)]
pub(super) struct AssembledImage {
    pub(super) config: ImageConfig,
    pub(super) config_bytes: Vec<u8>,
    pub(super) config_digest: Digest,
    pub(super) manifest: Vec<u8>,
    pub(super) parsed: Manifest,
    pub(super) layout: ArchiveLayout,
}

impl<'a> ImageAssembly<'a> {
    pub(super) fn new(options: &'a PackOptions) -> Result<Self, PackError> {
        let (mut config, below) = match &options.base {
            Some(base) => (base.config.clone(), base.layers.clone()),
            None => (ImageConfig::new(options.platform.clone()), Vec::new()),
        };
        options.config.apply(&mut config.config)?;
        let seconds = options.layer.mtime;
        let created = rfc3339(seconds).ok_or(PackError::Time { seconds })?;
        Ok(Self { options, config, below, created })
    }

    pub(super) fn assemble(&self, layer: &PackedLayer) -> Result<AssembledImage, PackError> {
        let mut config = self.config.clone();
        config.add_layer(layer.diff_id, &self.created, CREATED_BY);
        let config_bytes = serde_json::to_vec(&config)?;
        let config_digest = sha256(&config_bytes);
        let mut layers = self.below.clone();
        layers.push(Descriptor::new(layer.compression.media_type(), layer.digest, layer.size));
        let config_descriptor = Descriptor::new(OCI_CONFIG_TYPE, config_digest, config_bytes.len() as u64);
        let parsed = Manifest::new(config_descriptor, layers);
        let manifest = serde_json::to_vec(&parsed)?;
        let tag = self.options.tag.as_ref().map(Reference::to_string);
        let layout = ArchiveLayout::new(
            &config_bytes,
            &manifest,
            &parsed,
            &config.platform,
            tag.as_deref(),
            self.options.docker,
        )?;
        Ok(AssembledImage { config, config_bytes, config_digest, manifest, parsed, layout })
    }

    /// Predicts the offset of the layer in the archive. The bytes before it depend only on the number of digits of
    /// the layer's size, and rarely on that.
    pub(super) fn layer_position(&self, content_bytes: u64) -> Result<Option<u64>, PackError> {
        let none = Digest::from_sha256([0; 32]);
        let compression = self.options.layer.compression;
        let size = match compression {
            Compression::Zstd | Compression::Gzip => content_bytes / 3,
            Compression::None => content_bytes,
        };
        let guess =
            PackedLayer { digest: none, diff_id: none, size, uncompressed_size: content_bytes, compression };
        Ok(self.assemble(&guess)?.layout.blob_position(&none))
    }
}

fn rfc3339(seconds: u64) -> Option<String> {
    let time = jiff::Timestamp::from_second(i64::try_from(seconds).ok()?).ok()?;
    Some(time.to_string())
}
