//! Compression of a built image: that of the base for its layers, and that of the spec for the others, whatever the
//! builder had met before.

use tokio::sync::mpsc;

use super::super::port::{SolveError, SolveOutcome, SolveRequest};
use super::super::service::{ActiveBuild, BuildRuntime};
use super::images::BuildImages;
use crate::image::{ImageForm, PlatformBase};
use crate::model::build::{BuildSpec, NoCache};
use crate::model::image::PinnedImage;
use crate::model::{Digest, Reference};

impl BuildRuntime {
    /// Restores the layers of the base in a solved image. If the builder had a new layer in another compression from an
    /// earlier build, the build is solved once more, from the cache, with layers converted.
    ///
    /// Layers are not converted at once, because the builder would convert those of the base too, which may be large.
    pub(super) async fn settle_layers(
        &self,
        active: &ActiveBuild,
        outcome: SolveOutcome,
        images: &BuildImages,
        (tag, spec): (&Reference, &BuildSpec),
        request: impl FnOnce() -> SolveRequest,
    ) -> Result<SolveOutcome, SolveError> {
        let compression = spec.compression;
        let finish = async |digest: Digest, bases: Vec<PlatformBase>, converted| {
            let built = PinnedImage { repository: tag.repository.clone(), digest };
            let form = ImageForm { bases, compression, converted, annotations: spec.annotations.clone() };
            let finished = self.ports.images.finish_built_image(&built, form);
            finished.await.map_err(|fault| SolveError::Failed(Box::new(fault)))
        };
        let finished = finish(outcome.digest, images.bases.clone(), false).await?;
        if !finished.has_other_compression {
            return Ok(SolveOutcome { digest: finished.digest, ..outcome });
        }
        tracing::info!(%compression, "the builder reused layers of an earlier build in another compression; solving again to convert them");
        let mut request = request();
        request.converts_layers = true;
        request.caches.export = None;
        // The steps have run, so all of them are cached now.
        request.spec.no_cache = NoCache::Nothing;
        // Without a receiver, events are dropped: the steps were told already.
        let (events, _) = mpsc::channel(1);
        let converted = self.ports.solver.solve(request, events, active.stop.child_token()).await?;
        let finished = finish(converted.digest, finished.bases, true).await?;
        Ok(SolveOutcome { digest: finished.digest, ..outcome })
    }
}
