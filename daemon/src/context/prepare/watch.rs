use std::sync::{Arc, Weak};

use tokio_util::sync::CancellationToken;

use super::{Shared, View};
use crate::context::lineage::LineageId;
use crate::context::port::TransferWatch;
use crate::context::tree::TreeIdentity;

/// Looks after one version of one context while it is sent.
pub(super) struct Watch {
    shared: Weak<Shared>,
    view: View,
    /// Lineage without what is copied.
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
            tracing::error!(%error, "a context that changed under its transfer may be taken for unchanged");
        }
    }
}

impl TransferWatch for Watch {
    fn sent(&self) {
        let Some(shared) = self.shared.upgrade() else { return };
        match self.view.look(&shared.memory, &CancellationToken::new()) {
            Ok((_, now)) if now.identity == self.identity => {}
            Ok(_) => {
                tracing::debug!("the context changed while it was sent, or after");
                self.retire(&shared);
            }
            Err(error) => {
                tracing::debug!(%error, "the context cannot be looked at again");
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
