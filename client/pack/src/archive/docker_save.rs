//! Archives of the old `docker save`: `manifest.json` names a config and uncompressed layers, and there is no
//! `index.json`. Format: Docker image specification v1.2, and v1.3 for the names of members.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};

use hearth_oci::{Descriptor, ImageConfig, Manifest, OCI_CONFIG_TYPE, OCI_MANIFEST_TYPE, OciIndex, sha256};
use hearth_value::Digest;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tar::EntryType;

use super::decompress::StreamCompression;
use super::image_file::FileRange;
use super::raw::RawTar;
use super::{ArchiveError, JSON_LIMIT, read_error};
use crate::walk::display_path;

const MANIFEST: &[u8] = b"manifest.json";
/// Maximum number of members; an image has a few for each of its layers.
const MAX_MEMBERS: usize = 100_000;
/// Maximum number of links from the name of a layer to its content.
const MAX_LINKS: usize = 16;

/// The image of an archive, as an OCI index and its blobs.
pub(super) struct ConvertedImage {
    pub(super) index: OciIndex,
    /// Position and size in the archive of config and layers.
    pub(super) blobs: HashMap<Digest, (u64, u64)>,
    /// The manifest that was made of `manifest.json`.
    pub(super) manifest: (Digest, Vec<u8>),
}

/// One image of `manifest.json`.
#[derive(Debug, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "PascalCase")]
struct SavedImage {
    config: String,
    #[serde(default)]
    layers: Vec<String>,
}

/// Content of a member, or the target of a link.
enum SavedMember {
    File { position: u64, size: u64 },
    Link(Vec<u8>),
}

/// Reports whether an archive that begins with this block may be one of `docker save`. The writers of OCI layouts begin
/// with a member of the layout.
pub(super) fn may_begin_with(block: &[u8]) -> bool {
    let name = block.strip_prefix(b"./").unwrap_or(block);
    ![b"blobs".as_slice(), b"oci-layout", b"index.json"].iter().any(|member| name.starts_with(member))
}

/// Converts the image of an archive whose `manifest.json` lists one image, under any number of names.
pub(super) fn convert(file: &File) -> Result<ConvertedImage, ArchiveError> {
    let members = members(file)?;
    let content = |name: &str| find(&members, name.as_bytes());
    let saved: Vec<SavedImage> = {
        let bytes = read_small(file, content("manifest.json")?, "manifest.json")?;
        serde_json::from_slice(&bytes)
            .map_err(|source| ArchiveError::Json { name: "manifest.json".to_owned(), source })?
    };
    let images: HashSet<SavedImage> = saved.into_iter().collect();
    let count = images.len();
    let (Some(image), 1) = (images.into_iter().next(), count) else {
        return Err(ArchiveError::ImageCount { count });
    };
    let mut blobs = HashMap::new();
    let place = content(&image.config)?;
    let config = read_small(file, place, &image.config)?;
    let config_digest = sha256(&config);
    check_config_name(&image.config, config_digest)?;
    blobs.insert(config_digest, place);
    let mut layers = Vec::new();
    for name in &image.layers {
        let place = content(name)?;
        let (digest, media_type) = hash_layer(file, place)?;
        blobs.insert(digest, place);
        layers.push(Descriptor::new(media_type, digest, place.1));
    }
    let platform = ImageConfig::parse_platform(&config)
        .map_err(|source| ArchiveError::Json { name: image.config.clone(), source })?;
    let manifest = Manifest::new(Descriptor::new(OCI_CONFIG_TYPE, config_digest, place.1), layers);
    let manifest = serde_json::to_vec(&manifest)
        .map_err(|source| ArchiveError::Json { name: "manifest.json".to_owned(), source })?;
    let mut top = Descriptor::new(OCI_MANIFEST_TYPE, sha256(&manifest), manifest.len() as u64);
    top.platform = Some(platform);
    let manifest = (top.digest, manifest);
    Ok(ConvertedImage { index: OciIndex::new(vec![top]), blobs, manifest })
}

/// Lists the files and links of an archive.
fn members(mut file: &File) -> Result<HashMap<Vec<u8>, SavedMember>, ArchiveError> {
    file.seek(SeekFrom::Start(0)).map_err(read_error)?;
    let mut tar = RawTar::new(BufReader::with_capacity(256 * 1024, file));
    let mut members = HashMap::new();
    while let Some(member) = tar.next_member()? {
        let content = match member.kind {
            EntryType::Regular | EntryType::Continuous => {
                SavedMember::File { position: tar.position(), size: member.size }
            }
            EntryType::Symlink => {
                let directory =
                    member.name.iter().rposition(|&byte| byte == b'/').map_or(0, |slash| slash + 1);
                SavedMember::Link([&member.name[..directory], &member.link].concat())
            }
            EntryType::Link => SavedMember::Link(member.link),
            _ => continue,
        };
        if members.len() >= MAX_MEMBERS {
            return Err(ArchiveError::NotAnArchive { what: "it has more than 100,000 members" });
        }
        members.insert(clean(&member.name), content);
    }
    Ok(members)
}

/// Removes `.` and resolves `..` in the name of a member. A name that leads out of the archive matches no member.
fn clean(name: &[u8]) -> Vec<u8> {
    let mut parts = Vec::new();
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if parts.pop().is_some() => {}
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// Returns position and size of the file to which a name leads.
fn find(members: &HashMap<Vec<u8>, SavedMember>, name: &[u8]) -> Result<(u64, u64), ArchiveError> {
    let mut at = clean(name);
    for _ in 0..MAX_LINKS {
        match members.get(&at) {
            Some(SavedMember::File { position, size }) => return Ok((*position, *size)),
            Some(SavedMember::Link(target)) => at = clean(target),
            None => break,
        }
    }
    let reason = if name == MANIFEST { "is not a file" } else { "is missing, and manifest.json names it" };
    Err(ArchiveError::Member { name: display_path(name), reason })
}

fn read_small(file: &File, (position, size): (u64, u64), name: &str) -> Result<Vec<u8>, ArchiveError> {
    if size > JSON_LIMIT {
        return Err(ArchiveError::TooLarge { name: name.to_owned(), size, limit: JSON_LIMIT });
    }
    let mut bytes = Vec::with_capacity(size as usize);
    FileRange { file, position, left: size }.read_to_end(&mut bytes).map_err(read_error)?;
    Ok(bytes)
}

/// Checks a config against the digest that its name usually is.
fn check_config_name(name: &str, actual: Digest) -> Result<(), ArchiveError> {
    let stem = name.rsplit('/').next().unwrap_or(name);
    let stem = stem.strip_suffix(".json").unwrap_or(stem);
    match format!("sha256:{stem}").parse::<Digest>() {
        Ok(declared) if declared != actual => Err(ArchiveError::Mismatch { declared, actual }),
        _ => Ok(()),
    }
}

/// Returns digest and media type of a layer.
fn hash_layer(file: &File, (position, size): (u64, u64)) -> Result<(Digest, &'static str), ArchiveError> {
    let mut content = FileRange { file, position, left: size };
    let (mut sum, mut media_type) = (Sha256::new(), None);
    let mut buffer = vec![0; 256 * 1024];
    loop {
        let count = content.read(&mut buffer).map_err(read_error)?;
        if count == 0 {
            break;
        }
        media_type.get_or_insert_with(|| match StreamCompression::detect(&buffer[..count]) {
            StreamCompression::None => "application/vnd.oci.image.layer.v1.tar",
            StreamCompression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            StreamCompression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        });
        sum.update(&buffer[..count]);
    }
    let media_type = media_type.unwrap_or("application/vnd.oci.image.layer.v1.tar");
    Ok((Digest::from_sha256(sum.finalize().into()), media_type))
}
