//! Reads every path that the sources of the workspace name, and fails on a dependency that the architecture forbids.
//!
//! Three rules: a module names only the modules in its row; generated wire types stay in the modules that speak the
//! protocol; every module has a row. Ports (`x/port.rs`) are what adapters may use of the modules above them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "arrows/circles.rs"]
mod circles;
#[path = "arrows/paths.rs"]
mod paths;

use std::fs;
use std::path::{Path, PathBuf};

use paths::{NamedPath, named_paths};

/// Module, and the modules that it may name besides itself. `port` after a module means only its `port.rs`.
type Row = (&'static str, &'static [&'static str]);

/// Dependency rules of one crate.
struct Crate {
    /// Directory of the sources, relative to the repository root.
    sources: &'static str,
    /// Composition roots: no module may name them, and they may name every module. An empty name is `lib.rs`.
    roots: &'static [&'static str],
    rows: &'static [Row],
    /// Crates of generated types or of a command line, and the modules that may name them.
    foreign: &'static [Row],
}

const DAEMON: Crate = Crate {
    sources: "daemon/src",
    roots: &["daemon", "main", ""],
    rows: DAEMON_ROWS,
    foreign: &[
        ("hearth_proto::v1", &["api"]),
        ("bollard_buildkit_proto", &["buildkit"]),
        ("containerd_client", &["containerd"]),
    ],
};

const CLIENT: Crate = Crate {
    sources: "client/src",
    roots: &["main", ""],
    rows: &[
        (
            "cli",
            &[
                "client",
                "duration",
                "error",
                "exit",
                "interrupt",
                "lineage",
                "output",
                "progress",
                "rooms",
                "task",
                "terminal",
            ],
        ),
        ("client", &["duration", "task"]),
        ("duration", &[]),
        ("error", &["client"]),
        ("exit", &["client", "error", "output"]),
        ("interrupt", &["error"]),
        ("lineage", &[]),
        ("output", &["error"]),
        ("progress", &["duration", "error", "exit", "output"]),
        ("rooms", &["client", "error"]),
        ("task", &[]),
        ("terminal", &["output"]),
    ],
    foreign: &[("clap", &["cli", "progress", "rooms"])],
};

/// The packing crate: it speaks no protocol and has no command line.
const PACK: Crate = Crate {
    sources: "client/pack/src",
    roots: &[""],
    rows: &[
        ("prefetch", &["workers"]),
        ("archive", &["layer", "new_file", "walk"]),
        ("base", &["archive"]),
        ("cache", &["archive", "identity", "layer", "new_file", "workers"]),
        ("file_kind", &[]),
        ("identity", &["file_kind", "layer", "sorted_map", "walk", "workers"]),
        ("ignore", &[]),
        ("image", &["ignore"]),
        ("layer", &["file_kind", "identity", "walk", "workers"]),
        ("link", &[]),
        ("listing", &["file_kind", "identity", "walk"]),
        ("new_file", &["workers"]),
        (
            "pack",
            &[
                "archive",
                "base",
                "cache",
                "file_kind",
                "identity",
                "image",
                "layer",
                "new_file",
                "summary",
                "walk",
                "workers",
            ],
        ),
        ("pieces", &["identity", "layer", "walk", "workers"]),
        ("sorted_map", &[]),
        ("summary", &["file_kind", "walk"]),
        ("walk", &["file_kind", "prefetch", "identity", "ignore", "new_file", "workers"]),
        ("workers", &[]),
    ],
    foreign: &[
        ("clap", &[]),
        ("hearth_proto", &[]),
        ("hearth_registry", &[]),
        ("reqwest", &[]),
        ("tokio", &[]),
        ("tonic", &[]),
    ],
};

/// The documents of images: values only.
const OCI: Crate = Crate {
    sources: "client/oci/src",
    roots: &[""],
    rows: &[
        ("config", &["exact_names", "DeclaredPlatform", "null_as_default"]),
        ("exact_names", &[]),
        (
            "manifest",
            &[
                "DeclaredPlatform",
                "null_as_default",
                "DOCKER_INDEX_TYPE",
                "DOCKER_MANIFEST_TYPE",
                "OCI_INDEX_TYPE",
                "OCI_MANIFEST_TYPE",
            ],
        ),
        ("platform", &["null_as_default"]),
    ],
    foreign: &[("hearth_pack", &[]), ("hearth_proto", &[]), ("hearth_registry", &[]), ("tokio", &[])],
};

/// The client of other registries: it does not pack.
const REGISTRY: Crate = Crate {
    sources: "client/registry/src",
    roots: &[""],
    rows: &[
        ("auth", &["credentials", "error", "host", "transport", "RegistryClient"]),
        ("blob", &["error", "host", "resolve", "transport", "RegistryClient"]),
        ("credentials", &["host"]),
        ("error", &["host", "retry"]),
        ("guard", &["host"]),
        ("host", &["credentials"]),
        ("push", &["error", "host", "transport", "RegistryClient", "RetryPolicy"]),
        ("resolve", &["error", "host", "transport", "RegistryClient"]),
        ("retry", &[]),
        ("transport", &["auth", "error", "guard", "host", "push", "RegistryClient"]),
    ],
    foreign: &[("clap", &[]), ("hearth_pack", &[]), ("hearth_proto", &[]), ("tonic", &[])],
};

/// `context`, `model` and `task` are crates below the daemon, which it re-exports.
const DAEMON_ROWS: &[Row] = &[
    ("allocator", &[]),
    ("netlink", &[]),
    ("fetch_policy", &["model", "netlink"]),
    ("telemetry", &["config"]),
    ("shutdown", &["task"]),
    ("config", &["model"]),
    ("access", &["model"]),
    ("audit", &["disk", "model", "task"]),
    ("secrets", &["model", "task", "access"]),
    ("connections", &["task"]),
    ("disk", &["model", "task"]),
    ("ingress", &["model", "task", "access", "audit", "connections", "deploy::port"]),
    ("supervise", &["model", "task"]),
    (
        "image",
        &[
            "model",
            "task",
            "disk::is_disk_full",
            "context::LayerCompression",
            "context::LayerFacts",
            "context::LayerFault",
            "context::LayerInspector",
            "context::LayerRefusal",
            "context::LayerVerdict",
            // Build caches are files of room storage.
            "context::StorageError",
            "context::StorageRoot",
            "context::WriteOptions",
            "fetch_policy",
        ],
    ),
    ("database", &[]),
    (
        "packs",
        &[
            "model",
            "task",
            "database",
            "context::ContentPiece",
            "context::PackContentReader",
            "context::PackContentSource",
            "context::PackTree",
            "image",
        ],
    ),
    ("keyed_semaphore", &[]),
    ("build", &["model", "task", "context", "disk", "image", "packs", "secrets"]),
    ("downloads", &["model", "task", "disk", "build::port", "fetch_policy"]),
    (
        "deploy",
        &["model", "task", "context", "disk::is_disk_full", "image", "access", "secrets", "instance_log"],
    ),
    ("containerd", &["model", "task", "deploy::port", "image::port", "supervise", "instance_log"]),
    ("instance_log", &["model", "task"]),
    (
        "network",
        &["model", "task", "deploy::port", "disk::is_disk_full", "capability", "netlink", "keyed_semaphore"],
    ),
    ("git_proxy", &["model", "task", "fetch_policy"]),
    ("capability", &[]),
    ("control_group", &[]),
    (
        "buildkit",
        &[
            "model",
            "task",
            "build::port",
            "context::ContextFiles",
            "context::FileKind",
            "context::FileTree",
            "context::NoTransferWatch",
            "context::SessionName",
            "context::SpecialFile",
            "context::TransferWatch",
            "context::TreeEntry",
            "context::Xattr",
            "supervise",
            "capability",
            "control_group",
            "git_proxy",
            "network::steps",
        ],
    ),
    (
        "builders",
        &["model", "task", "disk", "build::port", "buildkit", "git_proxy", "supervise", "network::steps"],
    ),
    // Authorization of repositories is one policy for gRPC and `/v2/`, of values only.
    ("registry", &["model", "task", "disk", "image::port", "access::policy"]),
    ("store", &["model", "task", "database", "build::port", "deploy::port", "image::port", "secrets::port"]),
    // The API mounts `registry::unauthorized` and the registry's router beside gRPC.
    (
        "api",
        &[
            "model",
            "task",
            "access",
            "audit",
            "connections",
            "disk",
            "build",
            "deploy",
            "image",
            "packs",
            "keyed_semaphore",
            "context",
            "ingress",
            "registry",
            "secrets",
        ],
    ),
];

impl Crate {
    /// Returns the violations in a file of this crate, one sentence for each dependency.
    fn wrong(&self, relative: &Path, source: &str) -> Vec<String> {
        let module = module_of(relative);
        let shown = |line| format!("{}/{}:{line}", self.sources, relative.display());
        let found = match named_paths(source, &module) {
            Ok(found) => found,
            Err(error) => return vec![format!("{}: {error}", shown(error.span().start().line))],
        };
        let top = module.first().map_or("", String::as_str);
        if self.roots.contains(&top) {
            return Vec::new();
        }
        let Some((_, rules)) = self.rows.iter().find(|(name, _)| *name == top) else {
            return vec![format!(
                "{}: module `{top}` has no row in this test, which says what it may name",
                shown(1)
            )];
        };
        let sentence = |path: &NamedPath| {
            let words: Vec<&str> = path.segments.iter().map(String::as_str).collect();
            let (named, line) = (words.join("::"), shown(path.line));
            if let Some((_, speakers)) = self.foreign.iter().find(|(foreign, _)| begins(&named, foreign)) {
                return (!speakers.contains(&top))
                    .then(|| format!("{line}: `{named}` is for {} only, not for `{top}`", list(speakers)));
            }
            let inner = named.strip_prefix("crate::")?;
            let allowed = begins(inner, top) || rules.iter().any(|rule| begins(inner, rule));
            (!allowed).then(|| format!("{line}: `{top}` may name {}, and names `{named}`", list(rules)))
        };
        found.iter().filter_map(sentence).collect()
    }
}

fn list(modules: &[&str]) -> String {
    match modules {
        [] => "no module".to_owned(),
        _ => format!("`{}`", modules.join("`, `")),
    }
}

/// Reports whether a path is this one or below it.
fn begins(path: &str, with: &str) -> bool {
    path.strip_prefix(with).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

/// Returns the module of a file, from the root of its crate.
fn module_of(relative: &Path) -> Vec<String> {
    let path = relative.with_extension("");
    let mut words: Vec<String> = path.iter().map(|word| word.to_str().unwrap().to_owned()).collect();
    words.retain(|word| word != "lib");
    words
}

/// Reports whether a file is a test: tests may use any neighbour of their module.
fn is_test(relative: &Path) -> bool {
    relative.iter().any(|part| matches!(part.to_str(), Some("tests" | "tests.rs")))
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn check(rules: &Crate) {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let root = repository.join(rules.sources);
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(!files.is_empty(), "no sources in {}", root.display());
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        if !is_test(relative) {
            wrong.extend(rules.wrong(relative, &fs::read_to_string(&file).unwrap()));
        }
    }
    assert!(wrong.is_empty(), "arrows that the architecture does not have:\n{}", wrong.join("\n"));
}

#[test]
fn the_daemon_has_no_arrow_that_it_must_not_have() {
    check(&DAEMON);
}

#[test]
fn the_client_has_no_arrow_that_it_must_not_have() {
    check(&CLIENT);
}

#[test]
fn packing_has_no_arrow_that_it_must_not_have() {
    check(&PACK);
}

#[test]
fn the_documents_of_images_have_no_arrow_that_they_must_not_have() {
    check(&OCI);
}

#[test]
fn the_registry_client_has_no_arrow_that_it_must_not_have() {
    check(&REGISTRY);
}

#[test]
fn each_form_of_a_wrong_dependency_is_reported_with_rule_file_and_line() {
    let wrong = [
        (&DAEMON, "ingress/serve.rs", "use super::super::build::Handle;"),
        (&DAEMON, "ingress/serve.rs", "use crate::{model::Digest, build::Handle};"),
        (&DAEMON, "ingress.rs", "use super::build::{self};"),
        (&DAEMON, "ingress.rs", "mod inner { use super::super::build::Handle; }"),
        (&DAEMON, "ingress.rs", "fn f() { self::super::build::start(); }"),
        (&DAEMON, "ingress.rs", "fn f() { tokio::select! { () = crate::build::wait() => {} } }"),
        (&DAEMON, "ingress.rs", "fn f(of: Vec<crate::build::Handle>) {}"),
        (&DAEMON, "containerd/start.rs", "use crate::deploy::Handle;"),
        (&DAEMON, "build/driver.rs", "use hearth_proto::{v1};"),
        (&DAEMON, "build/driver.rs", "use hearth_proto::{status, v1 as wire};"),
        (&DAEMON, "build/driver.rs", "fn f(of: bollard_buildkit_proto::pb::Op) {}"),
        (&DAEMON, "deploy/service.rs", "use containerd_client::types;"),
        (&DAEMON, "brand_new.rs", "fn f() {}"),
        (&CLIENT, "error.rs", "use super::cli::Command;"),
        (&CLIENT, "error.rs", "use clap::Parser;"),
        (&PACK, "walk.rs", "use crate::pack::PackOptions;"),
        (&PACK, "base.rs", "use hearth_registry::RegistryClient;"),
        (&PACK, "pack.rs", "use tonic::Status;"),
        (&OCI, "platform.rs", "use crate::config::ImageConfig;"),
        (&REGISTRY, "retry.rs", "use crate::push::PushTarget;"),
        (&REGISTRY, "blob.rs", "use hearth_pack::archive;"),
    ];
    for (rules, file, source) in wrong {
        let messages = rules.wrong(Path::new(file), &format!("//! A module.\n\n{source}\n"));
        assert_eq!(messages.len(), 1, "{source}: {messages:?}");
        let line = if file == "brand_new.rs" { 1 } else { 3 };
        assert!(messages[0].starts_with(&format!("{}/{file}:{line}: ", rules.sources)), "{messages:?}");
    }
    let right = [
        (
            &DAEMON,
            "ingress/serve.rs",
            "use super::super::model::Digest; use super::token; use hearth_proto::v2;",
        ),
        (&DAEMON, "containerd/start.rs", "use crate::deploy::port::Runtime; use containerd_client::types;"),
        (&DAEMON, "ingress.rs", "#[cfg(test)] mod tests { use crate::build::Handle; } // crate::build"),
        (&DAEMON, "daemon/router.rs", "use crate::build::Handle; use hearth_proto::v1;"),
    ];
    for (rules, file, source) in right {
        assert_eq!(rules.wrong(Path::new(file), source), Vec::<String>::new(), "{source}");
    }
}
