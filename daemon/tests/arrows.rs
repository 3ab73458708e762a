//! Reads the `crate::` paths of every source file and fails on an arrow that the architecture does
//! not have. Ports (`x/port.rs`) are what adapters may see of the modules above them.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// What each module may name besides itself. `port` after a module means only its `port.rs`.
const ALLOWED: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("task", &[]),
    ("telemetry", &["config"]),
    ("shutdown", &["task"]),
    ("config", &["model"]),
    ("access", &["model"]),
    ("audit", &["model", "task"]),
    ("secrets", &["model", "task", "access"]),
    ("connections", &["task"]),
    ("disk", &["model"]),
    ("ingress", &["model", "task", "access", "audit", "connections", "deploy::port"]),
    ("supervise", &["model", "task"]),
    ("context", &["model", "task", "image::port", "packs::port"]),
    ("image", &["model", "task"]),
    ("packs", &["model", "task", "image"]),
    ("build", &["model", "task", "context", "image", "packs"]),
    ("downloads", &["model", "task", "build::port"]),
    ("deploy", &["model", "task", "context", "image", "access", "secrets", "instance_log"]),
    ("containerd", &["model", "task", "deploy::port", "image::port", "supervise", "instance_log"]),
    ("instance_log", &["model", "task"]),
    ("network", &["model", "task", "deploy::port", "capability"]),
    ("git_proxy", &["model", "task"]),
    ("capability", &[]),
    ("control_group", &[]),
    (
        "buildkit",
        &[
            "model",
            "task",
            "build::port",
            "context::port",
            "supervise",
            "capability",
            "control_group",
            "git_proxy",
            "network::steps",
        ],
    ),
    ("builders", &["model", "task", "build::port", "buildkit", "git_proxy", "supervise", "network::steps"]),
    // What may be done with repositories is one question for gRPC and `/v2/`, of values only.
    ("registry", &["model", "task", "disk", "image::port", "access::policy"]),
    ("store", &["model", "task", "build::port", "deploy::port", "image::port", "secrets::port"]),
    // `registry::unauthorized` and its router are mounted by the API beside gRPC.
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
            "context",
            "ingress",
            "registry",
            "secrets",
        ],
    ),
];

/// The composition root: nothing sees them, they see everything.
const ROOTS: &[&str] = &["daemon", "lib", "main"];

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

/// The module paths that a source names after `crate::`, without those in its comments.
fn named(source: &str) -> Vec<String> {
    source
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .flat_map(|line| line.split("crate::").skip(1))
        .map(|rest| {
            rest.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).next().unwrap().to_owned()
        })
        .collect()
}

/// Tests join a module with the real neighbours that it has in the daemon.
fn is_test(relative: &Path) -> bool {
    relative.components().any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "tests.rs")))
}

fn allowed(module: &str, target: &str) -> bool {
    let (_, rules) = ALLOWED
        .iter()
        .find(|(name, _)| *name == module)
        .unwrap_or_else(|| panic!("module `{module}` has no row in this test: decide what it may see"));
    let target_module = target.split("::").next().unwrap();
    target_module == module
        || rules
            .iter()
            .any(|rule| *rule == target_module || target == *rule || target.starts_with(&format!("{rule}::")))
}

#[test]
fn no_module_names_one_that_it_must_not_see() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
        let module = first.strip_suffix(".rs").unwrap_or(first);
        if ROOTS.contains(&module) || is_test(relative) {
            continue;
        }
        for target in named(&fs::read_to_string(&file).unwrap()) {
            if target.is_empty() {
                wrong.push(format!("{} has `crate::{{`: name one module per `use`", relative.display()));
            } else if !allowed(module, &target) {
                wrong.push(format!("{} names crate::{target}", relative.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that the architecture does not have:\n{}", wrong.join("\n"));
}

#[test]
fn generated_types_of_the_wire_stay_in_the_api() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let source = fs::read_to_string(&file).unwrap();
        let composes = relative.starts_with("daemon");
        if !relative.starts_with("api") && relative != Path::new("api.rs") && !composes {
            assert!(!source.contains("hearth_proto::v1"), "{} names the wire's types", relative.display());
        }
        if !relative.starts_with("buildkit") && relative != Path::new("buildkit.rs") {
            assert!(
                !source.contains("bollard_buildkit_proto"),
                "{} names BuildKit's types",
                relative.display()
            );
        }
    }
}
