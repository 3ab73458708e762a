//! Targets of symbolic links.

use std::path::{Component, Path, PathBuf};

/// Returns the path to which a link at `path` leads in its tree. Returns `None` for a target that is empty, absolute, or
/// leads out of the tree, and for one with `..` behind a name: if the name is a link, `..` leads elsewhere.
pub fn link_destination(path: &Path, target: &Path) -> Option<PathBuf> {
    let mut destination = path.parent().unwrap_or(path).to_owned();
    let mut named = false;
    for component in target.components() {
        match component {
            Component::Normal(name) => {
                named = true;
                destination.push(name);
            }
            Component::CurDir => {}
            Component::ParentDir if !named && destination.pop() => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!target.as_os_str().is_empty()).then_some(destination)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_stays_in_its_tree_or_leads_out() {
        let resolved = |path: &str, target: &str| link_destination(Path::new(path), Path::new(target));
        for (path, target, destination) in
            [("a/b", "c", "a/c"), ("a/b", "../c/./d", "c/d"), ("a", ".", ""), ("a/b/c", "../..", "")]
        {
            assert_eq!(resolved(path, target).as_deref(), Some(Path::new(destination)), "{path} {target}");
        }
        for (path, target) in
            [("a", ".."), ("a/b", "../../c"), ("a/b", "s/../c"), ("a", "/etc/passwd"), ("a", "")]
        {
            assert_eq!(resolved(path, target), None, "{path} {target}");
        }
    }
}
