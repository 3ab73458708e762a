//! dpkg: `var/lib/dpkg/status`, or one file for each package in `status.d`, as in images without a package manager.

use crate::lines::records;
use crate::package::{Package, PackageList};
use crate::purl::Distribution;

pub(crate) fn read(bytes: &[u8], path: &str, distribution: &Distribution, list: &mut PackageList) {
    let text = String::from_utf8_lossy(bytes);
    for record in records(&text) {
        // A file of `status.d` has no state: what it names is installed.
        let state = record.field("Status");
        if !state.is_empty() && !state.ends_with(" installed") {
            continue;
        }
        let (name, version) = (record.field("Package"), record.field("Version"));
        list.add(Package {
            name: name.to_owned(),
            version: version.to_owned(),
            purl: distribution.purl("deb", "debian", name, version, record.field("Architecture")),
            found_in: path.to_owned(),
        });
    }
}

/// Returns the paths of a `var/lib/dpkg/info/NAME.list`, without the leading slash.
pub(crate) fn owned(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| *byte == b'\n').filter_map(|line| line.strip_prefix(b"/"))
}
