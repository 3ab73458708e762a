//! Merging of layers into one tree, with the result that an overlay of directories would show.
//!
//! A later entry replaces an earlier one with its path; a directory over a directory only changes its mode
//! and time. Whiteouts (`.wh.NAME`) and opaque markers (`.wh..wh..opq`) of a layer hide entries of the layers
//! below it, never entries of the layer itself, whatever their position in the layer (OCI image spec,
//! "Whiteouts"). Links are data: an entry below a link, or below any other entry that is not a directory,
//! replaces that entry by a directory, as in an overlay. A hard link is another name of the file at its
//! target in the tree merged so far.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::{self, Read};
use std::sync::Arc;

use hearth_pack::FileKind;
use hearth_pack::identity::ContentHash;

use super::cache::IndexedLayer;
use super::entries::EntryReader;
use super::extract::{self, FileExtractor, RefusedSparseFile};
use super::reader::LayerReader;
use super::tar_parser::{TarContentLocation, TarEntry, TarFile};
use super::{LayerError, LayerLimits};

const MAX_COMPONENT: usize = 255;
const MAX_PATH: usize = hearth_overlay::beneath::MAX_PATH;
const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const ROOT: u32 = 0;
const MAX_LINKS: usize = 40;

/// The merged entries of an image, and the locations of their content.
pub struct ImageTree {
    limits: LayerLimits,
    nodes: Vec<ImageNode>,
    contents: Vec<FileContent>,
    layers: Vec<Arc<LayerReader>>,
    /// The directory of the last entry, because the next entry is usually in the same one.
    recent: Option<(Vec<Box<[u8]>>, u32)>,
    /// Total size in bytes of the holes of sparse files.
    holes: u64,
    /// Bytes that were duplicated for hard links: targets of symbolic links, and attributes.
    copied: u64,
}

struct ImageNode {
    kind: ImageNodeKind,
    /// Children of a directory, which nothing else has.
    #[expect(clippy::box_collection, reason = "a pointer keeps the nodes of files small")]
    children: Option<Box<BTreeMap<Box<[u8]>, u32>>>,
    mode: u32,
    mtime: i64,
    xattrs: Box<[(Vec<u8>, Vec<u8>)]>,
}

/// Kind of a node of an image; a regular file has the index of the content that all its names share.
type ImageNodeKind = FileKind<u32, Box<[u8]>, Infallible>;

struct FileContent {
    layer: u32,
    content: TarContentLocation,
    size: u64,
    hash: ContentHash,
    /// Number of names; not decremented when one is replaced.
    names: u32,
}

/// Attributes of a node of an image.
pub struct ImageNodeStat<'t> {
    pub kind: &'t ImageNodeKind,
    pub mode: u32,
    pub mtime: i64,
    /// Size in bytes of a regular file.
    pub size: u64,
}

/// Meaning of a path in a layer.
enum LayerPathKind<'p> {
    Entry,
    Whiteout(&'p [u8]),
    Opaque,
    /// aufs metadata, which is ignored.
    Ignored,
}

impl ImageTree {
    /// Node of the root directory.
    pub const ROOT: u32 = ROOT;

    pub(super) fn new(limits: LayerLimits) -> Self {
        let nodes = vec![ImageNode::directory()];
        Self { limits, nodes, contents: Vec::new(), layers: Vec::new(), recent: None, holes: 0, copied: 0 }
    }

    pub(super) fn add_layer(&mut self, layer: IndexedLayer) -> Result<(), LayerError> {
        let IndexedLayer { entries, has_whiteouts: hides, reader } = layer;
        let index = u32::try_from(self.layers.len()).unwrap_or(u32::MAX);
        self.layers.push(Arc::new(reader));
        // Whiteouts are applied first, whatever their position in the layer.
        if hides {
            self.hide_all(&entries)?;
        }
        for entry in EntryReader::new(&entries) {
            let entry = entry?;
            if !hides || matches!(path_kind(&components(&entry.path)?), Ok(LayerPathKind::Entry)) {
                self.add(index, entry)?;
            }
        }
        self.recent = None;
        Ok(())
    }

    fn hide_all(&mut self, entries: &[u8]) -> Result<(), LayerError> {
        for entry in EntryReader::new(entries) {
            let entry = entry?;
            let path = components(&entry.path)?;
            match path_kind(&path).map_err(|()| LayerError::Escapes { entry: lossy(&entry.path) })? {
                LayerPathKind::Entry | LayerPathKind::Ignored => {}
                LayerPathKind::Opaque => self.hide(&path[..path.len() - 1], None),
                LayerPathKind::Whiteout(hidden) => self.hide(&path[..path.len() - 1], Some(hidden)),
            }
        }
        Ok(())
    }

    /// Removes one name of a directory, or all names.
    fn hide(&mut self, directory: &[&[u8]], name: Option<&[u8]>) {
        let Some(node) = self.walk(ROOT, directory.iter().copied()) else { return };
        if let Some(children) = &mut self.nodes[node as usize].children {
            match name {
                Some(name) => drop(children.remove(name)),
                None => children.clear(),
            }
        }
    }

    fn add(&mut self, layer: u32, entry: TarEntry) -> Result<(), LayerError> {
        let TarEntry { path, kind, mode, mtime, xattrs } = entry;
        let xattrs = xattrs.into_boxed_slice();
        let path_text = || lossy(&path);
        let components = components(&path)?;
        let Some((last, parents)) = components.split_last() else {
            // The image's root.
            return match kind {
                FileKind::Directory => {
                    let root = &mut self.nodes[ROOT as usize];
                    (root.mode, root.mtime, root.xattrs) = (mode, mtime, xattrs);
                    Ok(())
                }
                _ => Err(LayerError::Entry { entry: path_text(), what: "the image's root is no directory" }),
            };
        };
        let node = |kind| ImageNode { kind, children: None, mode, mtime, xattrs };
        // Resolved before parent directories are created, because these could replace the target.
        let node = match kind {
            FileKind::HardLink(target) => {
                let target_path = self::components(&target)?;
                let missing = || LayerError::LinkTarget { entry: path_text(), target: lossy(&target) };
                let node = self.walk(ROOT, target_path.iter().copied()).ok_or_else(missing)?;
                let linked = &self.nodes[node as usize];
                let limit = self.limits.index_bytes;
                self.copied += linked.copied_bytes();
                if self.copied > limit {
                    return Err(LayerError::TooManyNames { limit });
                }
                match linked.kind {
                    FileKind::Directory => return Err(missing()),
                    FileKind::File(content) => self.contents[content as usize].names += 1,
                    _ => {}
                }
                let kind = linked.kind.clone();
                ImageNode { kind, children: None, xattrs: linked.xattrs.clone(), ..*linked }
            }
            FileKind::File(TarFile { size, content, hash }) => {
                if let TarContentLocation::Sparse(pieces) = &content {
                    let stored: u64 = pieces.iter().map(|piece| piece.length).sum();
                    self.holes = self.holes.saturating_add(size.saturating_sub(stored));
                }
                let index = u32::try_from(self.contents.len()).unwrap_or(u32::MAX);
                self.contents.push(FileContent { layer, content, size, hash, names: 1 });
                node(FileKind::File(index))
            }
            FileKind::Directory => ImageNode { children: Some(Box::default()), ..node(FileKind::Directory) },
            FileKind::Symlink(target) if target.len() > MAX_PATH || target.contains(&0) => {
                return Err(LayerError::Entry { entry: path_text(), what: "its link target is too long" });
            }
            FileKind::Symlink(target) => node(FileKind::Symlink(target.into())),
            FileKind::Special(special) => node(FileKind::Special(special)),
        };
        let directory = self.directory(parents)?;
        self.insert(directory, last, node)
    }

    /// Returns the directory with this path, and creates it if it is missing.
    fn directory(&mut self, path: &[&[u8]]) -> Result<u32, LayerError> {
        if let Some((recent, node)) = &self.recent
            && recent.iter().map(Box::as_ref).eq(path.iter().copied())
        {
            return Ok(*node);
        }
        let mut directory = ROOT;
        for &name in path {
            directory = self.make_directory(directory, name)?;
        }
        self.recent = Some((path.iter().map(|name| Box::from(*name)).collect(), directory));
        Ok(directory)
    }

    /// Returns the child `name` as a directory, which replaces an entry of another kind.
    fn make_directory(&mut self, parent: u32, name: &[u8]) -> Result<u32, LayerError> {
        if let Some(child) = self.child(parent, name)
            && matches!(self.nodes[child as usize].kind, FileKind::Directory)
        {
            return Ok(child);
        }
        self.insert(parent, name, ImageNode::directory())?;
        // `insert` has created it.
        self.child(parent, name).ok_or(LayerError::Entry { entry: lossy(name), what: "has no directory" })
    }

    fn insert(&mut self, parent: u32, name: &[u8], node: ImageNode) -> Result<(), LayerError> {
        if let (Some(child), FileKind::Directory) = (self.child(parent, name), &node.kind)
            && let existing = &mut self.nodes[child as usize]
            && matches!(existing.kind, FileKind::Directory)
        {
            (existing.mode, existing.mtime, existing.xattrs) = (node.mode, node.mtime, node.xattrs);
            return Ok(());
        }
        if self.nodes.len() > self.limits.entries {
            return Err(LayerError::TooManyEntries { limit: self.limits.entries });
        }
        // The replaced entry may be the recent directory or one of its parents.
        if self.child(parent, name).is_some() {
            self.recent = None;
        }
        let index = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        self.nodes.push(node);
        if let Some(children) = &mut self.nodes[parent as usize].children {
            children.insert(name.into(), index);
        }
        Ok(())
    }

    fn child(&self, parent: u32, name: &[u8]) -> Option<u32> {
        self.nodes[parent as usize].children.as_ref()?.get(name).copied()
    }

    fn walk<'p>(&self, top: u32, mut path: impl Iterator<Item = &'p [u8]>) -> Option<u32> {
        path.try_fold(top, |node, name| self.child(node, name))
    }

    /// Returns the node at a path below `top`; symbolic links are not followed.
    pub(crate) fn lookup(&self, top: u32, path: &[u8]) -> Option<u32> {
        self.walk(top, path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()))
    }

    /// Returns the node at a path; symbolic links are followed as in a container of this image, relative to
    /// its root.
    pub(crate) fn resolve(&self, path: &[u8]) -> Option<u32> {
        let split = |path: &[u8]| -> Vec<Box<[u8]>> {
            path.split(|byte| *byte == b'/').rev().map(Box::from).collect()
        };
        let mut pending = split(path);
        let mut nodes = vec![ROOT];
        let mut links = 0;
        while let Some(name) = pending.pop() {
            match name.as_ref() {
                b"" | b"." => continue,
                b".." => {
                    nodes.truncate(nodes.len().saturating_sub(1).max(1));
                    continue;
                }
                _ => {}
            }
            let child = self.child(*nodes.last()?, &name)?;
            if let FileKind::Symlink(target) = &self.nodes[child as usize].kind {
                links += 1;
                if links > MAX_LINKS {
                    return None;
                }
                if target.starts_with(b"/") {
                    nodes.truncate(1);
                }
                pending.extend(split(target));
            } else {
                nodes.push(child);
            }
        }
        nodes.pop()
    }

    pub fn children(&self, directory: u32) -> impl Iterator<Item = (&[u8], u32)> {
        let children = self.nodes[directory as usize].children.as_deref();
        children.into_iter().flatten().map(|(name, node)| (name.as_ref(), *node))
    }

    pub fn stat(&self, node: u32) -> ImageNodeStat<'_> {
        let ImageNode { kind, mode, mtime, .. } = &self.nodes[node as usize];
        let size = match kind {
            FileKind::File(content) => self.contents[*content as usize].size,
            _ => 0,
        };
        ImageNodeStat { kind, mode: *mode, mtime: *mtime, size }
    }

    /// Returns the number that all names of a file share; `None` for a file with one name.
    pub(crate) fn link_group(&self, node: u32) -> Option<u64> {
        match self.nodes[node as usize].kind {
            FileKind::File(content) if self.contents[content as usize].names > 1 => Some(u64::from(content)),
            _ => None,
        }
    }

    /// Returns the hash of a file's content; the hash of empty content for any other kind.
    pub(crate) fn content_hash(&self, node: u32) -> ContentHash {
        match self.nodes[node as usize].kind {
            FileKind::File(content) => self.contents[content as usize].hash,
            _ => ContentHash::of(b""),
        }
    }

    /// Returns the extended attributes (`security.capability` and `user.*`), sorted by name.
    pub(crate) fn xattrs(&self, node: u32) -> &[(Vec<u8>, Vec<u8>)] {
        &self.nodes[node as usize].xattrs
    }

    /// Fills `buffer` from `offset` on, as far as the file reaches. Blocking. Any other kind is empty.
    pub fn read_at(&self, node: u32, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let FileKind::File(content) = self.nodes[node as usize].kind else { return Ok(0) };
        let FileContent { layer, content, size, .. } = &self.contents[content as usize];
        extract::read_at(&self.layers[*layer as usize], content, *size, buffer, offset)
    }

    /// Opens a file for reading from its start. The last bytes are returned only if all bytes match the
    /// index. Reading a sparse file fails if the holes of the image are so large that copies of them would
    /// fill a disk.
    pub fn open(&self, node: u32) -> Option<Box<dyn Read + Send>> {
        let FileKind::File(content) = self.nodes[node as usize].kind else { return None };
        let FileContent { layer, content, size, hash, .. } = &self.contents[content as usize];
        let limit = self.limits.layer_bytes;
        if self.holes > limit && matches!(content, TarContentLocation::Sparse(_)) {
            return Some(Box::new(RefusedSparseFile { limit }));
        }
        let reader = Arc::clone(&self.layers[*layer as usize]);
        Some(Box::new(FileExtractor::new(reader, content.clone(), *size, *hash)))
    }
}

impl ImageNode {
    /// Returns the number of bytes that another name of the node duplicates.
    fn copied_bytes(&self) -> u64 {
        let target = match &self.kind {
            FileKind::Symlink(target) => target.len(),
            _ => 0,
        };
        let xattrs: usize = self.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        (target + xattrs) as u64
    }

    fn directory() -> Self {
        Self {
            kind: FileKind::Directory,
            children: Some(Box::default()),
            mode: 0o755,
            mtime: 0,
            xattrs: Box::default(),
        }
    }
}

fn lossy(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Splits a path in a layer into components. A leading `/` means the image's root, like no `/`.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, LayerError> {
    let wrong = |what| LayerError::Entry { entry: lossy(path), what };
    if path.len() > MAX_PATH {
        return Err(wrong("its path is too long"));
    }
    if path.is_empty() || path.contains(&0) {
        return Err(wrong("its path is empty or has a NUL byte"));
    }
    let mut components = Vec::new();
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(LayerError::Escapes { entry: lossy(path) }),
            long if long.len() > MAX_COMPONENT => return Err(wrong("a name in its path is too long")),
            component => components.push(component),
        }
    }
    Ok(components)
}

fn path_kind<'p>(path: &[&'p [u8]]) -> Result<LayerPathKind<'p>, ()> {
    let Some(last) = path.last() else { return Ok(LayerPathKind::Entry) };
    if *last == OPAQUE {
        return Ok(LayerPathKind::Opaque);
    }
    if path.iter().any(|component| component.starts_with(WHITEOUT_META)) {
        return Ok(LayerPathKind::Ignored);
    }
    match last.strip_prefix(WHITEOUT) {
        None => Ok(LayerPathKind::Entry),
        Some(b"" | b"." | b"..") => Err(()),
        Some(hidden) => Ok(LayerPathKind::Whiteout(hidden)),
    }
}
