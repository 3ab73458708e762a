//! Reads an OCI image layout (a directory or an archive) without any code of Hearth, so that the test sees an image as
//! another program would. Checks digests and sizes while reading.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::sources::sha256;

/// One image of a layout.
#[derive(Debug)]
pub struct Image {
    pub index: Value,
    pub digest: String,
    pub manifest: Value,
    pub config: Value,
    /// Files as a container would see them: layers merged, whiteouts applied. Paths have no leading slash.
    pub files: BTreeMap<String, Node>,
    /// All blobs by digest.
    pub blobs: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct Node {
    pub kind: Kind,
    /// Permission bits, with setuid and the like.
    pub mode: u32,
    pub owner: (u64, u64),
    /// Modification time in seconds since the epoch.
    pub time: u64,
}

#[derive(Clone, PartialEq, Eq)]
pub enum Kind {
    File(Vec<u8>),
    Directory,
    Link(String),
    Other(u8),
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            Kind::File(content) => {
                write!(
                    f,
                    "file {:o} {:?}",
                    self.mode,
                    String::from_utf8_lossy(&content[..content.len().min(80)])
                )
            }
            Kind::Directory => write!(f, "directory {:o}", self.mode),
            Kind::Link(target) => write!(f, "link to {target:?}"),
            Kind::Other(kind) => write!(f, "entry of type {:?}", char::from(*kind)),
        }
    }
}

impl Image {
    /// Reads a layout directory.
    #[track_caller]
    pub fn from_layout(directory: &Path) -> Self {
        let mut blobs = BTreeMap::new();
        for entry in fs::read_dir(directory.join("blobs/sha256")).expect("blobs") {
            let entry = entry.expect("entry");
            let name = entry.file_name().into_string().expect("a digest");
            blobs.insert(format!("sha256:{name}"), fs::read(entry.path()).expect("blob"));
        }
        let index = fs::read(directory.join("index.json")).expect("index.json");
        Self::read(&index, blobs)
    }

    /// Reads a layout in a tar archive.
    #[track_caller]
    pub fn from_archive(path: &Path) -> Self {
        let mut archive = tar::Archive::new(fs::File::open(path).expect("archive"));
        let (mut blobs, mut index, mut layout) = (BTreeMap::new(), None, None);
        for entry in archive.entries().expect("entries") {
            let mut entry = entry.expect("entry");
            let name = entry.path().expect("path").display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content");
            match name.trim_start_matches("./") {
                "index.json" => index = Some(content),
                "oci-layout" => layout = Some(content),
                name => {
                    if let Some(name) = name.strip_prefix("blobs/sha256/").filter(|name| !name.is_empty()) {
                        blobs.insert(format!("sha256:{name}"), content);
                    }
                }
            }
        }
        assert_eq!(parse(&layout.expect("an oci-layout file"))["imageLayoutVersion"], "1.0.0");
        Self::read(&index.expect("an index.json"), blobs)
    }

    #[track_caller]
    fn read(index: &[u8], blobs: BTreeMap<String, Vec<u8>>) -> Self {
        for (digest, content) in &blobs {
            assert_eq!(&sha256(content), digest, "the content of a blob does not match its digest");
        }
        let index = parse(index);
        let manifests = index["manifests"].as_array().expect("manifests");
        assert_eq!(manifests.len(), 1, "one manifest in {index}");
        let mut digest = text(&manifests[0]["digest"]);
        let mut manifest = parse(blob(&blobs, &manifests[0]));
        // A nested index, as BuildKit writes with attestations: the first image is used.
        if let Some(inner) = manifest["manifests"].as_array() {
            let first = inner[0].clone();
            digest = text(&first["digest"]);
            manifest = parse(blob(&blobs, &first));
        }
        let config = parse(blob(&blobs, &manifest["config"]));
        let layers = manifest["layers"].as_array().cloned().unwrap_or_default();
        let diff_ids = config["rootfs"]["diff_ids"].as_array().cloned().unwrap_or_default();
        assert_eq!(layers.len(), diff_ids.len(), "as many diff ids as layers in {config}");
        let mut files = BTreeMap::new();
        for (layer, diff_id) in layers.iter().zip(&diff_ids) {
            let tar = inflate(&text(&layer["mediaType"]), blob(&blobs, layer));
            assert_eq!(sha256(&tar), text(diff_id), "diff id of {layer}");
            apply(&tar, &mut files);
        }
        Self { index, digest, manifest, config, files, blobs }
    }

    /// Returns the content of a file.
    #[track_caller]
    pub fn file(&self, path: &str) -> String {
        match self.files.get(path) {
            Some(Node { kind: Kind::File(content), .. }) => String::from_utf8_lossy(content).into_owned(),
            other => panic!("{path}: expected a file, found {other:?}; there are {:?}", self.names("")),
        }
    }

    #[track_caller]
    pub fn mode(&self, path: &str) -> u32 {
        self.files.get(path).unwrap_or_else(|| panic!("no {path} in {:?}", self.names(""))).mode
    }

    #[track_caller]
    pub fn link(&self, path: &str) -> &str {
        match self.files.get(path) {
            Some(Node { kind: Kind::Link(target), .. }) => target,
            other => panic!("{path}: expected a link, found {other:?}"),
        }
    }

    pub fn has(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    /// Returns the paths below a prefix, at most 200 of them.
    pub fn names(&self, prefix: &str) -> Vec<&str> {
        self.files.keys().map(String::as_str).filter(|name| name.starts_with(prefix)).take(200).collect()
    }
}

#[track_caller]
pub(crate) fn parse(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(json)))
}

#[track_caller]
pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a string: {value}")).to_owned()
}

#[track_caller]
fn blob<'a>(blobs: &'a BTreeMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
    let content =
        blobs.get(&text(&descriptor["digest"])).unwrap_or_else(|| panic!("no blob for {descriptor}"));
    assert_eq!(Some(content.len() as u64), descriptor["size"].as_u64(), "size of {descriptor}");
    content
}

pub(crate) fn inflate(media_type: &str, bytes: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    if media_type.ends_with("gzip") {
        flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut plain).expect("gzip");
    } else if media_type.ends_with("zstd") {
        plain = zstd::decode_all(bytes).expect("zstd");
    } else {
        plain = bytes.to_vec();
    }
    plain
}

/// Applies one layer to the layers below it (OCI image spec, "Applying Changesets").
fn apply(tar: &[u8], files: &mut BTreeMap<String, Node>) {
    for entry in tar::Archive::new(tar).entries().expect("layer") {
        let mut entry = entry.expect("entry");
        let path = String::from_utf8_lossy(&entry.path_bytes())
            .trim_start_matches("./")
            .trim_matches('/')
            .to_owned();
        if path.is_empty() {
            continue;
        }
        let (parent, name) =
            path.rsplit_once('/').map_or(("", path.as_str()), |(parent, name)| (parent, name));
        let beside =
            |name: &str| if parent.is_empty() { name.to_owned() } else { format!("{parent}/{name}") };
        if name == ".wh..wh..opq" {
            remove_below(files, parent);
            continue;
        }
        if let Some(hidden) = name.strip_prefix(".wh.") {
            let hidden = beside(hidden);
            files.remove(&hidden);
            remove_below(files, &hidden);
            continue;
        }
        let header = entry.header().clone();
        let kind = match header.entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => {
                let mut content = Vec::new();
                entry.read_to_end(&mut content).expect("content");
                Kind::File(content)
            }
            tar::EntryType::Directory => Kind::Directory,
            tar::EntryType::Symlink => {
                Kind::Link(String::from_utf8_lossy(&entry.link_name_bytes().expect("target")).into_owned())
            }
            tar::EntryType::Link => {
                let target = entry.link_name_bytes().expect("target");
                let target =
                    String::from_utf8_lossy(&target).trim_start_matches("./").trim_matches('/').to_owned();
                let node =
                    files.get(&target).unwrap_or_else(|| panic!("hard link {path} to unknown {target}"));
                files.insert(path, node.clone());
                continue;
            }
            other => Kind::Other(other.as_byte()),
        };
        if kind != Kind::Directory {
            remove_below(files, &path);
        }
        let node = Node {
            kind,
            mode: header.mode().expect("mode") & 0o7777,
            owner: (header.uid().expect("uid"), header.gid().expect("gid")),
            time: header.mtime().expect("mtime"),
        };
        files.insert(path, node);
    }
}

fn remove_below(files: &mut BTreeMap<String, Node>, path: &str) {
    if path.is_empty() {
        return files.clear();
    }
    // `0` is the byte after `/`.
    files.extract_if(format!("{path}/")..format!("{path}0"), |_, _| true).for_each(drop);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(entries: &[(&str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, path, content.as_bytes()).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn a_later_layer_hides_removes_and_replaces() {
        let mut files = BTreeMap::new();
        apply(&layer(&[("a/x", "1"), ("a/y", "2"), ("b/x", "3"), ("c/x", "4"), ("d", "5")]), &mut files);
        apply(
            &layer(&[("a/.wh.x", ""), (".wh.b", ""), ("c/.wh..wh..opq", ""), ("c/y", "6"), ("d", "7")]),
            &mut files,
        );
        assert_eq!(files.keys().collect::<Vec<_>>(), ["a/y", "c/y", "d"]);
        assert!(files["d"].kind == Kind::File(b"7".to_vec()));
    }
}
