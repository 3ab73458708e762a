//! `hearth audit`

use clap::Args;
use hearth_proto::v1::{AuditOutcome, AuditRecord, ListAuditRecordsRequest};
use jiff::Timestamp;
use serde::Serialize;

use super::{GlobalArgs, connect};
use crate::error::Failure;
use crate::{duration, output};

/// Show who changed what in the room, and who was denied what
///
/// The daemon records every call that changes something and every denied call: caller, action, object, outcome and
/// source address. Needs the `admin` grant. The newest records come last.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth audit --since 1h
  hearth audit --caller ci-bot --action services.
  hearth audit --denied --limit 1000 --json")]
pub(super) struct AuditArgs {
    /// Show only records since this time, such as `2026-11-24T09:00:00Z`, or since this long ago, such as `10m`
    #[arg(long, value_name = "TIME", value_parser = duration::parse_since)]
    since: Option<Timestamp>,
    /// Show only records of this caller; a trailing `*` matches any suffix
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    caller: String,
    /// Show only actions that contain this text, such as `services.remove`
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    action: String,
    /// Show only denied calls
    #[arg(long)]
    denied: bool,
    /// Show only the newest N records
    #[arg(long, short = 'n', value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
}

#[derive(Serialize)]
struct RecordView<'a> {
    at: Option<String>,
    caller: &'a str,
    action: &'a str,
    object: &'a str,
    outcome: &'static str,
    detail: &'a str,
    source: &'a str,
    /// Number of further denials like this one, which the daemon counted without storing each of them.
    more: u64,
}

impl<'a> RecordView<'a> {
    fn of(record: &'a AuditRecord) -> Self {
        Self {
            at: output::timestamp(record.at.as_ref()).map(|time| time.to_string()),
            caller: &record.caller,
            action: &record.action,
            object: &record.object,
            outcome: match record.outcome() {
                AuditOutcome::Done => "done",
                AuditOutcome::Failed => "failed",
                AuditOutcome::Denied => "denied",
                AuditOutcome::Unspecified => "unknown",
            },
            detail: &record.detail,
            source: &record.source,
            more: record.more,
        }
    }

    fn row(&self) -> Vec<String> {
        let outcome = match (self.detail, self.more) {
            ("", 0) => self.outcome.to_owned(),
            (detail, 0) => format!("{}: {detail}", self.outcome),
            ("", more) => format!("{} (and {more} more times)", self.outcome),
            (detail, more) => format!("{}: {detail} (and {more} more times)", self.outcome),
        };
        let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { output::printable(text) };
        vec![
            self.at.clone().unwrap_or_default(),
            or_none(self.caller),
            or_none(self.source),
            or_none(self.action),
            or_none(self.object),
            output::printable(&outcome),
        ]
    }
}

pub(super) async fn run(args: AuditArgs, globals: &GlobalArgs) -> Result<(), Failure> {
    let client = connect(globals).await?;
    let AuditArgs { since, caller, action, denied, limit } = args;
    let since = since.map(duration::timestamp_to_wire);
    let request = ListAuditRecordsRequest { since, caller, action, denied_only: denied, limit };
    let records = client.audit_records(request).await?;
    let views: Vec<RecordView<'_>> = records.iter().map(RecordView::of).collect();
    if globals.json {
        return output::json(&views);
    }
    let rows: Vec<_> = views.iter().map(RecordView::row).collect();
    output::table(&["TIME", "CALLER", "FROM", "ACTION", "OBJECT", "OUTCOME"], &rows)
}
