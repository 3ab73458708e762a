//! `hearth services logs`

mod text;

use std::io::IsTerminal as _;

use clap::Args;
use hearth_proto::v1::ReadServiceLogsRequest;
use hearth_proto::v1::read_service_logs_request::Source;
use hearth_proto::value::LinePattern;
use jiff::Timestamp;

use crate::cli::{GlobalArgs, complete, connect};
use crate::client::ServiceLogItem;
use crate::error::Failure;
use crate::progress::deploy::log_line;
use crate::{duration, output};
use text::LogTextWriter;

/// Show the log of a service
///
/// Shows the last 200 lines by default, also those of earlier instances, whose logs are kept for the
/// last 5 that ended. `--follow` continues across restarts and updates. A terminal shows no control
/// characters; a file or a pipe receives the bytes as the service wrote them. With --json the lines are
/// the elements of one array, each on a line of its own.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth services logs web --tail 50
  hearth services logs web --since 10m --grep error
  hearth services logs web --revision 3 --prefix
      Also after its instances have ended
  hearth services logs web --follow")]
pub(in crate::cli) struct ServiceLogsArgs {
    /// Name or id
    #[arg(add = complete::services())]
    service: String,
    /// Keep printing until interrupted, or until the service is removed
    #[arg(long, short)]
    follow: bool,
    /// Show only the last N lines [default: 200, or all with --since]
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tail: Option<u32>,
    /// Show only lines since this time, such as `2026-11-24T09:00:00Z`, or since this long ago, such as `10m`
    #[arg(long, value_name = "TIME", value_parser = duration::parse_since)]
    since: Option<Timestamp>,
    /// Show only lines that match this regular expression, such as `error|warn`
    #[arg(long, value_name = "REGEX")]
    grep: Option<LinePattern>,
    /// Show only lines of the instances of this revision
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    revision: Option<u32>,
    /// Show only lines of this instance
    #[arg(long, value_name = "ID", conflicts_with = "revision")]
    instance: Option<String>,
    /// Show the instance of each line before it
    #[arg(long)]
    prefix: bool,
    /// Show the time of each line before it
    #[arg(long, short)]
    timestamps: bool,
}

impl ServiceLogsArgs {
    fn request(&self) -> ReadServiceLogsRequest {
        ReadServiceLogsRequest {
            service: self.service.clone(),
            source: match (&self.instance, self.revision) {
                (Some(instance), _) => Some(Source::InstanceId(instance.clone())),
                (None, revision) => revision.map(Source::Revision),
            },
            tail: self.tail,
            since: self.since.map(duration::timestamp_to_wire),
            matches: self.grep.as_ref().map(ToString::to_string).unwrap_or_default(),
            follow: self.follow,
            ..ReadServiceLogsRequest::default()
        }
    }
}

pub(super) async fn run(args: ServiceLogsArgs, globals: &GlobalArgs) -> Result<(), Failure> {
    let client = connect(globals).await?;
    let mut logs = client.service_logs(args.request());
    let mut text = LogTextWriter::new(std::io::stdout().is_terminal(), args.timestamps, args.prefix);
    let mut last_instance = None;
    while let Some(read) = logs.next().await? {
        match read {
            ServiceLogItem::Lost(reason) => {
                output::note(&format!("connection lost ({reason}); reconnecting"));
            }
            ServiceLogItem::Line { instance, line } if globals.json => {
                let mut item = log_line(&line);
                item["instance"] = instance.into();
                output::json_item(&item)?;
            }
            ServiceLogItem::Line { instance, line } => {
                output::bytes(&text.end_other_line(&instance, line.stream()))?;
                if !args.prefix && last_instance.as_ref().is_some_and(|last| *last != instance) {
                    output::note(&format!("(instance {instance})"));
                }
                if line.dropped_bytes > 0 {
                    output::note(&format!("({} of log left out)", output::size(line.dropped_bytes)));
                }
                output::bytes(&text.line(&instance, &line))?;
                last_instance = Some(instance);
            }
        }
    }
    if globals.json { output::end_json_items() } else { output::bytes(text.end()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_time_or_how_long_ago() {
        assert_eq!(duration::parse_since("2026-11-24T09:00:00Z").unwrap().as_second(), 1_795_510_800);
        let ago = Timestamp::now().duration_since(duration::parse_since("10m").unwrap()).as_secs();
        assert!((599..610).contains(&ago), "{ago}");
        for bad in ["", "yesterday", "10", "2026-11-24"] {
            assert!(duration::parse_since(bad).unwrap_err().contains(&format!("`{bad}`")), "{bad}");
        }
    }

    #[test]
    fn every_flag_reaches_the_question() {
        let args = ServiceLogsArgs {
            service: "web".into(),
            follow: true,
            tail: Some(5),
            since: Timestamp::from_second(7).ok(),
            grep: LinePattern::regex("error|warn").ok(),
            revision: Some(3),
            instance: None,
            prefix: false,
            timestamps: true,
        };
        let asked = ReadServiceLogsRequest {
            service: "web".into(),
            tail: Some(5),
            since: Some(prost_types::Timestamp { seconds: 7, nanos: 0 }),
            matches: "error|warn".into(),
            follow: true,
            source: Some(Source::Revision(3)),
            ..ReadServiceLogsRequest::default()
        };
        assert_eq!(args.request(), asked);
        let one = ServiceLogsArgs { instance: Some("i".into()), revision: None, ..args };
        assert_eq!(one.request().source, Some(Source::InstanceId("i".into())));
    }
}
