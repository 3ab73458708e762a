//! Records of a PAX header: `LENGTH KEY=VALUE
//! `.
//!
//! As in Go's archive/tar, the last record of a key applies, and an empty value leaves the header's value in
//! place. Only the extended attributes that COPY and a container can see are kept.

use super::sparse::{MAX_EXTENTS, SparseRange};

/// Names and values of extended attributes.
pub type XattrList = Vec<(Vec<u8>, Vec<u8>)>;

/// The recognized records of a PAX header.
#[derive(Debug, Default)]
pub(super) struct PaxHeader {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub mtime: Option<i64>,
    /// Sorted by name, one for each name.
    pub xattrs: XattrList,
    pub sparse: Option<PaxSparse>,
}

/// The `GNU.sparse.*` records; the version determines which of them apply.
#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub version: Option<(u64, u64)>,
    pub name: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub blocks: Option<u64>,
    /// Offset and length, alternating.
    pub numbers: Vec<u64>,
}

const DAMAGED: &str = "a PAX header is damaged";
const XATTR: &[u8] = b"SCHILY.xattr.";

pub(super) fn parse(data: &[u8]) -> Result<PaxHeader, &'static str> {
    let mut pax = PaxHeader::default();
    for record in PaxRecords(data) {
        let (key, value) = record?;
        match key {
            b"path" | b"linkpath" if value.contains(&0) => return Err("a PAX name has a NUL byte"),
            b"path" => pax.path = Some(value.to_vec()).filter(|path| !path.is_empty()),
            b"linkpath" => pax.link = Some(value.to_vec()).filter(|path| !path.is_empty()),
            b"size" => pax.size = optional(value)?,
            b"mtime" if value.is_empty() => pax.mtime = None,
            b"mtime" => {
                let text = std::str::from_utf8(value).map_err(|_| DAMAGED)?;
                pax.mtime = Some(time(text).ok_or("a PAX time is no number")?);
            }
            key => {
                if let Some(name) = key.strip_prefix(XATTR) {
                    xattr(&mut pax.xattrs, name, value)?;
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    sparse(pax.sparse.get_or_insert_default(), name, value)?;
                }
            }
        }
    }
    Ok(pax)
}

/// Checks a global header. Readers differ in whether it applies to all following entries or to none. Records
/// that would change the boundaries or names of entries are refused; all others are ignored.
pub(super) fn check_global(data: &[u8]) -> Result<(), &'static str> {
    for record in PaxRecords(data) {
        let (key, _) = record?;
        if matches!(key, b"path" | b"linkpath" | b"size") || key.starts_with(b"GNU.sparse.") {
            return Err("a global PAX header sets a name or a size");
        }
    }
    Ok(())
}

/// Iterator over keys and values.
struct PaxRecords<'d>(&'d [u8]);

impl<'d> PaxRecords<'d> {
    fn record(&mut self) -> Option<(&'d [u8], &'d [u8])> {
        let data = self.0;
        let space = data.iter().take(20).position(|byte| *byte == b' ')?;
        let length = usize::try_from(number(&data[..space])?).ok()?;
        let record = data.get(space + 1..length)?.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        self.0 = &data[length..];
        Some((&record[..equals], &record[equals + 1..]))
    }
}

impl<'d> Iterator for PaxRecords<'d> {
    type Item = Result<(&'d [u8], &'d [u8]), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = self.record().ok_or(DAMAGED);
        if record.is_err() {
            self.0 = &[];
        }
        Some(record)
    }
}

/// Parses a number that consists only of digits.
pub(super) fn number(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

fn optional(value: &[u8]) -> Result<Option<u64>, &'static str> {
    if value.is_empty() {
        return Ok(None);
    }
    number(value).map(Some).ok_or("a PAX size is no number")
}

fn xattr(xattrs: &mut XattrList, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
    if name != b"security.capability" && !name.starts_with(b"user.") {
        return Ok(());
    }
    if name.len() > 255 || name.contains(&0) || value.len() > 64 << 10 {
        return Err("an extended attribute is longer than a file system takes");
    }
    match xattrs.binary_search_by(|(known, _)| known.as_slice().cmp(name)) {
        Ok(known) => xattrs[known].1 = value.to_vec(),
        Err(place) => xattrs.insert(place, (name.to_vec(), value.to_vec())),
    }
    Ok(())
}

fn sparse(sparse: &mut PaxSparse, name: &[u8], value: &[u8]) -> Result<(), &'static str> {
    const WRONG: &str = "a sparse map in a PAX header is damaged";
    let digits = || number(value).ok_or(WRONG);
    let version = sparse.version.unwrap_or_default();
    match name {
        b"major" => sparse.version = Some((digits()?, version.1)),
        b"minor" => sparse.version = Some((version.0, digits()?)),
        b"name" if value.contains(&0) => return Err("a PAX name has a NUL byte"),
        b"name" => sparse.name = Some(value.to_vec()).filter(|name| !name.is_empty()),
        b"size" | b"realsize" => sparse.size = Some(digits()?),
        b"numblocks" => sparse.blocks = Some(digits()?),
        // Version 0.1 has the whole map in one record, version 0.0 has a pair of records for each range.
        b"map" if value.is_empty() => sparse.numbers.clear(),
        b"map" => {
            let numbers = value.split(|byte| *byte == b',').map(|digits| number(digits).ok_or(WRONG));
            sparse.numbers = numbers.collect::<Result<_, _>>()?;
        }
        b"offset" if sparse.numbers.len().is_multiple_of(2) => sparse.numbers.push(digits()?),
        b"numbytes" if !sparse.numbers.len().is_multiple_of(2) => sparse.numbers.push(digits()?),
        b"offset" | b"numbytes" => return Err(WRONG),
        _ => {}
    }
    if sparse.numbers.len() > 2 * MAX_EXTENTS {
        return Err("a sparse map in a PAX header is too long");
    }
    Ok(())
}

impl PaxSparse {
    /// Returns the map if it is in the records.
    pub(super) fn parts(&self) -> Option<Vec<SparseRange>> {
        if !self.numbers.len().is_multiple_of(2) {
            return None;
        }
        let parts: Vec<SparseRange> = self.numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        self.blocks.is_none_or(|blocks| blocks == parts.len() as u64).then_some(parts)
    }
}

/// Parses a time such as `-12.345` as nanoseconds; further digits are dropped.
fn time(text: &str) -> Option<i64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: i64 = digits.parse().ok()?;
    let nanos = if whole.starts_with('-') { -nanos } else { nanos };
    Some(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}
