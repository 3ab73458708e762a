//! `hearth builds prune`

use std::time::Duration;

use clap::Args;
use hearth_proto::v1::PruneBuildsRequest;
use serde_json::json;

use crate::cli::{GlobalArgs, connect};
use crate::error::Failure;
use crate::{duration, output};

/// Remove builds that have ended from the list; their images stay
///
/// Removes your own builds, and those of everybody with the `admin` grant. Pinned builds stay.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth builds prune --older-than 7d --dry-run
  hearth builds prune --keep 20
  hearth builds prune --all")]
pub(in crate::cli) struct PruneArgs {
    /// Keep the N newest builds
    #[arg(long, value_name = "N", required_unless_present_any = ["older_than", "all"])]
    keep: Option<u32>,
    /// Remove only builds that ended longer ago than this, such as `12h` or `7d`
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    older_than: Option<Duration>,
    /// Remove all builds that have ended
    #[arg(long, conflicts_with_all = ["keep", "older_than"])]
    all: bool,
    /// Show what would be removed, and remove nothing
    #[arg(long)]
    dry_run: bool,
}

pub(super) async fn run(args: PruneArgs, globals: &GlobalArgs) -> Result<(), Failure> {
    let request = PruneBuildsRequest {
        keep: args.keep,
        older_than: args.older_than.map(duration::to_wire),
        all: args.all,
        dry_run: args.dry_run,
    };
    let pruned = connect(globals).await?.prune_builds(request).await?;
    if globals.json {
        return output::json(&json!({"removed": pruned.build_ids, "dry_run": args.dry_run}));
    }
    let verb = if args.dry_run { "would remove" } else { "removed" };
    output::note(&format!("{verb} {} builds", pruned.build_ids.len()));
    if pruned.build_ids.is_empty() { Ok(()) } else { output::line(&pruned.build_ids.join("\n")) }
}
