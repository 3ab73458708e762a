//! The daemon checks, fetches and caches every image and file that a build names. The builder itself fetches nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use integration_tests::daemon::{Daemon, Options, scratch};
use integration_tests::http::Request;
use integration_tests::lone_cases;
use integration_tests::process::{self, Output};
use integration_tests::runner::Group;
use integration_tests::scripted::{Asked, Reply, Scripted};
use integration_tests::small_image::SmallRegistry;
use integration_tests::sources::Tree;
use integration_tests::wait::seconds;
use serde_json::{Value, json};

pub fn group() -> Group {
    Group::new(
        "walls_images",
        lone_cases![
            an_image_that_the_token_may_not_pull_is_never_requested_under_any_name,
            the_rooms_registry_by_its_address_asks_for_the_same_grant,
            a_name_that_the_daemon_does_not_find_is_denied_and_never_requested,
            a_registry_gets_its_password_for_itself_and_from_the_daemon_only,
            nothing_connects_to_a_registry_at_an_internal_address,
            a_registry_does_not_lead_the_daemon_to_an_internal_address,
            an_image_fetched_with_one_participants_credential_is_hidden_from_others,
            builds_continue_with_the_cached_image_while_the_registry_is_unreachable,
            every_spelling_and_platform_of_a_name_is_the_image,
            the_error_reports_a_failed_mirror_with_its_answer,
            a_file_by_url_comes_from_no_internal_address,
            a_file_by_url_comes_from_an_allowed_host_once_and_as_it_is,
        ],
    )
    .in_sequence()
}

/// Returns a registry with these images: name, content of the image's only file `proof`, and config.
fn registry_of(files: &[(&str, &str, Value)]) -> SmallRegistry {
    let mut registry = SmallRegistry::default();
    for (name, content, config) in files {
        let digest = registry.image("amd64", ("proof", content), config);
        registry.tag(name, &digest);
    }
    registry
}

fn serve(registry: &SmallRegistry) -> Scripted {
    let registry = registry.clone();
    Scripted::start(move |asked| registry.answer(asked))
}

/// Runs the client as a participant, over TCP.
fn hearth_as(daemon: &Daemon, token: &str, arguments: &[&str]) -> Output {
    let mut command: Command = daemon.client();
    command.env("HEARTH_ADDR", format!("http://{}", daemon.listen())).env("HEARTH_TOKEN", token);
    process::run(command.args(arguments), seconds(120))
}

/// Mints a token for builds with these grants for images.
fn mint_build_token(
    daemon: &Daemon,
    name: &str,
    pull_from: &[&str],
    pull: &[&str],
    write: &[&str],
) -> String {
    let registry = json!({"list": ["*"], "pull": pull, "run": ["*"], "write": write});
    let containers = json!({"use_containers": true, "logs": true, "pull": pull_from, "registry": registry});
    let scope = json!({"containers": containers, "storage": {"paths": [{"path": "/"}]}, "services": {}});
    daemon.mint(&["--name", name, "--scope", &scope.to_string()])
}

/// Builds a Dockerfile as a participant; returns the output.
fn build(daemon: &Daemon, token: &str, name: &str, dockerfile: &str, more: &[&str]) -> Output {
    daemon.put(name, &Tree::new().dockerfile(dockerfile));
    let (tag, mount) = (format!("{name}:1"), format!("{name}:/context:ro"));
    let mut arguments =
        vec!["build", "--tag", &tag, "--mount-room-path", &mount, "--context-path", "/context"];
    arguments.extend(["--json"]);
    arguments.extend(more);
    hearth_as(daemon, token, &arguments)
}

/// Returns the error code of a failed build.
#[track_caller]
fn code(output: &Output) -> String {
    assert_ne!(output.code, 0, "{output}");
    output.json()["error"]["code"].as_str().unwrap_or_else(|| panic!("no code: {output}")).to_owned()
}

fn an_image_that_the_token_may_not_pull_is_never_requested_under_any_name() {
    let registry = serve(&registry_of(&[("team/base:1", "theirs", json!({}))]));
    let room = Daemon::start(Options::room("wi-grant").registries(&[&registry.host()]));
    let name = format!("{}/team/base:1", registry.host());
    // An image of the room whose ONBUILD trigger names the image.
    let admin = room.token().to_owned();
    let base = room.base_image();
    let triggers = format!("FROM {base}\nONBUILD COPY --from={name} /proof /proof\n");
    assert_eq!(build(&room, &admin, "onbuild", &triggers, &[]).code, 0);
    let token = mint_build_token(&room, "narrow", &["ghcr.io/*"], &["*"], &["*"]);
    let argument = format!("I={name}");
    for (at, (dockerfile, more)) in [
        (format!("FROM {name}\n"), &[][..]),
        ("ARG I=x\nFROM ${I}\n".to_owned(), &["--build-arg", argument.as_str()]),
        (format!("ARG I={name}\nFROM $I AS a\nFROM scratch\nCOPY --from=a / /\n"), &[]),
        (format!("FROM scratch\nCOPY --from={name} /proof /\n"), &[]),
        (format!("FROM {base}\nRUN --mount=type=bind,from={name},target=/x cat /x/proof\n"), &[]),
        ("FROM room.meshagent.com/onbuild:1\n".to_owned(), &[]),
    ]
    .into_iter()
    .enumerate()
    {
        let output = build(&room, &token, &format!("grant-{at}"), &dockerfile, more);
        assert_eq!(code(&output), "image_denied", "{dockerfile}: {output}");
        output.says(&["team/base"]);
    }
    assert!(registry.asked().is_empty(), "{:?}", registry.asked());
    // A caller that may pull the image builds from it in each of these ways.
    let token = mint_build_token(&room, "wide", &[&format!("{}/team/*", registry.host())], &["*"], &["*"]);
    for (at, dockerfile) in [
        format!("FROM {name}\n"),
        format!("FROM scratch\nCOPY --from={name} /proof /proof\n"),
        format!("FROM {base}\nRUN --mount=type=bind,from={name},target=/x cp /x/proof /proof\n"),
        "FROM room.meshagent.com/onbuild:1\n".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        build(&room, &token, &format!("wide-{at}"), dockerfile, &[]).expect_code(0);
        assert_eq!(room.image(&format!("wide-{at}:1")).file("proof"), "theirs");
    }
}

fn the_rooms_registry_by_its_address_asks_for_the_same_grant() {
    let room = Daemon::start(Options::room("wi-address"));
    let admin = room.token().to_owned();
    build(&room, &admin, "theirs/app", "FROM scratch\nCOPY Dockerfile /secret\n", &[]).expect_code(0);
    let digest = room.tag_digest("theirs/app", "1").unwrap();
    let token = mint_build_token(&room, "writer", &["*"], &["mine/*"], &["*"]);
    let port = room.listen().rsplit_once(':').unwrap().1.to_owned();
    for (at, name) in [
        format!("{}/theirs/app:1", room.listen()),
        format!("{}/theirs/app@{digest}", room.listen()),
        format!("localhost:{port}/theirs/app:1"),
        format!("127.0.0.2:{port}/theirs/app:1"),
        "room.meshagent.com/theirs/app:1".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        // The target is the same repository: the build has a token that may push there.
        for (tag, line) in [
            ("theirs/app", format!("FROM {name}\n")),
            ("mine/a", format!("FROM scratch\nCOPY --from={name} / /\n")),
        ] {
            let output = build(&room, &token, &format!("{tag}-{at}"), &line, &[]);
            let code = code(&output);
            assert!(matches!(code.as_str(), "image_denied" | "registry_address_refused"), "{name}: {output}");
        }
    }
    // With the grant, it is an image of the room under each of its names.
    let token = mint_build_token(&room, "reader", &[], &["theirs/*"], &["*"]);
    let name = format!("{}/theirs/app:1", room.listen());
    build(&room, &token, "mine/b", &format!("FROM {name}\n"), &[]).expect_code(0);
    assert!(room.image("mine/b:1").has("secret"));
}

fn a_name_that_the_daemon_does_not_find_is_denied_and_never_requested() {
    let room = Daemon::start(Options::room("wi-overlooked"));
    let admin = room.token().to_owned();
    // BuildKit accepts an address in brackets as a registry; references of the room do not.
    let small = registry_of(&[("base:1", "theirs", json!({}))]);
    let registry = Scripted::start_at("[::1]:0", move |asked| small.answer(asked)).ok();
    let host = registry.as_ref().map_or_else(|| "[::1]:5000".to_owned(), Scripted::host);
    for (at, dockerfile) in
        [format!("FROM {host}/base:1\n"), format!("FROM scratch\nCOPY --from={host}/base:1 / /\n")]
            .iter()
            .enumerate()
    {
        let output = build(&room, &admin, &format!("over-{at}"), dockerfile, &[]);
        let code = code(&output);
        assert!(
            matches!(code.as_str(), "image_not_resolved" | "source_not_resolved"),
            "{dockerfile}: {output}"
        );
    }
    assert!(registry.is_none_or(|registry| registry.asked().is_empty()));
}

fn a_registry_gets_its_password_for_itself_and_from_the_daemon_only() {
    let thief =
        Arc::new(Scripted::start_at("127.0.0.2:0", |_| Reply::new(200, r#"{"token": "x"}"#)).unwrap());
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", thief.host());
    let hostile = Scripted::start(move |_| Reply::new(401, "{}").header("www-authenticate", &realm));
    // A registry that requires the password itself gets it from the daemon, and the builder never sends a request.
    let small = registry_of(&[("base:1", "theirs", json!({}))]);
    let wanted = format!("Basic {}", STANDARD.encode("ann:hunter2"));
    let honest = Scripted::start(move |asked: &Asked| match asked.header("authorization") {
        Some(given) if given == wanted => small.answer(asked),
        _ => Reply::new(401, "{}").header("www-authenticate", "Basic realm=\"r\""),
    });
    let room = Daemon::start(Options::room("wi-password").registries(&[&hostile.host(), &honest.host()]));
    let admin = room.token().to_owned();
    let cred = format!("{},ann,hunter2", hostile.host());
    let dockerfile = format!("FROM {}/base:1\n", hostile.host());
    let output = build(&room, &admin, "realm", &dockerfile, &["--cred", &cred]);
    assert_eq!(code(&output), "registry_auth_refused", "{output}");
    assert!(thief.asked().is_empty(), "{:?}", thief.asked());
    let cred = format!("{},ann,hunter2", honest.host());
    let dockerfile = format!("FROM {}/base:1\n", honest.host());
    build(&room, &admin, "basic", &dockerfile, &["--cred", &cred]).expect_code(0);
    assert_eq!(room.image("basic:1").file("proof"), "theirs");
    let agents: Vec<_> =
        honest.asked().iter().map(|asked| asked.header("user-agent").map(str::to_owned)).collect();
    assert!(
        agents.iter().all(|agent| agent.as_deref().is_some_and(|agent| agent.starts_with("hearth/"))),
        "{agents:?}"
    );
    assert_eq!(code(&build(&room, &admin, "none", &dockerfile, &["--pull"])), "base_image_denied");
    assert!(!room.log().contains("hunter2"));
}

fn nothing_connects_to_a_registry_at_an_internal_address() {
    const PRIVATE: &str = "10.231.78.1";
    let _link = PrivateAddress::make("hwi-reg0", "10.231.78.1/32");
    let loopback = serve(&registry_of(&[("base:1", "inner", json!({}))]));
    let port = loopback.host().rsplit_once(':').unwrap().1.to_owned();
    // The daemon speaks TLS to that registry.
    let private = Scripted::start_at(&format!("{PRIVATE}:0"), |_| Reply::new(404, "")).unwrap();
    let room = Daemon::start(Options::room("wi-registry"));
    let admin = room.token().to_owned();
    room.put("context", &Tree::new().file("x", "x"));
    for (at, host) in [
        loopback.host(),
        format!("localhost:{port}"),
        format!("127.0.0.2:{port}"),
        format!("0.0.0.0:{port}"),
        private.host(),
        "169.254.169.254".to_owned(),
        "169.254.169.254:80".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        let image = format!("{host}/base:1");
        let cred = format!("{host},ann,hunter2");
        for (dockerfile, more) in [
            (format!("FROM {image}\n"), &[][..]),
            (format!("FROM {image}\n"), &["--cred", &cred]),
            (format!("FROM scratch\nCOPY --from={image} /proof /\n"), &[]),
        ] {
            let output = build(&room, &admin, &format!("inner-{at}"), &dockerfile, more);
            assert_eq!(code(&output), "registry_address_refused", "{dockerfile}: {output}");
            output.says(&[&host, "no public address", "builds.egress"]);
        }
        let mount = format!("{image}=/context/other");
        for arguments in [
            &["deploy", "--tag", image.as_str(), "--name", "inner", "--json"][..],
            &["images", "pull", &image, "--json"],
            &[
                "build",
                "--tag",
                "m:1",
                "--mount-room-path",
                "context:/context:ro",
                "--context-path",
                "/context",
                "--mount-image",
                &mount,
                "--json",
            ],
        ] {
            let output = hearth_as(&room, &admin, arguments);
            assert_eq!(code(&output), "registry_address_refused", "{arguments:?}: {output}");
        }
    }
    // A push may not go there either.
    build(&room, &admin, "mine", "FROM scratch\nCOPY Dockerfile /\n", &[]).expect_code(0);
    let pushed = room.hearth(&["images", "push", "mine:1", &format!("{}/x:1", loopback.host()), "--json"]);
    assert_eq!(code(&pushed), "registry_address_refused", "{pushed}");
    assert_eq!((loopback.connections(), private.connections()), (0, 0));

    // An operator allows a private network by its address block, and a registry by its name.
    room.terminate();
    let allow = format!("[builds.egress]\nallow = [\"0.0.0.0/0\", \"{PRIVATE}\"]\n");
    room.restart_with(Options::room("wi-registry").config(&allow).registries(&[&loopback.host()]));
    build(&room, &admin, "known", &format!("FROM {}/base:1\n", loopback.host()), &[]).expect_code(0);
    assert_eq!(room.image("known:1").file("proof"), "inner");
    let output = build(&room, &admin, "listed", &format!("FROM {}/base:1\n", private.host()), &[]);
    assert_ne!(code(&output), "registry_address_refused", "{output}");
    assert!(private.connections() > 0);
}

fn a_registry_does_not_lead_the_daemon_to_an_internal_address() {
    let inner = Arc::new(serve(&registry_of(&[("base:1", "inner", json!({}))])));
    let redirecting = |to: String| {
        Scripted::start(move |asked: &Asked| {
            Reply::new(307, "").header("location", &format!("{to}{}", asked.path))
        })
    };
    let port = inner.host().rsplit_once(':').unwrap().1.to_owned();
    // The registry itself may be at a loopback address, because the operator has credentials for it.
    let file = scratch().join("wi-redirect-credentials.toml");
    let write_credentials = |host: &str| {
        fs::write(&file, format!("['{host}']\nusername = 'any'\npassword = 'any'\n")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    };
    write_credentials("none.example");
    let known = ["--registry-credentials", file.to_str().unwrap()];
    let room = Daemon::start(Options::room("wi-redirect").arguments(&known));
    let admin = room.token().to_owned();
    for (at, to) in [
        format!("http://{}", inner.host()),
        format!("http://localhost:{port}"),
        format!("http://[::ffff:127.0.0.1]:{port}"),
        format!("http://2130706433:{port}"),
        "https://169.254.169.254".to_owned(),
        "https://10.0.0.1".to_owned(),
    ]
    .into_iter()
    .enumerate()
    {
        let registry = redirecting(to.clone());
        write_credentials(&registry.host());
        let output = build(
            &room,
            &admin,
            &format!("redirected-{at}"),
            &format!("FROM {}/base:1\n", registry.host()),
            &[],
        );
        assert_eq!(code(&output), "registry_redirect_refused", "{to}: {output}");
        let pulled = room.hearth(&["images", "pull", &format!("{}/base:1", registry.host()), "--json"]);
        assert_eq!(pulled.json()["error"]["code"], "registry_redirect_refused", "{to}: {pulled}");
    }
    assert!(inner.asked().is_empty(), "{:?}", inner.asked());
    // A registry that the operator names may redirect there.
    let registry = redirecting(format!("http://{}", inner.host()));
    room.terminate();
    room.restart_with(Options::room("wi-redirect").registries(&[&registry.host()]));
    build(&room, &admin, "trusted", &format!("FROM {}/base:1\n", registry.host()), &[]).expect_code(0);
    assert_eq!(room.image("trusted:1").file("proof"), "inner");
}

fn an_image_fetched_with_one_participants_credential_is_hidden_from_others() {
    let small = registry_of(&[("team/private:1", "private", json!({}))]);
    let wanted = format!("Basic {}", STANDARD.encode("ann:hunter2"));
    let mut registry = Scripted::start(move |asked: &Asked| match asked.header("authorization") {
        Some(given) if given == wanted => small.answer(asked),
        _ => Reply::new(401, "{}").header("www-authenticate", "Basic realm=\"r\""),
    });
    let room = Daemon::start(Options::room("wi-private").registries(&[&registry.host()]));
    let name = format!("{}/team/private:1", registry.host());
    let cred = format!("{},ann,hunter2", registry.host());
    let ann = mint_build_token(&room, "ann", &["*"], &["*"], &["*"]);
    let bob = mint_build_token(&room, "bob", &["*"], &["*"], &["*"]);
    let dockerfile = format!("FROM {name}\nCOPY Dockerfile /x\n");
    build(&room, &ann, "ann-1", &dockerfile, &["--cred", &cred]).expect_code(0);
    assert_eq!(room.image("ann-1:1").file("proof"), "private");

    let wrong = format!("{},bob,guess", registry.host());
    for (at, more) in [&[][..], &["--cred", wrong.as_str()]].into_iter().enumerate() {
        let output = build(&room, &bob, &format!("bob-{at}"), &dockerfile, more);
        assert_eq!(code(&output), "base_image_denied", "{output}");
    }
    // The location of the cached content is not secret, and knowing it gives no access.
    let listed = room.hearth_ok(&["images", "list", "--cached", "--json"]).json();
    let cached = &listed.as_array().unwrap_or_else(|| panic!("{listed}"))[0];
    let (repository, digest) = (cached["repository"].as_str().unwrap(), cached["digest"].as_str().unwrap());
    let blob = format!("room.meshagent.com/{repository}@{digest}");
    let unsaved = room.state().join("unsaved.tar").display().to_string();
    for token in [&bob, &ann, &room.token().to_owned()] {
        for path in
            [format!("/v2/{repository}/manifests/{digest}"), format!("/v2/{repository}/blobs/{digest}")]
        {
            Request::new("GET", &path).bearer(token).send(&room.listen()).expect(403);
        }
        let push = Request::new("POST", &format!("/v2/{repository}/blobs/uploads/")).bearer(token);
        push.send(&room.listen()).expect(403);
        for arguments in [
            &["images", "inspect", &blob][..],
            &["images", "tag", &blob, "stolen:1"],
            &["images", "save", &blob, "-o", &unsaved],
            &["deploy", "--tag", &blob, "--name", "stolen", "--port", "80"],
            &["build", "--tag", "stolen:1", "--mount-image", &format!("{blob}=/context")],
        ] {
            let output = hearth_as(&room, token, arguments);
            assert_ne!(output.code, 0, "{arguments:?}: {output}");
        }
        let output = build(&room, token, "stolen", &format!("FROM {blob}\n"), &[]);
        assert_eq!(code(&output), "image_denied", "{output}");
    }
    let shown = hearth_as(&room, &bob, &["images", "list", "--cached", "--json"]).json();
    assert_eq!(shown, json!([]), "another's private image is not shown");
    // While the registry is down, the participant whose credential fetched the image can still build from it, and others
    // cannot.
    registry.end();
    build(&room, &ann, "ann-2", &dockerfile, &["--cred", &cred]).expect_code(0);
    for more in [&[][..], &["--cred", cred.as_str()]] {
        let output = build(&room, &bob, "bob-away", &dockerfile, more);
        assert_eq!(code(&output), "registry_unreachable", "{output}");
    }
}

fn builds_continue_with_the_cached_image_while_the_registry_is_unreachable() {
    let mut registry = serve(&registry_of(&[("base:1", "kept", json!({}))]));
    let room = Daemon::start(Options::room("wi-away").registries(&[&registry.host()]));
    let admin = room.token().to_owned();
    let dockerfile = format!("FROM {}/base:1\n", registry.host());
    build(&room, &admin, "first", &dockerfile, &[]).expect_code(0);
    let asked = registry.asked().len();
    // A name that was resolved a moment ago is not requested again, unless the build asks for that.
    build(&room, &admin, "second", &dockerfile, &[]).expect_code(0);
    assert_eq!(registry.asked().len(), asked);
    build(&room, &admin, "third", &dockerfile, &["--pull"]).expect_code(0);
    let again: Vec<String> = registry.asked()[asked..].iter().map(|asked| asked.method.clone()).collect();
    assert_eq!(again, ["HEAD"], "an image in the cache is not fetched again");

    registry.end();
    room.terminate();
    room.restart();
    let output = build(&room, &admin, "pulled", &dockerfile, &["--pull"]);
    assert_eq!(code(&output), "registry_unreachable", "{output}");
    // Within a minute of its last resolution, the name would not be requested again.
    std::thread::sleep(seconds(61));
    room.put("away", &Tree::new().dockerfile(&dockerfile));
    let output = room.build("away:1", "away", &[]);
    output.expect_code(0).says(&["warning", "could not be asked"]);
    assert_eq!(room.image("away:1").file("proof"), "kept");
    let listed = room.hearth_ok(&["images", "list", "--cached"]);
    assert!(listed.stdout.contains(&format!("{}/base:1", registry.host())), "{listed}");
}

fn every_spelling_and_platform_of_a_name_is_the_image() {
    let mut small = SmallRegistry::default();
    let amd = small.image("amd64", ("proof", "amd64"), &json!({}));
    let arm = small.image("arm64", ("proof", "arm64"), &json!({}));
    let index = small.index(&[("amd64", &amd), ("arm64", &arm)]);
    small.tag("library/alpine:latest", &index);
    small.tag("library/alpine:3", &index);
    let registry = serve(&small);
    let mirror = format!("docker.io=http://{}", registry.host());
    let room = Daemon::start(Options::room("wi-names").arguments(&["--registry-mirror", &mirror]));
    let admin = room.token().to_owned();
    for (at, name) in [
        "alpine".to_owned(),
        "alpine:latest".to_owned(),
        "docker.io/alpine".to_owned(),
        "docker.io/library/alpine:latest".to_owned(),
        "index.docker.io/library/alpine".to_owned(),
        format!("alpine@{index}"),
        format!("alpine:3@{index}"),
        format!("docker.io/library/alpine@{amd}"),
    ]
    .iter()
    .enumerate()
    {
        // A stage may have the name of an image that another stage copies from.
        let dockerfile = format!("FROM {name} AS alpine\nFROM alpine\nCOPY --from={name} /proof /copied\n");
        build(&room, &admin, &format!("name-{at}"), &dockerfile, &[]).expect_code(0);
        let image = room.image(&format!("name-{at}:1"));
        assert_eq!(
            (image.file("proof").as_str(), image.file("copied").as_str()),
            ("amd64", "amd64"),
            "{name}"
        );
    }
    // One build uses two platforms of the same name.
    let dockerfile = "FROM --platform=linux/arm64 alpine:3 AS arm\nFROM --platform=$BUILDPLATFORM alpine:3\nCOPY --from=arm /proof /arm\n";
    build(&room, &admin, "both", dockerfile, &[]).expect_code(0);
    let image = room.image("both:1");
    assert_eq!((image.file("proof").as_str(), image.file("arm").as_str()), ("amd64", "arm64"));
    let output = build(&room, &admin, "s390x", "FROM --platform=linux/s390x alpine:3\n", &[]);
    assert_eq!(code(&output), "platform_mismatch", "{output}");
}

fn the_error_reports_a_failed_mirror_with_its_answer() {
    let mirror = Scripted::start(|_| {
        Reply::new(500, r#"{"errors": [{"code": "UNKNOWN", "message": "out of order"}]}"#)
    });
    let registry = Scripted::start(|_| Reply::new(404, "{}"));
    let setting = format!("{}=http://{}", registry.host(), mirror.host());
    let options = Options::room("wi-mirror").arguments(&["--registry-mirror", &setting]);
    let room = Daemon::start(options.registries(&[&registry.host()]));
    let admin = room.token().to_owned();
    let output = build(&room, &admin, "mirrored", &format!("FROM {}/base:1\n", registry.host()), &[]);
    assert_eq!(code(&output), "base_image_not_found", "{output}");
    let message = output.json()["error"]["message"].as_str().unwrap().to_owned();
    for word in [&format!("mirror {}", mirror.host()), "500", &registry.host(), "itself"] {
        assert!(message.contains(word), "{word}: {message}");
    }
}

/// An address of a private network that this machine has until the value is dropped.
pub(super) struct PrivateAddress(String);

impl PrivateAddress {
    pub(super) fn make(link: &str, address: &str) -> Self {
        let made = Self(link.to_owned());
        let peer = format!("{link}p");
        for arguments in [
            &["link", "add", link, "type", "veth", "peer", "name", &peer][..],
            &["address", "add", address, "dev", link],
            &["link", "set", link, "up"],
        ] {
            process::run(Command::new("ip").args(arguments), seconds(10)).expect_code(0);
        }
        made
    }
}

impl Drop for PrivateAddress {
    fn drop(&mut self) {
        process::run(Command::new("ip").args(["link", "delete", &self.0]), seconds(10));
    }
}

fn a_file_by_url_comes_from_no_internal_address() {
    let room = Daemon::start(Options::room("wi-add"));
    let admin = room.token().to_owned();
    let port = room.listen().rsplit_once(':').unwrap().1.to_owned();
    for (at, url) in [
        format!("http://{}/metrics", room.listen()),
        format!("http://localhost:{port}/metrics"),
        format!("http://2130706433:{port}/metrics"),
        format!("http://0x7f.1:{port}/metrics"),
        format!("http://[::ffff:127.0.0.1]:{port}/metrics"),
        "http://169.254.169.254/latest/meta-data/".to_owned(),
        "http://10.0.0.1/".to_owned(),
        "https://127.0.0.1/x.git".to_owned(),
        "http://localhost/x.git".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let (host, path) = url.split_once("//").unwrap().1.split_once('/').unwrap();
        for dockerfile in [
            format!("FROM scratch\nADD {url} /x\n"),
            format!(
                "ARG H={host}\nFROM scratch\nARG H\nENV P={path}\nADD {}//$H/$P /x\n",
                url.split_once("//").unwrap().0
            ),
        ] {
            let output = build(&room, &admin, &format!("add-{at}"), &dockerfile, &[]);
            assert_eq!(code(&output), "egress_denied", "{dockerfile}: {output}");
        }
    }
    // An address that the daemon cannot see in the Dockerfile is denied by the builder itself.
    let base = room.base_image();
    let hidden =
        format!("FROM {base}\nADD http://{}/$(echo metrics) http://{0}/metrics?a=[b /x\n", room.listen());
    assert_ne!(build(&room, &admin, "hidden", &hidden, &[]).code, 0);
    assert!(room.tag_digest("hidden", "1").is_none());
}

fn a_file_by_url_comes_from_an_allowed_host_once_and_as_it_is() {
    const ADDRESS: &str = "10.231.77.1";
    let _link = PrivateAddress::make("hwi-add0", "10.231.77.1/32");
    let room = Daemon::start(
        Options::room("wi-added").config(&format!("[builds.egress]\nallow = [\"{ADDRESS}\"]\n")),
    );
    let admin = room.token().to_owned();
    let inner = format!("http://{}/metrics", room.listen());
    let web = Scripted::start_at(&format!("{ADDRESS}:0"), move |asked: &Asked| match asked.path.as_str() {
        "/files/a.txt" if asked.header("if-none-match") == Some("\"1\"") => Reply::new(304, ""),
        "/files/a.txt" => Reply::new(200, "the file\n")
            .header("etag", "\"1\"")
            .header("last-modified", "Wed, 01 Jan 2020 00:00:00 GMT"),
        "/moved" => Reply::new(302, "").header("location", "/files/a.txt"),
        "/inside" => Reply::new(302, "").header("location", &inner),
        "/outside" => Reply::new(302, "").header("location", "http://192.0.2.1/x"),
        "/secret" if asked.header("authorization").is_none() => Reply::new(401, ""),
        _ => Reply::new(404, ""),
    })
    .unwrap();
    let url = |path: &str| format!("http://{}{path}", web.host());
    let dockerfile =
        format!("FROM scratch\nADD {} /to/\nADD {} /moved.txt\n", url("/files/a.txt"), url("/moved"));
    build(&room, &admin, "added", &dockerfile, &[]).expect_code(0);
    let image = room.image("added:1");
    assert_eq!(
        (image.file("to/a.txt").as_str(), image.file("moved.txt").as_str()),
        ("the file\n", "the file\n")
    );
    assert_eq!((image.mode("to/a.txt"), image.files["to/a.txt"].time), (0o600, 1_577_836_800));
    assert!(
        web.asked()
            .iter()
            .all(|asked| asked.header("user-agent").is_some_and(|agent| agent.starts_with("hearth/")))
    );
    // A second build: nothing is sent again, and every step is cached. BuildKit may report one of its own as cached too.
    let asked = web.asked().len();
    let again = build(&room, &admin, "added", &dockerfile, &[]);
    again.expect_code(0);
    let id = again.json()["build_id"].as_str().unwrap().to_owned();
    let events = room.hearth_ok(&["builds", "logs", &id, "--from", "1", "--json"]).json();
    let cached = |instruction: &str| {
        let events = events.as_array().unwrap();
        let started = |event: &&Value| {
            event["event"] == "step_started"
                && event["name"].as_str().is_some_and(|name| name.starts_with(instruction))
        };
        let step = &events.iter().rfind(started).unwrap()["step"];
        let ended = |event: &&Value| event["event"] == "step_finished" && event["step"] == *step;
        events.iter().rfind(ended).unwrap()["cached"] == true
    };
    assert!(cached("[1/2] ADD ") && cached("[2/2] ADD "), "{events}");
    assert!(matches!(again.json()["cached_steps"].as_u64(), Some(2 | 3)), "{again}");
    assert!(web.asked()[asked..].iter().filter(|asked| asked.path == "/files/a.txt").count() >= 1);
    // The record of the build lists what was used.
    let shown = room.hearth_ok(&["builds", "show", &id, "--json"]).json();
    let digest = integration_tests::sources::sha256(b"the file\n");
    assert_eq!(shown["sources"][url("/files/a.txt").as_str()], digest.as_str(), "{shown}");

    let checked = |sum: &str| format!("FROM scratch\nADD --checksum={sum} {} /x\n", url("/files/a.txt"));
    build(&room, &admin, "sum", &checked(&digest), &[]).expect_code(0);
    let wrong = format!("sha256:{}", "0a".repeat(32));
    assert_eq!(code(&build(&room, &admin, "wrong", &checked(&wrong), &[])), "checksum_mismatch");
    for (path, expected) in [
        ("/inside", "egress_denied"),
        ("/outside", "egress_denied"),
        ("/none", "download_not_found"),
        ("/secret", "download_denied"),
    ] {
        let output = build(&room, &admin, "refused", &format!("FROM scratch\nADD {} /x\n", url(path)), &[]);
        assert_eq!(code(&output), expected, "{path}: {output}");
    }
    let with_password = format!("FROM scratch\nADD http://ann:hunter2@{}/files/a.txt /x\n", web.host());
    let output = build(&room, &admin, "password", &with_password, &[]);
    assert_eq!(code(&output), "invalid_url", "{output}");
    assert!(!output.json()["error"]["message"].to_string().contains("hunter2"), "{output}");
}
