use std::sync::{Arc, Weak};

use tokio_util::sync::CancellationToken;

use super::{ContextView, PreparerState};
use crate::lineage::LineageId;
use crate::port::TransferWatch;
use crate::tree::TreeIdentity;

/// Checks one version of a context while it is sent.
pub(super) struct ContextTransferWatch {
    shared: Weak<PreparerState>,
    view: ContextView,
    /// Lineage id without the selection.
    origin: LineageId,
    identity: TreeIdentity,
    session: String,
}

impl ContextTransferWatch {
    pub(super) fn new(
        shared: &Arc<PreparerState>,
        view: ContextView,
        origin: LineageId,
        identity: TreeIdentity,
        session: String,
    ) -> Self {
        Self { shared: Arc::downgrade(shared), view, origin, identity, session }
    }

    fn retire(&self, shared: &PreparerState) {
        if let Err(error) = shared.records.retire(&self.session) {
            tracing::error!(
                %error,
                "failed to retire the session id of a changed context; BuildKit may reuse stale files",
            );
        }
    }
}

impl TransferWatch for ContextTransferWatch {
    fn files_sent(&self) {
        let Some(shared) = self.shared.upgrade() else { return };
        match self.view.scan_and_identify(&shared.records, &CancellationToken::new()) {
            Ok((_, now)) if now.identity == self.identity => {}
            Ok(_) => {
                tracing::debug!("context changed during or after its transfer");
                self.retire(&shared);
            }
            Err(error) => {
                tracing::debug!(%error, "failed to scan the context again after its transfer");
                self.retire(&shared);
            }
        }
        shared.records.save_if_due();
    }

    fn uncovered_requested(&self) {
        let Some(shared) = self.shared.upgrade() else { return };
        shared.records.require_full_coverage(self.origin);
    }
}
