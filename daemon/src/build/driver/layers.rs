//! Compression of a built image: that of the base for its layers, and that of the spec for the others, whatever the
//! builder had met before.

use tokio::sync::mpsc;

use super::super::port::{SolveError, SolveOutcome, SolveRequest};
use super::super::service::{ActiveBuild, BuildRuntime};
use super::images::BuildImages;
use crate::image::BaseImage;
use crate::model::build::NoCache;
use crate::model::image::PinnedImage;
use crate::model::{BuildCompression, Digest, Reference};

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
        (tag, compression): (&Reference, BuildCompression),
        request: impl FnOnce() -> SolveRequest,
    ) -> Result<SolveOutcome, SolveError> {
        let restore = async |digest: Digest, base: Option<&BaseImage>, converted| {
            let built = PinnedImage { repository: tag.repository.clone(), digest };
            let restored = self.ports.images.restore_base_layers(&built, base, compression, converted);
            restored.await.map_err(|fault| SolveError::Failed(Box::new(fault)))
        };
        let base = images.base.as_ref();
        let restored = restore(outcome.digest, base, false).await?;
        if !restored.has_other_compression {
            return Ok(SolveOutcome { digest: restored.digest, ..outcome });
        }
        tracing::info!(%compression, "the builder reused layers of an earlier build in another compression; solving again to convert them");
        let mut request = request();
        request.converts_layers = true;
        // The steps have run, so all of them are cached now.
        request.spec.no_cache = NoCache::Nothing;
        // Without a receiver, events are dropped: the steps were told already.
        let (events, _) = mpsc::channel(1);
        let converted = self.ports.solver.solve(request, events, active.stop.child_token()).await?;
        let base = base.filter(|_| restored.begins_with_base);
        let restored = restore(converted.digest, base, true).await?;
        Ok(SolveOutcome { digest: restored.digest, ..outcome })
    }
}
