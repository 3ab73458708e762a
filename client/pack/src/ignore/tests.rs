use super::*;

#[derive(serde::Deserialize)]
struct Cases {
    paths: Vec<String>,
}

#[derive(serde::Deserialize)]
#[serde(default)]
#[derive(Default)]
struct Answer {
    file: String,
    error: bool,
    line: Option<usize>,
    alone: Vec<String>,
    walk: Vec<String>,
}

/// Test cases with the results of moby/patternmatcher 0.6: see `integration-tests/patternmatcher`.
fn cases() -> (Vec<String>, Vec<Answer>) {
    let cases = include_str!("../../../../integration-tests/patternmatcher/cases.json");
    let expected = include_str!("../../../../integration-tests/patternmatcher/expected.jsonl");
    let cases: Cases = serde_json::from_str(cases).unwrap();
    (cases.paths, expected.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn walked(patterns: &IgnorePatterns, path: &str) -> bool {
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    let parent = (false, ParentMatch::default());
    ends.fold(parent, |(_, parent), at| patterns.matches_under(&path.as_bytes()[..at], &parent)).0
}

#[test]
fn every_case_is_answered_as_docker_does() {
    let (paths, answers) = cases();
    assert!(answers.len() > 150);
    let mut wrong = Vec::new();
    for answer in answers {
        let parsed = IgnorePatterns::parse_file(answer.file.as_bytes());
        if parsed.is_err() != answer.error {
            wrong.push(format!("{:?}: {:?}", answer.file, parsed.err()));
            continue;
        }
        if let Err(error) = &parsed
            && error.line != answer.line
        {
            wrong.push(format!("{:?}: {error}, not line {:?}", answer.file, answer.line));
        }
        let Ok(patterns) = parsed else { continue };
        for path in &paths {
            let got = (patterns.matches(path.as_bytes()), walked(&patterns, path));
            let expected = (answer.alone.contains(path), answer.walk.contains(path));
            if got != expected {
                wrong.push(format!("{:?} on {path:?}: {got:?}, not {expected:?}", answer.file));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_pattern_that_is_not_utf8_matches_no_such_name() {
    let patterns = IgnorePatterns::parse_file(b"caf\xe9\n").unwrap();
    assert!(!patterns.matches(b"caf\xe9"));
}

#[test]
fn a_name_that_is_not_utf8_is_matched_character_by_character() {
    let patterns = IgnorePatterns::parse_file(b"a?c\nx*\n").unwrap();
    assert!(patterns.matches(b"a\xffc"));
    assert!(patterns.matches(b"x\xff\xfe"));
    assert!(!patterns.matches(b"a\xff\xffc"));
}

#[test]
fn a_line_of_64_kib_is_refused_with_its_number() {
    let line = |length| [b"first\n".as_slice(), &vec![b'a'; length], b"\nlast"].concat();
    assert!(IgnorePatterns::parse_file(&line(65535)).is_ok());
    let error = IgnorePatterns::parse_file(&line(65536)).unwrap_err();
    assert_eq!(error.line, Some(2));
    assert!(error.pattern.len() < 100);
}

#[test]
fn an_error_names_line_and_pattern() {
    let error = IgnorePatterns::parse_file(b"# one\nfine\n[a\n").unwrap_err();
    assert_eq!((error.line, error.pattern.as_str()), (Some(3), "[a"));
    assert_eq!(error.to_string(), "line 3: pattern `[a`: a `[` is not closed");
}

#[test]
fn a_hostile_pattern_is_matched_in_linear_time() {
    let patterns = IgnorePatterns::parse_file(format!("{}b", "*a".repeat(500)).as_bytes()).unwrap();
    assert!(!patterns.matches(&vec![b'a'; 4000]));
    assert!(IgnorePatterns::parse_file("a{1000}".repeat(1000).as_bytes()).is_ok(), "a plain name");
    assert!(IgnorePatterns::parse_file(format!("*{}", "a{1000}".repeat(1000)).as_bytes()).is_err());
}

/// Paths in walk order; a trailing `/` marks a directory.
fn shown(includes: &[&str], excludes: &[&str], tree: &[&str]) -> Vec<String> {
    let filter = TreeFilter::new(includes, excludes).unwrap();
    let mut walk = filter.walk();
    let mut shown = Vec::new();
    let mut pruned: Option<String> = None;
    for path in tree {
        if pruned.as_ref().is_some_and(|dir| path.starts_with(dir.as_str())) {
            continue;
        }
        let clean = path.trim_end_matches('/');
        match walk.visit(clean.as_bytes(), path.ends_with('/'), clean.to_owned()) {
            VisitOutcome::Keep { parents } => {
                shown.extend(parents);
                shown.push(clean.to_owned());
            }
            VisitOutcome::Hide => {}
            VisitOutcome::Prune => pruned = Some((*path).to_owned()),
        }
    }
    shown
}

const TREE: [&str; 8] = ["a/", "a/b/", "a/b/c.go", "a/b/d.md", "a/e.go", "f/", "f/g.go", "h.md"];

#[test]
fn a_directory_is_shown_late_when_something_in_it_is_kept() {
    assert_eq!(shown(&[], &["a", "!a/b/c.go"], &TREE), ["a", "a/b", "a/b/c.go", "f", "f/g.go", "h.md"]);
    assert_eq!(shown(&["**/*.md"], &[], &TREE), ["a", "a/b", "a/b/d.md", "h.md"]);
    assert_eq!(shown(&["a", "h.md"], &["**/*.go"], &TREE), ["a", "a/b", "a/b/d.md", "h.md"]);
}

#[test]
fn a_directory_that_cannot_hold_anything_shown_is_pruned() {
    let filter = TreeFilter::new(["a/b/*"], ["a/b/c.go", "f", "!f/g.go"]).unwrap();
    let mut walk = filter.walk();
    assert_eq!(walk.visit(b"a", true, 1), VisitOutcome::Hide);
    assert_eq!(walk.visit(b"a/b", true, 2), VisitOutcome::Hide);
    assert_eq!(walk.visit(b"a/b/c.go", false, 3), VisitOutcome::Hide);
    assert_eq!(walk.visit(b"a/b/d.md", false, 4), VisitOutcome::Keep { parents: vec![1, 2] });
    assert_eq!(walk.visit(b"a/x", true, 5), VisitOutcome::Prune);
    assert_eq!(walk.visit(b"f", true, 6), VisitOutcome::Prune);
}

#[test]
fn no_patterns_show_everything() {
    let none: [&str; 0] = [];
    let filter = TreeFilter::new(none, none).unwrap();
    assert!(filter.is_empty());
    assert_eq!(shown(&[], &[], &TREE).len(), TREE.len());
    assert!(filter.allows(b"anything"));
}

/// Pattern with 3,000 steps in 40 bytes: a few such lines are still fast, many are refused.
#[test]
fn repeats_of_many_patterns_together_are_bounded() {
    let line = "*a{1000}b{1000}c{1000}\n";
    let patterns = IgnorePatterns::parse_file(line.as_bytes()).unwrap();
    let path = [[b'a'; 1000], [b'b'; 1000], [b'c'; 1000]].concat();
    assert!(patterns.matches(&path) && !patterns.matches(&path[1..]));
    let error = IgnorePatterns::parse_file(line.repeat(40).as_bytes()).unwrap_err();
    assert_eq!(error.line, Some(2), "{error}");
    assert!(
        IgnorePatterns::from_list(vec!["*a*b*c*d*e*f*g"; 5_000]).is_ok(),
        "what is written out may be long"
    );
}

#[test]
fn the_memory_for_all_expressions_of_a_list_is_bounded() {
    let line = format!("*{}\n", "a".repeat(4_900));
    assert!(IgnorePatterns::parse_file(line.repeat(40).as_bytes()).is_ok());
    let error = IgnorePatterns::parse_file(line.repeat(50).as_bytes()).unwrap_err();
    assert_eq!((error.line, error.reason), (Some(41), "there are too many patterns with wildcards"));
}

#[test]
fn the_pattern_that_hides_a_path_is_the_last_one_that_does() {
    let patterns = IgnorePatterns::parse_file(b"*\n!src\nsrc/*.o\n  ./src//gen/\n!src/keep.o\n").unwrap();
    for (path, by) in [
        ("a", Some("*")),
        ("src/a.c", None),
        ("src/a.o", Some("src/*.o")),
        ("src/keep.o", None),
        ("src/gen/deep/x.c", Some("src/gen")),
    ] {
        assert_eq!(patterns.matching(path.as_bytes()), by, "{path}");
        assert_eq!(patterns.matches(path.as_bytes()), by.is_some(), "{path}");
    }
}
