use super::*;

/// A tree without content. Directories named `unlisted` are not listed.
pub(in super::super) struct Listed(Vec<TreeEntry<'static>>);

impl FileTree for Listed {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn entry(&self, index: usize) -> TreeEntry<'_> {
        self.0[index].clone()
    }

    fn is_listed(&self, index: usize) -> bool {
        self.0[index].path != b"unlisted"
    }

    fn xattrs(&self, index: usize) -> &[Xattr] {
        static XATTRS: std::sync::LazyLock<Vec<Xattr>> =
            std::sync::LazyLock::new(|| vec![(b"user.k".to_vec(), b"v".to_vec())]);
        if self.0[index].path == b"attributed" { &XATTRS } else { &[] }
    }

    fn open(&self, index: usize) -> std::io::Result<Box<dyn std::io::Read + Send>> {
        panic!("entry {index} has no content")
    }
}

pub(in super::super) fn tree(mut entries: Vec<TreeEntry<'static>>) -> Listed {
    entries.sort_by(|a, b| follow_paths::sync_order(a.path, b.path));
    Listed(entries)
}

fn entry(
    path: &'static str,
    kind: crate::context::EntryKind<&'static [u8]>,
    mode: u32,
) -> TreeEntry<'static> {
    TreeEntry { path: path.as_bytes(), kind, mode, size: 0, mtime: 1 }
}

pub(in super::super) fn dir(path: &'static str) -> TreeEntry<'static> {
    entry(path, FileKind::Directory, 0o755)
}

pub(in super::super) fn file(path: &'static str) -> TreeEntry<'static> {
    entry(path, FileKind::File(()), 0o644)
}

pub(in super::super) fn link(path: &'static str, target: &'static str) -> TreeEntry<'static> {
    entry(path, FileKind::Symlink(target.as_bytes()), 0o777)
}

fn shown(tree: &Listed, includes: &[&str], excludes: &[&str], follow: &[&str]) -> Vec<String> {
    let bytes = |list: &[&str]| list.iter().map(|p| p.as_bytes().to_vec()).collect();
    let wanted =
        SelectionPatterns { includes: bytes(includes), excludes: bytes(excludes), follow: bytes(follow) };
    let indexes = select(tree, &wanted).unwrap();
    indexes.iter().map(|i| String::from_utf8_lossy(tree.0[*i].path).into_owned()).collect()
}

#[test]
fn parents_of_what_matches_are_shown_before_it() {
    let tree =
        tree(vec![dir("a"), dir("a/b"), file("a/b/c.go"), file("a/x"), dir("z"), file("z/y"), file("a-b")]);
    assert_eq!(shown(&tree, &["**/*.go"], &[], &[]), ["a", "a/b", "a/b/c.go"]);
    assert_eq!(shown(&tree, &["a/b"], &[], &[]), ["a", "a/b", "a/b/c.go"]);
    assert_eq!(shown(&tree, &[], &["a", "!a/b/c.go"], &[]), ["a", "a/b", "a/b/c.go", "a-b", "z", "z/y"]);
    assert_eq!(shown(&tree, &[], &["z"], &[]), ["a", "a/b", "a/b/c.go", "a/x", "a-b"]);
    assert_eq!(shown(&tree, &[], &[], &[]).len(), tree.len());
}

#[test]
fn follow_paths_show_links_and_their_ends() {
    let tree = tree(vec![dir("real"), file("real/f"), file("real/g"), link("l", "real/f"), file("other")]);
    assert_eq!(shown(&tree, &[], &[], &["l"]), ["l", "real", "real/f"]);
    assert_eq!(shown(&tree, &[], &["real/f"], &["l"]), ["l"]);
    assert_eq!(shown(&tree, &[], &[], &["/"]).len(), tree.len());
}

#[test]
fn modes_are_those_of_go() {
    let mode = |kind, mode| go_mode(&entry("x", kind, mode));
    assert_eq!(mode(FileKind::Directory, 0o755), 0x8000_01ed);
    assert_eq!(mode(FileKind::Directory, 0o1777), (1 << 31) | (1 << 20) | 0o777);
    assert_eq!(mode(FileKind::File(()), 0o6755), (1 << 23) | (1 << 22) | 0o755);
    assert_eq!(mode(FileKind::Symlink(b"t"), 0o777), (1 << 27) | 0o777);
    assert_eq!(mode(FileKind::Special(SpecialFile::Fifo), 0o600), (1 << 25) | 0o600);
    assert_eq!(mode(FileKind::Special(SpecialFile::Socket), 0o600), 0o600);
    let device = |character| FileKind::Special(SpecialFile::Device { character, major: 1, minor: 3 });
    assert_eq!(mode(device(true), 0o666), (1 << 26) | (1 << 21) | 0o666);
    assert_eq!(mode(device(false), 0o660), (1 << 26) | 0o660);
}

#[test]
fn a_hard_link_names_the_first_shown_name_of_its_file() {
    let mut first = file("a");
    first.size = 5;
    let mut second = entry("b", FileKind::HardLink(0), 0o644);
    second.size = 5;
    let third = TreeEntry { path: b"c", ..second.clone() };
    let tree = tree(vec![first, second, third]);
    let mut stats = StatBuilder::default();
    let (stat, content) = stats.stat_of(&tree, 0);
    assert_eq!((stat.link.as_ref(), stat.size, content), (b"".as_slice(), 5, Some(0)));
    let (stat, _) = stats.stat_of(&tree, 1);
    assert_eq!((stat.link.as_ref(), stat.size), (b"a".as_slice(), 5), "the size that a receiver finds");
    // When the first name is not shown, the second one becomes the file.
    let mut stats = StatBuilder::default();
    let (stat, content) = stats.stat_of(&tree, 1);
    assert_eq!((stat.link.as_ref(), stat.size, content), (b"".as_slice(), 5, Some(0)));
    let (stat, _) = stats.stat_of(&tree, 2);
    assert_eq!(stat.link.as_ref(), b"b");
}

#[test]
fn a_link_is_as_large_as_its_target_is_long() {
    let tree = tree(vec![link("l", "some/where")]);
    let (stat, content) = StatBuilder::default().stat_of(&tree, 0);
    assert_eq!((stat.link.as_ref(), stat.size, content), (b"some/where".as_slice(), 10, None));
}

#[test]
fn what_is_large_or_odd_crosses_the_wire_as_it_is() {
    let long: &'static str = Box::leak("n".repeat(255).into_boxed_str());
    let mut huge = file("attributed");
    huge.size = 9 << 30;
    let odd = TreeEntry { path: b"a\nb\xff", ..file("x") };
    let tree = Listed(vec![odd, huge, file(long)]);
    let mut stats = StatBuilder::default();
    let mut stat = |index| stats.stat_of(&tree, index).0;
    assert_eq!(stat(0).path.as_ref(), b"a\nb\xff");
    let huge = stat(1);
    assert_eq!((huge.size, huge.xattrs.len()), (9 << 30, 1));
    assert_eq!((huge.xattrs[0].name.as_ref(), huge.xattrs[0].value.as_ref()), (&b"user.k"[..], &b"v"[..]));
    assert_eq!(stat(2).path.len(), 255);
}

#[test]
fn a_directory_that_was_not_looked_into_is_shown_where_it_may_hold_something() {
    let tree = tree(vec![dir("a"), file("a/x.go"), dir("unlisted")]);
    for (includes, excludes) in
        [(&["a"][..], &[][..]), (&["a/*.go"], &[]), (&["a", "a/**"], &[]), (&["unlisted-not"], &[])]
    {
        assert!(!shown(&tree, includes, excludes, &[]).contains(&"unlisted".to_owned()), "{includes:?}");
    }
    for includes in [&["unlisted/b"][..], &["unlisted/*.go"], &["**/*.go"], &["*/b"], &["unlisted"]] {
        assert!(shown(&tree, includes, &[], &[]).contains(&"unlisted".to_owned()), "{includes:?}");
    }
    assert_eq!(shown(&tree, &["**/*.go"], &["unlisted"], &[]), ["a", "a/x.go"]);
}
