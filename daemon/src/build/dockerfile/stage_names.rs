//! Names of the stages of a Dockerfile.

use std::collections::HashMap;

/// Index of the stage that has a name, whatever the case of its letters. If two stages share a name, it means the first.
#[derive(Debug, Default)]
pub(super) struct StageNames(HashMap<String, usize>);

impl StageNames {
    /// Names the stage at `index`; returns `false` if an earlier stage has the name.
    pub(super) fn insert(&mut self, name: &str, index: usize) -> bool {
        *self.0.entry(name.to_lowercase()).or_insert(index) == index
    }

    pub(super) fn get(&self, name: &str) -> Option<usize> {
        self.0.get(&name.to_lowercase()).copied()
    }
}
