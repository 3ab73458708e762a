//! Bytes that each participant has sent, and whose quota they count against.
//!
//! They have a lock of their own, because that of the index is held while its changes become durable.

use std::collections::HashMap;

use super::OwnerKey;

/// Number of owners with a shared quota above which those without stored content are dropped.
const MAX_SHARES: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct OwnerQuotas {
    /// Bytes of frames, by the owner who sent them.
    sent: HashMap<OwnerKey, u64>,
    /// Owner whose quota another owner's bytes count against. Owners with a quota of their own have no entry.
    quota_owner_of: HashMap<OwnerKey, OwnerKey>,
}

impl OwnerQuotas {
    pub(super) fn add(&mut self, owner: OwnerKey, bytes: u64) {
        *self.sent.entry(owner).or_default() += bytes;
    }

    /// Replaces all counts.
    pub(super) fn recount(&mut self, sent: HashMap<OwnerKey, u64>) {
        self.sent = sent;
    }

    pub(super) fn bytes_sent_by(&self, owner: &OwnerKey) -> u64 {
        self.sent.get(owner).copied().unwrap_or_default()
    }

    /// Returns the stored bytes of all owners who share the quota of `owner`.
    pub(super) fn bytes_sent_within_share(&self, owner: &OwnerKey) -> u64 {
        let share = |owner: &OwnerKey| *self.quota_owner_of.get(owner).unwrap_or(owner);
        let of = share(owner);
        self.sent.iter().filter(|(other, _)| share(other) == of).map(|(_, bytes)| bytes).sum()
    }

    pub(super) fn set_share(&mut self, owner: OwnerKey, share: OwnerKey) {
        if self.quota_owner_of.len() >= MAX_SHARES {
            let Self { quota_owner_of, sent } = self;
            quota_owner_of.retain(|owner, _| sent.contains_key(owner));
        }
        self.quota_owner_of.insert(owner, share);
    }
}
