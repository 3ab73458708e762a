//! Images that a Dockerfile names: each is checked against the build's grants, fetched into the room, and passed to
//! the builder by digest.
//!
//! The source policy of the solve denies every image that is not listed here. The images that ONBUILD triggers name
//! are known only after the base image was fetched, so the Dockerfile is asked again after each round, until it names
//! nothing new.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use hearth_registry::full_name;
use tokio::sync::mpsc;

use super::super::dockerfile::{
    Dockerfile, DockerfileExcerpt, DockerfileInputs, ImageDefaultsLookup, NamedDownload, NamedImage,
    NamedRepository, PlatformRun, RemoteSources,
};
use super::super::port::{ImageRequest, PinnedImageSource};
use super::super::publisher::EventPublisher;
use super::super::recipe::RunningRecipe;
use super::super::service::{ActiveBuild, BuildRuntime};
use super::faults::{logged_log_fault, stopped_fault};
use crate::image::{BaseImage, PlatformBase, SuppliedImage, SupplyOrigin, TransferProgress};
use crate::model::build::{BuildEventKind, BuildRecord, BuildSource, BuildSpec, LogStream};
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::image::{ImageDefaults, PinnedImage, Platform, is_cached_name};
use crate::model::{MountTarget, Reference};

/// Maximum number of images that are requested at the same time.
const CONCURRENT_SUPPLIES: usize = 4;
/// Maximum depth of images whose ONBUILD triggers name further images.
const MAX_TRIGGER_ROUNDS: usize = 16;
/// Interval between two progress events of a transfer.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);

/// Images of a build. They stay in the room while this value exists.
#[derive(Default)]
pub(super) struct BuildImages {
    pub(super) sources: Vec<PinnedImageSource>,
    /// Sources that ADD fetches, determined once the variables of all images are known.
    pub(super) downloads: Vec<NamedDownload>,
    pub(super) repositories: Vec<NamedRepository>,
    /// First RUN of each platform.
    pub(super) runs: Vec<PlatformRun>,
    /// Image with which the target begins, for each platform of the build.
    pub(super) bases: Vec<PlatformBase>,
    /// Defaults of the first of these images.
    pub(super) base_defaults: Option<ImageDefaults>,
    _supplied: Vec<SuppliedImage>,
}

impl BuildImages {
    /// Returns the images for the record of the build.
    pub(super) fn recorded_sources(&self) -> Vec<BuildSource> {
        let named = |source: &PinnedImageSource| BuildSource {
            name: source.name.clone(),
            digest: Some(source.digest),
        };
        self.sources.iter().map(named).collect()
    }
}

/// One image name, with all platforms that it is used for.
struct WantedImage {
    named: NamedImage,
    platforms: Vec<Platform>,
    is_room_image: bool,
}

impl BuildRuntime {
    pub(super) async fn supply_images(
        &self,
        active: &ActiveBuild,
        record: &BuildRecord,
        (recipe, dockerfile): (&RunningRecipe<'_>, &Dockerfile),
        path: &MountTarget,
        publisher: &mut EventPublisher,
    ) -> Result<BuildImages, Fault> {
        let mut known: BTreeMap<(String, String), ImageDefaults> = BTreeMap::new();
        let mut supplied: BTreeMap<String, (Vec<Platform>, SuppliedImage)> = BTreeMap::new();
        let mut steps = 0;
        for _ in 0..MAX_TRIGGER_ROUNDS {
            let (named, bases) = named_sources(recipe, dockerfile, &record.spec, &|reference, platform| {
                known.get(&(reference.to_string(), platform.as_str().to_owned())).cloned()
            });
            if named.has_more {
                let message = "the Dockerfile names more images than a build may use";
                return Err(Fault::new(FaultStage::Context, ErrorCode::TooManyImages, message));
            }
            let mut wishes = self.wanted_images(&named.images);
            wishes.retain(|name, wish| {
                supplied.get(name).is_none_or(|(platforms, _)| *platforms != wish.platforms)
            });
            if wishes.is_empty() {
                let source =
                    |(name, (_, image)): (&String, &(Vec<Platform>, SuppliedImage))| PinnedImageSource {
                        name: name.clone(),
                        repository: image.repository.clone(),
                        digest: image.digest,
                    };
                let sources = supplied.iter().map(source).collect();
                let first_base = bases.iter().find_map(|(_, base)| base.as_ref());
                let base_defaults = first_base.and_then(|(reference, platform)| {
                    known.get(&(reference.to_string(), platform.as_str().to_owned())).cloned()
                });
                let base = |(reference, platform): (Reference, Platform)| {
                    let (_, image) = supplied.get(&normalized_name(&reference))?;
                    let image = PinnedImage { repository: image.repository.clone(), digest: image.digest };
                    Some(BaseImage { image, platform })
                };
                let bases = bases
                    .into_iter()
                    .map(|(platform, named)| PlatformBase { platform, base: named.and_then(base) })
                    .collect();
                let supplied = supplied.into_values().map(|(_, image)| image).collect();
                let RemoteSources { downloads, repositories, runs, .. } = named;
                return Ok(BuildImages {
                    sources,
                    downloads,
                    repositories,
                    runs,
                    bases,
                    base_defaults,
                    _supplied: supplied,
                });
            }
            for wish in wishes.values() {
                if let Some(fault) = pull_denied_fault(record, wish, path) {
                    return Err(fault);
                }
            }
            if steps == 0 && wishes.values().any(|wish| !wish.is_room_image) {
                // The fetched images have steps of their own, before those of the builder.
                publisher.begin_attempt().await.map_err(|error| logged_log_fault(&error))?;
            }
            let (sender, mut events) = mpsc::channel(64);
            let brought = self.supply_all(active, record, wishes, path, &mut steps, sender);
            let forward = async {
                let forwarded = publisher.forward(&mut events).await;
                // Closing the channel unblocks a sender that would wait for a receiver.
                events.close();
                forwarded
            };
            let (brought, forwarded) = tokio::join!(brought, forward);
            forwarded.map_err(|error| logged_log_fault(&error))?;
            for (name, wish, image) in brought? {
                for (platform, defaults) in wish.platforms.iter().zip(&image.defaults) {
                    let key = (wish.named.reference.to_string(), platform.as_str().to_owned());
                    known.insert(key, defaults.clone());
                }
                supplied.insert(name, (wish.platforms, image));
            }
        }
        let message = format!(
            "ONBUILD triggers of images name further images more than {MAX_TRIGGER_ROUNDS} levels deep"
        );
        Err(Fault::new(FaultStage::Context, ErrorCode::TooManyImages, message))
    }

    /// Returns the images by their normalized name.
    fn wanted_images(&self, named: &[NamedImage]) -> BTreeMap<String, WantedImage> {
        let mut wishes: BTreeMap<String, WantedImage> = BTreeMap::new();
        for named in named {
            let platform = named.platform.clone();
            let is_own = self.is_room_image(&named.reference);
            let name = normalized_name(&named.reference);
            let named = named.clone();
            let wish = wishes.entry(name).or_insert(WantedImage {
                named,
                platforms: Vec::new(),
                is_room_image: is_own,
            });
            if !wish.platforms.contains(&platform) {
                wish.platforms.push(platform);
            }
        }
        wishes
    }

    /// Reports whether a reference names this room's registry, also by the address at which the builder reaches it.
    fn is_room_image(&self, reference: &Reference) -> bool {
        self.options.room_registries.owns_source(reference)
            || reference.registry.as_ref().is_some_and(|registry| registry.as_str() == self.options.registry)
    }

    async fn supply_all(
        &self,
        active: &ActiveBuild,
        record: &BuildRecord,
        wishes: BTreeMap<String, WantedImage>,
        path: &MountTarget,
        steps: &mut u32,
        events: mpsc::Sender<BuildEventKind>,
    ) -> Result<Vec<(String, WantedImage, SuppliedImage)>, Fault> {
        let numbered = wishes.into_iter().map(|(name, wish)| {
            let step = (!wish.is_room_image).then(|| {
                *steps += 1;
                *steps
            });
            (name, wish, step)
        });
        let numbered: Vec<_> = numbered.collect();
        let bring = numbered.into_iter().map(|(name, wish, step)| {
            let events = events.clone();
            async move {
                let transfer = Arc::new(TransferProgress::default());
                let request = ImageRequest {
                    reference: wish.named.reference.clone(),
                    is_room_image: wish.is_room_image,
                    platforms: wish.platforms.clone(),
                    caller: record.submitted_by.clone(),
                    credentials: active.secrets.credentials.clone(),
                    ask_registry: record.spec.pull,
                    transfer: Arc::clone(&transfer),
                };
                let supply = self.ports.images.supply(request);
                let supplied = match step {
                    Some(step) => report_supply(step, &name, supply, &transfer, &events).await,
                    None => supply.await,
                };
                match supplied {
                    Ok(image) => Ok((name, wish, image)),
                    Err(fault) => Err(image_fault(fault, &wish, path)),
                }
            }
        });
        let mut bring = stream::iter(bring).buffer_unordered(CONCURRENT_SUPPLIES);
        let mut brought = Vec::new();
        loop {
            tokio::select! {
                next = bring.next() => match next {
                    Some(image) => brought.push(image?),
                    None => return Ok(brought),
                },
                () = active.stop.cancelled() => return Err(stopped_fault()),
            }
        }
    }
}

/// A platform of the build, and the image with which the target begins.
type NamedBase = (Platform, Option<(Reference, Platform)>);

/// Returns what the Dockerfile names for all platforms of a build, and the base of each.
fn named_sources(
    recipe: &RunningRecipe<'_>,
    dockerfile: &Dockerfile,
    spec: &BuildSpec,
    known: ImageDefaultsLookup<'_>,
) -> (RemoteSources, Vec<NamedBase>) {
    let mut all = RemoteSources::default();
    let mut bases = Vec::new();
    for platform in spec.result_platforms() {
        let inputs = DockerfileInputs {
            build_args: &spec.build_args,
            platform: &platform,
            target: spec.target.as_deref(),
        };
        let mut named = recipe.remote_sources(dockerfile, inputs, known);
        let base = named.base.take();
        all.extend(named);
        bases.push((platform, base));
    }
    (all, bases)
}

/// Runs the supply of an image and reports its progress as a step of the build.
async fn report_supply(
    step: u32,
    name: &str,
    supply: impl Future<Output = Result<SuppliedImage, Fault>>,
    transfer: &TransferProgress,
    events: &mpsc::Sender<BuildEventKind>,
) -> Result<SuppliedImage, Fault> {
    // Sending fails only when the build ends.
    let tell = async |kind: BuildEventKind| drop(events.send(kind).await);
    let started = Instant::now();
    tell(BuildEventKind::StepStarted { step, name: format!("[image] {name}") }).await;
    tokio::pin!(supply);
    let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
    let supplied = loop {
        tokio::select! {
            supplied = &mut supply => break supplied,
            _ = tick.tick() => {
                let stand = transfer.snapshot();
                if stand.total_bytes > 0 {
                    let (current, total) = (stand.bytes, stand.total_bytes);
                    tell(BuildEventKind::StepProgress { step, name: "fetching".to_owned(), current, total }).await;
                }
            }
        }
    };
    let finished =
        |cached, error| BuildEventKind::StepFinished { step, cached, duration: started.elapsed(), error };
    match &supplied {
        Err(fault) => tell(finished(false, Some(fault.message.clone()))).await,
        Ok(image) => {
            let line = format!("{}\n", image.digest);
            tell(BuildEventKind::StepLog {
                step,
                stream: LogStream::Stdout,
                data: line.into(),
                dropped_bytes: 0,
            })
            .await;
            if let SupplyOrigin::Unchecked { reason } = &image.origin {
                let message = format!(
                    "the registry of `{name}` could not be asked for the current image ({reason}); using the image in the room"
                );
                tell(BuildEventKind::Warning { message, url: None, dockerfile: None }).await;
            }
            tell(finished(!matches!(image.origin, SupplyOrigin::Fetched { .. }), None)).await;
        }
    }
    supplied
}

/// Returns the name as BuildKit normalizes it before it compares names.
pub(in crate::build) fn normalized_name(reference: &Reference) -> String {
    let registry = match reference.registry.as_ref().map_or("docker.io", |registry| registry.as_str()) {
        "index.docker.io" => "docker.io",
        other => other,
    };
    let path = reference.repository.as_str();
    let library = if registry == "docker.io" && !path.contains('/') { "library/" } else { "" };
    let tag = match (&reference.tag, &reference.digest) {
        (Some(tag), _) => format!(":{tag}"),
        (None, None) => ":latest".to_owned(),
        (None, Some(_)) => String::new(),
    };
    let digest = reference.digest.map(|digest| format!("@{digest}")).unwrap_or_default();
    format!("{registry}/{library}{path}{tag}{digest}")
}

/// Returns the fault of an image that the build's token may not pull.
fn pull_denied_fault(record: &BuildRecord, wish: &WantedImage, path: &MountTarget) -> Option<Fault> {
    let NamedImage { reference, excerpt: place, .. } = &wish.named;
    let (allowed, name, grant) = if wish.is_room_image {
        let repository = &reference.repository;
        let name = repository.as_str();
        let allowed = record.may_pull.allows(name) && !is_cached_name(name);
        (allowed, display_name(reference), "containers.registry.pull")
    } else {
        let name = full_name(reference);
        (record.may_pull_from.allows(&name), name, "containers.pull")
    };
    if allowed {
        return None;
    }
    let message = format!("line {}: the token of this build may not pull `{name}`", place.start_line);
    let fault = Fault::new(FaultStage::Context, ErrorCode::ImageDenied, message)
        .hint(format!("use a token whose `{grant}` grant names the image"));
    Some(with_excerpt(fault, place, path))
}

/// Adds the line that names the image, and translates the code to the one that builds use.
fn image_fault(mut fault: Fault, wish: &WantedImage, path: &MountTarget) -> Fault {
    let NamedImage { reference, excerpt: place, .. } = &wish.named;
    if !wish.is_room_image {
        fault.code = match fault.code.known() {
            Some(ErrorCode::RegistryDenied) => ErrorCode::BaseImageDenied.into(),
            Some(ErrorCode::ImageNotFound) => ErrorCode::BaseImageNotFound.into(),
            _ => fault.code,
        };
    }
    fault.message = match (wish.is_room_image, fault.code.known()) {
        (true, Some(ErrorCode::ImageNotFound)) => {
            format!("line {}: there is no image `{}` in this room", place.start_line, display_name(reference))
        }
        _ => format!("line {}: image `{}`: {}", place.start_line, display_name(reference), fault.message),
    };
    with_excerpt(fault, place, path)
}

fn display_name(reference: &Reference) -> String {
    let name = reference.to_string();
    name.strip_suffix(":latest").map_or_else(|| name.clone(), str::to_owned)
}

pub(super) fn with_excerpt(mut fault: Fault, excerpt: &DockerfileExcerpt, path: &MountTarget) -> Fault {
    fault.dockerfile = Some(excerpt.range(path));
    fault
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_spelt_as_buildkit_spells_them() {
        let sum = format!("sha256:{}", "0a".repeat(32));
        for (given, expected) in [
            ("alpine", "docker.io/library/alpine:latest".to_owned()),
            ("alpine:latest", "docker.io/library/alpine:latest".to_owned()),
            ("docker.io/alpine:3", "docker.io/library/alpine:3".to_owned()),
            ("index.docker.io/library/alpine:3", "docker.io/library/alpine:3".to_owned()),
            ("registry-1.docker.io/library/alpine", "registry-1.docker.io/library/alpine:latest".to_owned()),
            ("me/app", "docker.io/me/app:latest".to_owned()),
            ("localhost/app", "localhost/app:latest".to_owned()),
            ("127.0.0.1:5000/app:1", "127.0.0.1:5000/app:1".to_owned()),
            (&format!("alpine@{sum}"), format!("docker.io/library/alpine@{sum}")),
            (&format!("ghcr.io/a/b:1@{sum}"), format!("ghcr.io/a/b:1@{sum}")),
        ] {
            assert_eq!(normalized_name(&given.parse().unwrap()), expected, "{given}");
        }
    }
}
