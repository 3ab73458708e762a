use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::sync::Arc;

use super::super::dockerfile::Dockerfile;
use super::*;
use crate::context::{MemoryTree, NoTransferWatch, SessionName, TreeEntry};

/// Paths in order. A trailing `/` marks a directory, `->` a link, a leading `!` an entry that is not sent.
struct Paths(Vec<(&'static str, bool)>);

impl Paths {
    fn new(paths: &[&'static str]) -> Self {
        let sent = |path: &&'static str| (path.trim_start_matches('!'), !path.starts_with('!'));
        Self(paths.iter().map(sent).collect())
    }
}

impl FileTree for Paths {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn entry(&self, index: usize) -> TreeEntry<'_> {
        let path = self.0[index].0;
        let (path, kind) = match (path.split_once("->"), path.strip_suffix('/')) {
            (Some((path, target)), _) => (path, FileKind::Symlink(target.as_bytes())),
            (None, Some(path)) => (path, FileKind::Directory),
            (None, None) => (path, FileKind::File(())),
        };
        TreeEntry { path: path.as_bytes(), kind, mode: 0o644, size: 0, mtime: 0 }
    }

    fn is_covered(&self, index: usize) -> bool {
        self.0[index].1
    }

    fn open(&self, _: usize) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(Cursor::new("*.log\n\nhid*\nb?d/\n!keep\n")))
    }
}

/// Returns the fault of a COPY of `copied` from a context with these paths.
fn looked(paths: &[&'static str], own_ignore: Option<&str>, copied: &str) -> Option<Fault> {
    let session = SessionName { id: String::new(), shared_key: String::new() };
    let mut beside = vec![("Dockerfile".to_owned(), Vec::new())];
    beside.extend(own_ignore.map(|text| ("Dockerfile.dockerignore".to_owned(), text.as_bytes().to_vec())));
    let files = ContextFiles {
        context: Arc::new(Paths::new(paths)),
        dockerfile: Arc::new(MemoryTree::new(beside)),
        dockerfile_name: "Dockerfile".to_owned(),
        context_session: session.clone(),
        dockerfile_session: session,
        watch: Arc::new(NoTransferWatch),
    };
    let dockerfile = format!("FROM x\nCOPY {copied} /y/\n");
    let copied = Dockerfile::parse(dockerfile.clone().into()).context_copies(&BTreeMap::new(), None);
    assert_eq!(copied.len(), 1, "{dockerfile}");
    missing_source_fault(&files, &copied, &"/context/Dockerfile".parse().unwrap())
}

const TREE: &[&str] = &[
    ".dockerignore",
    "app.py",
    "d/",
    "d/e/",
    "d/e/f",
    "d/requirements.txt",
    "d-x",
    "!hidden",
    "link->d",
    "!link-hidden->d",
    "!out",
    "x y",
    "x.log/",
];

#[test]
fn what_is_there_and_what_lies_behind_a_link_passes() {
    for copied in [
        "app.py",
        "d",
        "d/",
        "d/e/f",
        "d-x x.log",
        "./d/../app.py",
        "link",
        "link/nothing",
        "link-hidden",
        "link-hidden/x",
        ".dockerignore",
    ] {
        assert_eq!(looked(TREE, None, copied), None, "{copied}");
    }
}

#[test]
fn what_is_missing_is_named_with_what_may_have_been_meant() {
    for (copied, path, hint) in [
        ("nope", "nope", "there is no `nope` in the context; add it, or correct the path"),
        ("app.py d/nope/g nope2", "d/nope/g", "there is no `nope` in `d`; add it, or correct the path"),
        ("App.py", "App.py", "did you mean `app.py`?"),
        ("d/requirement.txt", "d/requirement.txt", "did you mean `d/requirements.txt`?"),
        ("d/requirements.txt/x", "d/requirements.txt/x", "`d/requirements.txt` is not a directory"),
        ("d-y", "d-y", "did you mean `d-x`?"),
        ("e/f", "e/f", "there is no `e` in the context; add it, or correct the path"),
        (
            "../other",
            "other",
            "`../other` cannot lead out of the context, where it is `other`; mount what it should be, or give \
             another context path",
        ),
    ] {
        let fault = looked(TREE, None, copied).unwrap_or_else(|| panic!("{copied} passes"));
        assert_eq!((fault.code.as_str(), fault.stage), ("copy_source_missing", FaultStage::Context));
        assert_eq!(fault.message, format!("line 2: \"/{path}\": not found in the build context"));
        assert_eq!(fault.hint.as_deref(), Some(hint), "{copied}");
        assert_eq!(fault.step, Some(format!("COPY {copied} /y/")));
        let range = fault.dockerfile.unwrap();
        assert_eq!((range.start_line, range.text), (2, format!("COPY {copied} /y/")));
    }
    assert!(looked(&[], None, "x").is_some(), "nothing is in an empty context");
}

#[test]
fn the_error_of_an_ignored_file_names_the_pattern() {
    let hint = |own, copied| looked(TREE, own, copied).map(|fault| fault.hint.unwrap());
    let by_context = hint(None, "hidden").unwrap();
    assert!(by_context.contains("the pattern `hid*` of `.dockerignore`"), "{by_context}");
    assert!(by_context.contains("`!hidden`"), "{by_context}");
    let by_own = hint(Some("*\n!d\n"), "hidden").unwrap();
    assert!(by_own.contains("the pattern `*` of `/context/Dockerfile.dockerignore`"), "{by_own}");
    // The file is not in a pack whose ignore file excludes it.
    let not_sent = hint(Some("secret*\n"), "secret").unwrap();
    assert!(not_sent.starts_with("the pattern `secret*` of"), "{not_sent}");
    let similar = hint(Some("*-y\n"), "d-y").unwrap();
    assert!(similar.contains("leaves `d-y` out") && similar.ends_with("or did you mean `d-x`?"), "{similar}");
    // The file is not sent for a reason other than a pattern, which the ignore file cannot explain.
    assert_eq!(hint(None, "out"), None);
    assert_eq!(hint(Some("*\n!hidden\n"), "hidden"), None);
    assert_eq!(hint(Some("[\n"), "hidden"), None, "a file that cannot be understood");
    assert_eq!(hint(Some("\n"), "hidden"), None);
}

#[test]
fn distances_are_those_of_typing_errors() {
    for (a, b, expected) in [
        ("", "", 0),
        ("a", "", 1),
        ("", "ab", 2),
        ("Makefile", "makefile", 0),
        ("setup.py", "setpu.py", 2),
        ("requirement.txt", "requirements.txt", 1),
        ("kitten", "sitting", 3),
    ] {
        assert_eq!(distance(a.as_bytes(), b.as_bytes()), expected, "{a} {b}");
        assert_eq!(distance(b.as_bytes(), a.as_bytes()), expected, "{b} {a}");
    }
}
