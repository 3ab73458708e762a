//! Every metric that the daemon sets is described where it is served, and has a row in `docs/reference/metrics.md`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Returns the first string after each occurrence of one of these macros.
fn named(source: &str, macros: &[&str]) -> BTreeSet<String> {
    let after = macros.iter().flat_map(|name| source.split(name).skip(1));
    let names = after.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split_once('"'));
    names.map(|(name, _)| name.to_owned()).collect()
}

fn sources(directory: &Path) -> String {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.fold(String::new(), |all, path| match path.is_dir() {
        true => all + &sources(&path),
        false => all + &fs::read_to_string(&path).unwrap(),
    })
}

#[test]
fn every_metric_is_described_and_documented() {
    let source = sources(&super::repository().join("daemon/src"));
    let set = named(&source, &["metrics::counter!(", "metrics::gauge!(", "metrics::histogram!("]);
    let described = named(&source, &["describe_counter!(", "describe_gauge!(", "describe_histogram!("]);
    assert!(set.len() > 15, "{set:?}");
    assert_eq!(set, described, "the metrics that are set, and those that are described");
    let reference = fs::read_to_string(super::repository().join("docs/reference/metrics.md")).unwrap();
    let rows = reference.lines().filter_map(|line| line.strip_prefix("| `hearth_")?.split_once('`'));
    let documented: BTreeSet<String> = rows.map(|(name, _)| format!("hearth_{name}")).collect();
    assert_eq!(set, documented, "the metrics that are set, and the rows of docs/reference/metrics.md");
}
