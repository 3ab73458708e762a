use hearth_proto::v1::{
    CommandLine, DeployStrategy, EmptyDirSource, EnvValue, FileSource, HealthCheck, ImageSource, Mount,
    MountMode, PortKind, ServicePort, ServiceSpec, env_value, mount::Source,
};

use super::*;

/// The part of a revision that a manifest can express.
fn full() -> ServiceSpec {
    let env = |value| EnvValue { value: Some(value) };
    let mount = |source, target: &str, mode: MountMode| Mount {
        source: Some(source),
        target: target.into(),
        mode: mode.into(),
        create: target == "/data",
    };
    let image = ImageSource { reference: "assets:2".into(), subpath: "usr/share".into() };
    let scope = r#"{"containers":{"pull":["*"]}}"#;
    let text = "# the app's\nlisten: 8000\n";
    ServiceSpec {
        image: "room.meshagent.com/repo/web:1".into(),
        repository: "repo/web".into(),
        digest: "sha256:9b2c".into(),
        manifest_digest: "sha256:9b2c".into(),
        env: [
            ("MODE", env(env_value::Value::Plain("on".into()))),
            ("EMPTY", env(env_value::Value::Plain(String::new()))),
            ("MESHAGENT_TOKEN", env(env_value::Value::TokenScope("agentDefault".into()))),
            ("OTHER_TOKEN", env(env_value::Value::TokenScope(scope.into()))),
            ("DB", env(env_value::Value::Secret("db-password".into()))),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into(),
        mounts: vec![
            mount(Source::RoomPath("data/web".into()), "/data", MountMode::ReadWrite),
            mount(Source::ProjectPath(String::new()), "/project", MountMode::ReadOnly),
            mount(Source::Image(image), "/assets", MountMode::ReadOnly),
            mount(Source::File(FileSource { text: text.into() }), "/etc/app.conf", MountMode::ReadOnly),
            mount(Source::EmptyDir(EmptyDirSource {}), "/tmp", MountMode::ReadWrite),
        ],
        ports: vec![
            ServicePort { number: 9000, kind: PortKind::Http.into(), published: Some(false) },
            ServicePort { number: 8000, kind: PortKind::Http.into(), published: Some(true) },
            ServicePort { number: 5432, kind: PortKind::Tcp.into(), published: Some(false) },
            ServicePort { number: 50051, kind: PortKind::H2c.into(), published: Some(false) },
        ],
        command: Some(CommandLine { arguments: vec!["python".into(), "-m".into(), "http server".into()] }),
        working_dir: "/srv".into(),
        identity: "bot".into(),
        memory_bytes: Some(512 << 20),
        cpu_millis: Some(1500),
        health: Some(HealthCheck {
            path: "/healthz".into(),
            start_limit: Some(prost_types::Duration { seconds: 90, nanos: 0 }),
            ..HealthCheck::default()
        }),
        strategy: DeployStrategy::Recreate.into(),
        domains: vec!["www.example.com".into(), "*.example.com".into()],
        public: true,
        description: "The web: a \"page\"\nand more".into(),
        annotations: [("team".to_owned(), "on".to_owned())].into(),
        isolated: true,
        capabilities: vec!["NET_RAW".into()],
    }
}

const FULL: &str = r#"version: v1
kind: Service
metadata:
  name: repo-web
  description: |-
    The web: a "page"
    and more
  annotations:
    team: "on"
container:
  image: room.meshagent.com/repo/web:1
  command:
  - python
  - -m
  - http server
  working_dir: /srv
  environment:
  - name: DB
    secret:
      id: db-password
  - name: EMPTY
    value: ""
  - name: MESHAGENT_TOKEN
    token:
      identity: bot
      api: agentDefault
  - name: MODE
    value: "on"
  - name: OTHER_TOKEN
    token:
      identity: bot
      api:
        containers:
          pull:
          - "*"
  storage:
    room:
    - path: /data
      subpath: data/web
      read_only: false
      create: true
    project:
    - path: /project
      read_only: true
    images:
    - image: assets:2
      path: /assets
      subpath: usr/share
      read_only: true
    files:
    - path: /etc/app.conf
      text: |
        # the app's
        listen: 8000
      read_only: true
    empty_dirs:
    - path: /tmp
      read_only: false
  memory: 512m
  cpus: "1.5"
  capabilities:
  - NET_RAW
ports:
- num: 9000
  type: http
  published: false
- num: 8000
  type: http
  liveness: /healthz
  published: true
  public: true
- num: 5432
  type: tcp
  published: false
- num: 50051
  type: h2c
  published: false
domains:
- www.example.com
- "*.example.com"
strategy: recreate
start_limit: 90s
isolated: true
"#;

#[test]
fn what_show_prints_says_all_that_runs() {
    let written = write(&ServiceManifest::from_spec("repo-web", &full())).unwrap();
    assert_eq!(written, FULL);
}

#[test]
fn what_show_prints_apply_takes_as_yaml_and_as_json() {
    let manifest = ServiceManifest::from_spec("repo-web", &full());
    let json = serde_json::to_string_pretty(&manifest).unwrap();
    for text in [FULL, &json] {
        assert_eq!(read("web.yaml", text).unwrap(), manifest);
    }
    let wanted = full();
    let asked = manifest.into_spec().unwrap();
    assert_eq!((asked.image, asked.name.as_deref()), (wanted.image, Some("repo-web")));
    assert_eq!((asked.env, asked.mounts), (wanted.env, wanted.mounts));
    assert_eq!(asked.ports.unwrap().ports, wanted.ports);
    assert_eq!(asked.command, wanted.command);
    assert_eq!(asked.working_dir, Some(wanted.working_dir));
    assert_eq!(asked.identity, Some(wanted.identity));
    assert_eq!((asked.memory_bytes, asked.cpu_millis), (wanted.memory_bytes, wanted.cpu_millis));
    assert_eq!((asked.liveness.as_deref(), asked.start_limit.unwrap().seconds), (Some("/healthz"), 90));
    assert_eq!(asked.strategy, wanted.strategy);
    assert_eq!(asked.domains.unwrap().domains, wanted.domains);
    assert_eq!((asked.public, asked.replace), (Some(true), true));
    assert_eq!(asked.description, Some(wanted.description));
    assert_eq!(asked.annotations.unwrap().annotations, wanted.annotations);
}

#[test]
fn text_that_looks_like_something_else_comes_back_as_it_was() {
    for text in [
        "",
        " ",
        "yes",
        "on",
        "null",
        "~",
        "1",
        "1e3",
        "0x1f",
        "1_000",
        "2026-11-24",
        "- a",
        "# x",
        "a # b",
        "a: b",
        "&a",
        "*a",
        "!a",
        "|",
        ">",
        "%",
        "@",
        "`",
        "'",
        "\"",
        "{}",
        "[",
        "\\n",
        "a\nb",
        "a\n",
        "\n\na",
        " a\n  b\n",
        "\t",
        "a\tb",
        "é",
        "\u{7f}",
        "\u{85}",
        "\u{feff}a",
        "\r\n",
        "---",
        "...",
        "<<",
        "=",
    ] {
        let value = EnvValue { value: Some(env_value::Value::Plain(text.into())) };
        let env = [("A".to_owned(), value)].into();
        let manifest = ServiceManifest::from_spec(
            "web",
            &ServiceSpec { image: "web".into(), env, ..ServiceSpec::default() },
        );
        let written = write(&manifest).unwrap();
        let read =
            read("m", &written).unwrap_or_else(|failure| panic!("{written}: {}", failure.detail.message));
        assert_eq!(read, manifest, "{written}");
    }
}

const SMALL: &str = "version: v1\nkind: Service\nmetadata:\n  name: web\ncontainer:\n  image: web:1\n";

#[test]
fn a_small_manifest_is_enough_and_keeps_nothing() {
    let asked = read("m", SMALL).unwrap().into_spec().unwrap();
    assert_eq!((asked.image.as_str(), asked.name.as_deref(), asked.replace), ("web:1", Some("web"), true));
    assert_eq!((asked.ports, asked.public, asked.command), (None, Some(false), None));
    let minimal = ServiceSpec { image: "web:1".into(), ..ServiceSpec::default() };
    assert_eq!(write(&ServiceManifest::from_spec("web", &minimal)).unwrap(), SMALL);
    // The manifest has the tag, even when a built image was deployed by its digest.
    let digest = format!("web:1@sha256:{}", "0".repeat(64));
    assert_eq!(
        ServiceManifest::from_spec("web", &ServiceSpec { image: digest, ..minimal }),
        read("m", SMALL).unwrap()
    );
}

fn with(more: &str) -> String {
    format!("{SMALL}{more}")
}

#[test]
fn values_may_be_written_in_the_ways_that_people_write_them() {
    let text = with(
        "  command: sh -c 'a b'\n  cpus: 1.5\n  memory: 1073741824\n  environment:\n  - {name: A, value: 8080}\n  \
         - {name: B, value: true}\n  - {name: T, token: {identity: bot, role: user}}\n  - {name: U, token: {}}\n",
    );
    let asked = read("m", &text).unwrap().into_spec().unwrap();
    assert_eq!(asked.command.unwrap().arguments, ["sh", "-c", "a b"]);
    assert_eq!((asked.cpu_millis, asked.memory_bytes), (Some(1500), Some(1 << 30)));
    let value = |name: &str| asked.env[name].value.clone().unwrap();
    assert_eq!(value("A"), env_value::Value::Plain("8080".into()));
    assert_eq!(value("B"), env_value::Value::Plain("true".into()));
    assert_eq!(value("T"), env_value::Value::TokenScope("userDefault".into()));
    assert_eq!(value("U"), env_value::Value::TokenScope("agentDefault".into()));
    assert_eq!(asked.identity.as_deref(), Some("bot"));
}

#[test]
fn what_is_not_known_or_malformed_is_named_with_its_line() {
    for (text, line, says) in [
        (with("replicas: 2\n"), 7, "replicas"),
        (with("  imagee: x\n"), 7, "imagee"),
        (with("ports:\n- num: 80\n  hostPort: 80\n"), 9, "hostPort"),
        (with("ports:\n- num: '*'\n"), 8, "invalid"),
        (with("ports:\n- num: 80\n  type: udp\n"), 9, "udp"),
        (with("  environment:\n  - name: A\n    secret: {identity: x, id: y}\n"), 9, "identity"),
        (with("  image: again\n"), 7, "image"),
        (with("  command: 'sh \"'\n"), 7, "double quote"),
        (with("  environment:\n  - name: A\n    token: {api: everything}\n"), 9, "everything"),
        (SMALL.replace("kind: Service", "kind: Pod"), 2, "Pod"),
        (SMALL.replace("v1", "v2"), 1, "v2"),
        (SMALL.replace("  image: web:1\n", "  command: x\n"), 6, "missing field `image`"),
        (with("  storage: []\n"), 7, "mapping"),
    ] {
        let message = read("web.yaml", &text).unwrap_err().detail.message;
        assert!(message.starts_with("web.yaml: ") && message.contains(says), "{message}");
        assert!(message.contains(&format!("line {line},")), "{says}: {message}");
    }
}

#[test]
fn what_does_not_fit_together_is_named_with_its_field() {
    for (text, says) in [
        (SMALL.replace("name: web", "name: Web"), "metadata.name: service name `Web`"),
        (SMALL.replace("web:1", "Web"), "container.image: `Web`"),
        (with("  command: []\n"), "container.command: the command is empty"),
        (with("  memory: lots\n"), "container.memory: `lots`"),
        (with("  cpus: none\n"), "container.cpus: `none`"),
        (with("  capabilities: [SYS_ADMIN]\n"), "container.capabilities: `SYS_ADMIN`"),
        (with("start_limit: soon\n"), "start_limit: `soon`"),
        (with("  environment: [{name: A}]\n"), "container.environment: `A`: expected exactly one of"),
        (with("  environment: [{name: A, value: x, secret: {id: y}}]\n"), "expected exactly one of"),
        (
            with("  environment: [{name: A, value: x}, {name: A, value: y}]\n"),
            "`A`: the variable is there twice",
        ),
        (
            with("  environment: [{name: A, token: {identity: x}}, {name: B, token: {identity: y}}]\n"),
            "`B`: identity `y`: another token has `x`",
        ),
        (
            with("  storage: {files: [{path: x, text: y}]}\n"),
            "container.storage.files: `x` is not an absolute path",
        ),
        (with("  storage: {room: [{path: x}]}\n"), "container.storage.room: `x` is not an absolute path"),
        (
            with("  storage: {room: [{path: /x, subpath: ../y}]}\n"),
            "container.storage.room: `../y` has a `..`",
        ),
        (with("  storage: {room: [{path: /x}], empty_dirs: [{path: /x/}]}\n"), "`/x` is used twice"),
        (with("  storage: {images: [{path: /x, image: X}]}\n"), "container.storage.images: `X`"),
        (with("ports: [{num: 8078}]\n"), "ports: port 8078 is reserved"),
        (with("ports: [{num: 0}]\n"), "ports: port `0/http`"),
        (with("ports: [{num: 70000}]\n"), "ports: port `70000/http`: expected"),
        (with("ports: [{num: 80}, {num: 80}]\n"), "ports: port 80 is given twice"),
        (with("ports: [{num: 80, liveness: x}]\n"), "ports: 80: path `x` of the health check"),
        (
            with("ports: [{num: 80}, {num: 81, liveness: /x}]\n"),
            "ports: 81: the health check uses the first published http port",
        ),
        (
            with("ports: [{num: 80, type: tcp, liveness: /x}]\n"),
            "ports: 80: the health check uses the first published http port",
        ),
        (with("ports: [{num: 80}, {num: 81, public: true}]\n"), "ports: 81: `public` is the same"),
    ] {
        let manifest =
            read("m", &text).unwrap_or_else(|failure| panic!("{text}: {}", failure.detail.message));
        let message = manifest.into_spec().unwrap_err().detail.message;
        assert!(message.contains(says), "{message}");
    }
}
