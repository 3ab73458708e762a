//! Numbers and names under which the steps of a build are shown: all of BuildKit's own steps are one step, `preparing`;
//! the others have the names of the Dockerfile's instructions.

use std::collections::{BTreeMap, BTreeSet};

use hearth_proto::v1::{Build, StepFinished, StepProgress};

use crate::output;

/// Number of the step that stands for BuildKit's own ones; the daemon numbers steps from 1.
pub(super) const PREPARATION: u32 = 0;
/// Name of that step.
pub(super) const PREPARING: &str = "preparing";
/// Maximum number of failed steps whose errors are kept.
const MAX_ERRORS: usize = 20;

/// Beginnings of the names of steps that no instruction of the Dockerfile stands for.
const INTERNAL: [&str; 5] =
    ["[internal] ", "[context ", "[auth] ", "resolve image config for ", "docker-image://"];

/// Reports whether BuildKit ends and starts a step of this name several times, for each part of its work.
pub(super) fn has_parts(name: &str) -> bool {
    name.contains("] FROM ") || name.starts_with("exporting ")
}

/// Formats a part of a step's work with its bytes: `layer 98b15c1f3821: 1.00 MB / 2.00 MB`.
pub(super) fn progress_text(at: &StepProgress) -> String {
    let name = output::step_name(&at.name);
    let name = match name.split_once("sha256:") {
        Some(("", digest)) => format!("layer {}", digest.get(..12).unwrap_or(digest)),
        Some((what, _)) => what.trim_end().to_owned(),
        None => name,
    };
    match (at.current, at.total) {
        (0, 0) => name,
        (current, 0) => format!("{name}: {}", output::size(current)),
        (current, total) => format!("{name}: {} / {}", output::size(current), output::size(total)),
    }
}

/// Steps of one build, by their numbers.
#[derive(Debug, Default)]
pub(super) struct BuildSteps {
    internal: BTreeSet<u32>,
    /// Names and errors of the steps that failed, until the build ends.
    errors: BTreeMap<u32, (String, String)>,
    names: BTreeMap<u32, String>,
}

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StepEnd {
    Done,
    Cached,
    Failed,
    /// It was stopped, since another step failed or the build was cancelled.
    Stopped,
}

impl BuildSteps {
    /// Records a step that starts. Returns the number and the name under which it is shown.
    pub(super) fn start(&mut self, step: u32, name: &str) -> (u32, String) {
        self.names.insert(step, name.to_owned());
        if INTERNAL.iter().any(|beginning| name.starts_with(beginning)) {
            self.internal.insert(step);
            return (PREPARATION, PREPARING.to_owned());
        }
        (step, output::step_name(name))
    }

    /// Returns the number under which a step is shown.
    pub(super) fn shown(&self, step: u32) -> u32 {
        if self.internal.contains(&step) { PREPARATION } else { step }
    }

    /// Records a step that ends.
    pub(super) fn finish(&mut self, step: &StepFinished) -> StepEnd {
        if step.error.is_empty() {
            return if step.cached { StepEnd::Cached } else { StepEnd::Done };
        }
        if step.error.contains("context canceled") {
            return StepEnd::Stopped;
        }
        if self.errors.len() < MAX_ERRORS {
            let name = self.names.get(&step.step).cloned().unwrap_or_default();
            self.errors.insert(step.step, (name, step.error.clone()));
        }
        StepEnd::Failed
    }

    /// Returns the errors of steps that the error of the build does not contain, with the shown numbers.
    pub(super) fn other_errors(&mut self, build: &Build) -> Vec<(u32, String)> {
        let errors = std::mem::take(&mut self.errors);
        let (count, cause) = (errors.len(), build.error.as_ref());
        let is_told = |name: &str| cause.is_some_and(|error| count == 1 || error.step == name);
        let untold = errors.into_iter().filter(|(_, (name, _))| !is_told(name));
        untold.map(|(step, (_, error))| (self.shown(step), output::printable(&error))).collect()
    }

    /// Returns the shown number of the step with this name.
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        self.names.iter().find(|(_, known)| *known == name).map(|(step, _)| self.shown(*step))
    }
}

#[cfg(test)]
mod tests {
    use hearth_proto::v1::ErrorDetail;

    use super::*;

    fn failed(step: u32, error: &str) -> StepFinished {
        StepFinished { step, cached: false, duration: None, error: error.into() }
    }

    #[test]
    fn what_buildkit_does_for_itself_is_one_word() {
        let mut steps = BuildSteps::default();
        for (step, name) in (1..).zip([
            "[internal] load build definition from Dockerfile",
            "[context busybox:1] 127.0.0.1:41015/busybox@sha256:9b2c",
            "[internal] load metadata for 127.0.0.1:41015/busybox:1",
            "resolve image config for docker-image://docker.io/docker/dockerfile:1",
        ]) {
            assert_eq!(steps.start(step, name), (PREPARATION, PREPARING.to_owned()), "{name}");
        }
        assert_eq!(steps.start(9, "[2/3] RUN [internal] x"), (9, "[2/3] RUN [internal] x".to_owned()));
        assert_eq!((steps.shown(2), steps.shown(9)), (PREPARATION, 9));
    }

    #[test]
    fn progress_has_words_and_sizes_and_no_digests() {
        let text = |name: &str, current, total| {
            progress_text(&StepProgress { step: 1, name: name.into(), current, total })
        };
        let digest = "sha256:98b15c1f38214c527e46705bd0a90daeaf1bfb4ce1324cbde896525de4822bf2";
        assert_eq!(text(&format!("resolve 127.0.0.1:1/a/b@{digest}"), 0, 0), "resolve a/b");
        assert_eq!(text(digest, 1_000_000, 2_000_000), "layer 98b15c1f3821: 1.00 MB / 2.00 MB");
        assert_eq!(text(&format!("exporting manifest {digest}"), 0, 0), "exporting manifest");
        assert_eq!(text("transferring", 193, 0), "transferring: 193 B");
    }

    #[test]
    fn only_errors_that_the_build_does_not_report_are_left_at_its_end() {
        let mut steps = BuildSteps::default();
        let build = |step: &str| Build {
            error: Some(ErrorDetail { step: step.into(), ..ErrorDetail::default() }),
            ..Build::default()
        };
        steps.start(3, "RUN a");
        assert_eq!(steps.finish(&failed(3, "exit code: 7")), StepEnd::Failed);
        assert_eq!(steps.other_errors(&build("")), []);
        steps.start(4, "RUN b");
        assert_eq!(steps.finish(&failed(4, "exit code: 8")), StepEnd::Failed);
        assert_eq!(steps.finish(&failed(3, "exit code: 7")), StepEnd::Failed);
        assert_eq!(steps.finish(&failed(5, "x: context canceled")), StepEnd::Stopped);
        assert_eq!(steps.other_errors(&build("RUN a")), [(4, "exit code: 8".to_owned())]);
        assert_eq!(steps.other_errors(&build("RUN a")), []);
    }
}
