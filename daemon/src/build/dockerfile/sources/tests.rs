use super::*;

/// Returns the paths that must exist, each with its line. Build arguments: `A=B,C=D`.
fn found(dockerfile: &str, arguments: &str, target: Option<&str>) -> Vec<String> {
    let arguments: BTreeMap<String, String> = arguments
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let copied = Dockerfile::parse(dockerfile.into()).context_copies(&arguments, target);
    let paths = copied.iter().flat_map(|copied| copied.sources.iter().map(move |source| (source, copied)));
    paths.map(|(source, copied)| format!("{}@{}", source.path, copied.excerpt.start_line)).collect()
}

/// Returns the paths that instructions need in a stage based on `scratch`.
fn one(instructions: &str) -> Vec<String> {
    let all = found(&format!("FROM scratch\n{instructions}\n"), "", None);
    all.iter().map(|path| path.split('@').next().unwrap().to_owned()).collect()
}

#[test]
fn plain_paths_of_copy_and_add_must_be_there() {
    for (instruction, expected) in [
        ("COPY a /x", &["a"][..]),
        ("copy ./a b/../c /d/ e/. ../f /x/", &["a", "c", "d", "e", "f"]),
        ("COPY a . / ./ a/.. /x/", &["a"]),
        ("ADD a.tar.gz b /x/", &["a.tar.gz", "b"]),
        ("COPY a\t\tb /x/", &["a", "b"]),
        ("COPY a # b /x/", &["a", "b"]),
        ("COPY -- a /x", &["a"]),
        ("COPY --link --chmod=755 --chown=$U --exclude=*.md a /x", &["a"]),
        ("ADD --link=false --keep-git-dir=true --unpack=true a /x", &["a"]),
        ("COPY \\\n  a \\\n  # remark\n  b /x/", &["a", "b"]),
        ("WORKDIR /w\nCOPY a .\nRUN x\nCOPY b .", &["a", "b"]),
        ("COPY [\"a\", \"b c\", \"/x/\"]", &["a", "b c"]),
        ("COPY \"a\" 'b' c\\d /x/", &["a", "b", "cd"]),
        ("COPY [\"'a'\", \"b\\\\\\\\c\", \"/x/\"]", &["a"]),
        ("COPY \u{e9}/\u{fc} /x", &["\u{e9}/\u{fc}"]),
    ] {
        assert_eq!(one(instruction), expected, "{instruction}");
    }
}

#[test]
fn what_may_be_something_else_need_not_be_there() {
    for instruction in [
        "COPY . /x",
        "COPY a* b? c[d] n/*/m /x/",
        "COPY \\* /x",
        "COPY --from=scratch a /x",
        "COPY --from= a /x",
        "COPY --parents a /x",
        "COPY --link=maybe a /x",
        "COPY --bogus a /x",
        "ADD --checksum=sha256:00 a /x",
        "ADD https://example.com/a /x",
        "ADD git@example.com:a/b.git /x",
        "ADD https://example.com/a.git#main /x",
        "COPY <<EOF /x\nCOPY a /x\nEOF",
        "COPY a <<EOF /x/\nhi\nEOF",
        "COPY \"a b\" /x",
        "COPY a",
        "COPY [\"a\"]",
        "COPY ['a', '/x']",
        "COPY [\"a\", 1, \"/x\"]",
        "COPY [\" a\", \"/x\"]",
        "COPY \u{fffd} /x",
        "COPY a\u{a0}b /x",
        "RUN <<EOF\nCOPY a /x\nEOF",
        "ONBUILD COPY a /x",
        "RUN --mount=source=a,target=/x true",
    ] {
        assert_eq!(one(instruction), [""; 0], "{instruction}");
    }
}

#[test]
fn a_dockerfile_that_the_frontend_refuses_needs_nothing() {
    for dockerfile in [
        "",
        "COPY a /x\n",
        "COPY a /x\nFROM scratch\n",
        "FROM scratch\nCOPYY b /x\nCOPY a /x\n",
        "FROM scratch AS\nCOPY a /x\n",
        "FROM scratch AS b c\nCOPY a /x\n",
        "FROM scratch AS b\nCOPY a /x\nFROM scratch AS B\nCOPY a /x\n",
    ] {
        assert_eq!(found(dockerfile, "", None), [""; 0], "{dockerfile}");
    }
    assert_eq!(found("FROM scratch\nCOPY a /x\n", "", Some("no")), [""; 0]);
    assert_eq!(found("FROM scratch\nCOPY a /x\n", "", Some("0")), [""; 0]);
}

#[test]
fn only_stages_that_the_target_needs_count() {
    let unused = "FROM scratch AS u\nCOPY a /\n";
    for (rest, target, expected) in [
        ("FROM scratch\nCOPY b /\n", None, &["b@4"][..]),
        ("FROM scratch\nCOPY b /\n", Some("U"), &["a@2"]),
        ("FROM u\n", None, &["a@2"]),
        ("FROM U AS v\nFROM v\nCOPY b /\n", None, &["a@2", "b@5"]),
        ("FROM x\nCOPY --from=U /a /\n", None, &["a@2"]),
        ("FROM x\nCOPY --from=0 /a /\n", None, &["a@2"]),
        ("FROM x\nRUN --mount=type=cache,from=u,target=/m true\n", None, &["a@2"]),
        ("FROM x\nRUN --mount=from=0,target=/m true\n", None, &[]),
        ("FROM x\nONBUILD COPY --from=u /a /\n", None, &[]),
        ("FROM x\nCOPY --from=1 /a /\nCOPY --from=9 /a /\n", None, &[]),
        ("FROM x\nCOPY --from=$U /a /\n", None, &[]),
        ("FROM x AS v\nCOPY b /\nFROM x AS w\nCOPY --from=v / /\n", None, &["b@4"]),
        ("FROM $NO\n", None, &[]),
    ] {
        assert_eq!(found(&format!("{unused}{rest}"), "", target), expected, "{rest}");
    }
    let named_by_argument = "ARG S=u\nFROM scratch AS u\nCOPY a /\nFROM scratch AS v\nCOPY b /\nFROM $S\n";
    assert_eq!(found(named_by_argument, "", None), ["a@3"]);
    assert_eq!(found(named_by_argument, "S=v", None), ["b@5"]);
}

#[test]
fn a_variable_counts_where_its_value_is_certain() {
    for (head, expected) in [
        ("FROM x\nENV X=a", "a"),
        ("FROM x\nENV X a b", "a b"),
        ("FROM x\nENV X=a\nENV X=b Y=$X\nENV X=$Y", "a"),
        ("FROM x\nENV X=\"a\\\"b\"", "a\"b"),
        ("FROM x AS u\nENV X=a\nFROM u", "a"),
        ("FROM x\nENV X=a\nARG X=b", "b"),
        ("FROM x\nENV X=a\nARG X", "a"),
        ("FROM x\nARG X=a\nENV X=b", "b"),
        ("FROM x\nARG X=a", "a"),
        ("ARG X=b\nFROM x\nENV X=a\nARG X", "b"),
        ("FROM x AS u\nENV X=a\nARG X=b\nFROM u", "a"),
        ("FROM scratch AS u\nENV X=a\nARG X=b\nFROM u", "a"),
        ("FROM scratch AS u\nARG X=a\nFROM u AS v\nFROM v", "a"),
        ("FROM scratch\nARG X=a\nARG X", "a"),
        ("FROM $NO\nARG X=a", "a"),
        ("FROM scratch\nARG Y=b X=${Y}c", "bc"),
        ("FROM scratch\nARG Z", "given"),
        ("FROM scratch\nARG Z=a", "given"),
        ("FROM scratch\nARG Z\nENV X=$Z", "given"),
        ("ARG X=a\nFROM scratch\nARG X", "a"),
        ("ARG X=a\nFROM scratch\nARG X=b", "b"),
        ("FROM scratch AS u\nARG X=a\nFROM u", "a"),
        ("FROM scratch\nENV X=a\nENV Y=$NO", "a"),
    ] {
        let name = if head.contains("ARG Z") && !head.contains("ENV X") { "Z" } else { "X" };
        let found = found(&format!("{head}\nCOPY ${name} /\n"), "Z=given", None);
        assert_eq!(found.first().and_then(|path| path.split('@').next()), Some(expected), "{head}");
    }
    for head in [
        "FROM x",
        "FROM scratch",
        "ARG X=a\nFROM scratch",
        "FROM scratch\nARG X",
        "FROM x AS u\nARG X=a\nFROM u",
        "FROM scratch AS u\nARG X=$NO\nFROM u",
        "FROM scratch\nARG X=$NO",
        "FROM scratch\nARG X=a\nENV X=$NO",
        "FROM scratch\nARG X=no*",
        "FROM scratch\nENV X=a\nENV $N=b",
        "FROM scratch\nENV X=a\nENV Y=b Z",
        "FROM scratch AS u\nENV X=a\nONBUILD ENV X=b\nFROM u",
        "FROM scratch\nARG TARGETOS X=$TARGETOS",
        "ARG X=$TARGETARCH\nFROM scratch\nARG X",
        "ARG TARGETARCH=a X=$TARGETARCH\nFROM scratch\nARG X",
    ] {
        assert_eq!(found(&format!("{head}\nCOPY $X ${{X:-y}} /\n"), "", None), [""; 0], "{head}");
    }
    assert_eq!(one("COPY $PATH /"), [""; 0]);
    assert_eq!(found("FROM scratch AS u\nARG PATH=a\nFROM u\nCOPY $PATH /\n", "", None), [""; 0]);
    assert_eq!(one("ENV X=a\nCOPY '$X' \\$X \"$X\" ${X:+b} ${X#a}c /"), ["$X", "$X", "a", "b", "c"]);
}

#[test]
fn the_step_and_its_lines_are_reported() {
    let dockerfile = Dockerfile::parse(b"FROM x\ncopy --link \\\n  a b\nRUN y\n".to_vec());
    let copied = dockerfile.context_copies(&BTreeMap::new(), None);
    let [only] = copied.as_slice() else { panic!("{copied:?}") };
    let place = &only.excerpt;
    assert_eq!((place.start_line, place.end_line, place.text.as_str()), (2, 3, "copy --link \\\n  a b"));
    assert_eq!(only.step, "COPY a b");
    assert_eq!(only.sources, [CopySource { path: "a".to_owned(), written: "a".to_owned() }]);
}

proptest::proptest! {
    #[test]
    fn any_text_is_read_without_panic(
        text in "(FROM |ARG |ENV |COPY |RUN |AS |scratch|--from=|--mount=|a|b|0|X|=|,|\\$|\\{|\\}|[\"'\\\\`<:/#\\-+?*.\\[, \n\t]){0,40}"
    ) {
        for found in found(&text, "A=1", None) {
            let path = found.rsplit_once('@').unwrap().0;
            proptest::prop_assert!(!path.is_empty() && path.split('/').all(|part| !matches!(part, "" | "." | "..")), "{path}");
        }
    }
}
