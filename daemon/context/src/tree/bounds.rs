//! Selection of the directories that a scan reads.
//!
//! A build that copies one directory of a large tree does not need the rest, and neither does it need what
//! the ignore file hides without exceptions: `.git` and `node_modules` are often most of a tree. A directory
//! that is not read is still an entry, see
//! [`is_listed`](crate::port::FileTree::is_listed).

use hearth_pack::ignore::IgnorePatterns;

use super::below;
use super::identify::CopySelection;

/// Limits of a scan; the default reads everything.
#[derive(Clone, Default)]
pub struct ScanBounds<'a> {
    selection: Option<&'a CopySelection>,
    ignore: Option<&'a IgnorePatterns>,
}

impl<'a> ScanBounds<'a> {
    pub(crate) fn new(selection: &'a CopySelection, ignore: Option<&'a IgnorePatterns>) -> Self {
        // An exception can include a path at any depth again, so such an ignore file prunes nothing.
        Self { selection: Some(selection), ignore: ignore.filter(|ignore| !ignore.has_negation()) }
    }

    /// Reports whether a directory below the context is scanned. Directories above the context always are.
    pub(super) fn includes(&self, path: &[u8]) -> bool {
        let selected = |selection: &CopySelection| match &selection.roots {
            None => true,
            Some(roots) => {
                roots.iter().any(|root| below(root, path).is_some() || below(path, root).is_some())
            }
        };
        self.selection.is_none_or(selected) && !self.ignore.is_some_and(|ignore| ignore.matches(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_held_that_lead_to_what_is_copied_and_are_not_hidden_for_good() {
        let selection = CopySelection::of([b"src/app".to_vec(), b"lib".to_vec()]);
        let hold = |ignore: &str| {
            let ignore = IgnorePatterns::parse_file(ignore.as_bytes()).unwrap();
            let bounds = ScanBounds::new(&selection, Some(&ignore));
            ["src", "src/app", "src/app/deep", "src/other", "lib", "lib/x", "libs"]
                .into_iter()
                .filter(|path| bounds.includes(path.as_bytes()))
                .collect::<Vec<_>>()
        };
        assert_eq!(hold(""), ["src", "src/app", "src/app/deep", "lib", "lib/x"]);
        assert_eq!(hold("lib\n**/deep"), ["src", "src/app"]);
        assert_eq!(hold("lib\n!lib/x"), ["src", "src/app", "src/app/deep", "lib", "lib/x"]);
        assert!(ScanBounds::default().includes(b"anything"));
    }
}
