use proptest::prelude::*;

use super::*;
use crate::file_kind::SpecialFile;

const HASH: ContentHash = ContentHash::from_bytes([7; 32]);

fn file(path: &[u8]) -> TreeNode<'_> {
    TreeNode { path, mode: 0o644, kind: FileKind::File(HashedContent { size: 3, hash: HASH }), xattrs: &[] }
}

fn directory(path: &[u8]) -> TreeNode<'_> {
    TreeNode { path, mode: 0o755, kind: FileKind::Directory, xattrs: &[] }
}

fn hard_link<'a>(path: &'a [u8], to: &'a [u8]) -> TreeNode<'a> {
    TreeNode { path, mode: 0o644, kind: FileKind::HardLink(to), xattrs: &[] }
}

fn list(nodes: &[TreeNode<'_>]) -> Result<TreeListing, ListingError> {
    let mut writer = ListingWriter::new(ListingLimits::default());
    nodes.iter().try_for_each(|node| writer.push(node))?;
    writer.finish()
}

#[test]
fn a_list_gives_back_what_was_put_in_and_has_the_digest_of_the_tree() {
    let xattrs = vec![(b"security.capability".to_vec(), vec![1, 2]), (b"user.a".to_vec(), vec![0; 300])];
    let link = TreeNode { path: b"d/z", mode: 0o777, kind: FileKind::Symlink(b"../x"), xattrs: &[] };
    let with = TreeNode { xattrs: &xattrs, ..file(b"d/f") };
    let nodes = [directory(b"d"), with, hard_link(b"d/g", b"d/f"), link, file(b"d.txt"), file(b"d0")];
    let listing = list(&nodes).unwrap();
    let mut sum = TreeHasher::default();
    nodes.iter().for_each(|node| sum.node(node));
    assert_eq!(listing.digest(), sum.finish());
    let again = TreeListing::parse(listing.bytes(), ListingLimits::default()).unwrap();
    assert_eq!(again.digest(), listing.digest());
    for (index, node) in nodes.iter().enumerate() {
        let entry = again.entry(index);
        assert_eq!(
            (entry.path, entry.mode, entry.kind, entry.xattrs.as_slice()),
            (node.path, node.mode, node.kind, node.xattrs)
        );
        assert_eq!(again.find(node.path), Some(index));
    }
    assert_eq!((again.find(b"nothing"), again.end_of(0)), (None, 4));
}

#[test]
fn a_sealed_list_comes_back_as_it_was_and_a_damaged_one_does_not() {
    for nodes in [vec![], vec![directory(b"d"), file(b"d/f"), hard_link(b"d/g", b"d/f"), file(b"e")]] {
        let listing = list(&nodes).unwrap();
        let sealed = [listing.bytes(), &listing.seal()].concat();
        let again = TreeListing::unseal(sealed.clone()).unwrap();
        assert_eq!((again.digest(), again.bytes()), (listing.digest(), listing.bytes()));
        assert!(again.entries().eq(listing.entries()));
        assert!(TreeListing::unseal(listing.bytes().to_vec()).is_err(), "it has no seal");
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert_eq!(TreeListing::unseal(damaged.clone()).unwrap_err(), damaged, "{at}");
        }
    }
}

#[test]
fn what_leads_out_of_the_tree_or_stands_twice_or_in_disorder_is_refused() {
    let refused = |nodes: &[TreeNode<'_>]| list(nodes).unwrap_err().to_string();
    for path in [&b"../a"[..], b"a/../b", b"/etc/passwd", b"a//b", b"a/", b".", b"a\0b", b"", &[b'n'; 256]] {
        let error = list(&[directory(b"a"), file(path)]).unwrap_err();
        assert!(matches!(error, ListingError::Entry { .. }), "{error}");
    }
    assert!(refused(&[file(b"b"), file(b"a")]).contains("order"));
    assert!(refused(&[file(b"a"), file(b"a")]).contains("order"));
    assert!(refused(&[directory(b"d"), file(b"d/x"), directory(b"d")]).contains("order"));
    assert!(refused(&[file(b"a"), file(b"a/b")]).contains("parent directory is not in the list"));
    assert!(refused(&[file(b"a/b")]).contains("parent directory is not in the list"));
    assert!(refused(&[directory(b"d"), file(b"e"), file(b"d/x")]).contains("order"));
    for to in [&b"../x"[..], b"/etc/passwd"] {
        assert!(matches!(list(&[hard_link(b"h", to)]).unwrap_err(), ListingError::Entry { .. }));
    }
    for nodes in [
        vec![hard_link(b"h", b"nowhere")],
        vec![directory(b"d"), hard_link(b"h", b"d")],
        vec![hard_link(b"a", b"b"), file(b"b")],
        vec![hard_link(b"a", b"a")],
    ] {
        assert!(matches!(list(&nodes).unwrap_err(), ListingError::LinkTarget { .. }), "{nodes:?}");
    }
}

#[test]
fn kinds_modes_and_attributes_that_a_pack_cannot_have_are_refused() {
    let refused =
        |node: TreeNode<'_>| assert!(matches!(list(&[node]), Err(ListingError::Entry { .. })), "{node:?}");
    refused(TreeNode { kind: FileKind::Special(SpecialFile::Fifo), ..file(b"f") });
    refused(TreeNode {
        kind: FileKind::Special(SpecialFile::Device { character: true, major: 1, minor: 3 }),
        ..file(b"f")
    });
    refused(TreeNode { mode: 0o100_644, ..file(b"f") });
    refused(TreeNode { kind: FileKind::Symlink(b""), ..file(b"l") });
    let twice = vec![(b"user.a".to_vec(), vec![]), (b"user.a".to_vec(), vec![])];
    refused(TreeNode { xattrs: &twice, ..file(b"f") });
    for name in ["trusted.overlay.opaque", "user.", "system.posix_acl_access"] {
        refused(TreeNode { xattrs: &[(name.into(), vec![])], ..file(b"f") });
    }
}

#[test]
fn a_list_is_bounded() {
    let limits = ListingLimits { entries: 2, bytes: 1 << 20 };
    let mut writer = ListingWriter::new(limits);
    writer.push(&file(b"a")).unwrap();
    writer.push(&file(b"b")).unwrap();
    assert_eq!(writer.push(&file(b"c")), Err(ListingError::TooMany { limit: 2 }));
    let mut writer = ListingWriter::new(ListingLimits { entries: 9, bytes: 60 });
    writer.push(&file(b"a")).unwrap();
    writer.push(&file(b"b")).unwrap();
    assert_eq!(writer.push(&file(b"c")), Err(ListingError::TooLarge { limit: 60 }));
}

proptest! {
    #[test]
    fn any_bytes_are_a_list_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = TreeListing::parse(&bytes, ListingLimits::default());
    }

    #[test]
    fn a_damaged_list_is_never_taken_for_the_same_tree(at in 0usize..1000, flip in 1u8..) {
        let listing = list(&[directory(b"d"), file(b"d/f"), hard_link(b"d/g", b"d/f"), file(b"e")]).unwrap();
        let mut bytes = listing.bytes().to_vec();
        let at = at % bytes.len();
        bytes[at] ^= flip;
        let parsed = TreeListing::parse(&bytes, ListingLimits::default());
        prop_assert!(parsed.is_err() || parsed.is_ok_and(|parsed| parsed.digest() != listing.digest()));
    }
}
