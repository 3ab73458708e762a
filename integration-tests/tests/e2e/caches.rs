//! Caches of build steps: written by one builder, and read by another that has never run the steps.

use std::fs;
use std::path::Path;

use integration_tests::buildctl::Buildctl;
use integration_tests::daemon::{BASE, Daemon, Options};
use integration_tests::http::Request;
use integration_tests::lone_cases;
use integration_tests::process;
use integration_tests::runner::Group;
use integration_tests::sources::Tree;
use integration_tests::wait::seconds;
use serde_json::{Value, json};

pub fn group() -> Group {
    Group::new(
        "caches",
        lone_cases![
            a_fresh_builder_runs_no_step_that_a_cache_holds,
            caches_of_another_buildkit_are_read_in_every_form,
            a_cache_with_wrong_layers_is_not_used,
            a_cache_is_read_and_written_with_its_grants_only,
        ],
    )
    .in_sequence()
}

/// Dockerfile with two stages whose steps give another result each time they run. `last` is the name of the last step.
fn dockerfile(kind: &str, last: &str) -> String {
    format!(
        "FROM {BASE} AS compile\n\
         RUN echo {kind} > /kind; head -c 16 /dev/urandom | sha256sum > /compiled\n\
         FROM {BASE}\n\
         COPY --from=compile /compiled /compiled\n\
         RUN echo {last}; head -c 16 /dev/urandom | sha256sum > /stamp\n"
    )
}

/// Removes the caches of all builders, as on a new machine.
fn forget_builders(daemon: &Daemon) {
    daemon.terminate();
    fs::remove_dir_all(daemon.state().join("builders")).unwrap();
    daemon.spawn_again();
    daemon.wait_published(true);
}

fn stamps(daemon: &Daemon, name: &str) -> [String; 2] {
    let image = daemon.image(name);
    [image.file("compiled"), image.file("stamp")]
}

fn a_fresh_builder_runs_no_step_that_a_cache_holds() {
    let daemon = Daemon::start(Options::room("caches-kinds"));
    daemon.base_image();
    let kinds = [
        ("inline", "type=inline".to_owned(), "type=registry,ref=inline:1".to_owned()),
        ("min", "type=registry,ref=caches:min".to_owned(), "caches:min".to_owned()),
        ("max", "type=registry,ref=caches:max,mode=max".to_owned(), "caches:max".to_owned()),
        (
            "index",
            "type=registry,ref=caches:index,mode=max,image-manifest=false".to_owned(),
            "caches:index".to_owned(),
        ),
        (
            "docker",
            "type=registry,ref=caches:docker,mode=max,oci-mediatypes=false".to_owned(),
            "caches:docker".to_owned(),
        ),
        ("local", "type=local,dest=kept/dir,mode=max".to_owned(), "type=local,src=kept/dir".to_owned()),
        (
            "tagged",
            "type=local,dest=kept/dir,tag=two".to_owned(),
            "type=local,src=kept/dir,tag=two".to_owned(),
        ),
        (
            "archive",
            "type=oci-archive,dest=kept/cache.tar,mode=max".to_owned(),
            "type=oci-archive,src=kept/cache.tar".to_owned(),
        ),
    ];
    let mut before = Vec::new();
    for (kind, to, _) in &kinds {
        daemon.put(kind, &Tree::new().dockerfile(&dockerfile(kind, "last")));
        daemon.build_ok(&format!("{kind}:1"), kind, &["--cache-to", to]);
        before.push(stamps(&daemon, &format!("{kind}:1")));
    }
    assert!(daemon.room_files().join("kept/dir/index.json").exists());
    forget_builders(&daemon);
    for ((kind, _, from), before) in kinds.iter().zip(&before) {
        let output = daemon.build(&format!("{kind}:2"), kind, &["--cache-from", from]);
        output.expect_code(0);
        assert!(!output.stderr.contains("is not used"), "{output}");
        assert_eq!(stamps(&daemon, &format!("{kind}:2")), *before, "{kind}\n{output}");
    }
    // Only `mode=max` keeps the steps of stages that are not in the image.
    for (at, (kind, _, from)) in kinds.iter().enumerate() {
        daemon.put(&format!("{kind}-again"), &Tree::new().dockerfile(&dockerfile(kind, "other")));
        let all_steps = !matches!(*kind, "inline" | "min" | "tagged");
        if all_steps {
            daemon.build_ok(&format!("{kind}:3"), &format!("{kind}-again"), &["--cache-from", from]);
            let [compiled, stamp] = stamps(&daemon, &format!("{kind}:3"));
            assert_eq!(compiled, before[at][0], "{kind}");
            assert_ne!(stamp, before[at][1], "{kind}");
        }
    }
    let missing = daemon.build("inline:4", "inline", &["--cache-from", "type=local,src=none"]);
    missing.expect_code(0).says(&["is not used", "no build cache at"]);
    let wrong = daemon.build("inline:4", "inline", &["--cache-to", "type=registry,ref=x:1,level=3"]);
    wrong.expect_code(2).says(&["no attribute `level`", "`mode`"]);
}

fn caches_of_another_buildkit_are_read_in_every_form() {
    let other = Daemon::start(Options::room("caches-other"));
    let room = Daemon::start(Options::room("caches-room"));
    for daemon in [&other, &room] {
        daemon.base_image();
    }
    // The buildkitd of a domain starts with its first build.
    other.put("first", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", ""));
    other.build_ok("first:1", "first", &[]);
    let (name, tag) = BASE.rsplit_once('/').map_or(BASE, |(_, name)| name).split_once(':').unwrap();
    let base = format!("context:{BASE}=docker-image://{}/{name}:{tag}", room.listen());
    let work = tempfile::tempdir().unwrap();
    for (form, attributes) in [
        ("manifest", "image-manifest=true,oci-mediatypes=true"),
        ("oci", "image-manifest=false,oci-mediatypes=true"),
        ("docker", "image-manifest=false,oci-mediatypes=false"),
    ] {
        let tree = Tree::new().dockerfile(&dockerfile(form, "last"));
        let directory = work.path().join(form);
        tree.write(&directory);
        let cache = format!("type=registry,ref={}/made:{form},mode=max,{attributes}", room.listen());
        let image = work.path().join(format!("{form}.tar"));
        let output = format!("type=oci,dest={}", image.display());
        let built = Buildctl::with_credentials_of(&other, &room).build_with(
            &directory,
            &directory,
            std::slice::from_ref(&base),
            &["--output", &output, "--export-cache", &cache],
        );
        built.expect_code(0);
        room.put(form, &tree);
        room.build_ok(&format!("{form}:1"), form, &["--cache-from", &format!("made:{form}")]);
        let made = integration_tests::image::Image::from_archive(&image);
        assert_eq!(room.image(&format!("{form}:1")).file("stamp"), made.file("stamp"), "{form}");
    }
}

fn a_cache_with_wrong_layers_is_not_used() {
    let daemon = Daemon::start(Options::room("caches-wrong"));
    daemon.base_image();
    daemon.put("app", &Tree::new().dockerfile(&dockerfile("app", "last")));
    daemon.build_ok("app:1", "app", &["--cache-to", "app:cache"]);
    let send = |method: &str, path: &str, body: &Value| {
        Request::new(method, path)
            .bearer(daemon.token())
            .header("content-type", "application/vnd.oci.image.manifest.v1+json")
            .header("accept", "application/vnd.oci.image.manifest.v1+json")
            .body(body.to_string())
            .send(&daemon.listen())
    };
    let read = Request::new("GET", "/v2/app/manifests/cache").bearer(daemon.token()).send(&daemon.listen());
    let mut cache: Value = serde_json::from_slice(&read.body).unwrap();
    let layers = cache["layers"].as_array_mut().unwrap();
    // The last layer claims to be the first one.
    let first = layers[0]["annotations"]["containerd.io/uncompressed"].clone();
    layers.last_mut().unwrap()["annotations"]["containerd.io/uncompressed"] = first;
    assert_eq!(send("PUT", "/v2/app/manifests/wrong", &cache).status, 201);
    cache["layers"][0]["annotations"] = json!({});
    assert_eq!(send("PUT", "/v2/app/manifests/none", &cache).status, 201);
    forget_builders(&daemon);
    for name in ["app:wrong", "app:none"] {
        daemon.build("app:2", "app", &["--cache-from", name]).expect_code(0).says(&["is not used", "layer"]);
    }
}

fn a_cache_is_read_and_written_with_its_grants_only() {
    let daemon = Daemon::start(Options::room("caches-grants"));
    daemon.put("app", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", ""));
    let scope = json!({
        "containers": {
            "use_containers": true, "logs": true,
            "registry": {"pull": ["mine/*"], "write": ["mine/*"]},
        },
        "storage": {"paths": [{"path": "app", "read_only": true}, {"path": "kept", "read_only": false}]},
    });
    let token = daemon.mint(&["--name", "ann", "--scope", &scope.to_string()]);
    let build = |more: &[&str]| {
        let mut command = daemon.client();
        command.env("HEARTH_ADDR", format!("http://{}", daemon.listen())).env("HEARTH_TOKEN", &token);
        command.args(daemon.build_arguments("mine/app:1", "app:/context:ro", more));
        process::run(&mut command, seconds(120))
    };
    for refused in [
        ["--cache-to", "theirs/app:cache"],
        ["--cache-from", "theirs/app:cache"],
        ["--cache-to", "registry.example.com/app:cache"],
        ["--cache-from", "registry.example.com/app:cache"],
        ["--cache-to", "type=local,dest=app/cache"],
        ["--cache-from", "type=local,src=other"],
        ["--cache-to", "type=oci-archive,dest=other.tar"],
        ["--cache-from", "type=oci-archive,src=other.tar"],
    ] {
        build(&refused).expect_code(3);
    }
    let allowed = ["--cache-to", "mine/app:cache", "--cache-to", "type=local,dest=kept/c"];
    build(&allowed).expect_code(0);
    assert!(daemon.tag_digest("mine/app", "cache").is_some());
    // BuildKit pushes the cache under this tag, which is not set.
    assert!(daemon.tag_digest("mine/app", "build-cache").is_none());
    assert!(Path::new(&daemon.room_files()).join("kept/c/index.json").exists());
}
