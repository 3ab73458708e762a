//! Packages of languages: Python, npm, and the lock files of Cargo.

use serde_json::Value;

use crate::lines::Record;
use crate::package::{Package, PackageList};
use crate::purl::purl;

/// Reads `METADATA` of a `dist-info` directory, or `PKG-INFO` of an `egg-info` one.
pub(crate) fn read_python(bytes: &[u8], path: &str, list: &mut PackageList) {
    let text = String::from_utf8_lossy(bytes).replace("\r\n", "\n");
    // The description follows after an empty line.
    let head = Record(text.split("\n\n").next().unwrap_or_default());
    let (name, version) = (head.field("Name"), head.field("Version"));
    let normalized = name.to_lowercase().replace(['_', '.'], "-");
    list.add(Package {
        name: name.to_owned(),
        version: version.to_owned(),
        purl: purl("pypi", &normalized, version),
        found_in: path.to_owned(),
    });
}

/// Reads `node_modules/NAME/package.json`.
pub(crate) fn read_npm(bytes: &[u8], path: &str, list: &mut PackageList) {
    let Ok(document) = serde_json::from_slice::<Value>(bytes) else {
        return list.note(format!("`{path}` is not valid JSON"));
    };
    let word = |name: &str| document.get(name).and_then(Value::as_str).unwrap_or_default();
    list.add(Package {
        name: word("name").to_owned(),
        version: word("version").to_owned(),
        purl: purl("npm", word("name"), word("version")),
        found_in: path.to_owned(),
    });
}

/// Reads `Cargo.lock`. Only tables of packages are looked at, line by line.
pub(crate) fn read_cargo_lock(bytes: &[u8], path: &str, list: &mut PackageList) {
    let text = String::from_utf8_lossy(bytes);
    for table in text.split("[[package]]").skip(1) {
        let word = |name: &str| {
            let line = table.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = \""));
            line.and_then(|rest| rest.strip_suffix('"')).unwrap_or_default()
        };
        add_crate(word("name"), word("version"), path, list);
    }
}

/// Reads the list that `cargo auditable` embeds in programs.
pub(crate) fn read_cargo_audit(bytes: &[u8], path: &str, list: &mut PackageList) {
    let Ok(document) = serde_json::from_slice::<Value>(bytes) else {
        return list.note(format!("the list of crates in `{path}` is not valid JSON"));
    };
    for entry in document.get("packages").and_then(Value::as_array).into_iter().flatten() {
        let word = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or_default();
        if word("kind") != "build" {
            add_crate(word("name"), word("version"), path, list);
        }
    }
}

fn add_crate(name: &str, version: &str, path: &str, list: &mut PackageList) {
    list.add(Package {
        name: name.to_owned(),
        version: version.to_owned(),
        purl: purl("cargo", name, version),
        found_in: path.to_owned(),
    });
}
