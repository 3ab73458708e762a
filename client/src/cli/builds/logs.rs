//! `hearth builds logs`

use clap::Args;
use hearth_proto::v1::build_event::Event;
use hearth_proto::v1::{BuildEvent, ReadBuildLogRequest};
use hearth_proto::value::LinePattern;
use jiff::Timestamp;

use crate::cli::views::LogView;
use crate::cli::{GlobalArgs, complete, connect};
use crate::client::{Client, WatchItem};
use crate::error::Failure;
use crate::progress::{BuildRenderer as _, JsonBuildRenderer, StepLineBuffer, StepLogLine};
use crate::{duration, output};

/// Show the output of a build's steps
///
/// Shows the last 200 lines by default. `--from 1` shows everything; `--follow` continues until the
/// build ends. With --json the events are the elements of one array, each on a line of its own.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth builds logs 7f3k9wq2m7xh --tail 20
  hearth builds logs 7f3k --grep error --step 4
  hearth builds logs 7f3k --from 1 > build.log
  hearth builds logs 7f3k --follow")]
pub(in crate::cli) struct BuildLogsArgs {
    /// Id of the build, or a prefix of it
    #[arg(add = complete::builds())]
    build: String,
    /// Start at the event with this sequence number; 1 shows the whole log
    #[arg(long, value_name = "N")]
    from: Option<u64>,
    /// Show only the last N lines [default: 200, or all with --from or --follow]
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tail: Option<u32>,
    /// Show only lines that match this regular expression, such as `error|warn`
    #[arg(long, value_name = "REGEX")]
    grep: Option<LinePattern>,
    /// Show only lines since this time, such as `2026-11-24T09:00:00Z`, or since this long ago, such as `10m`
    #[arg(long, value_name = "TIME", value_parser = duration::parse_since)]
    since: Option<Timestamp>,
    /// Show only this step
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    step: Option<u32>,
    /// Keep printing until the build ends
    #[arg(long, short)]
    pub(super) follow: bool,
}

/// Maximum size of one log answer in bytes: the daemon's own limit.
const MAX_LOG_ANSWER_BYTES: u32 = 4 * 1024 * 1024;

pub(super) async fn run(args: BuildLogsArgs, globals: &GlobalArgs) -> Result<(), Failure> {
    let client = connect(globals).await?;
    if args.tail.is_none() && (args.follow || args.from.is_some()) {
        return watch(&client, &args, args.from.unwrap_or(1), globals.json).await;
    }
    let log = client
        .read_log(ReadBuildLogRequest {
            build_id: args.build.clone(),
            from_sequence: args.from.unwrap_or(0),
            tail: args.tail.unwrap_or(0),
            matches: args.grep.as_ref().map(ToString::to_string).unwrap_or_default(),
            step: args.step.unwrap_or(0),
            since: args.since.map(duration::timestamp_to_wire),
            // The daemon's default size limit would cut an explicit --tail short, so ask for the largest answer.
            max_bytes: if args.tail.is_some() { MAX_LOG_ANSWER_BYTES } else { 0 },
            ..ReadBuildLogRequest::default()
        })
        .await?;
    let next = log.next_sequence;
    if globals.json && args.follow {
        output::json_item(&LogView::from(log))?;
    } else if globals.json {
        output::json(&LogView::from(log))?;
    } else {
        if log.omitted_lines > 0 {
            let left_out = output::count(log.omitted_lines, "earlier line");
            output::note(&format!("({left_out} left out; --tail N shows more, --from 1 everything)"));
        }
        for line in &log.lines {
            output::line(&output::printable(line))?;
        }
    }
    if args.follow { watch(&client, &args, next, globals.json).await } else { Ok(()) }
}

async fn watch(client: &Client, args: &BuildLogsArgs, from: u64, json: bool) -> Result<(), Failure> {
    let mut watch = if args.follow {
        client.watch_build(&args.build, from)
    } else {
        client.replay_build(&args.build, from)
    };
    let mut lines = StepLineBuffer::default();
    let mut events = JsonBuildRenderer::new(output::JsonItemWriter::default());
    while let Some(watched) = watch.next().await? {
        match watched {
            WatchItem::Lost(reason) => output::note(&format!("connection lost ({reason}); reconnecting")),
            WatchItem::Event(event) if json => events.event(&event),
            WatchItem::Event(event) => {
                if let Some(Event::Warning(damage)) =
                    event.event.as_ref().filter(|_| event.damaged_events > 0)
                {
                    output::note(&format!("[{}]", damage.message));
                }
                let is_old = args.is_before_since(&event);
                for (step, line) in completed(&mut lines, &event) {
                    if !is_old && args.shows(step, &line) {
                        output::line(&format!("#{step} | {}", line.text))?;
                    }
                }
            }
        }
    }
    // A replay of a running build may end in the middle of a line.
    for (step, line) in lines.finish_all() {
        if !json && args.shows(step, &line) {
            output::line(&format!("#{step} | {}", line.text))?;
        }
    }
    if json { output::end_json_items() } else { Ok(()) }
}

impl BuildLogsArgs {
    fn is_before_since(&self, event: &BuildEvent) -> bool {
        let Some(since) = self.since else { return false };
        event
            .time
            .is_some_and(|time| (time.seconds, time.nanos) < (since.as_second(), since.subsec_nanosecond()))
    }

    fn shows(&self, step: u32, line: &StepLogLine) -> bool {
        self.step.is_none_or(|wanted| wanted == step)
            && self.grep.as_ref().is_none_or(|pattern| pattern.matches(line.text.as_bytes()))
    }
}

fn completed(lines: &mut StepLineBuffer, event: &BuildEvent) -> Vec<(u32, StepLogLine)> {
    match &event.event {
        Some(Event::StepLog(log)) => lines.push(log).into_iter().map(|line| (log.step, line)).collect(),
        Some(Event::StepFinished(ended)) => {
            lines.finish(ended.step).into_iter().map(|line| (ended.step, line)).collect()
        }
        Some(Event::Finished(_)) => lines.finish_all(),
        // Output before the damage does not continue after it.
        Some(Event::Warning(_)) if event.damaged_events > 0 => lines.finish_all(),
        _ => Vec::new(),
    }
}
