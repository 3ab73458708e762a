use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use super::*;
use crate::ignore::{TreeFilter, VisitOutcome};

fn tree(make: impl FnOnce(&Path)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path());
    dir
}

fn write(dir: &Path, path: &str, text: &str) {
    let path = dir.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn listed(dir: &Path, options: &WalkOptions) -> Vec<String> {
    let tree = walk(dir, options).unwrap();
    tree.entries.iter().map(|entry| display_path(&entry.path)).collect()
}

#[test]
fn each_directory_comes_before_its_content_in_byte_order() {
    let dir = tree(|dir| {
        for path in ["a/z", "a.b", "a-b", "a/b/c", "B"] {
            write(dir, path, "");
        }
    });
    let paths = listed(dir.path(), &WalkOptions::default());
    // All of `a` comes before `a-b`, although `-` sorts before `/`.
    assert_eq!(paths, ["B", "a", "a/b", "a/b/c", "a/z", "a-b", "a.b"]);
}

#[test]
fn links_are_listed_and_never_followed() {
    let dir = tree(|dir| {
        write(dir, "one", "text");
        fs::hard_link(dir.join("one"), dir.join("two")).unwrap();
        symlink("/etc", dir.join("out")).unwrap();
        symlink("nowhere", dir.join("dangling")).unwrap();
    });
    let tree = walk(dir.path(), &WalkOptions::default()).unwrap();
    let kinds: Vec<_> =
        tree.entries.iter().map(|entry| (display_path(&entry.path), entry.kind.clone())).collect();
    assert_eq!(
        kinds,
        [
            ("dangling".to_owned(), FileKind::Symlink(b"nowhere".to_vec())),
            ("one".to_owned(), FileKind::File(())),
            ("out".to_owned(), FileKind::Symlink(b"/etc".to_vec())),
            ("two".to_owned(), FileKind::HardLink(b"one".to_vec())),
        ]
    );
    assert_eq!(tree.content_bytes(), 4);
}

#[test]
fn a_hard_link_whose_first_name_is_excluded_is_a_file() {
    let dir = tree(|dir| {
        write(dir, ".dockerignore", "one");
        write(dir, "one", "text");
        fs::hard_link(dir.join("one"), dir.join("two")).unwrap();
    });
    let tree = walk(dir.path(), &WalkOptions::default()).unwrap();
    assert_eq!(tree.entries.len(), 2);
    assert_eq!(tree.entries[1].kind, FileKind::File(()));
}

#[test]
fn sockets_and_fifos_are_named_unless_excluded() {
    let dir = tree(|dir| write(dir, "sub/file", ""));
    let _socket = UnixListener::bind(dir.path().join("sub/app.sock")).unwrap();
    let error = walk(dir.path(), &WalkOptions::default()).unwrap_err().to_string();
    assert!(error.starts_with("sub/app.sock: is a socket"), "{error}");
    write(dir.path(), ".dockerignore", "**/*.sock");
    assert_eq!(listed(dir.path(), &WalkOptions::default()), [".dockerignore", "sub", "sub/file"]);

    let fifo = dir.path().join("queue");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    let error = walk(dir.path(), &WalkOptions::default()).unwrap_err().to_string();
    assert!(error.starts_with("queue: is a fifo"), "{error}");
}

#[test]
fn what_is_no_directory_is_a_typed_error() {
    let dir = tree(|dir| write(dir, "file", ""));
    let at = |name| walk(&dir.path().join(name), &WalkOptions::default()).unwrap_err();
    assert!(matches!(at("none"), WalkError::Missing { .. }));
    assert!(matches!(at("file"), WalkError::NotADirectory { .. }));
}

#[test]
fn the_ignore_file_of_the_dockerfile_comes_first_even_if_it_is_empty() {
    let dir = tree(|dir| {
        write(dir, ".dockerignore", "a");
        write(dir, "a", "");
        write(dir, "b", "");
        write(dir, "Dockerfile", "");
    });
    assert!(!listed(dir.path(), &WalkOptions::default()).contains(&"a".to_owned()));
    write(dir.path(), "Dockerfile.dockerignore", "");
    let tree = walk(dir.path(), &WalkOptions::default()).unwrap();
    assert_eq!(tree.ignore_file.as_deref(), Some(b"Dockerfile.dockerignore".as_slice()));
    assert_eq!(tree.entries.len(), 5);
    write(dir.path(), "my.Dockerfile.dockerignore", "b\n");
    let rules = IgnoreRules::IgnoreFile { dockerfile: Some(b"my.Dockerfile".to_vec()) };
    let paths = listed(dir.path(), &WalkOptions { rules, ..Default::default() });
    assert!(paths.contains(&"a".to_owned()) && !paths.contains(&"b".to_owned()));
}

#[test]
fn an_ignore_file_that_is_a_directory_counts_as_absent() {
    let dir = tree(|dir| write(dir, ".dockerignore/x", ""));
    assert_eq!(listed(dir.path(), &WalkOptions::default()), [".dockerignore", ".dockerignore/x"]);
}

#[test]
fn an_ignore_file_that_leads_out_of_the_tree_or_hangs_is_refused() {
    let outside = tree(|dir| write(dir, "rules", "secret-of-the-host"));
    let dir = tree(|dir| symlink(outside.path().join("rules"), dir.join(".dockerignore")).unwrap());
    let error = walk(dir.path(), &WalkOptions::default()).unwrap_err();
    assert!(matches!(error, WalkError::IgnoreFileKind { .. }), "{error}");

    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join(".dockerignore");
    rustix::fs::mknodat(rustix::fs::CWD, fifo, rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    let error = walk(dir.path(), &WalkOptions::default()).unwrap_err();
    assert_eq!(error.to_string(), ".dockerignore: is a fifo, not a regular file");
}

#[test]
fn an_ignore_file_may_be_a_link_inside_the_tree() {
    let dir = tree(|dir| {
        write(dir, "rules", "a");
        write(dir, "a", "");
        symlink("rules", dir.join(".dockerignore")).unwrap();
    });
    assert_eq!(listed(dir.path(), &WalkOptions::default()), [".dockerignore", "rules"]);
}

#[test]
fn a_bad_pattern_names_file_and_line() {
    let dir = tree(|dir| write(dir, ".dockerignore", "ok\n[a\n"));
    let error = walk(dir.path(), &WalkOptions::default()).unwrap_err().to_string();
    assert_eq!(error, ".dockerignore: line 2: pattern `[a`: a `[` is not closed");
}

#[test]
fn what_is_kept_survives_every_rule_with_the_directories_above_it() {
    let dir = tree(|dir| {
        write(dir, ".dockerignore", "**\n!x/y");
        write(dir, "deep/down/Dockerfile", "");
        write(dir, "deep/down/other", "");
        write(dir, "deep/up", "");
        write(dir, "x/y", "");
        write(dir, "x/z", "");
    });
    let keep = vec![b"deep/down/Dockerfile".to_vec(), b".dockerignore".to_vec(), b"x/z".to_vec()];
    let paths = listed(dir.path(), &WalkOptions { keep, ..Default::default() });
    assert_eq!(paths, [".dockerignore", "deep", "deep/down", "deep/down/Dockerfile", "x", "x/y", "x/z"]);
}

#[test]
fn a_directory_that_is_kept_against_the_rules_is_listed_once() {
    let dir = tree(|dir| {
        write(dir, ".dockerignore", "**\n!*/y");
        write(dir, "kept/y", "");
        write(dir, "kept/z", "");
    });
    let keep = vec![b"kept".to_vec()];
    assert_eq!(
        listed(dir.path(), &WalkOptions { keep, ..Default::default() }),
        [".dockerignore", "kept", "kept/y"]
    );
}

#[test]
fn the_first_trouble_in_the_order_of_the_list_is_named_whatever_is_found_first() {
    let dir = tree(|dir| {
        for number in 0..60 {
            write(dir, &format!("d{number:02}/deep/file"), "");
        }
    });
    let _sockets: Vec<_> = (7..60)
        .map(|number| UnixListener::bind(dir.path().join(format!("d{number:02}/deep/s"))).unwrap())
        .collect();
    for _ in 0..20 {
        let error = walk(dir.path(), &WalkOptions::default()).unwrap_err().to_string();
        assert!(error.starts_with("d07/deep/s: is a socket"), "{error}");
    }
}

#[test]
fn a_tree_of_many_and_deep_directories_is_listed_whole_and_in_order() {
    let mut expected = Vec::new();
    let dir = tree(|dir| {
        for top in 0..30 {
            let mut path = format!("t{top:02}");
            expected.push(path.clone());
            for _ in 0..top * 2 {
                path.push_str("/d");
                expected.push(path.clone());
            }
            fs::create_dir_all(dir.join(&path)).unwrap();
            for file in 0..300 {
                let path = format!("{path}/f{file:03}");
                fs::write(dir.join(&path), "").unwrap();
                expected.push(path);
            }
        }
    });
    for _ in 0..5 {
        assert_eq!(listed(dir.path(), &WalkOptions::default()), expected);
    }
}

#[test]
fn a_walk_by_rules_lists_what_their_filter_shows_of_the_whole_list() {
    let dir = tree(|dir| {
        for top in ["a", "b", "c.d"] {
            for path in ["x/y/z.go", "x/y/z.md", "x/keep", "w/x.go", "f"] {
                write(dir, &format!("{top}/{path}"), "");
            }
            fs::create_dir(dir.join(top).join("empty")).unwrap();
        }
    });
    let rules: [&[&str]; 9] = [
        &["a"],
        &["*"],
        &["**", "!**/*.go"],
        &["**", "!a/x/y/z.go", "!b/f"],
        &["a", "!a/x", "a/x/y/*.md"],
        &["**/x", "!b/x/keep"],
        &["**/*.go", "!keep"],
        &["*/x/y", "!c.d"],
        &["a/**", "b/*", "!b/empty"],
    ];
    let whole =
        walk(dir.path(), &WalkOptions { rules: IgnoreRules::Nothing, ..WalkOptions::default() }).unwrap();
    for list in rules {
        let patterns = IgnorePatterns::from_list(list).unwrap();
        let filter = TreeFilter::from_patterns(None, Some(patterns.clone()));
        let mut by_filter = filter.walk();
        let (mut expected, mut pruned) = (Vec::new(), None);
        for entry in &whole.entries {
            let inside = |dir: &Vec<u8>| {
                entry.path.strip_prefix(dir.as_slice()).is_some_and(|rest| rest.starts_with(b"/"))
            };
            if pruned.as_ref().is_some_and(inside) {
                continue;
            }
            match by_filter.visit(&entry.path, entry.is_dir(), display_path(&entry.path)) {
                VisitOutcome::Keep { parents } => {
                    expected.extend(parents);
                    expected.push(display_path(&entry.path));
                }
                VisitOutcome::Hide => {}
                VisitOutcome::Prune => pruned = Some(entry.path.clone()),
            }
        }
        let options = WalkOptions { rules: IgnoreRules::Patterns(patterns), ..WalkOptions::default() };
        assert_eq!(listed(dir.path(), &options), expected, "{list:?}");
    }
}

#[test]
fn what_packing_writes_is_left_out_by_any_path_that_leads_to_it() {
    let dir = tree(|dir| {
        for path in [
            "app/out/x.tar",
            "app/out/y.tar",
            "app/x.tar",
            "app/cache/layers/1",
            "app/out/.hearth-new-1a2b3c",
        ] {
            write(dir, path, "");
        }
        symlink("app/out", dir.join("link")).unwrap();
    });
    let (app, out) = (dir.path().join("app"), dir.path().join("app/out"));
    let id = |path: &Path| walk(path, &WalkOptions::default()).unwrap().id();
    let without = |root: &Path, written: Option<WrittenPath>| {
        listed(root, &WalkOptions { written: written.into_iter().collect(), ..WalkOptions::default() })
    };
    let cached = ["cache", "cache/layers", "cache/layers/1"];
    let all = |rest: &[&'static str]| [&cached[..], rest].concat();
    for path in [out.join("x.tar"), dir.path().join("link/x.tar"), app.join("cache/../out/x.tar")] {
        let written = WrittenPath::at(&path);
        assert!(written.is_some());
        assert_eq!(without(&app, written.clone()), all(&["out", "out/y.tar", "x.tar"]), "{}", path.display());
        assert_eq!(without(&out, written), ["y.tar"]);
    }
    assert_eq!(
        without(&app, WrittenPath::at(&app.join("new.tar"))),
        all(&["out", "out/x.tar", "out/y.tar", "x.tar"])
    );
    assert_eq!(
        without(&app, WrittenPath::at(&app.join("cache"))),
        ["out", "out/x.tar", "out/y.tar", "x.tar"]
    );
    assert_eq!(WrittenPath::at(&dir.path().join("missing/x.tar")), None);
    // A directory above the root, the root itself, and one below it.
    for (directory, path) in [(dir.path(), "/app/out/x.tar"), (&app, "out//x.tar"), (&out, "x.tar")] {
        let written = WrittenPath::below(id(directory), path);
        assert_eq!(
            without(&app, Some(written)),
            all(&["out", "out/y.tar", "x.tar"]),
            "{}",
            directory.display()
        );
    }
    let beside = WrittenPath::below(id(dir.path()), "application/out/x.tar");
    assert_eq!(without(&app, Some(beside)).len(), 7);
}

#[test]
fn the_dockerfile_and_the_ignore_file_that_apply_are_always_listed() {
    let dir = tree(|dir| {
        write(dir, ".dockerignore", "*\n!src");
        for path in ["src/main", "other", "docker/prod", "docker/dev"] {
            write(dir, path, "");
        }
        symlink("docker/../docker/prod", dir.join("Dockerfile")).unwrap();
    });
    let named = |name: &str| WalkOptions {
        rules: IgnoreRules::IgnoreFile { dockerfile: Some(name.as_bytes().to_vec()) },
        ..WalkOptions::default()
    };
    let default = WalkOptions::default();
    let without_rest = |paths: &[&'static str]| {
        let mut all = [paths, &[".dockerignore", "src", "src/main"]].concat();
        all.sort_unstable();
        all
    };
    assert_eq!(listed(dir.path(), &default), without_rest(&["Dockerfile", "docker", "docker/prod"]));
    assert_eq!(listed(dir.path(), &named("docker/dev")), without_rest(&["docker", "docker/dev"]));
    write(dir.path(), "Containerfile", "");
    assert_eq!(listed(dir.path(), &default), without_rest(&["Containerfile"]));
    write(dir.path(), "Containerfile.dockerignore", "*");
    assert_eq!(listed(dir.path(), &default), ["Containerfile", "Containerfile.dockerignore"]);
}

#[test]
fn rules_that_exclude_everything_are_told() {
    let dir = tree(|dir| {
        for path in ["a", "src/main", "Dockerfile"] {
            write(dir, path, "");
        }
    });
    for (rules, all_excluded) in
        [("*", true), ("**\n", true), ("*\n!src", false), ("a\nsrc", true), ("a", false), ("", false)]
    {
        write(dir.path(), ".dockerignore", rules);
        let tree = walk(dir.path(), &WalkOptions::default()).unwrap();
        assert_eq!(tree.all_excluded, all_excluded, "{rules}");
    }
}
