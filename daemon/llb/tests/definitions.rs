//! Definitions: built, read, shown and checked.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command as Process, Stdio};

use bollard_buildkit_proto::pb;
use hearth_llb::{
    CacheSharing, CheckedGraph, Command, CopyFiles, FileAction, GitSource, Graph, LlbError, MAX_DEFINITION,
    Mount, MountKind, Policy, SecretVariable, SolveSettings, SourceLocation,
};
use pb::op::Op;
use proptest::prelude::*;
use prost::Message as _;

/// Returns a graph with each kind of operation, mount and file action.
fn everything() -> Graph {
    let mut graph = Graph::default();
    let base = graph.image("docker.io/library/alpine:3");
    graph.set_platform(base, "linux", "arm64", "v8");
    let context = graph.local("context");
    let source = GitSource { url: "https://e.example/a/b.git", fragment: "main:sub", keep_git_dir: true };
    let repository = graph.git(&source);
    let download = graph.http("https://e.example/x.tgz", Some(&format!("sha256:{}", "0a".repeat(32))));
    let copy = |from, target: &str| {
        let (source, target) = ("/".to_owned(), target.to_owned());
        let exclude = vec!["*.tmp".to_owned()];
        FileAction::Copy(CopyFiles { from, source, target, contents: true, owner: Some((0, 7)), exclude })
    };
    let text = str::to_owned;
    let files = vec![
        FileAction::Mkdir { path: text("/a/b"), mode: 0o750, parents: true },
        FileAction::Mkfile { path: text("/a/f"), mode: 0o644, data: vec![0, 255, 7] },
        copy(context, "/src"),
        copy(repository, "/git"),
        copy(download, "/down"),
        FileAction::Symlink { old: text("/a/f"), new: text("/a/l") },
        FileAction::Remove { path: text("/tmp/*"), allow_missing: true, wildcard: true },
    ];
    let tree = graph.file(Some(base), files);
    graph.set_name(tree, "[1/2] files");
    let at = |target: &str, kind| Mount { target: target.to_owned(), read_only: false, kind };
    let read_only = |mount: Mount| Mount { read_only: true, ..mount };
    let ran = graph.exec(
        Some(tree),
        Command {
            args: vec![text("/bin/sh"), text("-c"), text("make")],
            env: vec![text("PATH=/bin"), text("A=\u{e9}")],
            workdir: text("/src"),
            user: text("1000"),
            hostname: text("box"),
            mounts: vec![
                read_only(at("/in", MountKind::Bind { from: Some(base), path: text("/etc") })),
                at("/out", MountKind::Bind { from: None, path: String::new() }),
                at("/cache", MountKind::Cache { id: text("c"), sharing: CacheSharing::Locked, from: None }),
                at("/tmp", MountKind::Tmpfs { size_bytes: 1 << 20 }),
                at("/run/s", MountKind::Secret { id: text("key"), mode: 0o400, optional: false }),
                at("/run/a", MountKind::Ssh { id: text("agent"), mode: 0o600, optional: true }),
            ],
            secret_env: vec![SecretVariable { id: text("key"), name: text("KEY"), optional: false }],
            without_network: false,
        },
    );
    graph.set_group(ran.root, "g", "commands");
    graph.ignore_cache(ran.root);
    let out = ran.mounts[1].unwrap();
    let changed = graph.diff(Some(base), Some(ran.root));
    let empty = graph.diff(None, Some(out));
    let merged = graph.merge(&[base, changed, empty]);
    graph.set_result(merged);
    graph
}

fn check(graph: Graph) -> Result<CheckedGraph, LlbError> {
    let (secrets, agents) = (BTreeSet::from(["key".to_owned()]), BTreeSet::from(["agent".to_owned()]));
    let image_name = |reference: &hearth_value::Reference| format!("normal/{reference}");
    graph.check(&Policy { secrets: &secrets, agents: &agents, image_name })
}

fn dumped(graph: &Graph) -> String {
    graph.to_json().iter().map(|line| format!("{line}\n")).collect()
}

#[test]
fn a_graph_is_the_same_in_each_of_its_forms() {
    let graph = everything();
    let bytes = graph.encode();
    assert_eq!(Graph::read(&bytes).unwrap(), graph);
    assert_eq!(Graph::read(dumped(&graph).as_bytes()).unwrap().encode(), bytes);
    let definition = pb::Definition::decode(bytes.as_slice()).unwrap();
    use base64::Engine as _;
    let def: Vec<String> =
        definition.def.iter().map(|op| base64::engine::general_purpose::STANDARD.encode(op)).collect();
    let json = serde_json::json!({ "def": def }).to_string();
    assert_eq!(Graph::read(json.as_bytes()).unwrap().digests(), graph.digests());
}

/// BuildKit's own client reads what the builder makes, and prints what this crate prints.
#[test]
fn buildctl_shows_the_same_operations() {
    let graph = everything();
    let mut dump = Process::new("buildctl")
        .args(["debug", "dump-llb"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    dump.stdin.take().unwrap().write_all(&graph.encode()).unwrap();
    let output = dump.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(Graph::read(text.as_bytes()).map_err(|error| format!("{error}: {text}")).map(|_| ()), Ok(()));
    let theirs: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ours = graph.to_json();
    assert_eq!(theirs.len(), ours.len());
    for (theirs, ours) in theirs.iter().zip(&ours) {
        assert_eq!(theirs["Digest"], ours["Digest"]);
        // Its JSON leaves out the file action `symlink`, and writes zeros of some numbers.
        for part in ["exec", "source", "merge", "diff"] {
            let (theirs, ours) = (&theirs["Op"]["Op"][part], &ours["Op"]["Op"][part]);
            assert_eq!(without_zeros(theirs), without_zeros(ours), "{part}");
        }
    }
}

fn without_zeros(value: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::Object(fields) => {
            let kept = fields.iter().map(|(name, value)| (name.clone(), without_zeros(value)));
            Value::Object(kept.filter(|(_, value)| value.as_i64() != Some(0)).collect())
        }
        Value::Array(values) => values.iter().map(without_zeros).collect(),
        other => other.clone(),
    }
}

#[test]
fn sources_are_listed_and_the_daemon_decides_the_rest() {
    let checked = check(everything()).unwrap();
    let kinds: Vec<&str> = checked
        .sources
        .iter()
        .map(|source| match &source.location {
            SourceLocation::Image { reference, platform } => {
                assert_eq!(reference.to_string(), "docker.io/library/alpine:3");
                assert_eq!(platform.as_deref(), Some("linux/arm64/v8"));
                "image"
            }
            SourceLocation::Context => "context",
            SourceLocation::Git { url, name } => {
                assert_eq!((url.as_str(), name.as_str()), ("https://e.example/a/b.git", "e.example/a/b.git"));
                "git"
            }
            SourceLocation::Http { .. } => "http",
        })
        .collect();
    assert_eq!(
        kinds.into_iter().collect::<BTreeSet<_>>(),
        BTreeSet::from(["image", "context", "git", "http"])
    );
    assert!(matches!(checked.base(), Some(SourceLocation::Image { .. })));
    let settings = SolveSettings {
        context_session: "s1",
        without_network: true,
        ignore_cache: true,
        cache_namespace: Some("team"),
    };
    let solved = pb::Definition::decode(checked.encode_for(settings).as_slice()).unwrap();
    let ops: Vec<pb::Op> = solved.def.iter().map(|op| pb::Op::decode(op.as_slice()).unwrap()).collect();
    let sources: Vec<&pb::SourceOp> = ops
        .iter()
        .filter_map(|op| match &op.op {
            Some(Op::Source(source)) => Some(source),
            _ => None,
        })
        .collect();
    assert!(
        sources.iter().any(|source| source.identifier == "docker-image://normal/docker.io/library/alpine:3")
    );
    let context = sources.iter().find(|source| source.identifier == "local://context").unwrap();
    assert_eq!(context.attrs["local.session"], "s1");
    let exec = ops.iter().find_map(|op| match &op.op {
        Some(Op::Exec(exec)) => Some(exec),
        _ => None,
    });
    let exec = exec.unwrap();
    assert_eq!(exec.network, i32::from(pb::NetMode::None));
    assert!(exec.mounts.iter().any(|m| m.cache_opt.as_ref().is_some_and(|cache| cache.id == "team/c")));
    assert!(solved.metadata.values().all(|metadata| metadata.ignore_cache));
}

/// Returns the definition of an operation as another producer would encode it.
fn definition_of(op: pb::Op) -> Vec<u8> {
    let source = op_of(Op::Source(pb::SourceOp {
        identifier: "docker-image://docker.io/library/alpine:3".to_owned(),
        ..pb::SourceOp::default()
    }));
    let source = source.encode_to_vec();
    let input = |bytes: &[u8]| {
        use sha2::Digest as _;
        pb::Input { digest: format!("sha256:{}", hex::encode(sha2::Sha256::digest(bytes))), index: 0 }
    };
    let op = pb::Op { inputs: vec![input(&source)], ..op }.encode_to_vec();
    let end = pb::Op { inputs: vec![input(&op)], ..pb::Op::default() }.encode_to_vec();
    pb::Definition { def: vec![source, op, end], ..pb::Definition::default() }.encode_to_vec()
}

fn op_of(op: Op) -> pb::Op {
    pb::Op { op: Some(op), ..pb::Op::default() }
}

fn exec_with(change: impl FnOnce(&mut pb::ExecOp, &mut pb::Meta)) -> pb::Op {
    let mut meta = pb::Meta { args: vec!["x".to_owned()], cwd: "/".to_owned(), ..pb::Meta::default() };
    let root = pb::Mount { dest: "/".to_owned(), ..pb::Mount::default() };
    let mut exec = pb::ExecOp { mounts: vec![root], ..pb::ExecOp::default() };
    change(&mut exec, &mut meta);
    exec.meta = Some(meta);
    op_of(Op::Exec(exec))
}

fn source_with(identifier: &str, attributes: &[(&str, &str)]) -> pb::Op {
    let attrs = attributes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    op_of(Op::Source(pb::SourceOp { identifier: identifier.to_owned(), attrs }))
}

fn mount(change: impl FnOnce(&mut pb::Mount)) -> pb::Op {
    exec_with(|exec, _| {
        let mut mount = pb::Mount { dest: "/m".to_owned(), input: -1, output: -1, ..pb::Mount::default() };
        change(&mut mount);
        exec.mounts.push(mount);
    })
}

#[test]
fn what_a_build_may_not_use_is_refused_and_named() {
    let nested = definition_of(exec_with(|exec, _| exec.network = pb::NetMode::Host.into()));
    let nested = pb::BuildOp {
        def: Some(pb::Definition::decode(nested.as_slice()).unwrap()),
        ..pb::BuildOp::default()
    };
    let secret = pb::SecretOpt { id: "other".to_owned(), ..pb::SecretOpt::default() };
    let agent = pb::SshOpt { id: "other".to_owned(), ..pb::SshOpt::default() };
    let git = "git://e.example/a.git";
    let cases: Vec<(pb::Op, &str)> = vec![
        (op_of(Op::Build(nested)), "a build inside a build"),
        (exec_with(|exec, _| exec.network = pb::NetMode::Host.into()), "network"),
        (exec_with(|exec, _| exec.network = 7), "network"),
        (exec_with(|exec, _| exec.security = pb::SecurityMode::Insecure.into()), "sandbox"),
        (exec_with(|exec, _| exec.security = 9), "sandbox"),
        (exec_with(|exec, _| exec.cdi_devices.push(pb::CdiDevice::default())), "devices"),
        (exec_with(|_, meta| meta.cgroup_parent = "/".to_owned()), "control groups"),
        (exec_with(|_, meta| meta.ulimit.push(pb::Ulimit::default())), "limits"),
        (exec_with(|_, meta| meta.args.clear()), "no command"),
        (exec_with(|_, meta| meta.env.push("A=\0".to_owned())), "NUL"),
        (
            exec_with(|exec, _| {
                exec.secretenv.push(pb::SecretEnv { id: "other".to_owned(), ..Default::default() });
            }),
            "secret `other`",
        ),
        (mount(|m| (m.mount_type, m.secret_opt) = (1, Some(secret))), "secret `other`"),
        (mount(|m| (m.mount_type, m.ssh_opt) = (2, Some(agent))), "SSH agent `other`"),
        (mount(|m| m.mount_type = 3), "cache mount has no id"),
        (mount(|m| m.mount_type = 11), "unknown kind"),
        (mount(|m| m.result_id = "x".to_owned()), "another solve"),
        (mount(|m| m.input = 5), "input that the operation does not have"),
        (source_with("local://context", &[("local.session", "other")]), "`local.session`"),
        (source_with("local://context", &[("local.metadatatransfer", "true")]), "`local.metadatatransfer`"),
        (source_with("local://dockerfile", &[]), "only local source"),
        (source_with("local://../x", &[]), "only local source"),
        (source_with("oci-layout://x/y@sha256:0", &[("oci.session", "s")]), "`oci-layout`"),
        (source_with("docker-image+blob://x/y@sha256:0", &[]), "`docker-image+blob`"),
        (source_with("file:///etc/passwd", &[]), "`file`"),
        (source_with("no scheme", &[]), "no scheme"),
        (source_with("docker-image://UPPER", &[]), "image:"),
        (source_with("docker-image://a", &[("image.layerlimit", "1")]), "`image.layerlimit`"),
        (source_with("https://e.example/", &[("http.authheadersecret", "key")]), "`http.authheadersecret`"),
        (source_with("https://e.example/", &[("http.header.accept", "x")]), "`http.header.accept`"),
        (source_with(git, &[("git.authtokensecret", "key")]), "`git.authtokensecret`"),
        (source_with(git, &[("git.mountsshsock", "default")]), "`git.mountsshsock`"),
        (source_with(git, &[("git.bundle", "x")]), "`git.bundle`"),
        (source_with(git, &[("git.fullurl", "https://evil.example/a.git")]), "`git.fullurl` must be"),
        (source_with(git, &[("git.fullurl", "ssh://git@e.example/a.git")]), "`git.fullurl` must be"),
        (op_of(Op::File(pb::FileOp { actions: vec![pb::FileAction::default()] })), "unknown file action"),
        (pb::Op::default(), "does nothing"),
    ];
    for (op, expected) in cases {
        let graph = Graph::read(&definition_of(op.clone())).unwrap();
        match check(graph) {
            Err(LlbError::Refused { number: 2, reason, .. }) => {
                assert!(reason.contains(expected), "{expected}: {reason}");
            }
            // The source has no input, so it may come first.
            other => panic!("{expected}: {op:?}: {:?}", other.map(|checked| checked.sources)),
        }
    }
}

#[test]
fn what_the_check_does_not_know_never_reaches_a_solve() {
    // Field 8 is an operation of a later version, field 7 of the metadata its limits.
    let mut op = exec_with(|_, meta| {
        meta.proxy_env = Some(pb::ProxyEnv { http_proxy: "\0".into(), ..Default::default() });
    });
    op.constraints = Some(pb::WorkerConstraints { filter: vec!["x".to_owned()] });
    let unused = exec_with(|exec, _| exec.network = pb::NetMode::Host.into()).encode_to_vec();
    let mut definition = pb::Definition::decode(definition_of(op).as_slice()).unwrap();
    definition.def.insert(0, unused);
    let info = pb::SourceInfo { definition: Some(definition.clone()), ..pb::SourceInfo::default() };
    definition.source = Some(pb::Source { infos: vec![info], ..pb::Source::default() });
    let mut bytes = definition.encode_to_vec();
    bytes.extend([0x7a, 1, b'x']);
    let checked = check(Graph::read(&bytes).unwrap()).unwrap();
    let solved = pb::Definition::decode(checked.encode_for(SolveSettings::default()).as_slice()).unwrap();
    assert_eq!(solved.def.len(), 3, "the unused operation is gone");
    assert!(solved.source.unwrap().infos[0].definition.is_none());
    for op in solved.def.iter().map(|op| pb::Op::decode(op.as_slice()).unwrap()) {
        assert!(op.constraints.is_none());
        if let Some(Op::Exec(exec)) = op.op {
            assert!(exec.meta.unwrap().proxy_env.is_none());
        }
    }
}

#[test]
fn definitions_are_bounded() {
    assert_eq!(Graph::read(&vec![b' '; MAX_DEFINITION + 1]), Err(LlbError::TooLarge));
    let mut long = Graph::default();
    let mut last = long.image("a");
    for _ in 0..2000 {
        last = long.diff(Some(last), None);
    }
    long.set_result(last);
    assert_eq!(Graph::read(&long.encode()), Err(LlbError::TooDeep));
    // An operation that is its own input can only be written as JSON.
    let own = "{\"Op\":{\"inputs\":[{\"digest\":\"a\"}],\"Op\":{\"merge\":{}}},\"Digest\":\"a\"}\n\
               {\"Op\":{\"inputs\":[{\"digest\":\"a\"}],\"Op\":{}},\"Digest\":\"b\"}";
    assert_eq!(Graph::read(own.as_bytes()), Err(LlbError::TooDeep));
    let wide = Graph::read(&{
        let mut wide = Graph::default();
        let inputs: Vec<_> = (0..300).map(|i| wide.image(&format!("a{i}"))).collect();
        let merged = wide.merge(&inputs);
        wide.set_result(merged);
        wide.encode()
    });
    assert_eq!(wide, Err(LlbError::TooManyInputs));
    for wrong in [
        "",
        "{}",
        "{\"Op\":{\"Op\":{\"build\":{}}},\"Digest\":\"a\"}",
        "[]",
        "{\"def\":[7]}",
        "{\"def\":[\"!\"]}",
    ] {
        assert!(matches!(Graph::read(wrong.as_bytes()), Err(LlbError::Malformed(_))), "{wrong}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn damaged_definitions_never_panic(cut in any::<prop::sample::Index>(), byte in any::<u8>(), json in any::<bool>()) {
        let graph = everything();
        let mut bytes = if json { dumped(&graph).into_bytes() } else { graph.encode() };
        let at = cut.index(bytes.len());
        bytes[at] = byte;
        if let Ok(graph) = Graph::read(&bytes) {
            graph.to_json();
            if let Ok(checked) = check(graph) {
                checked.encode_for(SolveSettings::default());
            }
        }
    }
}
