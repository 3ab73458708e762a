//! Caches of build steps: those that a build reads are brought into the room before the solve, and the one that it has
//! written is published with the image.

use super::super::port::SolveCaches;
use super::super::publisher::EventPublisher;
use super::super::service::{ActiveBuild, BuildRuntime};
use super::faults::{logged_log_fault, stopped_fault};
use crate::image::SuppliedCache;
use crate::model::build::{BuildEventKind, BuildRecord};
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::image::VerifiedImage;
use crate::model::{CacheExport, CacheLocation, Digest, Reference, Repository};

/// Caches that a build reads. They stay in the room while this value exists.
#[derive(Default)]
pub(super) struct SuppliedCaches(Vec<SuppliedCache>);

impl SuppliedCaches {
    /// Returns the repositories that the builder reads.
    pub(super) fn repositories(&self) -> impl Iterator<Item = Repository> + '_ {
        self.0.iter().map(|cache| cache.manifest.repository.clone())
    }

    pub(super) fn for_solve(&self, record: &BuildRecord) -> SolveCaches {
        let exports = &record.spec.cache_to;
        SolveCaches {
            imports: self.0.iter().map(|cache| cache.manifest.clone()).collect(),
            inline: exports.contains(&CacheExport::Inline),
            // The request was refused if its caches have different formats.
            export: exports.iter().find_map(|export| match export {
                CacheExport::To { format, .. } => Some(*format),
                CacheExport::Inline => None,
            }),
        }
    }
}

/// Cache that a build has written, with the names that it gets besides the image.
#[derive(Default)]
pub(super) struct WrittenCache {
    cache: Option<VerifiedImage>,
    room_tags: Vec<Reference>,
    remote_tags: Vec<Reference>,
    /// A failure to name it is a warning.
    ignore_error: bool,
}

impl BuildRuntime {
    /// Brings the caches into the room. One that cannot be used is a warning: without it, more steps run.
    pub(super) async fn supply_caches(
        &self,
        active: &ActiveBuild,
        record: &BuildRecord,
        publisher: &mut EventPublisher,
    ) -> Result<SuppliedCaches, Fault> {
        let mut supplied = Vec::new();
        for import in &record.spec.cache_from {
            let supply =
                self.ports.images.supply_cache(import, &record.submitted_by, &active.secrets.credentials);
            let result = tokio::select! {
                result = supply => result,
                () = active.stop.cancelled() => return Err(stopped_fault()),
            };
            match result {
                Ok(cache) => supplied.push(cache),
                Err(fault) => {
                    let message = format!("cache `{import}` is not used: {}", fault.message);
                    warn(publisher, message).await?;
                }
            }
        }
        Ok(SuppliedCaches(supplied))
    }

    /// Writes the cache of a solved build to all its places, except for its tags.
    pub(super) async fn write_cache(
        &self,
        active: &ActiveBuild,
        record: &BuildRecord,
        (repository, digest): (&Repository, Option<Digest>),
        publisher: &mut EventPublisher,
    ) -> Result<WrittenCache, Fault> {
        let exports = record.spec.cache_to.iter().filter_map(|export| match export {
            CacheExport::Inline => None,
            CacheExport::To { location, ignore_error, .. } => Some((location, *ignore_error)),
        });
        let exports: Vec<(&CacheLocation, bool)> = exports.collect();
        if exports.is_empty() {
            return Ok(WrittenCache::default());
        }
        let Some(digest) = digest else {
            warn(publisher, "no cache was written: the build has no step with a result to keep".to_owned())
                .await?;
            return Ok(WrittenCache::default());
        };
        let cache = self.ports.images.verify(repository, digest).await?;
        let ignore_error = exports.iter().all(|(_, ignore_error)| *ignore_error);
        let mut written = WrittenCache { ignore_error, ..WrittenCache::default() };
        for (location, ignore_error) in exports {
            let place = self.write_cache_content(&cache, location, active);
            let result = tokio::select! {
                result = place => result,
                () = active.stop.cancelled() => return Err(stopped_fault()),
            };
            match (result, location) {
                (Ok(()), CacheLocation::Registry(tag)) if self.options.room_registries.owns_tag(tag) => {
                    written.room_tags.push(tag.clone());
                }
                (Ok(()), CacheLocation::Registry(tag)) => written.remote_tags.push(tag.clone()),
                (Ok(()), _) => {}
                (Err(fault), _) if ignore_error => {
                    warn(publisher, format!("a cache was not written: {}", fault.message)).await?;
                }
                (Err(fault), _) => return Err(not_written(&fault)),
            }
        }
        written.cache = Some(cache);
        Ok(written)
    }

    async fn write_cache_content(
        &self,
        cache: &VerifiedImage,
        location: &CacheLocation,
        active: &ActiveBuild,
    ) -> Result<(), Fault> {
        match location {
            CacheLocation::Registry(tag) if self.options.room_registries.owns_tag(tag) => Ok(()),
            CacheLocation::Registry(tag) => {
                let tags = std::slice::from_ref(tag);
                self.ports.images.push_content(cache, tags, &active.secrets.credentials).await
            }
            CacheLocation::Directory { .. } | CacheLocation::Archive { .. } => {
                self.ports.images.store_cache(cache, location).await
            }
        }
    }

    /// Sets the tags of a written cache. The build can no longer be cancelled.
    pub(super) async fn name_cache(
        &self,
        active: &ActiveBuild,
        written: WrittenCache,
        publisher: &mut EventPublisher,
    ) -> Result<(), Fault> {
        match self.set_cache_tags(active, &written).await {
            Ok(()) => Ok(()),
            Err(fault) if written.ignore_error => {
                warn(publisher, format!("a cache got no tag: {}", fault.message)).await
            }
            Err(fault) => Err(not_written(&fault)),
        }
    }

    async fn set_cache_tags(&self, active: &ActiveBuild, written: &WrittenCache) -> Result<(), Fault> {
        let WrittenCache { cache: Some(cache), room_tags, remote_tags, .. } = written else { return Ok(()) };
        if !remote_tags.is_empty() {
            self.ports.images.push_names(cache, remote_tags, &active.secrets.credentials).await?;
        }
        if !room_tags.is_empty() {
            self.ports.images.publish(cache, room_tags).await?;
        }
        Ok(())
    }
}

async fn warn(publisher: &mut EventPublisher, message: String) -> Result<(), Fault> {
    let warning = BuildEventKind::Warning { message, url: None, dockerfile: None };
    publisher.publish(warning).await.map(drop).map_err(|error| logged_log_fault(&error))
}

fn not_written(fault: &Fault) -> Fault {
    let message = format!("the cache of the build was not written: {}", fault.message);
    let mut own = Fault::new(FaultStage::Publish, ErrorCode::BuildCacheNotWritten, message);
    own.retryable = fault.retryable;
    own
}
