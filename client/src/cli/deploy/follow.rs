//! Follows a deploy, a restart or a rollback until the revision is live, and reports its result.

use std::time::Duration;

use clap::Args;
use hearth_proto::error_code::ErrorCode;
use hearth_proto::v1::deploy_event::Event;
use hearth_proto::v1::{DeployEvent, DeployResponse, Service};
use serde::Serialize;
use serde_json::Value;

use crate::cli::wait_limit;
use crate::client::{Client, WatchItem};
use crate::error::{Failure, FailureKind};
use crate::interrupt::InterruptListener;
use crate::progress::ProgressMode;
use crate::progress::deploy::action_json;
use crate::{duration, output};

/// Flags that control waiting and the display of progress.
#[derive(Debug, Default, Args)]
pub(in crate::cli) struct WaitArgs {
    /// Wait until the revision is live (the default)
    #[arg(long, conflicts_with = "no_wait", help_heading = "Output")]
    wait: bool,
    /// Do not wait until the revision is live
    #[arg(long, help_heading = "Output")]
    no_wait: bool,
    /// Display mode of progress
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto, help_heading = "Output")]
    pub(in crate::cli) progress: ProgressMode,
    /// Show the deploy in a few lines, as `hearth up` does.
    #[arg(skip)]
    pub(in crate::cli) brief: bool,
    /// Time limit of the wait; by default the start limit of the service and [`START_MARGIN`].
    #[arg(skip)]
    pub(in crate::cli) limit: Option<Duration>,
}

/// Flags of a command that waits for a service, and has no start limit to set.
#[derive(Debug, Args)]
pub(in crate::cli) struct LimitedWaitArgs {
    #[command(flatten)]
    waiting: WaitArgs,
    /// Time limit of the wait, such as `90s` [default: the start limit of the service, and 2m]
    #[arg(long, value_name = "DURATION", value_parser = duration::parse, conflicts_with = "no_wait", help_heading = "Output")]
    timeout: Option<Duration>,
}

impl LimitedWaitArgs {
    pub(in crate::cli) fn into_wait_args(self) -> WaitArgs {
        WaitArgs { limit: self.timeout, ..self.waiting }
    }
}

/// Time that a deploy may take besides the start of its instance: to prepare the image, and to drain and stop the
/// instance before.
const START_MARGIN: Duration = Duration::from_secs(120);
/// Start limit of a service whose spec has none.
const DEFAULT_START_LIMIT: Duration = Duration::from_secs(60);
/// Time for the question after the state of a service whose wait is over.
const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

/// Message of an interrupt that comes before the daemon has answered.
pub(in crate::cli) const INTERRUPTED_BEFORE_ANSWER: &str =
    "interrupted before the room had answered; what it has begun goes on: hearth services list";

/// Reports a new revision: waits until it is live, unless the flags say otherwise, and prints its
/// result.
pub(in crate::cli) async fn run(
    client: &Client,
    answer: &DeployResponse,
    waiting: &WaitArgs,
    json: bool,
    interrupts: &mut InterruptListener,
) -> Result<(), Failure> {
    if waiting.progress != ProgressMode::Json {
        let new = if answer.created { "new " } else { "" };
        output::note(&format!("{new}service {}, revision {}", answer.name, answer.revision));
        print_notes(answer);
    }
    if waiting.no_wait {
        return report(answer, None, json);
    }
    let took = wait_until_live(client, answer, waiting, interrupts).await?;
    if waiting.progress != ProgressMode::Json {
        let took = duration::format_short(took);
        output::note(&format!("{} revision {} is live after {took}", answer.name, answer.revision));
    }
    report(answer, Some(took), json)
}

/// Shows the events until the last one. Ctrl-C leaves the deploy running.
async fn wait_until_live(
    client: &Client,
    answer: &DeployResponse,
    waiting: &WaitArgs,
    interrupts: &mut InterruptListener,
) -> Result<Duration, Failure> {
    let (name, revision) = (&answer.name, answer.revision);
    let about = |failure: Failure| failure.service(name, revision);
    let mut show = waiting.progress.deploy_renderer(name, waiting.brief);
    let mut watch = client.watch_deploy(&answer.service_id, revision);
    let limit = waiting.limit.unwrap_or_else(|| default_limit(answer));
    let mut over = std::pin::pin!(tokio::time::sleep(limit));
    let mut last_trouble = None;
    loop {
        let next = tokio::select! {
            next = watch.next() => next,
            () = interrupts.next() => {
                show.clear();
                return Err(about(Failure::interrupted(format!(
                    "left; the deploy goes on without this command: hearth services show {name}"
                ))));
            }
            () = &mut over => {
                show.clear();
                return Err(about(not_live_in_time(client, answer, limit, last_trouble).await));
            }
        };
        let next = next.map_err(|error| {
            show.clear();
            about(error.into())
        })?;
        let event = match next {
            Some(WatchItem::Event(event)) => event,
            Some(WatchItem::Lost(reason)) => {
                show.note(&format!("connection lost ({reason}); reconnecting"));
                continue;
            }
            None => {
                return Err(about(Failure::failed(
                    ErrorCode::Protocol,
                    "the event stream of the deploy ended without a final event",
                )));
            }
        };
        show.event(&event);
        last_trouble = trouble(&event).or(last_trouble);
        match event.event {
            Some(Event::Live(live)) => {
                show.clear();
                return Ok(live.took.map(duration::from_wire).unwrap_or_default());
            }
            Some(Event::Failed(detail)) => {
                show.clear();
                let mut failure = about(Failure::from_detail(FailureKind::Failed, Box::new(detail)));
                failure.log_shown = show.shows_log(&failure.detail.log_tail);
                failure.probes_shown = show.shows_probes();
                note_serving_revision(client, answer).await;
                return Err(failure);
            }
            Some(Event::Superseded(superseded)) => {
                show.clear();
                let by = superseded.by;
                let message = format!(
                    "revision {revision} of {name} was superseded by revision {by} before it was live"
                );
                return Err(about(Failure::failed(ErrorCode::Superseded, message)));
            }
            _ => {}
        }
    }
}

fn default_limit(answer: &DeployResponse) -> Duration {
    let start_limit = answer.spec.as_ref().and_then(|spec| spec.health.as_ref()?.start_limit);
    START_MARGIN + start_limit.map_or(DEFAULT_START_LIMIT, duration::from_wire)
}

/// Text of an event that tells why the revision is not live yet.
fn trouble(event: &DeployEvent) -> Option<String> {
    match event.event.as_ref()? {
        Event::Trouble(trouble) => Some(trouble.message.clone()),
        Event::ActionEnded(ended) if !ended.error.is_empty() => Some(ended.error.clone()),
        Event::Probed(probe) if !probe.healthy => Some(probe.text.clone()),
        _ => None,
    }
}

/// Error of a wait whose limit is over: with the last trouble, and with the room's reason when it answers.
async fn not_live_in_time(
    client: &Client,
    answer: &DeployResponse,
    limit: Duration,
    last_trouble: Option<String>,
) -> Failure {
    let (name, revision) = (&answer.name, answer.revision);
    let mut state = "the room goes on trying".to_owned();
    let asked = tokio::time::timeout(LOOKUP_LIMIT, client.service(&answer.service_id)).await;
    let reason = match asked {
        Ok(Ok(service)) => {
            state += &format!(", and {}", serving_revision_text(&service, answer));
            Some(service.reason).filter(|reason| !reason.is_empty())
        }
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => None,
    };
    if let Some(reason) = last_trouble.or(reason) {
        state += &format!("; the last trouble: {}", output::printable(&reason));
    }
    wait_limit::timed_out(limit, &format!("revision {revision} of {name} to be live"), &state)
        .hint(format!("see why: hearth services show {name}, hearth services logs {name}"))
}

/// Prints which revision still serves. A lookup failure is only logged: the deploy failure is reported
/// in any case.
async fn note_serving_revision(client: &Client, answer: &DeployResponse) {
    match client.service(&answer.service_id).await {
        Ok(service) => output::note(&serving_revision_text(&service, answer)),
        Err(error) => tracing::debug!(%error, "failed to look up the serving revision"),
    }
}

/// Text that tells whether traffic is still answered after a failed deploy.
fn serving_revision_text(service: &Service, answer: &DeployResponse) -> String {
    match service.instances.iter().find(|instance| instance.routed) {
        Some(routed) => format!("revision {} of {} keeps serving", routed.revision, answer.name),
        None => format!("no revision of {} serves", answer.name),
    }
}

fn print_notes(answer: &DeployResponse) {
    answer.notes.iter().for_each(|note| output::note(&format!("note: {}", output::printable(note))));
}

#[derive(Serialize)]
struct DeployView<'a> {
    service_id: &'a str,
    name: &'a str,
    revision: u32,
    created: bool,
    /// True when the revision became live; null when the command did not wait for it.
    live: Option<bool>,
    took_seconds: Option<f64>,
    image: &'a str,
    digest: &'a str,
    domains: &'a [String],
    urls: &'a [String],
    notes: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Vec<Value>>,
}

impl<'a> DeployView<'a> {
    fn new(answer: &'a DeployResponse, took: Option<Duration>) -> Self {
        let spec = answer.spec.as_ref();
        Self {
            service_id: &answer.service_id,
            name: &answer.name,
            revision: answer.revision,
            created: answer.created,
            live: took.map(|_| true),
            took_seconds: took.map(|took| took.as_secs_f64()),
            image: spec.map_or("", |spec| spec.image.as_str()),
            digest: spec.map_or("", |spec| spec.digest.as_str()),
            domains: spec.map_or(&[], |spec| spec.domains.as_slice()),
            urls: &answer.urls,
            notes: &answer.notes,
            plan: None,
        }
    }

    /// Formats the result as `name revision digest`, followed by one URL on each line.
    fn to_text(&self) -> String {
        let mut text = format!("{} {} {}", self.name, self.revision, self.digest);
        self.urls.iter().for_each(|url| text += &format!("\n{}", output::printable(url)));
        text
    }
}

fn report(answer: &DeployResponse, took: Option<Duration>, json: bool) -> Result<(), Failure> {
    let view = DeployView::new(answer, took);
    if json { output::json(&view) } else { output::line(&view.to_text()) }
}

/// Prints the plan of a dry run.
pub(in crate::cli) fn report_plan(answer: &DeployResponse, json: bool) -> Result<(), Failure> {
    if json {
        let plan = Some(answer.plan.iter().map(action_json).collect());
        return output::json(&DeployView { plan, ..DeployView::new(answer, None) });
    }
    let verb = if answer.created { "create" } else { "update" };
    output::note(&format!("would {verb} service {}, revision {}:", answer.name, answer.revision));
    print_notes(answer);
    answer.plan.iter().try_for_each(|action| output::line(&output::printable(&action.text)))
}

#[cfg(test)]
mod tests;
