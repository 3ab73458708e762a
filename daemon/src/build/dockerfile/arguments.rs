//! Global ARGs of a Dockerfile: the predefined platform ARGs, and the ARGs above the first FROM.

use std::collections::BTreeMap;

use super::words;
use crate::model::image::Platform;

/// Global ARGs and their values. An ARG that is declared without a value has no entry.
pub(super) struct GlobalArguments<'a> {
    build_args: &'a BTreeMap<String, String>,
    pub(super) values: BTreeMap<String, String>,
}

impl<'a> GlobalArguments<'a> {
    pub(super) fn new(
        build_args: &'a BTreeMap<String, String>,
        platform: &Platform,
        target: Option<&str>,
    ) -> Self {
        let mut values = BTreeMap::new();
        for (prefix, platform) in [("BUILD", &Platform::host()), ("TARGET", platform)] {
            let mut parts = platform.as_str().split('/');
            for (name, value) in [
                ("PLATFORM", Some(platform.as_str())),
                ("OS", parts.next()),
                ("ARCH", parts.next()),
                ("VARIANT", parts.next()),
            ] {
                values.insert(format!("{prefix}{name}"), value.unwrap_or_default().to_owned());
            }
        }
        values.insert("TARGETSTAGE".to_owned(), target.unwrap_or("default").to_owned());
        for (name, value) in &mut values {
            if let Some(build_args) = build_args.get(name) {
                value.clone_from(build_args);
            }
        }
        Self { build_args, values }
    }

    /// Adds the ARGs of an instruction. A build argument overrides the default value in the instruction.
    pub(super) fn declare(&mut self, rest: &str, escape: char) {
        for word in words::split_raw(rest, escape) {
            let (name, default) = match word.split_once('=') {
                Some((name, default)) => (name.to_owned(), Some(default)),
                None => (word.clone(), None),
            };
            let value = match (self.build_args.get(&name), default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => words::expand(default, &self.values, escape).ok(),
                (None, None) => None,
            };
            if let Some(value) = value {
                self.values.insert(name, value);
            }
        }
    }

    pub(super) fn expand(&self, word: &str, escape: char) -> Option<String> {
        words::expand(word, &self.values, escape).ok()
    }
}
