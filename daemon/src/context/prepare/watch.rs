use std::sync::{Arc, Weak};

use tokio_util::sync::CancellationToken;

use super::{Shared, View};
use crate::context::lineage::LineageId;
use crate::context::port::TransferWatch;
use crate::context::tree::TreeIdentity;

/// Checks one version of a context while it is sent.
pub(super) struct Watch {
    shared: Weak<Shared>,
    view: View,
    /// Lineage id without the selection.
    origin: LineageId,
    identity: TreeIdentity,
    session: String,
}

impl Watch {
    pub(super) fn new(
        shared: &Arc<Shared>,
        view: View,
        origin: LineageId,
        identity: TreeIdentity,
        session: String,
    ) -> Self {
        Self { shared: Arc::downgrade(shared), view, origin, identity, session }
    }

    fn retire(&self, shared: &Shared) {
        if let Err(error) = shared.memory.retire(&self.session) {
            tracing::error!(
                %error,
                "failed to retire the session id of a changed context; BuildKit may reuse stale files",
            );
        }
    }
}

impl TransferWatch for Watch {
    fn sent(&self) {
        let Some(shared) = self.shared.upgrade() else { return };
        match self.view.look(&shared.memory, &CancellationToken::new()) {
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
        shared.memory.save_now_and_then();
    }

    fn asked_beyond(&self) {
        let Some(shared) = self.shared.upgrade() else { return };
        shared.memory.cover_all(self.origin);
    }
}
