//! apk: `lib/apk/db/installed`, records of lines with one letter each.

use crate::lines::{Record, records};
use crate::package::{Package, PackageList};
use crate::purl::Distribution;

pub(crate) fn read(bytes: &[u8], path: &str, distribution: &Distribution, list: &mut PackageList) {
    let text = String::from_utf8_lossy(bytes);
    for record in records(&text) {
        let (name, version) = (letter(record, 'P'), letter(record, 'V'));
        list.add(Package {
            name: name.to_owned(),
            version: version.to_owned(),
            purl: distribution.purl("apk", "alpine", name, version, letter(record, 'A')),
            found_in: path.to_owned(),
        });
    }
}

/// Returns the first value of a letter, whose case matters.
fn letter<'t>(record: Record<'t>, letter: char) -> &'t str {
    let value = |line: &'t str| line.strip_prefix(letter)?.strip_prefix(':');
    record.0.lines().find_map(value).unwrap_or_default().trim()
}

/// Returns the paths of the files that packages own.
pub(crate) fn owned(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut directory: &[u8] = b"";
    let mut paths = Vec::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        match line {
            [b'F', b':', rest @ ..] => directory = rest,
            [b'R', b':', name @ ..] => paths.push([directory, b"/", name].concat()),
            _ => {}
        }
    }
    paths
}
