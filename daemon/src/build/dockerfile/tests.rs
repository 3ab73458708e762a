use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// Names found in a Dockerfile, each with its lines, with build arguments `A=B,C=D`.
fn found(dockerfile: &str, arguments: &str) -> Vec<String> {
    let arguments: BTreeMap<String, String> = arguments
        .split(',')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let platform = Platform::parse("linux/arm64/v8").unwrap();
    let rooms =
        RoomRegistries::new(vec!["room.meshagent.com".parse().unwrap(), "room.test".parse().unwrap()]);
    room_references(dockerfile.as_bytes(), &arguments, &platform, None, &rooms)
        .into_iter()
        .map(|found| format!("{}@{}-{}", found.name, found.start_line, found.end_line))
        .collect()
}

#[test]
fn references_to_the_room_are_found_wherever_buildkit_looks_images_up() {
    let sum = format!("sha256:{}", "0a".repeat(32));
    let pinned = format!("FROM room.test/a@{sum}\n");
    let pinned_tag = format!("FROM room.test/a:1@{sum}\n");
    let pinned_name = format!("room.test/a@{sum}@1-1");
    let pinned_tag_name = format!("room.test/a:1@{sum}@1-1");
    let cases: &[(&str, &str, &[&str])] = &[
        // FROM
        ("FROM room.meshagent.com/a/b:1\n", "", &["room.meshagent.com/a/b:1@1-1"]),
        ("FROM room.test/a", "", &["room.test/a@1-1"]),
        ("FROM room.test/a:latest AS x\n", "", &["room.test/a@1-1"]),
        ("from room.test/a:1 as X\nFROM x\n", "", &["room.test/a:1@1-1"]),
        ("FROM --platform=linux/amd64 room.test/a:1\n", "", &["room.test/a:1@1-1"]),
        ("FROM --platform=$BUILDPLATFORM \"room.test/a:1\" AS x\n", "", &["room.test/a:1@1-1"]),
        ("FROM debian\nFROM room.test/a:1\nFROM room.test/a:1 AS again\n", "", &["room.test/a:1@2-2"]),
        ("FROM debian\nFROM example.com/room.test/a\nFROM scratch\nFROM my-app:dev\n", "", &[]),
        ("FROM room.test\n", "", &[]),
        ("FROM roomXtest/a\nFROM room.test.example/a\nFROM Room.test/a\nFROM room.test/A\n", "", &[]),
        (&pinned, "", &[&pinned_name]),
        (&pinned_tag, "", &[&pinned_tag_name]),
        ("FROM\n", "", &[]),
        // ARG in the name
        ("ARG V=1\nFROM room.test/a:$V\n", "", &["room.test/a:1@2-2"]),
        ("ARG V=1\nFROM room.test/a:${V}\n", "V=2", &["room.test/a:2@2-2"]),
        ("ARG V\nFROM room.test/a:${V:-3}\n", "", &["room.test/a:3@2-2"]),
        ("ARG V\nFROM room.test/a:${V:-3}\n", "V=4", &["room.test/a:4@2-2"]),
        (
            "ARG V=\nFROM room.test/a:${V:-3}\nFROM room.test/b${V-x}\n",
            "",
            &["room.test/a:3@2-2", "room.test/b@3-3"],
        ),
        ("ARG V=1\nFROM room.test/a${V:+:dev}\n", "", &["room.test/a:dev@2-2"]),
        ("FROM room.test/a${V+:dev}\n", "", &["room.test/a@1-1"]),
        ("ARG R=room.test N=a\nARG I=\"$R/${N}\"\nFROM ${I}:1\n", "", &["room.test/a:1@3-3"]),
        ("ARG R=room.test N=a\nARG I=$R/$N\nFROM ${I}:1\n", "N=b", &["room.test/b:1@3-3"]),
        ("FROM room.test/a:$V\n", "V=1", &[]),
        ("FROM debian\nARG V=1\nFROM room.test/a:$V\n", "", &[]),
        ("FROM room.test/a:$TARGETARCH-$TARGETVARIANT\n", "", &["room.test/a:arm64-v8@1-1"]),
        ("FROM room.test/a:$TARGETARCH\n", "TARGETARCH=x", &["room.test/a:x@1-1"]),
        ("FROM room.test/a:${TARGETSTAGE}\n", "", &["room.test/a:default@1-1"]),
        ("ARG V=v1.2.3\nFROM room.test/a:${V#v}\n", "", &["room.test/a:1.2.3@2-2"]),
        ("ARG V=v1.2.3\nFROM room.test/a:${V%.*}\n", "", &["room.test/a:v1.2@2-2"]),
        ("ARG V=v1.2.3\nFROM room.test/a:${V%%.*}\n", "", &["room.test/a:v1@2-2"]),
        ("ARG V=v1.2.3\nFROM room.test/a:${V##*.}\n", "", &["room.test/a:3@2-2"]),
        (
            "ARG V=a+b+c\nFROM room.test/a:${V/+/_}\nFROM room.test/a:${V//+/_}\n",
            "",
            &["room.test/a:a_b_c@3-3"],
        ),
        ("ARG V\nFROM room.test/a:${V:?must be set}\n", "", &[]),
        ("FROM room.test/a:'1'\n", "", &["room.test/a:1@1-1"]),
        ("ARG V='$X'\nFROM room.test/a:1${V:+2}\n", "", &["room.test/a:12@2-2"]),
        ("FROM room.test/a:${V\nFROM room.test/b\n", "", &["room.test/b@2-2"]),
        // COPY --from
        ("FROM debian\nCOPY --from=room.test/a:1 /x /y\n", "", &["room.test/a:1@2-2"]),
        ("FROM debian\ncopy --chown=1:1 --from=room.test/a:latest --link /x /y\n", "", &["room.test/a@2-2"]),
        ("FROM debian AS b\nCOPY --from=b /x /y\nCOPY --from=0 /x /y\nCOPY --from=ubuntu / /\n", "", &[]),
        ("FROM debian\nCOPY \"--from=room.test/a\" /x /y\n", "", &[]),
        ("FROM debian\nCOPY --from=\"room.test/a\" /x /y\n", "", &["room.test/a@2-2"]),
        ("ARG V=1\nFROM debian\nCOPY --from=room.test/a:$V /x /y\n", "", &[]),
        ("FROM debian\nCOPY x --from=room.test/a /y\n", "", &[]),
        ("FROM debian\nCOPY -- --from=room.test/a /y\n", "", &[]),
        // RUN --mount
        (
            "FROM debian\nRUN --mount=type=bind,from=room.test/a:1,target=/t make\n",
            "",
            &["room.test/a:1@2-2"],
        ),
        (
            "FROM debian\nRUN --mount=from=room.test/a --mount=from=room.test/b x\n",
            "",
            &["room.test/a@2-2", "room.test/b@2-2"],
        ),
        ("FROM debian\nRUN --mount=type=bind,\"from=room.test/a\",target=/t x\n", "", &["room.test/a@2-2"]),
        ("FROM debian\nRUN --mount=type=secret,id=from=x echo from=room.test/a\n", "", &[]),
        // Lines
        (
            "FROM debian\nCOPY \\\n  # a remark\n\n  --from=room.test/a:1 \\\n  /x /y\n",
            "",
            &["room.test/a:1@2-6"],
        ),
        ("FROM room.test\\\n/a:1\n", "", &["room.test/a:1@1-2"]),
        (
            "\u{feff}FROM room.test/a\r\nCOPY --from=room.test/b \\\r\n / /\r\n",
            "",
            &["room.test/a@1-1", "room.test/b@2-3"],
        ),
        ("  # comment\n\n\tFROM room.test/a\n", "", &["room.test/a@3-3"]),
        (
            "# escape=`\nFROM debian\nCOPY `\n--from=room.test/a C:\\ D:\\\nCOPY --from=room.test/b / /\n",
            "",
            &["room.test/a@3-4", "room.test/b@5-5"],
        ),
        ("# remark\n# escape=`\nFROM debian\nCOPY \\\n--from=room.test/a / /\n", "", &["room.test/a@4-5"]),
        ("FROM debian\\\\\nFROM room.test/a\n", "", &["room.test/a@2-2"]),
        ("FROM room.test/a \\", "", &["room.test/a@1-1"]),
        // Heredocs
        (
            "FROM debian\nRUN <<EOF\nFROM room.test/no\nEOF\nCOPY --from=room.test/a / /\n",
            "",
            &["room.test/a@5-5"],
        ),
        (
            "FROM debian\nRUN <<-EOF cat\n\tFROM room.test/no\n\tEOF\nFROM room.test/a\n",
            "",
            &["room.test/a@5-5"],
        ),
        (
            "FROM debian\nCOPY --from=room.test/b <<'A' <<\"B\" /x/\nFROM room.test/no\nA\nFROM room.test/no\nB\nFROM room.test/a\n",
            "",
            &["room.test/b@2-6", "room.test/a@7-7"],
        ),
        ("FROM debian\nRUN << EOF\nFROM room.test/no\nEOF\nFROM room.test/a\n", "", &["room.test/a@5-5"]),
        ("FROM debian\nRUN echo \"<<EOF\"\nFROM room.test/a\n", "", &["room.test/a@3-3"]),
        ("FROM debian\nRUN [\"sh\", \"<<EOF\"]\nFROM room.test/a\n", "", &["room.test/a@3-3"]),
        ("FROM debian\nENV X=<<EOF\nFROM room.test/a\n", "", &["room.test/a@3-3"]),
        (
            "FROM debian\nONBUILD RUN <<EOF\nFROM room.test/no\nEOF\nFROM room.test/a\n",
            "",
            &["room.test/a@5-5"],
        ),
        ("FROM debian\nRUN <<EOF\nFROM room.test/no\n", "", &[]),
        ("FROM debian\nRUN cat <<<word\nFROM room.test/a\n", "", &["room.test/a@3-3"]),
        // What is no Dockerfile
        ("", "", &[]),
        ("\n\n#\n", "", &[]),
        ("{\"syntax\": 1}", "", &[]),
    ];
    assert!(cases.len() >= 40);
    for (dockerfile, arguments, expected) in cases {
        assert_eq!(found(dockerfile, arguments), *expected, "{dockerfile}");
    }
}

#[test]
fn the_text_of_a_reference_is_that_of_its_lines() {
    let rooms = RoomRegistries::default();
    let text = b"FROM debian\nCOPY \\\n --from=room.meshagent.com/a / /\nRUN x\n";
    let found = room_references(text, &BTreeMap::new(), &Platform::host(), None, &rooms);
    assert_eq!(found[0].text, "COPY \\\n --from=room.meshagent.com/a / /");
}

#[test]
fn the_built_in_frontend_serves_its_own_names_and_the_line_is_neutral() {
    for (given, expected) in [
        ("FROM x\n", "FROM x\n"),
        ("# syntax=docker/dockerfile:1\nFROM x\n", "# built in: docker/dockerfile:1\nFROM x\n"),
        ("#syntax=docker/dockerfile\nFROM x\n", "# built in: docker/dockerfile\nFROM x\n"),
        (
            "# SYNTAX = docker.io/docker/dockerfile:1.7 \r\nFROM x\n",
            "# built in: docker.io/docker/dockerfile:1.7\nFROM x\n",
        ),
        (
            "# syntax=docker/dockerfile:latest\n# escape=`\nFROM x\n",
            "# escape=`\n# built in: docker/dockerfile:latest\nFROM x\n",
        ),
        (
            "# check=skip=all\n# syntax=docker/dockerfile:1\nFROM x",
            "# check=skip=all\n# built in: docker/dockerfile:1\nFROM x",
        ),
        (
            "\u{feff}# syntax=docker/dockerfile:1\nFROM x\n",
            "\u{feff}# built in: docker/dockerfile:1\nFROM x\n",
        ),
        (
            "#!/usr/bin/env x\n# syntax=docker/dockerfile:1\nFROM x\n",
            "#!/usr/bin/env x\n# built in: docker/dockerfile:1\nFROM x\n",
        ),
        ("# a remark\n# syntax=evil/frontend\nFROM x\n", "# a remark\n# syntax=evil/frontend\nFROM x\n"),
        ("\n# syntax=evil/frontend\nFROM x\n", "\n# syntax=evil/frontend\nFROM x\n"),
        ("FROM x\n# syntax=evil/frontend\n", "FROM x\n# syntax=evil/frontend\n"),
        ("# syntax=\nFROM x\n", "# syntax=\nFROM x\n"),
    ] {
        let settled = settle_frontend(given.as_bytes().to_vec()).unwrap();
        assert_eq!(String::from_utf8(settled.clone()).unwrap(), expected, "{given}");
        assert_eq!(given.lines().count(), expected.lines().count());
        // Nothing is left to settle.
        assert_eq!(settle_frontend(settled.clone()).unwrap(), settled, "{given}");
    }
}

#[test]
fn any_other_frontend_is_refused_by_name() {
    for (given, image, line) in [
        ("# syntax=evil/frontend:1\nFROM x\n", "evil/frontend:1", 1),
        ("# syntax=evil/frontend --flag\nFROM x\n", "evil/frontend", 1),
        ("# escape=`\n# syntax=example.com/docker/dockerfile:1\n", "example.com/docker/dockerfile:1", 2),
        ("# syntax=docker/dockerfile:1-labs\nFROM x\n", "docker/dockerfile:1-labs", 1),
        ("# syntax=docker/dockerfile:2\nFROM x\n", "docker/dockerfile:2", 1),
        ("# syntax=docker/dockerfile:1\n# syntax=evil/frontend\nFROM x\n", "evil/frontend", 2),
        ("#!x\n# syntax=evil/frontend\nFROM x\n", "evil/frontend", 2),
        ("// syntax=evil/frontend\n", "evil/frontend", 1),
        ("{\"syntax\": \"evil/frontend x\"}", "evil/frontend", 1),
        ("\u{feff}#syntax=room.meshagent.com/x\n", "room.meshagent.com/x", 1),
    ] {
        let refused = settle_frontend(given.as_bytes().to_vec()).unwrap_err();
        assert_eq!((refused.image.as_str(), refused.line), (image, line), "{given}");
    }
    let bytes = [b"# syntax=evil\nFROM x\nRUN \xff\n".as_slice()].concat();
    assert!(settle_frontend(bytes).is_err(), "also in a file that is no text");
    assert!(settle_frontend_argument("evil/frontend x").is_err());
    assert!(settle_frontend_argument(" docker/dockerfile:1.9").is_ok());
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_panic(
        text in "(#|//|FROM|ARG|COPY|RUN|--from=|--mount=|syntax=|escape=`|room.test/a|\\$|\\{|\\}|[\"'\\\\`<:=/%#\\-+?*, \n\tEOFx\u{e9}]){0,40}"
    ) {
        let _ = found(&text, "A=1");
        if let Ok(settled) = settle_frontend(text.clone().into_bytes()) {
            prop_assert_eq!(settle_frontend(settled.clone()), Ok(settled.clone()));
            let settled = String::from_utf8(settled).unwrap();
            prop_assert_eq!(settled.matches('\n').count().abs_diff(text.matches('\n').count()) <= 1, true);
        }
    }
}
