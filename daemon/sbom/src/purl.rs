//! Package URLs (the purl specification).

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

const KEPT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'-').remove(b'_').remove(b'~').remove(b':');

pub(crate) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, KEPT).to_string()
}

/// Returns `pkg:kind/name@version`. The name is a path, whose parts are encoded.
pub(crate) fn purl(kind: &str, name: &str, version: &str) -> String {
    let name: Vec<String> = name.split('/').map(encoded).collect();
    format!("pkg:{kind}/{}@{}", name.join("/"), encoded(version))
}

/// The distribution of an image, from its `os-release`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Distribution {
    pub(crate) id: String,
    pub(crate) version: String,
}

impl Distribution {
    pub(crate) fn parse(os_release: &[u8]) -> Self {
        let text = String::from_utf8_lossy(os_release);
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
            let word = line.unwrap_or_default().trim().trim_matches(['"', '\'']);
            word.chars().take(64).collect::<String>()
        };
        Self { id: value("ID"), version: value("VERSION_ID") }
    }

    /// Returns the package URL of a package of the distribution.
    pub(crate) fn purl(&self, kind: &str, otherwise: &str, name: &str, version: &str, arch: &str) -> String {
        let id = if self.id.is_empty() { otherwise } else { &self.id };
        let mut purl = purl(kind, &format!("{id}/{name}"), version);
        let mut qualifiers = Vec::new();
        if !arch.is_empty() {
            qualifiers.push(format!("arch={}", encoded(arch)));
        }
        if !self.version.is_empty() {
            qualifiers.push(format!("distro={}-{}", encoded(id), encoded(&self.version)));
        }
        if !qualifiers.is_empty() {
            purl = format!("{purl}?{}", qualifiers.join("&"));
        }
        purl
    }
}
