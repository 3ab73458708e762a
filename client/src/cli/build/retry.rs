//! Runs an earlier build again, and waits for a build.

use std::time::Duration;

use clap::Args;
use hearth_proto::v1::build_event::Event;
use hearth_proto::v1::{BuildSecret, BuildSpec, SubmitBuildRequest};

use super::follow::{self, EndedBuild};
use super::{BuildArgs, BuildOptions, LocalFiles, request};
use crate::cli::registry::CredentialArgs;
use crate::cli::wait_limit::wait_within;
use crate::cli::{GlobalArgs, complete, connect};
use crate::client::WatchItem;
use crate::error::Failure;
use crate::interrupt::InterruptListener;
use crate::progress::ProgressMode;
use crate::{duration, output};

/// Run a build again, with the same files, tags and options
///
/// Files are read again from where the build had them. Values of secrets and credentials are not kept,
/// so they are given again. A pack that is gone cannot be built again: send it with `hearth build`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth builds retry 7f3k9wq2m7xh
  hearth builds retry 7f3k --no-cache --secret id=npm,src=$HOME/.npmrc")]
pub(in crate::cli) struct RetryArgs {
    /// Id of the build, or a prefix of it
    #[arg(add = complete::builds())]
    build: String,
    /// Run every step again
    #[arg(long)]
    no_cache: bool,
    /// Value of a secret that the build had, `id=ID,src=FILE` or `id=ID,env=VARIABLE`
    #[arg(long, value_name = "SECRET")]
    secret: Vec<String>,
    #[command(flatten)]
    credentials: CredentialArgs,
    /// Display mode of progress
    #[arg(long, value_enum, default_value_t = ProgressMode::Auto)]
    progress: ProgressMode,
    /// Print the new build's id and do not wait for the build
    #[arg(long)]
    detach: bool,
}

/// Wait for the end of a build, with the exit code of `hearth build`
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hearth builds wait $(hearth build --detach --tag my-app:dev ./my-app)
  hearth builds wait 7f3k9wq2m7xh --timeout 10m")]
pub(in crate::cli) struct WaitArgs {
    /// Id of the build, or a prefix of it
    #[arg(add = complete::builds())]
    build: String,
    /// Time limit of the wait; the build goes on after it
    #[arg(long, value_name = "DURATION", value_parser = duration::parse)]
    timeout: Option<Duration>,
}

pub(in crate::cli) async fn retry(
    args: RetryArgs,
    globals: &GlobalArgs,
    interrupts: &mut InterruptListener,
) -> Result<(), Failure> {
    args.progress.begin();
    let given = args.secret.iter().map(|text| request::secret(text)).collect::<Result<Vec<_>, _>>()?;
    let credentials = args.credentials.to_wire()?;
    let submitting = async {
        let client = connect(globals).await?;
        let build = client.build(&args.build).await?;
        let had_values = build.had_confidential_values;
        let mut spec = build.spec.unwrap_or_default();
        require_secrets(&args.build, &spec, |id| given.iter().any(|secret| secret.id == id))?;
        if had_values && spec.secret_ids.is_empty() && credentials.is_empty() {
            output::note("the build had credentials, which are not kept; give them again with --cred");
        }
        let secrets = with_room_secrets(given, std::mem::take(&mut spec.secrets));
        spec = BuildSpec { secrets, credentials, secret_ids: Vec::new(), ..spec };
        if args.no_cache {
            spec.no_cache = true;
        }
        let tag = spec.tag.clone();
        let submit = SubmitBuildRequest { spec: Some(spec), ..SubmitBuildRequest::default() };
        let submitted = client.submit_build(submit).await?;
        Ok::<_, Failure>((client, submitted.build_id, tag))
    };
    let (client, build_id, tag) = interrupts.run_interruptible(Box::pin(submitting)).await?;
    let shown = BuildArgs { progress: args.progress, detach: args.detach, ..watched(&tag) };
    super::finish(&client, &build_id, &shown, globals, interrupts).await
}

/// Adds the secrets of the room that the build had, except for those that are given anew.
fn with_room_secrets(given: Vec<BuildSecret>, of_room: Vec<BuildSecret>) -> Vec<BuildSecret> {
    let mut secrets = given;
    for secret in of_room {
        if secrets.iter().all(|other| other.id != secret.id) {
            secrets.push(secret);
        }
    }
    secrets
}

/// Fails if a secret that the build had is not given again.
fn require_secrets(build: &str, spec: &BuildSpec, given: impl Fn(&str) -> bool) -> Result<(), Failure> {
    match spec.secret_ids.iter().find(|id| !given(id)) {
        None => Ok(()),
        Some(id) => {
            Err(Failure::usage(format!("build {build} had the secret `{id}`, whose value is not kept"))
                .hint(format!("give it again: --secret id={id},src=FILE")))
        }
    }
}

pub(in crate::cli) async fn wait(args: WaitArgs, globals: &GlobalArgs) -> Result<(), Failure> {
    let client = connect(globals).await?;
    let found = client.build(&args.build).await?;
    let build_id = found.build_id.clone();
    let ending = async {
        let mut watch = client.watch_build(&build_id, found.last_sequence.max(1));
        while let Some(item) = watch.next().await? {
            if let WatchItem::Event(event) = item
                && let Some(Event::Finished(build)) = event.event
            {
                return Ok(build);
            }
        }
        client.build(&build_id).await
    };
    let build = match args.timeout {
        None => ending.await?,
        Some(limit) => {
            let (what, hint) =
                (format!("the end of build {build_id}"), format!("see: hearth builds show {build_id}"));
            wait_within(limit, &what, &hint, ending).await?
        }
    };
    let tag = build.tags.first().cloned().unwrap_or_default();
    follow::report(&watched(&tag), &EndedBuild::unseen(build), globals.json)
}

/// Arguments by which the end of a build is shown that an earlier command made.
fn watched(tag: &str) -> BuildArgs {
    BuildArgs::from_files(tag, &LocalFiles::Directory(String::new()), BuildOptions::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_the_room_stay_unless_they_are_given_anew() {
        let secret = |id: &str, room: &str| BuildSecret {
            id: id.to_owned(),
            room_secret: room.to_owned(),
            ..BuildSecret::default()
        };
        let kept = with_room_secrets(vec![secret("a", "")], vec![secret("a", "x"), secret("b", "y")]);
        assert_eq!(kept, [secret("a", ""), secret("b", "y")]);
    }

    #[test]
    fn a_retry_needs_every_secret_again() {
        let spec = BuildSpec { secret_ids: vec!["a".into(), "b".into()], ..BuildSpec::default() };
        assert!(require_secrets("7f3k", &spec, |_| true).is_ok());
        let failure = require_secrets("7f3k", &spec, |id| id == "a").unwrap_err();
        assert!(failure.detail.message.contains("`b`") && failure.detail.hint.contains("--secret id=b"));
    }
}
