//! Placeholder for a missing network: every operation fails with the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use async_trait::async_trait;

use crate::deploy::port::{InstanceNetwork, NetworkAttachment, NetworkError};
use crate::model::id::InstanceId;
use crate::model::service::ServiceName;

/// Network of a daemon that could not create one: it builds, and reports why it runs no services.
pub struct NoNetwork {
    pub reason: NetworkError,
}

#[async_trait]
impl InstanceNetwork for NoNetwork {
    async fn attach(
        &self,
        _: &InstanceId,
        _: &ServiceName,
        _: bool,
    ) -> Result<NetworkAttachment, NetworkError> {
        Err(self.reason.clone())
    }

    async fn detach(&self, _: &InstanceId) -> Result<(), NetworkError> {
        Err(self.reason.clone())
    }

    async fn set_names(&self, _: BTreeMap<ServiceName, Ipv4Addr>) -> Result<(), NetworkError> {
        Err(self.reason.clone())
    }

    async fn reconcile(&self, _: &BTreeSet<InstanceId>) -> Result<(), NetworkError> {
        Err(self.reason.clone())
    }

    fn max_addresses(&self) -> usize {
        // A deploy must not be refused for lack of addresses, but for the reason above.
        usize::MAX
    }

    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::UNSPECIFIED
    }
}
