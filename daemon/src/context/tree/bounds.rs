//! Which directories a scan looks into.
//!
//! A build that copies one directory of a large tree need not know the rest, and what the ignore file hides
//! with no exception is nobody's business: `.git` and `node_modules` are often most of a tree. A directory
//! that is not looked into is an entry like any other, see
//! [`is_listed`](crate::context::port::FileTree::is_listed).

use hearth_pack::ignore::Patterns;

use super::below;
use super::identify::Selection;

/// The default looks into everything.
#[derive(Clone, Default)]
pub struct Bounds<'a> {
    selection: Option<&'a Selection>,
    ignore: Option<&'a Patterns>,
}

impl<'a> Bounds<'a> {
    pub fn new(selection: &'a Selection, ignore: Option<&'a Patterns>) -> Self {
        // An exception may bring back something at any depth.
        Self { selection: Some(selection), ignore: ignore.filter(|ignore| !ignore.has_negation()) }
    }

    /// Whether a directory below the context is looked into; those above it are.
    pub(super) fn hold(&self, path: &[u8]) -> bool {
        let selected = |selection: &Selection| match &selection.roots {
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
        let selection = Selection::of([b"src/app".to_vec(), b"lib".to_vec()]);
        let hold = |ignore: &str| {
            let ignore = Patterns::parse_file(ignore.as_bytes()).unwrap();
            let bounds = Bounds::new(&selection, Some(&ignore));
            ["src", "src/app", "src/app/deep", "src/other", "lib", "lib/x", "libs"]
                .into_iter()
                .filter(|path| bounds.hold(path.as_bytes()))
                .collect::<Vec<_>>()
        };
        assert_eq!(hold(""), ["src", "src/app", "src/app/deep", "lib", "lib/x"]);
        assert_eq!(hold("lib\n**/deep"), ["src", "src/app"]);
        assert_eq!(hold("lib\n!lib/x"), ["src", "src/app", "src/app/deep", "lib", "lib/x"]);
        assert!(Bounds::default().hold(b"anything"));
    }
}
