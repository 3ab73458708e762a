//! The modules of deploys form layers: none depends on itself through others.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

/// For each module, the modules that it names, each with file and line of a place that names it.
type Edges = BTreeMap<String, BTreeMap<String, String>>;

/// Adds what a file of the module `within::name` names of the modules of `within`.
fn add_edges(edges: &mut Edges, within: &str, relative: &Path, source: &str) {
    let module = module_of(relative);
    let Some(name) = module.get(1).filter(|_| module[0] == within) else { return };
    let named = edges.entry(name.clone()).or_default();
    for path in named_paths(source, &module).unwrap() {
        if let [root, first, second, ..] = path.segments.as_slice()
            && (root.as_str(), first.as_str()) == ("crate", within)
            && second != name
        {
            named.insert(second.clone(), format!("{}:{}", relative.display(), path.line));
        }
    }
}

/// Returns the dependencies among modules that are on a circle or lead to one; none if there is no circle.
fn circular(mut edges: Edges) -> Vec<String> {
    loop {
        let left: BTreeSet<String> = edges.keys().cloned().collect();
        for named in edges.values_mut() {
            named.retain(|name, _| left.contains(name));
        }
        edges.retain(|_, named| !named.is_empty());
        if edges.len() == left.len() {
            break;
        }
    }
    let sentence = |(from, named): (&String, &BTreeMap<String, String>)| {
        named.iter().map(|(to, place)| format!("{place}: `{from}` names `{to}`")).collect::<Vec<_>>()
    };
    edges.iter().flat_map(sentence).collect()
}

#[test]
fn the_modules_of_deploys_form_no_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root.join("deploy"), &mut files);
    let mut edges = Edges::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        // The fake stands above the modules, as tests do.
        if !is_test(relative)
            && !relative.starts_with("deploy/fake")
            && relative != Path::new("deploy/fake.rs")
        {
            add_edges(&mut edges, "deploy", relative, &fs::read_to_string(&file).unwrap());
        }
    }
    assert!(edges.len() > 10, "only {} modules", edges.len());
    let wrong = circular(edges);
    assert!(wrong.is_empty(), "modules of deploys depend on each other in a circle:\n{}", wrong.join("\n"));
}

#[test]
fn a_cycle_is_reported_with_both_modules_file_and_line() {
    let mut edges = Edges::new();
    add_edges(&mut edges, "deploy", Path::new("deploy/health.rs"), "use super::entry::ServiceEntry;");
    add_edges(&mut edges, "deploy", Path::new("deploy/entry.rs"), "use super::plan::plan;");
    add_edges(&mut edges, "deploy", Path::new("deploy/plan.rs"), "");
    assert_eq!(circular(edges.clone()), Vec::<String>::new());
    add_edges(
        &mut edges,
        "deploy",
        Path::new("deploy/entry/deep.rs"),
        "\nuse super::super::health::monitor;",
    );
    assert_eq!(
        circular(edges),
        ["deploy/entry/deep.rs:2: `entry` names `health`", "deploy/health.rs:1: `health` names `entry`",]
    );
}
