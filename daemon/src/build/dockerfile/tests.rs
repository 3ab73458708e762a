use proptest::prelude::*;

use super::*;

/// Returns the bytes that the builder receives for a Dockerfile.
fn settle_frontend(bytes: Vec<u8>) -> Result<Vec<u8>, FrontendRefused> {
    let dockerfile = Dockerfile::parse(bytes);
    match dockerfile.refused_frontend() {
        None => Ok(dockerfile.bytes().to_vec()),
        Some(refused) => Err(refused.clone()),
    }
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
        // A second pass changes nothing.
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
        if let Ok(settled) = settle_frontend(text.clone().into_bytes()) {
            prop_assert_eq!(settle_frontend(settled.clone()), Ok(settled.clone()));
            let settled = String::from_utf8(settled).unwrap();
            prop_assert_eq!(settled.matches('\n').count().abs_diff(text.matches('\n').count()) <= 1, true);
        }
    }
}
