use std::collections::BTreeMap;

/// Maximum number of packages of a list; no real image has more.
const MAX_PACKAGES: usize = 50_000;
/// Maximum length in bytes of a name or version.
const MAX_WORD: usize = 512;
/// Maximum number of notes about what was not read.
const MAX_NOTES: usize = 64;

/// A package of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    pub name: String,
    pub version: String,
    /// Package URL, which identifies the package.
    pub purl: String,
    /// File of the image that names the package.
    pub found_in: String,
}

/// Packages of an image, ordered by their package URLs, and notes about what was not read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PackageList {
    by_purl: BTreeMap<String, Package>,
    notes: Vec<String>,
}

impl PackageList {
    /// Adds a package. One without a name or version, or with a very long one, is left out.
    pub(crate) fn add(&mut self, package: Package) {
        let is_word = |text: &str| (1..=MAX_WORD).contains(&text.len());
        if !is_word(&package.name) || !is_word(&package.version) {
            return;
        }
        if self.by_purl.len() >= MAX_PACKAGES {
            return self.note(format!("only {MAX_PACKAGES} packages are listed"));
        }
        self.by_purl.entry(package.purl.clone()).or_insert(package);
    }

    pub(crate) fn note(&mut self, note: String) {
        if self.notes.len() < MAX_NOTES && !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    pub fn packages(&self) -> impl ExactSizeIterator<Item = &Package> {
        self.by_purl.values()
    }

    /// What was not read, in sentences.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}
