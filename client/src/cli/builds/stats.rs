//! `hearth builds stats`

use std::time::Duration;

use clap::Args;
use hearth_proto::v1::{BuildSteps, StepRecord};
use serde::Serialize;

use crate::cli::{GlobalArgs, complete, connect};
use crate::error::Failure;
use crate::progress::state_name;
use crate::{duration, output};

/// Show how long each step of a tag took in its last 50 builds
///
/// Steps are matched by their text, or else by their place in the Dockerfile. The times are those of runs; a step that came from the cache took
/// none. With --json, each build is listed with its steps.
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  hearth builds stats my-app:dev")]
pub(in crate::cli) struct BuildStatsArgs {
    /// Tag of the builds
    #[arg(add = complete::images())]
    tag: String,
}

#[derive(Serialize)]
struct BuildStepsView {
    build_id: String,
    state: String,
    finished_at: Option<String>,
    steps: Vec<StepView>,
}

#[derive(Serialize)]
struct StepView {
    name: String,
    duration_seconds: f64,
    cached: bool,
    layer_bytes: Option<u64>,
}

pub(super) async fn run(args: BuildStatsArgs, globals: &GlobalArgs) -> Result<(), Failure> {
    let history = connect(globals).await?.step_history(&args.tag).await?;
    if globals.json {
        return output::json(&history.builds.iter().map(view).collect::<Vec<_>>());
    }
    if history.builds.is_empty() {
        output::note(&format!("no build of {} has ended", args.tag));
        return Ok(());
    }
    let rows: Vec<_> = rows(&history.builds).iter().map(StepRow::cells).collect();
    output::table(&["RUNS", "CACHED", "MEDIAN", "LONGEST", "LAST", "LAYER", "STEP"], &rows)
}

fn view(build: &BuildSteps) -> BuildStepsView {
    let step = |step: &StepRecord| StepView {
        name: step.name.clone(),
        duration_seconds: took(step).as_secs_f64(),
        cached: step.cached,
        layer_bytes: step.layer_bytes,
    };
    BuildStepsView {
        build_id: build.build_id.clone(),
        state: state_name(build.state),
        finished_at: output::timestamp(build.finished_at.as_ref()).map(|time| time.to_string()),
        steps: build.steps.iter().map(step).collect(),
    }
}

fn took(step: &StepRecord) -> Duration {
    step.duration.and_then(|duration| Duration::try_from(duration).ok()).unwrap_or_default()
}

/// One step over all builds.
#[derive(Debug, Default)]
struct StepRow {
    name: String,
    /// Place of the step in the newest build that has it.
    place: Option<String>,
    /// Times of its runs, newest first.
    times: Vec<Duration>,
    cached: usize,
    layer_bytes: Option<u64>,
}

impl StepRow {
    fn cells(&self) -> Vec<String> {
        let shown = |time: Option<Duration>| time.map_or_else(|| "-".to_owned(), duration::format_short);
        let mut sorted = self.times.clone();
        sorted.sort();
        vec![
            self.times.len().to_string(),
            self.cached.to_string(),
            shown(sorted.get(sorted.len() / 2).copied()),
            shown(sorted.last().copied()),
            shown(self.times.first().copied()),
            self.layer_bytes.map_or_else(|| "-".to_owned(), output::size),
            output::printable(&self.name),
        ]
    }
}

/// Collects the steps of all builds, which are given newest first. The steps of the newest build come first.
fn rows(builds: &[BuildSteps]) -> Vec<StepRow> {
    let mut rows: Vec<StepRow> = Vec::new();
    for step in builds.iter().flat_map(|build| &build.steps) {
        let (name, place) = (unnumbered(&step.name), place(&step.name));
        let with_text = rows.iter().position(|row| row.name == name);
        // The values of arguments are part of a step's text.
        let at_place = || rows.iter().position(|row| place.is_some() && row.place == place);
        let at = with_text.or_else(at_place).unwrap_or_else(|| {
            rows.push(StepRow { name, place, ..StepRow::default() });
            rows.len() - 1
        });
        let row = &mut rows[at];
        if step.cached {
            row.cached += 1;
        } else {
            row.times.push(took(step));
        }
        row.layer_bytes = row.layer_bytes.or(step.layer_bytes);
    }
    rows
}

/// Removes the number from a name: `[build 2/3] RUN make` becomes `[build] RUN make`, since a step keeps its text when
/// another one is added before it.
fn unnumbered(name: &str) -> String {
    let Some((brackets, text)) = name.strip_prefix('[').and_then(|name| name.split_once("] ")) else {
        return name.to_owned();
    };
    match brackets.rsplit_once(' ') {
        Some((stage, number)) if number.contains('/') => format!("[{stage}] {text}"),
        None if brackets.contains('/') => text.to_owned(),
        _ => name.to_owned(),
    }
}

/// Returns the brackets and the instruction: `[build 2/3] RUN`.
fn place(name: &str) -> Option<String> {
    let (brackets, text) = name.strip_prefix('[')?.split_once("] ")?;
    brackets.contains('/').then(|| format!("[{brackets}] {}", text.split(' ').next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_matched_by_stage_and_text() {
        let step = |name: &str, seconds, cached| StepRecord {
            name: name.to_owned(),
            duration: Some(prost_types::Duration { seconds, nanos: 0 }),
            cached,
            layer_bytes: Some(2048).filter(|_| !cached),
        };
        let build = |steps| BuildSteps { steps, ..BuildSteps::default() };
        let builds = [
            build(vec![step("[2/3] RUN a", 0, true), step("[3/3] RUN b", 4, false)]),
            build(vec![step("[2/2] RUN b", 2, false), step("[build 2/2] RUN b", 9, false)]),
            build(vec![step("[2/2] RUN b", 3, false)]),
            build(vec![step("[2/3] RUN other", 1, false)]),
        ];
        let cells: Vec<_> = rows(&builds).iter().map(|row| row.cells().join(" ")).collect();
        assert_eq!(
            cells,
            [
                "1 1 1.0s 1.0s 1.0s 2.05 kB RUN a",
                "3 0 3.0s 4.0s 4.0s 2.05 kB RUN b",
                "1 0 9.0s 9.0s 9.0s 2.05 kB [build] RUN b"
            ]
        );
    }
}
