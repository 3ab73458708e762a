//! The file system of an image, entry by entry and byte-exact, and how two of them differ.
//!
//! [`Image`](crate::image::Image) gives access to single files. [`FileSystem`] keeps what a comparison needs: names as
//! bytes, hard-link groups, extended attributes, owners and times; contents as hashes.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::http::{ANY_MANIFEST, Request};
use crate::image::{inflate, parse, text};
use crate::sources::sha256;

/// Entries of a file system by path, without a slash at either end, and the config of its image without times and
/// digests of layers.
#[derive(Clone, Debug, Default)]
pub struct FileSystem(pub BTreeMap<Vec<u8>, Entry>, pub Value);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Type as in tar: `0` file, `2` symbolic link, `3` and `4` devices, `5` directory, `6` fifo.
    pub kind: u8,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub owner: (u64, u64),
    pub size: u64,
    /// Hash of a file's content, target of a link, or numbers of a device.
    pub content: Vec<u8>,
    /// Modification time in seconds since the epoch.
    pub time: i64,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Number that is equal for all names of one file, and for no other file.
    pub inode: u64,
}

impl FileSystem {
    /// Reads the one image of an OCI archive.
    #[track_caller]
    pub fn of_archive(path: &Path) -> Self {
        let mut blobs = BTreeMap::new();
        let mut archive = tar::Archive::new(std::fs::File::open(path).expect("archive"));
        for entry in archive.entries().expect("entries") {
            let mut entry = entry.expect("entry");
            let name = entry.path().expect("path").display().to_string();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).expect("content");
            blobs.insert(name.rsplit('/').next().unwrap_or_default().to_owned(), content);
        }
        let index = parse(&blobs["index.json"]);
        let digest = text(&index["manifests"][0]["digest"]);
        Self::of_image(&digest, |digest| blobs[digest.trim_start_matches("sha256:")].clone())
    }

    /// Reads an image of the room's registry over its HTTP API.
    #[track_caller]
    pub fn of_registry(address: &str, token: &str, repository: &str, digest: &str) -> Self {
        Self::of_image(digest, |wanted| {
            let kind = if wanted == digest { "manifests" } else { "blobs" };
            let request = Request::new("GET", &format!("/v2/{repository}/{kind}/{wanted}")).bearer(token);
            request.header("accept", ANY_MANIFEST).send(address).expect(200).body.clone()
        })
    }

    #[track_caller]
    fn of_image(digest: &str, blob: impl Fn(&str) -> Vec<u8>) -> Self {
        let blob = |digest: &str| {
            let content = blob(digest);
            assert_eq!(sha256(&content), digest, "the content of a blob does not match its digest");
            content
        };
        let manifest = parse(&blob(digest));
        let mut files = Self::default();
        let layers: &[Value] = manifest["layers"].as_array().map_or(&[], Vec::as_slice);
        for layer in layers {
            files.apply(&inflate(&text(&layer["mediaType"]), &blob(&text(&layer["digest"]))));
        }
        files.1 = compared_config(parse(&blob(&text(&manifest["config"]["digest"]))), layers.len());
        files
    }

    /// Applies one layer to the layers below it (OCI image spec, "Applying Changesets").
    #[track_caller]
    pub fn apply(&mut self, layer: &[u8]) {
        let mut inode = self.0.values().map(|entry| entry.inode).max().unwrap_or_default();
        for entry in tar::Archive::new(layer).entries().expect("layer") {
            let mut entry = entry.expect("entry");
            let path = cleaned(&entry.path_bytes());
            if path.is_empty() {
                continue;
            }
            let (parent, name) = match path.iter().rposition(|&byte| byte == b'/') {
                Some(at) => (&path[..at], &path[at + 1..]),
                None => (&path[..0], &path[..]),
            };
            if name == b".wh..wh..opq" {
                self.remove_below(parent);
                continue;
            }
            if let Some(hidden) = name.strip_prefix(b".wh.") {
                let hidden =
                    if parent.is_empty() { hidden.to_vec() } else { [parent, b"/", hidden].concat() };
                self.0.remove(&hidden);
                self.remove_below(&hidden);
                continue;
            }
            let header = entry.header().clone();
            let kind = match header.entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous | tar::EntryType::GNUSparse => b'0',
                other => other.as_byte(),
            };
            if kind == tar::EntryType::Link.as_byte() {
                let target = cleaned(&entry.link_name_bytes().expect("target"));
                let shown = String::from_utf8_lossy(&target).into_owned();
                let linked = self.0.get(&target).unwrap_or_else(|| panic!("hard link to unknown {shown}"));
                self.0.insert(path, linked.clone());
                continue;
            }
            if kind != b'5' {
                self.remove_below(&path);
            }
            inode += 1;
            let (mut xattrs, mut time) = (BTreeMap::new(), header.mtime().expect("mtime") as i64);
            for record in entry.pax_extensions().expect("pax").into_iter().flatten() {
                let record = record.expect("pax record");
                if let Some(name) = record.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                    xattrs.insert(name.to_vec(), record.value_bytes().to_vec());
                } else if record.key_bytes() == b"mtime" {
                    let seconds = record.value().expect("a time").split('.').next().unwrap_or_default();
                    time = seconds.parse().expect("a time");
                }
            }
            let mut content = Vec::new();
            let size = match kind {
                b'0' => {
                    entry.read_to_end(&mut content).expect("content");
                    let size = content.len() as u64;
                    content = sha256(&content).into_bytes();
                    size
                }
                b'2' => {
                    content = entry.link_name_bytes().expect("target").into_owned();
                    0
                }
                b'3' | b'4' => {
                    let number = |field: std::io::Result<Option<u32>>| field.expect("device").unwrap_or(0);
                    let (major, minor) = (number(header.device_major()), number(header.device_minor()));
                    content = format!("{major}:{minor}").into_bytes();
                    0
                }
                _ => 0,
            };
            let entry = Entry {
                kind,
                mode: header.mode().expect("mode") & 0o7777,
                owner: (header.uid().expect("uid"), header.gid().expect("gid")),
                size,
                content,
                time,
                xattrs,
                inode,
            };
            self.0.insert(path, entry);
        }
    }

    fn remove_below(&mut self, path: &[u8]) {
        if path.is_empty() {
            return self.0.clear();
        }
        // `0` is the byte after `/`.
        self.0.extract_if([path, b"/"].concat()..[path, b"0"].concat(), |_, _| true).for_each(drop);
    }

    /// Returns every difference between this file system and `other`, a line for each. `time` maps an entry's time to
    /// the value that is compared.
    pub fn differences(&self, other: &Self, time: impl Fn(i64) -> i64, names: (&str, &str)) -> Vec<String> {
        let (ours, theirs) = (self.shown(&time), other.shown(&time));
        let mut lines = Vec::new();
        for path in ours.keys().chain(theirs.keys().filter(|path| !ours.contains_key(*path))) {
            let side = |shown: &BTreeMap<&[u8], String>| {
                shown.get(path).cloned().unwrap_or_else(|| "nothing".to_owned())
            };
            let (here, there) = (side(&ours), side(&theirs));
            if here != there {
                let path = String::from_utf8_lossy(path);
                lines.push(format!("{path:?}: {} has {here}; {} has {there}", names.0, names.1));
            }
        }
        if self.1 != other.1 {
            lines.push(format!("config: {} has {}; {} has {}", names.0, self.1, names.1, other.1));
        }
        lines
    }

    /// Returns a line for each entry, with everything that is compared.
    fn shown(&self, time: &impl Fn(i64) -> i64) -> BTreeMap<&[u8], String> {
        // The first name identifies a group of hard links, since inode numbers differ between the two sides.
        let mut groups: BTreeMap<u64, Vec<&[u8]>> = BTreeMap::new();
        for (path, entry) in &self.0 {
            groups.entry(entry.inode).or_default().push(path);
        }
        let line = |entry: &Entry| {
            let group = &groups[&entry.inode];
            let group = match group.len() {
                1 => String::new(),
                count => format!(", one of {count} names of {:?}", String::from_utf8_lossy(group[0])),
            };
            format!(
                "{} {:o} {}:{}, {} bytes, {:?}, time {}, xattrs {:?}{group}",
                char::from(entry.kind),
                entry.mode,
                entry.owner.0,
                entry.owner.1,
                entry.size,
                String::from_utf8_lossy(&entry.content),
                time(entry.time),
                entry.xattrs.iter().map(|(name, value)| (lossy(name), lossy(value))).collect::<Vec<_>>(),
            )
        };
        self.0.iter().map(|(path, entry)| (path.as_slice(), line(entry))).collect()
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn cleaned(path: &[u8]) -> Vec<u8> {
    let mut path = path.strip_prefix(b"./").unwrap_or(path);
    while let Some(rest) = path.strip_prefix(b"/") {
        path = rest;
    }
    while let Some(rest) = path.strip_suffix(b"/") {
        path = rest;
    }
    path.to_vec()
}

/// Removes what differs between two builds of the same files: the times of the build, and the digests of layers, which
/// contain times.
fn compared_config(mut config: Value, layers: usize) -> Value {
    let fields = config.as_object_mut().expect("a config");
    fields.remove("created");
    let diff_ids =
        fields.remove("rootfs").map_or(0, |rootfs| rootfs["diff_ids"].as_array().map_or(0, Vec::len));
    assert_eq!(diff_ids, layers, "the config and the manifest have different numbers of layers");
    for entry in fields.get_mut("history").and_then(Value::as_array_mut).into_iter().flatten() {
        entry.as_object_mut().expect("an entry of the history").remove("created");
    }
    fields.insert("layers".to_owned(), layers.into());
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer with a file, a second name of it, a link and a directory.
    fn layer(mode: u32, target: &str, time: u64) -> FileSystem {
        let mut builder = tar::Builder::new(Vec::new());
        let header = |kind, size: usize| {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_mode(mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(time);
            header.set_size(size as u64);
            header
        };
        builder.append_data(&mut header(tar::EntryType::Directory, 0), "d/", &b""[..]).unwrap();
        builder.append_data(&mut header(tar::EntryType::Regular, 3), "d/a", &b"abc"[..]).unwrap();
        builder.append_link(&mut header(tar::EntryType::Link, 0), "d/b", "d/a").unwrap();
        builder.append_link(&mut header(tar::EntryType::Symlink, 0), "l", target).unwrap();
        let mut files = FileSystem::default();
        files.apply(&builder.into_inner().unwrap());
        files
    }

    #[test]
    fn equal_layers_do_not_differ_and_each_kind_of_difference_is_reported() {
        let one = layer(0o644, "d", 5);
        let with = |other: &FileSystem| one.differences(other, |time| time, ("one", "other"));
        assert_eq!(with(&layer(0o644, "d", 5)), Vec::<String>::new());
        assert_eq!(with(&layer(0o600, "d", 5)).len(), 4, "modes");
        assert_eq!(with(&layer(0o644, "e", 5)).len(), 1, "a link's target");
        assert_eq!(with(&layer(0o644, "d", 6)).len(), 4, "times");
        assert_eq!(one.differences(&layer(0o644, "d", 6), |_| 0, ("", "")), Vec::<String>::new());
        let mut apart = one.clone();
        apart.0.get_mut(&b"d/b"[..]).unwrap().inode = 99;
        let differences = with(&apart);
        assert!(differences.len() == 2 && differences[0].contains("one of 2 names"), "{differences:?}");
        let mut fewer = one.clone();
        fewer.0.remove(&b"l"[..]);
        assert!(with(&fewer)[0].contains("other has nothing"), "{:?}", with(&fewer));
        let mut extra = one.clone();
        extra.0.get_mut(&b"d/a"[..]).unwrap().xattrs.insert(b"user.x".to_vec(), b"1".to_vec());
        assert!(with(&extra)[0].contains("user.x"));
    }
}
