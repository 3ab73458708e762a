//! Control groups of one builder: what bounds its steps, and itself.
//!
//! ```text
//! /<group of all builders>      memory of all builders together
//!   <builder>/
//!     buildkitd                 memory of buildkitd itself
//!     steps                     memory and processes of all its steps together; runc makes a group for each below it
//! ```
//!
//! Steps that use up their memory or processes harm no builder but their own, and neither its buildkitd. A machine that
//! does not let us make groups still builds, without bounds, and the log says so at each start.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::control_group::{ControlGroup, MemoryWatch, machine_memory};

/// Least of what buildkitd itself may use beside the output of a step that it keeps.
const LEAST_OWN_MEMORY: u64 = 2 << 30;

/// What a builder's steps may use. Sizes are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Path of this builder's control group; without one there are no bounds.
    pub group: Option<String>,
    /// Memory of all steps that run at once; none is three quarters of the machine's.
    pub step_memory: Option<u64>,
    /// Processes and threads of all steps that run at once.
    pub step_processes: u64,
    /// Output of one step that buildkitd takes; it keeps that in memory until the build has ended. The rest is dropped.
    pub step_output: Option<u64>,
}

/// The groups of one builder.
#[derive(Debug)]
pub struct BuilderGroups {
    bounds: Bounds,
    /// Of the newest start.
    memory: Mutex<Option<MemoryWatch>>,
}

impl BuilderGroups {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self { bounds, memory: Mutex::default() })
    }

    /// Makes the groups and sets their limits. To be called before each start. Blocking.
    pub(super) fn prepare(&self) {
        let Some(group) = self.bounds.group.as_deref() else { return };
        match self.make(group) {
            Ok(watch) => *self.memory.lock() = Some(watch),
            Err(error) => {
                tracing::warn!(%error, group, "memory and processes of build steps are not bounded here");
            }
        }
    }

    fn make(&self, group: &str) -> io::Result<MemoryWatch> {
        let machine = machine_memory()?;
        let step_memory = self.bounds.step_memory.unwrap_or(machine / 4 * 3);
        if let Some(all) = above(group) {
            all.create()?;
            all.limit_memory(step_memory.max(machine / 8 * 7))?;
        }
        let buildkitd = ControlGroup::at(&format!("{group}/buildkitd"));
        buildkitd.create()?;
        buildkitd.limit_memory(self.own_memory(machine))?;
        let steps = ControlGroup::at(&format!("{group}/steps"));
        steps.create()?;
        steps.limit_memory(step_memory)?;
        steps.limit_processes(self.bounds.step_processes)?;
        MemoryWatch::of(&steps)
    }

    /// Memory that buildkitd itself may use.
    fn own_memory(&self, machine: u64) -> u64 {
        LEAST_OWN_MEMORY.max(machine / 4).saturating_add(self.bounds.step_output.unwrap_or(0))
    }

    /// What Go is to keep its memory below, so that it collects in time: somewhat less than the kernel allows.
    pub(super) fn go_memory_limit(&self) -> Option<u64> {
        self.bounds.group.as_ref()?;
        Some(self.own_memory(machine_memory().ok()?) / 8 * 7)
    }

    /// Files by which buildkitd enters its group.
    pub(super) fn members(&self) -> Vec<PathBuf> {
        let group = self.bounds.group.as_ref().map(|group| ControlGroup::at(&format!("{group}/buildkitd")));
        group.map(|group| group.members()).unwrap_or_default()
    }

    /// Group of the steps, as runc takes it.
    pub(super) fn steps(&self) -> Option<String> {
        self.bounds.group.as_ref().map(|group| format!("/{}/steps", group.trim_matches('/')))
    }

    /// How often memory of the steps ran out since the builder was started.
    pub(in crate::buildkit) fn out_of_memory(&self) -> u64 {
        let watch = self.memory.lock();
        watch.as_ref().map_or(0, MemoryWatch::count)
    }

    /// Removes the groups when their processes have ended. Blocking.
    pub(super) fn remove(&self) -> Result<(), String> {
        let Some(group) = self.bounds.group.as_deref() else { return Ok(()) };
        let removed = ControlGroup::at(group).remove();
        if let Some(all) = above(group) {
            all.remove_if_empty();
        }
        removed.map_err(|error| format!("control group {group}: {error}"))
    }
}

/// The group of all builders.
fn above(group: &str) -> Option<ControlGroup> {
    group.trim_matches('/').rsplit_once('/').map(|(all, _)| ControlGroup::at(all))
}
