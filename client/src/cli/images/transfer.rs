//! `hearth images push` and `pull`: the daemon transfers the image, and the client shows its progress.

use hearth_proto::v1::{PullImageRequest, PushImageRequest, TransferDone, TransferProgress};
use hearth_proto::value::Reference;
use serde::Serialize;

use super::super::registry::CredentialArgs;
use super::super::{GlobalArgs, connect, pack};
use super::reference;
use crate::error::Failure;
use crate::output;
use crate::progress::TransferMeter;

pub(super) struct PullOptions {
    pub(super) tag: Option<String>,
    pub(super) arch: Option<String>,
    pub(super) all_platforms: bool,
}

pub(super) async fn push(
    image: &str,
    target: Option<&str>,
    cred: &CredentialArgs,
    globals: &GlobalArgs,
) -> Result<(), Failure> {
    let (source, target) = match target {
        Some(target) => (reference(image)?, tag(target)?),
        None => {
            let target = tag(image)?;
            if target.registry.is_none() {
                return Err(Failure::usage(format!("`{image}` does not say which registry to push to"))
                    .hint(format!("hearth images push {image} REGISTRY/{}", target.repository)));
            }
            (Reference { registry: None, ..target.clone() }, target)
        }
    };
    let credentials = cred.to_wire()?;
    let request = PushImageRequest { reference: source.to_string(), target: target.to_string(), credentials };
    let client = connect(globals).await?;
    let meter = TransferMeter::new("pushing", 0);
    let mut show = |progress: &TransferProgress| meter.set(progress.bytes, progress.total_bytes);
    let done = meter.during(Box::pin(client.push_image(request, &mut show))).await?;
    report("pushed", "already there", &done, globals)
}

pub(super) async fn pull(
    image: &str,
    wanted: PullOptions,
    cred: &CredentialArgs,
    globals: &GlobalArgs,
) -> Result<(), Failure> {
    let source = reference(image)?;
    let platform = match &wanted.arch {
        Some(arch) => pack::platform(Some(arch))?.to_string(),
        None => String::new(),
    };
    let tag = wanted.tag.as_deref().map(tag).transpose()?;
    let request = PullImageRequest {
        reference: source.to_string(),
        tag: tag.map(|tag| tag.to_string()).unwrap_or_default(),
        platform,
        all_platforms: wanted.all_platforms,
        credentials: cred.to_wire()?,
    };
    let client = connect(globals).await?;
    let meter = TransferMeter::new("pulling", 0);
    let mut show = |progress: &TransferProgress| meter.set(progress.bytes, progress.total_bytes);
    let done = meter.during(Box::pin(client.pull_image(request, &mut show))).await?;
    report("pulled", "already in the room", &done, globals)
}

fn tag(text: &str) -> Result<Reference, Failure> {
    Reference::parse_tag(text).map_err(|error| Failure::usage(error.to_string()))
}

#[derive(Serialize)]
struct TransferDoneView<'a> {
    digest: &'a str,
    reference: &'a str,
    sent_bytes: u64,
    reused_bytes: u64,
}

fn report(did: &str, reused: &str, done: &TransferDone, globals: &GlobalArgs) -> Result<(), Failure> {
    if globals.json {
        return output::json(&TransferDoneView {
            digest: &done.digest,
            reference: &done.reference,
            sent_bytes: done.sent_bytes,
            reused_bytes: done.reused_bytes,
        });
    }
    let (sent, known) = (output::size(done.sent_bytes), output::size(done.reused_bytes));
    output::note(&format!("{did} {} ({sent}, {known} {reused})", done.reference));
    output::line(&done.digest)
}
