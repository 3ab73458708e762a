//! `hearth services logs`

use clap::Args;
use hearth_proto::v1::read_service_logs_request::Source;
use hearth_proto::v1::{LogLine, ReadServiceLogsRequest};
use hearth_proto::value::LinePattern;
use jiff::Timestamp;

use crate::cli::{GlobalArgs, complete, connect};
use crate::client::ServiceLogItem;
use crate::error::Failure;
use crate::progress::deploy::log_line;
use crate::{duration, output};

/// Show the log of a service
///
/// Shows the last 200 lines by default. `--follow` continues across restarts and updates. With --json
/// the lines are the elements of one array, each on a line of its own.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth services logs web --tail 50
  hearth services logs web --since 10m --grep error
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
    /// Show the log of the newest instance of this revision
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    revision: Option<u32>,
    /// Show the time of each line before it
    #[arg(long, short)]
    timestamps: bool,
}

impl ServiceLogsArgs {
    fn request(&self) -> ReadServiceLogsRequest {
        ReadServiceLogsRequest {
            service: self.service.clone(),
            source: self.revision.map(Source::Revision),
            tail: self.tail,
            since: self
                .since
                .map(|at| prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }),
            matches: self.grep.as_ref().map(ToString::to_string).unwrap_or_default(),
            follow: self.follow,
            ..ReadServiceLogsRequest::default()
        }
    }

    fn row(&self, line: &LogLine) -> String {
        let text = output::printable(&line.text);
        match output::timestamp(line.time.as_ref()).filter(|_| self.timestamps) {
            Some(time) => format!("{time} {text}"),
            None => text,
        }
    }
}

pub(super) async fn run(args: ServiceLogsArgs, globals: &GlobalArgs) -> Result<(), Failure> {
    let client = connect(globals).await?;
    let mut logs = client.service_logs(args.request());
    while let Some(read) = logs.next().await? {
        match read {
            ServiceLogItem::Lost(reason) => {
                output::note(&format!("connection lost ({reason}); reconnecting"));
            }
            ServiceLogItem::Line(line) if globals.json => output::json_item(&log_line(&line))?,
            ServiceLogItem::Line(line) => {
                if line.dropped_bytes > 0 {
                    output::note(&format!("({} of log left out)", output::size(line.dropped_bytes)));
                }
                output::line(&args.row(&line))?;
            }
        }
    }
    if globals.json { output::end_json_items() } else { Ok(()) }
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
        let line = LogLine { time: asked.since, text: "a\u{7}".into(), ..LogLine::default() };
        assert_eq!(args.row(&line), "1970-01-01T00:00:07Z a\\u{7}");
    }
}
