//! What the variables of a stage are known to hold.
//!
//! In a stage, the last ENV or ARG of a name counts. A stage that begins with another one gets its ENVs, and its
//! ARGs where no ENV has that name, the image's own among them: those are known only where all began with nothing.
//! Of what the builder's platform decides nothing is known either, unless it is given.

use std::collections::BTreeMap;

use super::words;

/// None where a value cannot be told.
type Values = BTreeMap<String, Option<String>>;

#[derive(Clone, Default)]
pub(super) struct Variables {
    now: Values,
    /// Set by ENV.
    environment: Values,
    /// There is no ENV beside these.
    is_whole: bool,
    /// What ARGs hold that the frontend gives a value. None where that is left open.
    platforms: Option<BTreeMap<String, String>>,
}

impl Variables {
    /// Of a stage that begins with nothing, where only the frontend's own PATH may be set. Also of what stands
    /// above all stages.
    pub(super) fn of_nothing() -> Self {
        let path = Values::from([("PATH".to_owned(), None)]);
        Self { now: path.clone(), environment: path, is_whole: true, platforms: None }
    }

    /// The same where it is known for what and on what the build is.
    pub(super) fn with_platforms(platforms: BTreeMap<String, String>) -> Self {
        Self { platforms: Some(platforms), ..Self::of_nothing() }
    }

    pub(super) fn platforms(&self) -> Option<&BTreeMap<String, String>> {
        self.platforms.as_ref()
    }

    /// Of a stage that begins with an image: `NAME=VALUE` of each ENV in it.
    pub(super) fn with_environment(mut self, environment: &[String]) -> Self {
        for (name, value) in environment.iter().filter_map(|variable| variable.split_once('=')) {
            self.environment.insert(name.to_owned(), Some(value.to_owned()));
            self.now.insert(name.to_owned(), Some(value.to_owned()));
        }
        self
    }

    /// At the begin of a stage that goes on from here.
    pub(super) fn inherited(&self) -> Self {
        let mut now = if self.is_whole { self.now.clone() } else { Values::new() };
        now.extend(self.environment.clone());
        Self { now, ..self.clone() }
    }

    /// `word` with quotes and escapes removed and variables filled in. None where a value is not known.
    pub(super) fn expand(&self, word: &str, escape: char) -> Option<String> {
        words::expand_known(word, &self.known(), escape).ok()
    }

    /// Takes an ENV into account.
    pub(super) fn set(&mut self, rest: &str, escape: char) {
        let words = words::split_raw(rest, escape);
        let pairs: Vec<(&str, &str)> = match words.first() {
            Some(first) if first.contains('=') => {
                words.iter().map(|word| word.split_once('=').unwrap_or_default()).collect()
            }
            // All that follows the name is the value.
            _ => vec![rest.split_once(char::is_whitespace).unwrap_or_default()],
        };
        // No value of the line sees another one of it.
        let before = self.known();
        for (name, value) in pairs {
            if !is_name(name) {
                return *self = Self::default();
            }
            let value = words::expand_known(value.trim_start(), &before, escape).ok();
            self.environment.insert(name.to_owned(), value.clone());
            self.now.insert(name.to_owned(), value);
        }
    }

    /// Takes an ARG into account. `given` are the build's arguments, `global` the ARGs above all stages.
    pub(super) fn declare(
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
                _ if is_predefined(name) && self.platforms.is_none() => None,
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => self.expand(default, escape),
                (None, None) => match global.and_then(|global| global.now.get(name)) {
                    Some(value) => value.clone(),
                    None if is_predefined(name) => {
                        self.platforms.as_ref().and_then(|platforms| platforms.get(name).cloned())
                    }
                    // It stays what it is.
                    None => continue,
                },
            };
            self.now.insert(name.to_owned(), value);
        }
    }

    fn known(&self) -> BTreeMap<String, String> {
        self.now.iter().filter_map(|(name, value)| Some((name.clone(), value.clone()?))).collect()
    }
}

/// Whether the frontend gives it a value, which depends on where it runs.
fn is_predefined(name: &str) -> bool {
    let rest = name.strip_prefix("BUILD").or_else(|| name.strip_prefix("TARGET"));
    rest.is_some_and(|rest| ["PLATFORM", "OS", "OSVERSION", "ARCH", "VARIANT", "STAGE"].contains(&rest))
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
