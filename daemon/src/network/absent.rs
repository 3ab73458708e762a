//! No network: what is asked of it fails and says why.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use async_trait::async_trait;

use crate::deploy::port::{Attached, Network, NetworkError};
use crate::model::id::InstanceId;
use crate::model::service::ServiceName;

/// For a daemon whose network cannot be made: it builds, and says why it runs no services.
pub struct NoNetwork {
    pub reason: NetworkError,
}

#[async_trait]
impl Network for NoNetwork {
    async fn attach(&self, _: &InstanceId, _: &ServiceName, _: bool) -> Result<Attached, NetworkError> {
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

    fn addresses(&self) -> usize {
        // What no instance has is not what a deploy is refused for.
        usize::MAX
    }

    fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::UNSPECIFIED
    }
}
