//! What a build is made of: its files, its Dockerfile, the images of the room that this one names.
//!
//! Whatever of it is found wrong here fails the build before BuildKit hears of it.

use super::super::dockerfile;
use super::super::port::RoomImage;
use super::super::presence;
use super::super::service::Shared;
use super::Early;
use crate::context::port::ContextFiles;
use crate::model::MountTarget;
use crate::model::build::{BuildRecord, ContextIdentity};
use crate::model::fault::{DockerfileRange, Fault, Stage};
use crate::model::image::Platform;
use crate::task;

/// Overrides a `# syntax=` line when it is among the build arguments.
pub(super) const FRONTEND_ARGUMENT: &str = "BUILDKIT_SYNTAX";

/// A build's files, and what was found in its Dockerfile.
pub(super) struct Context {
    pub(super) files: ContextFiles,
    pub(super) identity: ContextIdentity,
    pub(super) room_images: Vec<RoomImage>,
    pub(super) dockerfile: MountTarget,
}

impl Shared {
    /// What an early look at the files led to.
    pub(super) async fn context(&self, early: Early, record: &BuildRecord) -> Result<Context, Fault> {
        let spec = &record.spec;
        let prepared = early.prepared().await?;
        let path = prepared.dockerfile_path().clone();
        let refused =
            |refused: dockerfile::FrontendRefused| frontend_fault(&refused, &path, prepared.dockerfile());
        let settled = dockerfile::settle_frontend(prepared.dockerfile().to_vec()).map_err(refused)?;
        if let Some(image) = spec.build_args.get(FRONTEND_ARGUMENT) {
            dockerfile::settle_frontend_argument(image).map_err(refused)?;
        }
        let platform = spec.platform.clone().unwrap_or_else(Platform::host);
        let rooms = &self.options.room_registries;
        let named =
            dockerfile::room_references(&settled, &spec.build_args, &platform, spec.target.as_deref(), rooms);
        let mut room_images = Vec::with_capacity(named.len());
        for named in named {
            if !record.may_pull.allow(named.reference.repository.as_str()) {
                return Err(denied_fault(named, path));
            }
            let Some(digest) = self.ports.images.resolve(&named.reference).await? else {
                return Err(image_fault(named, path));
            };
            room_images.push(RoomImage { name: named.name, repository: named.reference.repository, digest });
        }
        let identity = prepared.identity();
        let copied = dockerfile::sources(&settled, &spec.build_args, spec.target.as_deref());
        let files = prepared.into_files(settled);
        if let Some(fault) = missing_source(&files, copied, &path).await {
            return Err(fault);
        }
        Ok(Context { files, identity, room_images, dockerfile: path })
    }
}

/// Looks for what COPY and ADD name, among files as they will be sent.
async fn missing_source(
    files: &ContextFiles,
    copied: Vec<dockerfile::Copied>,
    path: &MountTarget,
) -> Option<Fault> {
    if copied.is_empty() {
        return None;
    }
    let (files, path) = (files.clone(), path.clone());
    let look = move || presence::missing(&files, &copied, &path);
    task::blocking("build.presence", look).await.unwrap_or_else(|error| {
        // BuildKit looks for the files as well.
        tracing::error!(%error, "the look for the files of a build ended by itself");
        None
    })
}

fn image_fault(named: dockerfile::RoomReference, path: MountTarget) -> Fault {
    let message = format!("line {}: there is no image `{}` in this room", named.start_line, named.name);
    let fault = Fault::new(Stage::Context, "image_not_found", message)
        .hint("see `hearth images list`, or build or load the image first");
    at(fault, named, path)
}

fn denied_fault(named: dockerfile::RoomReference, path: MountTarget) -> Fault {
    let message = format!("line {}: the token of this build may not pull `{}`", named.start_line, named.name);
    let fault = Fault::new(Stage::Context, "image_denied", message)
        .hint("use a token whose `containers.registry.pull` grant names the image");
    at(fault, named, path)
}

fn at(mut fault: Fault, named: dockerfile::RoomReference, path: MountTarget) -> Fault {
    fault.dockerfile = Some(DockerfileRange {
        path,
        start_line: named.start_line,
        end_line: named.end_line,
        text: named.text,
    });
    fault
}

fn frontend_fault(refused: &dockerfile::FrontendRefused, path: &MountTarget, dockerfile: &[u8]) -> Fault {
    let mut fault = Fault::new(Stage::Context, "frontend_not_allowed", refused.to_string())
        .hint("leave the `# syntax=` line out, or write `# syntax=docker/dockerfile:1`");
    if refused.line > 0 {
        let text = String::from_utf8_lossy(dockerfile);
        let line = text.lines().nth(refused.line as usize - 1).unwrap_or_default();
        fault.dockerfile = Some(DockerfileRange {
            path: path.clone(),
            start_line: refused.line,
            end_line: refused.line,
            text: line.chars().take(500).collect(),
        });
    }
    fault
}
