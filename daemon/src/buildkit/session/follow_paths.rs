//! Follow paths of a file sync request: resolves the source paths of COPY and ADD inside the build context.
//!
//! A path may contain wildcards and symbolic links. The result contains every symbolic link on the path and every final
//! target, as include patterns. Links are resolved textually and never leave the tree: an absolute target starts at the
//! root of the tree, and `..` stops there.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use crate::context::{FileKind, FileTree, TreeEntry};

/// Maximum number of links that are followed for one request. The limit ends link loops that grow the path.
const LINK_LIMIT: usize = 10_000;

/// Returns the include patterns for `paths`; `None` when the whole tree is meant.
pub(super) fn included_targets(tree: &dyn FileTree, paths: &[Vec<u8>]) -> Option<Vec<Vec<u8>>> {
    let tree = TreeLookup(tree);
    let mut found: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut seen: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut pending: Vec<Vec<u8>> = paths.iter().rev().map(|path| clean(path)).collect();
    let mut links = 0;
    while let Some(path) = pending.pop() {
        if !seen.insert(path.clone()) {
            continue;
        }
        walk(&tree, &path, &mut found, &mut |target| {
            links += 1;
            if links <= LINK_LIMIT {
                pending.push(target);
            }
        });
    }
    if found.contains(b"".as_slice()) {
        return None;
    }
    let mut patterns: Vec<Vec<u8>> = Vec::new();
    for path in found {
        let covered =
            patterns.last().is_some_and(|last| path.starts_with(last) && path.get(last.len()) == Some(&b'/'));
        if !covered {
            patterns.push(path);
        }
    }
    Some(patterns)
}

/// Follows `path` until its end or a symbolic link. `push` receives the target of the link, joined with the rest of the
/// path.
fn walk(tree: &TreeLookup<'_>, path: &[u8], found: &mut BTreeSet<Vec<u8>>, push: &mut dyn FnMut(Vec<u8>)) {
    let mut current: Vec<u8> = Vec::new();
    let mut rest = path;
    loop {
        let (name, tail) = match rest.iter().position(|b| *b == b'/') {
            Some(slash) => (&rest[..slash], &rest[slash + 1..]),
            None => (rest, &rest[rest.len()..]),
        };
        let parent = current.clone();
        current = join(&current, name);
        let links: Vec<Vec<u8>> = if has_wildcard(name) {
            let matching = tree.children(&parent).filter(|entry| glob(name, base(entry.path)));
            matching.filter_map(|entry| link_target(&parent, &entry)).collect()
        } else {
            tree.get(&current).and_then(|entry| link_target(&parent, &entry)).into_iter().collect()
        };
        let is_link = !links.is_empty();
        for link in links {
            push(clean(&join(&link, tail)));
        }
        if is_link || tail.is_empty() {
            found.insert(current);
            return;
        }
        rest = tail;
    }
}

fn link_target(parent: &[u8], entry: &TreeEntry<'_>) -> Option<Vec<u8>> {
    let FileKind::Symlink(target) = entry.kind else { return None };
    Some(if target.starts_with(b"/") { clean(target) } else { clean(&join(parent, target)) })
}

fn base(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap_or(path)
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    match (dir.is_empty(), name.is_empty()) {
        (true, _) => name.to_vec(),
        (_, true) => dir.to_vec(),
        _ => [dir, b"/", name].concat(),
    }
}

/// Returns the path relative to the root, without `.`, `..` or doubled `/`; the root is empty.
fn clean(path: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop();
            }
            name => parts.push(name),
        }
    }
    parts.join(&b'/')
}

struct TreeLookup<'a>(&'a dyn FileTree);

impl<'a> TreeLookup<'a> {
    fn find(&self, path: &[u8]) -> Option<usize> {
        let (mut low, mut high) = (0, self.0.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match sync_order(self.0.entry(middle).path, path) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(middle),
            }
        }
        None
    }

    fn get(&self, path: &[u8]) -> Option<TreeEntry<'a>> {
        self.find(path).map(|index| self.0.entry(index))
    }

    fn children(&self, dir: &[u8]) -> impl Iterator<Item = TreeEntry<'a>> {
        let start = match dir {
            [] => 0,
            dir => self.find(dir).map_or(self.0.len(), |index| index + 1),
        };
        let skip = if dir.is_empty() { 0 } else { dir.len() + 1 };
        let (dir, tree) = (dir.to_vec(), self.0);
        (start..tree.len())
            .map(move |index| tree.entry(index))
            .take_while(move |entry| {
                dir.is_empty() || (entry.path.starts_with(&dir) && entry.path.get(dir.len()) == Some(&b'/'))
            })
            .filter(move |entry| !entry.path[skip..].contains(&b'/'))
    }
}

/// Compares paths in the order of a file sync: `/` sorts before every other byte.
pub(super) fn sync_order(a: &[u8], b: &[u8]) -> Ordering {
    let key = |byte: &u8| if *byte == b'/' { 0 } else { u16::from(*byte) + 1 };
    a.iter().map(key).cmp(b.iter().map(key))
}

fn has_wildcard(name: &[u8]) -> bool {
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

/// Go's `filepath.Match` for one name. An invalid pattern matches nothing.
fn glob(pattern: &[u8], name: &[u8]) -> bool {
    let pattern = String::from_utf8_lossy(pattern);
    let name = String::from_utf8_lossy(name);
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    // Position in the pattern after the last `*`, and in the name at the end of what that `*` matched.
    let mut star: Option<(usize, usize)> = None;
    let (mut p, mut n) = (0, 0);
    loop {
        if pattern.get(p) == Some(&'*') {
            p += 1;
            star = Some((p, n));
            continue;
        }
        let step = if p == pattern.len() && n == name.len() {
            return true;
        } else if n < name.len() && p < pattern.len() {
            match match_char(&pattern[p..], name[n]) {
                Err(()) => return false,
                Ok(step) => step,
            }
        } else {
            None
        };
        match (step, star) {
            (Some(used), _) => (p, n) = (p + used, n + 1),
            (None, Some((after, end))) if end < name.len() => {
                star = Some((after, end + 1));
                (p, n) = (after, end + 1);
            }
            _ => return false,
        }
    }
}

/// Returns how many pattern characters match the one character, or `None` when they do not match.
fn match_char(pattern: &[char], c: char) -> Result<Option<usize>, ()> {
    match pattern {
        ['?', ..] => Ok(Some(1)),
        ['\\', literal, ..] => Ok((*literal == c).then_some(2)),
        ['\\'] => Err(()),
        ['[', ..] => {
            let negated = pattern.get(1) == Some(&'^');
            let mut at = if negated { 2 } else { 1 };
            let first = at;
            let mut hit = false;
            loop {
                if pattern.get(at) == Some(&']') && at > first {
                    return Ok((hit != negated).then_some(at + 1));
                }
                let (low, next) = class_char(pattern, at)?;
                let (high, next) = if pattern.get(next) == Some(&'-') {
                    class_char(pattern, next + 1)?
                } else {
                    (low, next)
                };
                hit |= (low..=high).contains(&c);
                at = next;
            }
        }
        [literal, ..] => Ok((*literal == c).then_some(1)),
        [] => Ok(None),
    }
}

fn class_char(pattern: &[char], at: usize) -> Result<(char, usize), ()> {
    match pattern.get(at) {
        None | Some('-' | ']') => Err(()),
        Some('\\') => pattern.get(at + 1).map(|c| (*c, at + 2)).ok_or(()),
        Some(c) => Ok((*c, at + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::select::tests::{Listed, dir, file, link, tree};
    use super::*;

    fn follow(tree: &Listed, paths: &[&str]) -> Option<Vec<String>> {
        let paths: Vec<Vec<u8>> = paths.iter().map(|path| path.as_bytes().to_vec()).collect();
        included_targets(tree, &paths)
            .map(|list| list.into_iter().map(|p| String::from_utf8(p).unwrap()).collect())
    }

    #[test]
    fn links_lead_to_their_ends_and_are_shown_themselves() {
        let tree = tree(vec![
            dir("a"),
            file("a/f"),
            link("l", "a"),
            link("abs", "/a/f"),
            link("out", "../../a"),
            link("loop1", "loop2"),
            link("loop2", "loop1"),
            link("a/up", "../l/f"),
        ]);
        assert_eq!(follow(&tree, &["a/f"]).unwrap(), ["a/f"]);
        assert_eq!(follow(&tree, &["l/f", "l/up"]).unwrap(), ["a/f", "a/up", "l"]);
        assert_eq!(follow(&tree, &["abs"]).unwrap(), ["a/f", "abs"]);
        assert_eq!(follow(&tree, &["out"]).unwrap(), ["a", "out"]);
        assert_eq!(follow(&tree, &["loop1/x"]).unwrap(), ["loop1", "loop2"]);
        assert_eq!(follow(&tree, &["missing/x"]).unwrap(), ["missing/x"]);
        assert_eq!(follow(&tree, &["../../a"]).unwrap(), ["a"]);
        assert_eq!(follow(&tree, &["/"]), None);
        assert_eq!(follow(&tree, &["a/f", "."]), None);
    }

    #[test]
    fn wildcards_follow_the_links_they_match() {
        let tree =
            tree(vec![dir("d"), file("d/x"), file("d/y"), link("l1", "d/x"), link("l2", "d/y"), file("m")]);
        assert_eq!(follow(&tree, &["l*"]).unwrap(), ["d/x", "d/y", "l*"]);
        assert_eq!(follow(&tree, &["l[1]"]).unwrap(), ["d/x", "l[1]"]);
        assert_eq!(follow(&tree, &["d/?"]).unwrap(), ["d/?"]);
    }

    #[test]
    fn a_link_that_grows_its_own_path_ends() {
        let tree = tree(vec![link("a", "a/b"), link("b", "../b/c/../b")]);
        assert!(follow(&tree, &["a/x", "b/y"]).is_some());
    }

    #[test]
    fn globs_are_those_of_go() {
        for (pattern, name) in
            [("*", ""), ("a*b*c", "aXbYc"), ("[a-c]?", "bz"), ("[^a]", "b"), ("\\*", "*"), ("*.go", "x.go")]
        {
            assert!(glob(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
        for (pattern, name) in
            [("?", ""), ("a*b", "ab.c"), ("[a-c]", "d"), ("[", "["), ("[]a]", "a"), ("a\\", "a"), ("*a", "b")]
        {
            assert!(!glob(pattern.as_bytes(), name.as_bytes()), "{pattern} {name}");
        }
    }
}
