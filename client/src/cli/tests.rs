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
    CliArguments::command().debug_assert();
}

#[test]
fn the_examples_of_the_page_parse_in_both_spellings() {
    for verb in ["hearth", "hearth image"] {
        for example in [
            "pack ./my-app --output ./my-app.oci.tar --base python:3.13",
            "pack ./my-app --room myroom --tag room.meshagent.com/my-app:dev",
            "build --room myroom --tag room.meshagent.com/my-app:dev --pack ./my-app",
            "build --room myroom --tag room.meshagent.com/my-app:dev --mount-room-path /apps/my-app:/context:ro --context-path /context",
            "deploy --room myroom --tag room.meshagent.com/my-app:dev --env APP_ENV=dev",
        ] {
            assert!(parses(&format!("{verb} {example}")), "{verb} {example}");
        }
    }
}

#[test]
fn a_usage_error_names_what_is_missing_or_wrong_as_json_too() {
    let failure = |line: &str| {
        let wrong = parse(line.split_whitespace().map(OsString::from)).unwrap_err();
        usage_failure(&wrong.error.render().to_string())
    };
    let missing = failure("hearth build ./x").detail;
    assert_eq!(missing.message, "the following required arguments were not provided: --tag <TAG>");
    let unknown = failure("hearth build ./x --tga a").detail;
    assert_eq!(unknown.message, "unexpected argument '--tga' found");
    assert!(failure("hearth builds list --state done").detail.message.contains("[possible values: queued,"));
}

#[test]
fn services_routes_and_secrets_are_there_in_all_their_forms() {
    for line in [
        "services list",
        "services ls --json",
        "services show web",
        "services show web -o yaml --revision 2",
        "services logs web --follow --tail 5 --since 10m --grep error --revision 3",
        "services restart web --no-wait",
        "services rollback web",
        "services rollback web 3 --progress plain",
        "services rm web db --grace 30s",
        "services exec -it web -- sh -c ls",
        "services exec web ls -l",
        "services apply -f - --dry-run",
        "routes list",
        "routes rm www.example.com",
        "secrets set db-password",
        "secrets set db-password --from-file f",
        "secrets ls",
        "secrets rm a b",
        "image deploy --tag a --no-wait",
    ] {
        assert!(parses(&format!("hearth {line}")), "{line}");
    }
}

#[test]
fn wrong_command_lines_are_usage_errors() {
    for line in [
        "hearth build",
        "hearth build --tag a --no-such-flag",
        "hearth build ./x --pack ./y --tag a",
        "hearth build --tag a --platform linux/arm64 --arch arm64",
        "hearth build --tag a --timeout soon",
        "hearth build --tag a --network host",
        "hearth pack",
        "hearth builds cancel",
        "hearth storage rm",
        "hearth deploy",
        "hearth services",
        "hearth services show",
        "hearth services show web --revision 2",
        "hearth services show web -o xml",
        "hearth services logs",
        "hearth services logs web --tail 0",
        "hearth services logs web --since yesterday",
        "hearth services rollback web 0",
        "hearth services rollback web last",
        "hearth services restart web --wait --no-wait",
        "hearth services rm",
        "hearth services rm web --now --grace 5s",
        "hearth services exec web",
        "hearth services apply",
        "hearth routes rm",
        "hearth secrets set",
        "hearth secrets set name value",
        "hearth secrets rm",
    ] {
        assert!(!parses(line), "{line}");
    }
}

#[test]
fn every_command_and_every_argument_has_a_help_text() {
    fn check(command: &clap::Command, words: &str, missing: &mut Vec<String>) {
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            if argument.get_help().is_none_or(|help| help.to_string().trim().is_empty()) {
                missing.push(format!("{words} {argument}"));
            }
        }
        for below in command.get_subcommands().filter(|below| below.get_name() != "help") {
            let words = format!("{words} {}", below.get_name());
            if below.get_about().is_none() {
                missing.push(words.clone());
            }
            check(below, &words, missing);
        }
    }
    let mut command = CliArguments::command();
    command.build();
    let mut missing = Vec::new();
    check(&command, "hearth", &mut missing);
    assert!(missing.is_empty(), "without a help text: {missing:#?}");
}

#[test]
fn a_flag_with_swapped_letters_is_recognized() {
    let tip = |line: &str| {
        let wrong = parse(line.split_whitespace().map(OsString::from)).unwrap_err();
        usage_failure(&wrong.error.render().to_string()).detail.hint
    };
    assert_eq!(tip("hearth build ./x --tga a"), "a similar argument exists: '--tag'");
    assert_eq!(tip("hearth image build ./x --tga=a"), "a similar argument exists: '--tag'");
    assert_eq!(tip("hearth services logs web --tial 5"), "a similar argument exists: '--tail'");
    assert!(!tip("hearth build ./x --zzz a").contains("similar"));
}

#[test]
fn the_dockerfile_has_the_flag_of_other_builders() {
    assert!(parses("hearth build ./x --tag a --file web.Dockerfile"));
    assert!(parses("hearth build ./x --tag a -f web.Dockerfile"));
}

#[test]
fn the_word_behind_no_cache_is_a_stage_where_it_can_be_one() {
    for (line, path, stages) in [
        ("--no-cache ./app", Some("./app"), &[""][..]),
        ("--no-cache app", Some("app"), &[""]),
        ("--no-cache deps ./app", Some("./app"), &["deps"]),
        ("--no-cache=deps ./app", Some("./app"), &["deps"]),
        ("--no-cache=deps", None, &["deps"]),
        ("--no-cache=./app", None, &["./app"]),
        ("--no-cache= ./app", Some("./app"), &[""]),
        ("./app --no-cache", Some("./app"), &[""]),
        ("--no-cache deps --mount-room-path a", None, &["deps"]),
        ("--no-cache ./app --mount-room-path a:/a", Some("./app"), &[""]),
        ("--no-cache deps --no-cache out --pack ./app", None, &["deps", "out"]),
    ] {
        let words = format!("hearth build --tag a {line}");
        let parsed =
            parse(words.split_whitespace().map(OsString::from)).unwrap_or_else(|end| panic!("{}", end.error));
        let Some(CliCommand::Build(mut args)) = parsed.command else { panic!("{line}") };
        args.take_path_from_no_cache();
        assert_eq!(
            (args.path.as_deref(), args.options.no_cache()),
            (path, stages.iter().map(|stage| (*stage).to_owned()).collect::<Vec<_>>()),
            "{line}"
        );
    }
}

#[test]
fn up_takes_the_flags_of_a_deploy_and_no_command_is_a_command() {
    for line in [
        "hearth up",
        "hearth up ./my-app --domain my-app.example.com --public --progress plain",
        "hearth up . --tag a/b:1 --name web --port 8000 --env A=1 --target web --build-arg B=2 --no-wait",
        "hearth up --no-cache ./my-app",
        "hearth init",
        "hearth",
        "hearth --json",
    ] {
        assert!(parses(line), "{line}");
    }
    assert!(!parses("hearth up . --pack x") && !parses("hearth up . --dry-run"));
}

#[test]
fn the_flags_of_other_programs_are_left_alone() {
    let line = "hearth services exec web ls --no-cache=x";
    let parsed =
        parse(line.split_whitespace().map(OsString::from)).unwrap_or_else(|end| panic!("{}", end.error));
    let shown = format!("{:?}", parsed.command);
    assert!(shown.contains("--no-cache=x") && !shown.contains("--no-cache==x"), "{shown}");
}
