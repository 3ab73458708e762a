//! Follows a build to its end and reports its result.

use std::io::IsTerminal as _;

use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::build_event::Event;
use hearth_proto::v1::{Build, BuildResult, BuildState};

use super::BuildArgs;
use super::queue::QueueWatch;
use crate::cli::views::BuildView;
use crate::client::{CANCEL_TIMEOUT, Client, WatchItem};
use crate::error::{Failure, FailureKind};
use crate::interrupt::InterruptListener;
use crate::progress::{BuildRenderer, ProgressMode, state_name};
use crate::{duration, output, task};

/// A build that has ended, as its last event describes it.
pub(super) struct EndedBuild {
    build: Build,
    log_shown: bool,
}

impl EndedBuild {
    /// A build whose log was not shown.
    pub(super) const fn unseen(build: Build) -> Self {
        Self { build, log_shown: false }
    }

    pub(super) fn build(&self) -> &Build {
        &self.build
    }
}

/// Outcome of following a build.
pub(super) enum Followed {
    Ended(Box<EndedBuild>),
    /// The user chose to leave the build running.
    Left,
}

/// Shows the events of a build until its last one. Ctrl-C asks whether to cancel the build or to
/// detach; without a terminal to ask on, it cancels the build. A second Ctrl-C detaches at once.
pub(super) async fn follow_to_end(
    client: &Client,
    build_id: &str,
    args: &BuildArgs,
    interrupts: &mut InterruptListener,
) -> Result<Followed, Failure> {
    let mut show = args.progress.renderer(args.brief);
    let mut watch = client.watch_build(build_id, 1);
    let mut queue = QueueWatch::new(client, build_id);
    loop {
        let next = tokio::select! {
            next = watch.next() => next,
            place = queue.next() => {
                show.queued(&place);
                continue;
            }
            () = interrupts.next() => {
                show.clear();
                if handle_interrupt(client, build_id, &mut *show, interrupts).await? == Answer::Leave {
                    return Ok(Followed::Left);
                }
                show.resume();
                continue;
            }
        };
        let next = next.map_err(|error| {
            show.clear();
            Failure::from(error).build(build_id)
        })?;
        match next {
            Some(WatchItem::Event(event)) => {
                queue.follow(&event);
                show.event(&event);
                if let Some(Event::Finished(build)) = event.event {
                    show.clear();
                    let step = build.error.as_ref().map_or("", |error| &error.step);
                    let log_shown = show.shows_log_of(step);
                    return Ok(Followed::Ended(Box::new(EndedBuild { build, log_shown })));
                }
            }
            Some(WatchItem::Lost(reason)) => {
                show.note(&format!("connection lost ({reason}); reconnecting"));
            }
            None => {
                show.clear();
                let build = client.build(build_id).await?;
                return Ok(Followed::Ended(Box::new(EndedBuild::unseen(build))));
            }
        }
    }
}

/// The user's choice after Ctrl-C: cancel the build, leave it running, or keep watching it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Cancel,
    Leave,
    Watch,
}

/// Handles Ctrl-C: returns when the build was cancelled, whose last event follows as usual, or when the user chose to
/// leave it or to keep watching. A second Ctrl-C leaves it as an interrupt.
async fn handle_interrupt(
    client: &Client,
    build_id: &str,
    show: &mut dyn BuildRenderer,
    interrupts: &mut InterruptListener,
) -> Result<Answer, Failure> {
    let interactive = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    let answer = if interactive {
        output::note("\nCancel the build [c], leave it running [l], or keep watching [enter]?");
        tokio::select! {
            answer = task::blocking("answer", read_answer) => answer?,
            () = interrupts.next() => return Err(interrupted(build_id)),
        }
    } else {
        Answer::Cancel
    };
    if answer == Answer::Cancel {
        show.note("cancelling");
        tokio::select! {
            cancelled = client.cancel_build(build_id, CANCEL_TIMEOUT) => {
                cancelled.map_err(|error| Failure::from(error).build(build_id))?;
            }
            () = interrupts.next() => return Err(interrupted(build_id)),
        }
    }
    Ok(answer)
}

fn read_answer() -> Answer {
    let mut line = String::new();
    // An unreadable answer counts as an empty one.
    let _ = std::io::stdin().read_line(&mut line);
    match line.trim().to_ascii_lowercase().as_str() {
        "c" | "cancel" => Answer::Cancel,
        "l" | "leave" | "d" => Answer::Leave,
        _ => Answer::Watch,
    }
}

fn interrupted(build_id: &str) -> Failure {
    Failure::interrupted(left_text(build_id)).build(build_id)
}

/// Says that a build goes on, and how to see it again.
pub(super) fn left_text(build_id: &str) -> String {
    format!("the build goes on without this command: hearth builds logs {build_id} --follow")
}

pub(super) fn report(args: &BuildArgs, ended: &EndedBuild, json: bool) -> Result<(), Failure> {
    let result = result(args, ended)?;
    if json { output::json(&BuildView::from(&ended.build)) } else { output::line(&result.digest) }
}

/// Returns the result of a build that succeeded, after writing it to the files that the arguments name.
pub(super) fn result<'a>(args: &BuildArgs, ended: &'a EndedBuild) -> Result<&'a BuildResult, Failure> {
    let build = &ended.build;
    let Some(result) = build.result.as_ref().filter(|_| build.state() == BuildState::Succeeded) else {
        return Err(failed(ended));
    };
    if let Some(path) = &args.options.metadata_file {
        output::write_file(path, output::to_json(&BuildView::from(build)).as_bytes())?;
    }
    if let Some(path) = &args.options.iidfile {
        output::write_file(path, result.digest.as_bytes())?;
    }
    if args.progress != ProgressMode::Json {
        let took = result.duration.map(duration::from_wire).unwrap_or_default();
        output::note(&format!(
            "built {} ({}, {}, {} of {} steps from the cache)",
            build.tags.join(", "),
            output::size(result.size_bytes),
            duration::format_short(took),
            result.cached_steps,
            result.total_steps
        ));
    }
    Ok(result)
}

fn failed(ended: &EndedBuild) -> Failure {
    let build = &ended.build;
    let mut failure = match (build.state(), &build.error) {
        (BuildState::Cancelled, _) => Failure::interrupted("the build was cancelled; nothing was published"),
        (_, Some(detail)) => Failure::from_detail(FailureKind::Failed, Box::new(detail.clone())),
        (_, None) => Failure::failed(
            ErrorCode::BuildFailed,
            format!("the build is {} and reported no error", state_name(build.state)),
        ),
    };
    failure.log_shown = ended.log_shown;
    failure.build(&build.build_id)
}
