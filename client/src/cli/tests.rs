use super::*;

fn parses(line: &str) -> bool {
    let words = line.split_whitespace().map(OsString::from);
    match parse(words) {
        Ok(_) => true,
        Err(end) => {
            assert!(end.error.use_stderr(), "{line}: {}", end.error);
            false
        }
    }
}

#[test]
fn the_command_line_is_consistent() {
    Arguments::command().debug_assert();
}

#[test]
fn the_examples_of_the_page_parse_in_both_spellings() {
    for verb in ["hearth", "hearth image"] {
        for example in [
            "pack ./my-app --output ./my-app.oci.tar --base python:3.13",
            "pack ./my-app --room myroom --tag room.meshagent.com/my-app:dev",
            "build --room myroom --tag room.meshagent.com/my-app:dev --pack ./my-app",
            "build --room myroom --tag room.meshagent.com/my-app:dev --mount-room-path /apps/my-app:/context:ro --context-path /context",
        ] {
            assert!(parses(&format!("{verb} {example}")), "{verb} {example}");
        }
    }
}

#[test]
fn wrong_command_lines_are_usage_errors() {
    for line in [
        "hearth",
        "hearth build",
        "hearth build --tag a --no-such-flag",
        "hearth build ./x --pack ./y --tag a",
        "hearth build --tag a --platform linux/arm64 --arch arm64",
        "hearth build --tag a --timeout soon",
        "hearth build --tag a --network host",
        "hearth pack",
        "hearth builds cancel",
        "hearth storage rm",
    ] {
        assert!(!parses(line), "{line}");
    }
}
