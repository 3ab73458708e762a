use proptest::prelude::*;

use super::*;
use crate::model::RoomRegistries;

fn inputs<'a>(
    build_args: &'a BTreeMap<String, String>,
    platform: &'a Platform,
    target: Option<&'a str>,
) -> DockerfileInputs<'a> {
    DockerfileInputs { build_args, platform, target }
}

fn arguments(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Returns the room's images that all stages of a Dockerfile name, each with its lines. Build arguments: `A=B,C=D`.
fn found(dockerfile: &str, given: &str) -> Vec<String> {
    let given = arguments(given);
    let platform = Platform::parse("linux/arm64/v8").unwrap();
    let rooms =
        RoomRegistries::new(vec!["room.meshagent.com".parse().unwrap(), "room.test".parse().unwrap()]);
    let dockerfile = Dockerfile::parse(dockerfile.into());
    let inputs = inputs(&given, &platform, None);
    let globals = GlobalArguments::new(&given, &platform, None);
    let mut reader = RemoteSourceScanner::new(&dockerfile, globals, inputs, &|_, _| None);
    reader.scan(0..reader.stages.len());
    let images = reader.found.images.into_iter().filter(|image| rooms.owns_source(&image.reference));
    let mut names: Vec<String> = Vec::new();
    for image in images {
        let name = image.reference.to_string();
        let name = name.strip_suffix(":latest").unwrap_or(&name);
        let shown = format!("{name}@{}-{}", image.excerpt.start_line, image.excerpt.end_line);
        if names.iter().all(|known| !known.starts_with(&format!("{name}@"))) {
            names.push(shown);
        }
    }
    names
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
        // Text that is not a Dockerfile
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
    let text = b"FROM debian\nCOPY \\\n --from=room.meshagent.com/a / /\nRUN x\n";
    let found = Dockerfile::parse(text.to_vec())
        .remote_sources(inputs(&BTreeMap::new(), &Platform::host(), None), &|_, _| None);
    assert_eq!(found.images[1].excerpt.text, "COPY \\\n --from=room.meshagent.com/a / /");
}

/// Returns the sources of a build: images with their platforms, and URLs.
fn needs(dockerfile: &str, target: Option<&str>, known: &[(&str, &[&str], &[&str])]) -> Vec<String> {
    let given = arguments("GIVEN=1");
    let platform = Platform::parse("linux/arm64").unwrap();
    let known = |reference: &Reference, _: &Platform| {
        let found = known.iter().find(|(name, ..)| reference.to_string() == *name)?;
        let own = |texts: &[&str]| texts.iter().map(ToString::to_string).collect();
        Some(ImageDefaults { environment: own(found.1), triggers: own(found.2), ..ImageDefaults::default() })
    };
    let named =
        Dockerfile::parse(dockerfile.into()).remote_sources(inputs(&given, &platform, target), &known);
    let images = named.images.iter();
    let images = images.map(|image| format!("{} {}", image.reference, image.platform.as_str()));
    let downloads = named.downloads.iter().map(|download| download.url.clone());
    images.chain(downloads).chain(named.repositories.iter().map(|found| found.url.clone())).collect()
}

#[test]
fn only_what_the_target_needs_is_named() {
    let text = "FROM one AS a\nFROM two AS b\nCOPY --from=a / /\nFROM three AS c\nFROM a AS d\n\
                RUN --mount=from=four,target=/x true\nCOPY --from=1 / /\n";
    assert_eq!(needs(text, None, &[]), ["one linux/arm64", "two linux/arm64", "four linux/arm64"]);
    assert_eq!(needs(text, Some("B"), &[]), ["one linux/arm64", "two linux/arm64"]);
    assert_eq!(needs(text, Some("c"), &[]), ["three linux/arm64"]);
    assert!(needs(text, Some("none"), &[]).is_empty());
    // A stage hides an image of that name, even if the stage comes later.
    let text = "FROM one\nCOPY --from=alpine / /\nFROM two AS alpine\nFROM one\nCOPY --from=0 / /\n";
    assert_eq!(needs(text, None, &[]), ["one linux/arm64", "two linux/arm64"]);
}

#[test]
fn each_image_is_named_for_the_platform_that_it_is_used_for() {
    let host = Platform::host();
    let text = "ARG P=s390x\nFROM --platform=$BUILDPLATFORM go AS build\nFROM --platform=${P} base\n\
                COPY --from=build / /\nCOPY --from=go / /\n";
    assert_eq!(
        needs(text, None, &[]),
        [format!("go {}", host.as_str()), "base linux/s390x".to_owned(), "go linux/arm64".to_owned()]
    );
}

#[test]
fn triggers_of_bases_and_of_stages_are_followed() {
    let text = "FROM base\nRUN true\n";
    assert_eq!(needs(text, None, &[]), ["base linux/arm64"]);
    let base: (&str, &[&str], &[&str]) = (
        "base",
        &["V=2"],
        &[
            "COPY --from=hidden /a /a",
            "RUN --mount=type=bind,from=mounted,target=/x true",
            "ADD https://e.example/${V} /x",
        ],
    );
    let once = ["base linux/arm64", "hidden linux/arm64", "mounted linux/arm64", "https://e.example/2"];
    assert_eq!(needs(text, None, &[base]), once);
    let hidden: (&str, &[&str], &[&str]) = ("hidden", &[], &["COPY --from=deep / /"]);
    assert!(needs(text, None, &[base, hidden]).contains(&"deep linux/arm64".to_owned()));
    // An image may name itself.
    let own: (&str, &[&str], &[&str]) = ("base", &[], &["COPY --from=base / /"]);
    assert_eq!(needs(text, None, &[own]), ["base linux/arm64"]);
    let text = "FROM one AS a\nONBUILD COPY --from=two / /\nFROM a\n";
    assert_eq!(needs(text, None, &[]), ["one linux/arm64", "two linux/arm64"]);
    assert_eq!(needs(text, Some("a"), &[]), ["one linux/arm64"]);
}

#[test]
fn urls_are_known_through_the_variables_of_their_stage() {
    let base: (&str, &[&str], &[&str]) = ("base", &["HOST=e.example"], &[]);
    let text = "ARG GIVEN\nARG PATH_=x\nFROM base\nARG GIVEN TARGETARCH PATH_\nENV V=$GIVEN\n\
                ADD https://$HOST/$PATH_/$V-$TARGETARCH.tgz https://$HOST/repo.git /x\nADD https://$NONE/a /x\n";
    assert_eq!(
        needs(text, None, &[base])[1..],
        ["https://e.example/x/1-arm64.tgz", "https://e.example/repo.git"]
    );
    let text =
        "FROM base AS a\nENV V=1\nADD https://e.example/no /x\nFROM scratch\nADD https://e.example/yes /x\n";
    assert_eq!(needs(text, None, &[]), ["https://e.example/yes"]);
}

#[test]
fn a_long_chain_of_stages_is_read() {
    let stages: String = (1..20_000).map(|at| format!("FROM s{} AS s{at}\n", at - 1)).collect();
    assert_eq!(needs(&format!("FROM one AS s0\n{stages}"), None, &[]), ["one linux/arm64"]);
}

proptest! {
    #[test]
    fn any_text_is_read_without_panic(
        text in "(#|FROM|ARG|ADD|COPY|RUN|ONBUILD|AS a|--from=|--mount=|escape=`|room.test/a|https://a|\\$|\\{|\\}|[\"'\\\\`<:=/%#\\-+?*, \n\tEOFx\u{e9}]){0,40}"
    ) {
        let _ = found(&text, "A=1");
        let _ = needs(&text, None, &[("room.test/a", &["A=1"], &["COPY --from=x / /"])]);
    }
}

#[test]
fn the_base_of_the_target_is_found_through_the_stages_in_between() {
    let host = Platform::host();
    let file = "ARG B=room.test/b:1\nFROM --platform=linux/arm64 $B AS one\nFROM one AS two\nFROM scratch AS three\n\
                COPY --from=room.test/c / /\nFROM room.test/d AS four\n";
    let dockerfile = Dockerfile::parse(file.into());
    let base = |target: Option<&str>, given: &str| {
        let given = arguments(given);
        let sources = dockerfile.remote_sources(inputs(&given, &host, target), &|_, _| None);
        sources.base.map(|(reference, platform)| (reference.to_string(), platform.as_str().to_owned()))
    };
    let named = |name: &str, platform: &str| Some((name.to_owned(), platform.to_owned()));
    assert_eq!(base(Some("two"), ""), named("room.test/b:1", "linux/arm64"));
    assert_eq!(base(Some("two"), "B=room.test/e:2"), named("room.test/e:2", "linux/arm64"));
    assert_eq!(base(Some("three"), ""), None, "what it copies from is no base");
    assert_eq!(base(None, ""), named("room.test/d", host.as_str()));
    assert_eq!(base(Some("no"), ""), None);
}

#[test]
fn the_first_run_of_each_platform_is_found_in_the_stages_that_are_needed() {
    let build_args = BTreeMap::new();
    let platform = Platform::parse("linux/arm64").unwrap();
    let runs = |text: &str| {
        let found =
            Dockerfile::parse(text.into()).remote_sources(inputs(&build_args, &platform, None), &|_, _| None);
        let shown = |run: &PlatformRun| format!("{}@{}", run.platform.as_str(), run.excerpt.start_line);
        found.runs.iter().map(shown).collect::<Vec<_>>()
    };
    assert_eq!(runs("FROM a\nCOPY x /\nRUN one\nRUN two\n"), ["linux/arm64@3"]);
    assert_eq!(runs("FROM a AS unused\nRUN x\nFROM scratch\nCOPY x /\n"), Vec::<String>::new());
    let cross = "FROM --platform=linux/amd64 a AS native\nRUN make\nFROM native AS more\nRUN more\nFROM scratch\nCOPY --from=more /x /\n";
    assert_eq!(runs(cross), ["linux/amd64@2"], "a stage has the platform of the stage below it");
    assert_eq!(runs(&format!("{cross}RUN last\n")), ["linux/amd64@2", "linux/arm64@7"]);
}

#[test]
fn an_onbuild_run_of_the_base_counts_for_the_stage_that_begins_with_it() {
    let build_args = BTreeMap::new();
    let platform = Platform::parse("linux/arm64").unwrap();
    let defaults = ImageDefaults { triggers: vec!["RUN x".to_owned()], ..ImageDefaults::default() };
    let found = Dockerfile::parse(b"# one\nFROM a\nCOPY x /\n".to_vec())
        .remote_sources(inputs(&build_args, &platform, None), &|_, _| Some(defaults.clone()));
    assert_eq!(found.runs.iter().map(|run| run.excerpt.start_line).collect::<Vec<_>>(), [2]);
}
