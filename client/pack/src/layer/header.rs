//! Tar headers: POSIX ustar, with PAX records for values that do not fit.

use tar::{EntryType, Header};

use crate::file_kind::FileKind;
use crate::walk::WalkEntry;

pub(crate) const TAR_BLOCK: usize = 512;

/// The two empty blocks that end an archive.
pub(crate) const END_BLOCKS: [u8; 2 * TAR_BLOCK] = [0; 2 * TAR_BLOCK];

/// Maximum size that fits into eleven octal digits.
const OCTAL_SIZE: u64 = (1 << 33) - 1;

/// Header fields that differ from entry to entry.
pub(crate) struct TarHeader<'a> {
    pub(crate) path: Vec<u8>,
    pub(crate) link: &'a [u8],
    pub(crate) kind: EntryType,
    pub(crate) mode: u32,
    pub(crate) size: u64,
    pub(crate) mtime: u64,
}

impl<'a> TarHeader<'a> {
    pub(crate) fn of(entry: &'a WalkEntry, mtime: u64) -> Self {
        let mut path = entry.path.clone();
        let (kind, link, mode): (_, &[u8], _) = match &entry.kind {
            FileKind::Directory => {
                path.push(b'/');
                (EntryType::Directory, b"", entry.mode)
            }
            FileKind::File(()) => (EntryType::Regular, b"", entry.mode),
            // A symbolic link has no mode of its own; file systems report different ones.
            FileKind::Symlink(target) => (EntryType::Symlink, target, 0o777),
            FileKind::HardLink(to) => (EntryType::Link, to, entry.mode),
            FileKind::Special(never) => match *never {},
        };
        Self { path, link, kind, mode, size: entry.size, mtime }
    }
}

/// Returns the blocks of a header, PAX records first.
pub(crate) fn encode(record: &TarHeader<'_>, xattrs: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let mut pax = Vec::new();
    let mut header = Header::new_ustar();
    let fields = header.as_old_mut();
    if !fit(&mut fields.name, &record.path) {
        pax_record(&mut pax, b"path", &record.path);
    }
    if !fit(&mut fields.linkname, record.link) {
        pax_record(&mut pax, b"linkpath", record.link);
    }
    if record.size > OCTAL_SIZE {
        pax_record(&mut pax, b"size", record.size.to_string().as_bytes());
    }
    for (name, value) in xattrs {
        pax_record(&mut pax, &[b"SCHILY.xattr.", name.as_slice()].concat(), value);
    }
    let mut blocks = Vec::with_capacity(3 * TAR_BLOCK);
    if !pax.is_empty() {
        let mut extension = Header::new_ustar();
        fit(&mut extension.as_old_mut().name, b"PaxHeaders/x");
        complete(&mut extension, EntryType::XHeader, 0o644, pax.len() as u64, record.mtime);
        blocks.extend_from_slice(extension.as_bytes());
        let padding = padding(pax.len() as u64);
        blocks.append(&mut pax);
        blocks.resize(blocks.len() + padding, 0);
    }
    complete(&mut header, record.kind, record.mode, record.size, record.mtime);
    blocks.extend_from_slice(header.as_bytes());
    blocks
}

/// Returns the number of zero bytes that follow content of `size` bytes.
pub(crate) const fn padding(size: u64) -> usize {
    (TAR_BLOCK - (size % TAR_BLOCK as u64) as usize) % TAR_BLOCK
}

fn complete(header: &mut Header, kind: EntryType, mode: u32, size: u64, mtime: u64) {
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    // A size of more than eleven digits is written as a base-256 number, for readers without support for PAX sizes.
    header.set_size(size);
    header.set_mtime(mtime);
    header.set_cksum();
}

/// Copies as much of `text` as fits. Returns false if it does not fit completely.
fn fit(field: &mut [u8; 100], text: &[u8]) -> bool {
    let count = text.len().min(field.len());
    field[..count].copy_from_slice(&text[..count]);
    count == text.len()
}

/// Appends a record `length key=value\n`, where the length includes its own digits.
fn pax_record(pax: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + digits(length) != length {
        length = rest + digits(length);
    }
    pax.extend_from_slice(length.to_string().as_bytes());
    pax.push(b' ');
    pax.extend_from_slice(key);
    pax.push(b'=');
    pax.extend_from_slice(value);
    pax.push(b'\n');
}

const fn digits(number: usize) -> usize {
    number.ilog10() as usize + 1
}
