//! Control groups of one builder: resource limits of its steps and of buildkitd itself.
//!
//! ```text
//! /<group of all builders>      memory of all builders together
//!   <builder>/
//!     buildkitd                 memory of buildkitd itself
//!     steps                     memory and processes of all its steps; runc creates a group for each below it
//! ```
//!
//! Steps that use up their memory or processes affect only their own builder, and not its buildkitd. On a machine
//! where the groups cannot be created, builds run without limits, and each start logs a warning.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::control_group::{ControlGroup, MemoryWatch, machine_memory};

/// Minimum memory limit of buildkitd itself in bytes, not counting the step output that it keeps.
const MIN_BUILDKITD_MEMORY: u64 = 2 << 30;

/// Resource limits of a builder's steps. Sizes are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepBounds {
    /// Path of this builder's control group; without one there are no limits.
    pub group: Option<String>,
    /// Memory limit of all running steps together. Default: three quarters of the machine's memory.
    pub step_memory: Option<u64>,
    /// Maximum number of processes and threads of all running steps together.
    pub step_processes: u64,
    /// Maximum output of one step that buildkitd accepts and keeps in memory until the build has ended. The rest is
    /// dropped.
    pub step_output: Option<u64>,
}

/// The control groups of one builder.
#[derive(Debug)]
pub struct BuilderGroups {
    bounds: StepBounds,
    /// Memory events of the steps since the latest start.
    memory: Mutex<Option<MemoryWatch>>,
}

impl BuilderGroups {
    pub(super) fn new(bounds: StepBounds) -> Arc<Self> {
        Arc::new(Self { bounds, memory: Mutex::default() })
    }

    /// Creates the groups and sets their limits. Must be called before each start. Blocking.
    pub(super) fn prepare(&self) {
        let Some(group) = self.bounds.group.as_deref() else { return };
        match self.make(group) {
            Ok(watch) => *self.memory.lock() = Some(watch),
            Err(error) => {
                tracing::warn!(%error, group, "failed to set up control groups; build steps run without limits");
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

    /// Memory limit of buildkitd itself.
    fn own_memory(&self, machine: u64) -> u64 {
        MIN_BUILDKITD_MEMORY.max(machine / 4).saturating_add(self.bounds.step_output.unwrap_or(0))
    }

    /// Soft memory limit for the Go runtime, somewhat below the kernel's limit so that it collects garbage in time.
    pub(super) fn go_memory_limit(&self) -> Option<u64> {
        self.bounds.group.as_ref()?;
        Some(self.own_memory(machine_memory().ok()?) / 8 * 7)
    }

    /// Membership files to which buildkitd's pid is written so that it joins its group.
    pub(super) fn membership_files(&self) -> Vec<PathBuf> {
        let group = self.bounds.group.as_ref().map(|group| ControlGroup::at(&format!("{group}/buildkitd")));
        group.map(|group| group.member_files()).unwrap_or_default()
    }

    /// Path of the steps' group in the form that runc expects.
    pub(super) fn steps_group(&self) -> Option<String> {
        self.bounds.group.as_ref().map(|group| format!("/{}/steps", group.trim_matches('/')))
    }

    /// Number of times that the steps ran out of memory since the builder was started.
    pub(in crate::buildkit) fn out_of_memory(&self) -> u64 {
        let watch = self.memory.lock();
        watch.as_ref().map_or(0, MemoryWatch::count)
    }

    /// Removes the groups after their processes have ended. Blocking.
    pub(super) fn remove(&self) -> Result<(), String> {
        let Some(group) = self.bounds.group.as_deref() else { return Ok(()) };
        let removed = ControlGroup::at(group).remove();
        if let Some(all) = above(group) {
            all.remove_if_empty();
        }
        removed.map_err(|error| format!("control group {group}: {error}"))
    }
}

/// Returns the group of all builders.
fn above(group: &str) -> Option<ControlGroup> {
    group.trim_matches('/').rsplit_once('/').map(|(all, _)| ControlGroup::at(all))
}
