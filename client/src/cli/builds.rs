//! `hearth builds`

mod logs;
mod prune;
mod stats;
mod why;

use std::pin::Pin;
use std::time::Duration;

use clap::{Subcommand, ValueEnum};
use hearth_proto::v1::{Build, BuildState, ListBuildsRequest};
use jiff::Timestamp;

use super::build::{RetryArgs, WaitArgs, retry, wait};
pub(super) use why::note_first_cause;

use super::changes::change_each;
use super::views::{self, BuildView};
use super::wait_limit::{ANSWER_MARGIN, wait_within};
use super::{GlobalArgs, complete, connect};
use crate::error::{Failure, FailureKind};
use crate::interrupt::InterruptListener;
use crate::progress::{TransferMeter, state_name};
use crate::{duration, exit, output};

#[derive(Debug, Subcommand)]
pub(super) enum BuildsCommand {
    /// Show builds, newest first
    #[command(visible_alias = "ls")]
    List {
        /// Show only builds in this state
        #[arg(long, value_enum)]
        state: Vec<BuildStateArg>,
        /// Show only builds of this tag
        #[arg(long)]
        tag: Option<String>,
        /// Maximum number of builds to show
        #[arg(long, short = 'n', default_value_t = 20)]
        limit: u32,
    },
    /// Show one build
    Show {
        /// Id of the build, or a prefix of it
        #[arg(add = complete::builds())]
        build: String,
    },
    Logs(logs::BuildLogsArgs),
    Stats(stats::BuildStatsArgs),
    Why(why::BuildWhyArgs),
    /// Cancel queued or running builds; a cancelled build publishes nothing
    Cancel {
        /// Ids of the builds, or prefixes of them
        #[arg(required = true, add = complete::builds())]
        builds: Vec<String>,
        /// Time limit of the wait for the end of each build
        #[arg(long, value_name = "DURATION", value_parser = duration::parse, default_value = "3m")]
        timeout: Duration,
    },
    Retry(Box<RetryArgs>),
    Wait(WaitArgs),
    /// Keep builds that have ended, whatever their number and age
    Pin {
        /// Ids of the builds, or prefixes of them
        #[arg(required = true, add = complete::builds())]
        builds: Vec<String>,
    },
    /// Keep builds only as long as others
    Unpin {
        /// Ids of the builds, or prefixes of them
        #[arg(required = true, add = complete::builds())]
        builds: Vec<String>,
    },
    Prune(prune::PruneArgs),
    /// Remove builds that have ended from the list; their images stay
    Rm {
        /// Ids of the builds, or prefixes of them
        #[arg(required = true, add = complete::builds())]
        builds: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum BuildStateArg {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
    Interrupted,
}

impl From<BuildStateArg> for BuildState {
    fn from(state: BuildStateArg) -> Self {
        match state {
            BuildStateArg::Queued => Self::Queued,
            BuildStateArg::Running => Self::Running,
            BuildStateArg::Succeeded => Self::Succeeded,
            BuildStateArg::Failed => Self::Failed,
            BuildStateArg::Cancelled => Self::Cancelled,
            BuildStateArg::Interrupted => Self::Interrupted,
        }
    }
}

pub(super) async fn run(
    command: BuildsCommand,
    globals: &GlobalArgs,
    interrupts: &mut InterruptListener,
) -> Result<(), Failure> {
    let work: Pin<Box<dyn Future<Output = Result<(), Failure>> + '_>> = match command {
        // Ctrl-C cancels the new build, so the command handles it itself.
        BuildsCommand::Retry(args) => return Box::pin(retry(*args, globals, interrupts)).await,
        BuildsCommand::Logs(args) if args.follow => {
            return interrupts.run_until_interrupted(globals.json, Box::pin(logs::run(args, globals))).await;
        }
        BuildsCommand::Logs(args) => Box::pin(logs::run(args, globals)),
        BuildsCommand::Stats(args) => Box::pin(stats::run(args, globals)),
        BuildsCommand::Why(args) => Box::pin(why::run(args, globals)),
        BuildsCommand::Wait(args) => Box::pin(wait(args, globals)),
        BuildsCommand::Pin { builds } => Box::pin(pin(builds, true, globals)),
        BuildsCommand::Unpin { builds } => Box::pin(pin(builds, false, globals)),
        BuildsCommand::Prune(args) => Box::pin(prune::run(args, globals)),
        BuildsCommand::List { state, tag, limit } => Box::pin(async move {
            let states = state.into_iter().map(|state| BuildState::from(state).into()).collect();
            let filter = ListBuildsRequest { states, tag: tag.unwrap_or_default(), ..Default::default() };
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            list(&connect(globals).await?.list_builds(filter, limit).await?, globals.json)
        }),
        BuildsCommand::Show { build } => Box::pin(async move {
            let build = connect(globals).await?.build(&build).await?;
            if globals.json {
                output::json(&BuildView::from(&build))
            } else {
                output::line(&build_text(&build))
            }
        }),
        BuildsCommand::Cancel { builds, timeout } => Box::pin(cancel(builds, timeout, globals)),
        BuildsCommand::Rm { builds } => Box::pin(remove(builds, globals)),
    };
    interrupts.run_interruptible(work).await
}

async fn cancel(builds: Vec<String>, timeout: Duration, globals: &GlobalArgs) -> Result<(), Failure> {
    let client = connect(globals).await?;
    Box::pin(change_each("cancelled", &builds, globals, async |build| {
        let (what, hint) = (format!("the end of build {build}"), format!("see: hearth builds show {build}"));
        let cancelling = client.cancel_build(build, timeout + ANSWER_MARGIN);
        let cancelling = Box::pin(wait_within(timeout, &what, &hint, cancelling));
        let ended = TransferMeter::wait_for(format!("cancelling {build}"), cancelling).await?;
        let note = format!("build {} is {}", ended.build_id, state_name(ended.state));
        Ok((BuildView::from(&ended), note))
    }))
    .await
}

async fn remove(builds: Vec<String>, globals: &GlobalArgs) -> Result<(), Failure> {
    let client = connect(globals).await?;
    change_each("removed", &builds, globals, async |build| {
        client.remove_build(build).await?;
        Ok((build.clone(), format!("removed build {build}")))
    })
    .await
}

async fn pin(builds: Vec<String>, pinned: bool, globals: &GlobalArgs) -> Result<(), Failure> {
    let client = connect(globals).await?;
    let verb = if pinned { "pinned" } else { "unpinned" };
    change_each(verb, &builds, globals, async |build| {
        let changed = client.pin_build(build, pinned).await?;
        Ok((BuildView::from(&changed), format!("{verb} build {}", changed.build_id)))
    })
    .await
}

fn list(builds: &[Build], json: bool) -> Result<(), Failure> {
    if json {
        return output::json(&builds.iter().map(BuildView::from).collect::<Vec<_>>());
    }
    print_table(builds)
}

pub(super) fn print_table(builds: &[Build]) -> Result<(), Failure> {
    let now = Timestamp::now();
    let row = |build: &Build| {
        let took = views::took(build, now);
        vec![
            build.build_id.clone(),
            state_name(build.state),
            build.tags.first().cloned().unwrap_or_default(),
            output::age(build.created_at.as_ref(), now),
            took.map_or("-".to_owned(), duration::format_short),
            output::printable(&build.submitted_by),
        ]
    };
    output::table(
        &["BUILD", "STATE", "TAG", "CREATED", "TOOK", "BY"],
        &builds.iter().map(row).collect::<Vec<_>>(),
    )
}

fn build_text(build: &Build) -> String {
    let view = BuildView::from(build);
    let mut text = format!("build     {}\nstate     {}\n", view.build_id, view.state);
    text +=
        &format!("tags      {}\nby        {}\n", view.tags.join(", "), output::printable(&view.submitted_by));
    for (name, time) in
        [("created", &view.created_at), ("started", &view.started_at), ("finished", &view.finished_at)]
    {
        if let Some(time) = time {
            text += &format!("{name:<9} {time}\n");
        }
    }
    if let Some(took) = views::took(build, Timestamp::now()) {
        text += &format!("took      {}\n", duration::format_short(took));
    }
    if view.pinned {
        text += "pinned    yes\n";
    }
    if let Some(digest) = &view.context_digest {
        text += &format!("context   {digest}\n");
    }
    for (target, digest) in &view.mount_digests {
        text += &format!("mount     {digest} {}\n", output::printable(target));
    }
    if let Some(result) = &build.result {
        text += &format!("digest    {}\nsize      {}\n", result.digest, output::size(result.size_bytes));
        text += &format!("steps     {} of {} from the cache\n", result.cached_steps, result.total_steps);
    }
    if let Some(error) = &build.error {
        let failure = Failure::from_detail(FailureKind::Failed, Box::new(error.clone()));
        text += &exit::error_text(&failure);
    }
    text.trim_end().to_owned()
}
