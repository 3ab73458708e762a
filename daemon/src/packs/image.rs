//! Builds an image from a stored tree: the same bytes that `hearth pack` produces from the original directory.

use std::io;
use std::path::Path;
use std::sync::Arc;

use hearth_oci::DeclaredPlatform;
use hearth_pack::FileKind;
use hearth_pack::identity::{ContentHash, FileStamp, HashedContent};
use hearth_pack::image::ConfigFlags;
use hearth_pack::layer::{ContentReader, LayerOptions, LayerSource};
use hearth_pack::listing::TreeListing;
use hearth_pack::walk::{ContentError, EntryXattrs, WalkEntry};
use hearth_pack::{PackOptions, PackSummary, PackedImage, pack_source};

use super::store::ContentStore;
use super::{PackDestination, PackError};
use crate::context::{PackContentReader, PackTree};
use crate::image::ImageError;

/// Options for building an image from a tree.
#[derive(Clone, Debug, Default)]
pub struct PackImageOptions {
    pub layer: LayerOptions,
    pub config: ConfigFlags,
    pub platform: DeclaredPlatform,
    pub docker: bool,
}

impl PackImageOptions {
    /// Returns a hash over all options that affect the image: equal trees and equal hashes give equal images. Options
    /// that affect only the archive are not included.
    pub(super) fn options_hash(&self) -> ContentHash {
        let Self { layer, config, platform, docker: _ } = self;
        let LayerOptions { compression, mtime, workers: _ } = layer;
        let ConfigFlags { entrypoint, cmd, env, workdir, user, labels, expose, volumes } = config;
        // Another release of the compressor may produce other bytes.
        let way = serde_json::json!([
            env!("CARGO_PKG_VERSION"),
            [compression.name()],
            mtime,
            platform,
            [entrypoint, cmd],
            [env, labels, expose, volumes],
            [workdir, user],
        ]);
        ContentHash::of(way.to_string().as_bytes())
    }
}

/// Builds the image of `listing`. The layer is spooled to an unnamed file in `directory`. This call blocks.
pub(super) fn assemble(
    listing: TreeListing,
    store: &ContentStore,
    destination: &PackDestination,
    directory: &Path,
) -> Result<PackedImage, PackError> {
    let PackImageOptions { layer, config, platform, docker } = destination.image.clone();
    let options = PackOptions {
        layer,
        config,
        platform,
        docker,
        tag: destination.tag.clone(),
        spool_dir: Some(directory.to_owned()),
        ..PackOptions::default()
    };
    let stored = StoredSource::new(PackTree::new(listing, Arc::new(store.reader())));
    pack_source(&stored, PackSummary::default(), &options, &mut |_| {}).map_err(|error| {
        let full = matches!(&error, hearth_pack::PackError::Layer(hearth_pack::layer::LayerError::Write { source })
            if source.kind() == io::ErrorKind::StorageFull);
        if full { ImageError::NoSpace.into() } else { PackError::Assemble(error) }
    })
}

struct StoredSource {
    tree: PackTree,
    entries: Vec<WalkEntry>,
}

impl StoredSource {
    fn new(tree: PackTree) -> Self {
        let entry = |listed: hearth_pack::listing::ListingEntry<'_>| {
            let (kind, size) = match listed.kind {
                FileKind::File(HashedContent { size, .. }) => (FileKind::File(()), size),
                FileKind::Symlink(target) => (FileKind::Symlink(target.to_vec()), 0),
                FileKind::HardLink(to) => (FileKind::HardLink(to.to_vec()), 0),
                // A listing has no other kinds.
                _ => (FileKind::Directory, 0),
            };
            let (path, stamp) = (listed.path.to_vec(), FileStamp::default());
            WalkEntry { path, kind, mode: listed.mode, size, stamp, sparse: false }
        };
        let entries = tree.listing.entries().map(entry).collect();
        Self { tree, entries }
    }
}

impl LayerSource for StoredSource {
    fn entries(&self) -> &[WalkEntry] {
        &self.entries
    }

    fn reader(&self) -> Box<dyn ContentReader + '_> {
        Box::new(StoredReader { source: self, open: None })
    }
}

struct StoredReader<'a> {
    source: &'a StoredSource,
    open: Option<OpenFile<'a>>,
}

struct OpenFile<'a> {
    entry: &'a WalkEntry,
    hash: ContentHash,
    content: PackContentReader,
    at: u64,
}

impl ContentReader for StoredReader<'_> {
    fn open(&mut self, index: usize) -> Result<EntryXattrs, ContentError> {
        let entry = &self.source.entries[index];
        let listed = self.source.tree.listing.entry(index);
        self.open = None;
        if let Some((content, size)) = listed.content() {
            let opened = self.source.tree.open(&content, size);
            let opened = opened.map_err(|error| ContentError::read(entry, error))?;
            self.open = Some(OpenFile { entry, hash: content, content: opened, at: 0 });
        }
        Ok(listed.xattrs)
    }

    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), ContentError> {
        let Some(OpenFile { entry, hash, content, at }) = &mut self.open else { return Ok(()) };
        let unreadable = |error| ContentError::read(entry, error);
        if offset != *at {
            *content = self.source.tree.open_at(hash, entry.size, offset).map_err(unreadable)?;
            *at = offset;
        }
        io::Read::read_exact(content, buffer).map_err(unreadable)?;
        *at += buffer.len() as u64;
        Ok(())
    }

    fn verify(&mut self) -> Result<(), ContentError> {
        // Every piece was verified when it was read.
        Ok(())
    }
}
