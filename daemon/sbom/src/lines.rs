//! Records of `Name: value` lines, as dpkg and Python write them.

/// Returns the records of a text: groups of lines, separated by empty lines.
pub(crate) fn records(text: &str) -> impl Iterator<Item = Record<'_>> {
    text.split("\n\n").map(Record).filter(|record| !record.0.trim().is_empty())
}

/// A record of fields. Lines that begin with a blank continue the field before, and are not read.
#[derive(Clone, Copy)]
pub(crate) struct Record<'t>(pub(crate) &'t str);

impl<'t> Record<'t> {
    /// Returns the value of the first field of this name; empty if there is none.
    pub(crate) fn field(self, name: &str) -> &'t str {
        let value = |line: &'t str| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        };
        self.0.lines().find_map(value).unwrap_or_default()
    }
}
