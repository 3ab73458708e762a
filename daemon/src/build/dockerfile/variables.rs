//! Known values of the variables of a stage.
//!
//! In a stage, the last ENV or ARG of a name counts. A stage that begins with another stage inherits its ENVs, and its
//! ARGs where no ENV has that name. The ENVs of a base image are unknown, so ARGs are inherited only when all ENVs are
//! known, that is when the chain of stages begins with `scratch`. Values that depend on the builder's platform are
//! unknown too, unless they are passed in.

use std::collections::BTreeMap;

use super::words;

/// Variables by name; `None` for a value that is not known.
type MaybeKnownValues = BTreeMap<String, Option<String>>;

#[derive(Clone, Default)]
pub(super) struct StageVariables {
    current: MaybeKnownValues,
    /// Variables set by ENV.
    environment: MaybeKnownValues,
    /// `environment` holds all ENVs of the stage.
    environment_is_complete: bool,
    /// Values of the ARGs that the frontend predefines; `None` when the platforms are not known.
    predefined: Option<BTreeMap<String, String>>,
}

impl StageVariables {
    /// Variables of a stage that begins with `scratch`, where only the frontend's own PATH may be set. Also used for
    /// the ARGs above all stages.
    pub(super) fn for_scratch() -> Self {
        let path = MaybeKnownValues::from([("PATH".to_owned(), None)]);
        Self { current: path.clone(), environment: path, environment_is_complete: true, predefined: None }
    }

    /// The same, for known target and build platforms.
    pub(super) fn with_predefined(platforms: BTreeMap<String, String>) -> Self {
        Self { predefined: Some(platforms), ..Self::for_scratch() }
    }

    pub(super) fn predefined(&self) -> Option<&BTreeMap<String, String>> {
        self.predefined.as_ref()
    }

    /// Adds the ENVs of the base image, each as `NAME=VALUE`.
    pub(super) fn with_environment(mut self, environment: &[String]) -> Self {
        for (name, value) in environment.iter().filter_map(|variable| variable.split_once('=')) {
            self.environment.insert(name.to_owned(), Some(value.to_owned()));
            self.current.insert(name.to_owned(), Some(value.to_owned()));
        }
        self
    }

    /// Variables at the beginning of a stage that is based on this one.
    pub(super) fn inherited(&self) -> Self {
        let mut now =
            if self.environment_is_complete { self.current.clone() } else { MaybeKnownValues::new() };
        now.extend(self.environment.clone());
        Self { current: now, ..self.clone() }
    }

    /// Expands `word`: removes quotes and escapes and fills in variables. `None` when a value is not known.
    pub(super) fn expand(&self, word: &str, escape: char) -> Option<String> {
        words::expand_known(word, &self.known_values(), escape).ok()
    }

    /// Applies an ENV instruction.
    pub(super) fn apply_env(&mut self, rest: &str, escape: char) {
        let words = words::split_raw(rest, escape);
        let pairs: Vec<(&str, &str)> = match words.first() {
            Some(first) if first.contains('=') => {
                words.iter().map(|word| word.split_once('=').unwrap_or_default()).collect()
            }
            // The whole text after the name is the value.
            _ => vec![rest.split_once(char::is_whitespace).unwrap_or_default()],
        };
        // Values of one instruction do not see each other.
        let before = self.known_values();
        for (name, value) in pairs {
            if !is_name(name) {
                return *self = Self::default();
            }
            let value = words::expand_known(value.trim_start(), &before, escape).ok();
            self.environment.insert(name.to_owned(), value.clone());
            self.current.insert(name.to_owned(), value);
        }
    }

    /// Applies an ARG instruction. `given` are the build's arguments, `global` the ARGs above all stages.
    pub(super) fn apply_arg(
        &mut self,
        rest: &str,
        given: &BTreeMap<String, String>,
        global: Option<&Self>,
        escape: char,
    ) {
        for word in words::split_raw(rest, escape) {
            let (name, default) = match word.split_once('=') {
                Some((name, default)) => (name, Some(default)),
                None => (word.as_str(), None),
            };
            if !is_name(name) {
                return *self = Self::default();
            }
            let value = match (given.get(name), default) {
                _ if is_predefined(name) && self.predefined.is_none() => None,
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => self.expand(default, escape),
                (None, None) => match global.and_then(|global| global.current.get(name)) {
                    Some(value) => value.clone(),
                    None if is_predefined(name) => {
                        self.predefined.as_ref().and_then(|platforms| platforms.get(name).cloned())
                    }
                    // The variable keeps its value.
                    None => continue,
                },
            };
            self.current.insert(name.to_owned(), value);
        }
    }

    fn known_values(&self) -> BTreeMap<String, String> {
        self.current.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?))).collect()
    }
}

/// Reports whether the frontend predefines the ARG, with a value that depends on where it runs.
fn is_predefined(name: &str) -> bool {
    let rest = name.strip_prefix("BUILD").or_else(|| name.strip_prefix("TARGET"));
    rest.is_some_and(|rest| ["PLATFORM", "OS", "OSVERSION", "ARCH", "VARIANT", "STAGE"].contains(&rest))
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
