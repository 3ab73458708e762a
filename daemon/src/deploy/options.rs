//! Settings of deploys, and the parts of the daemon that they depend on.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::port::{
    ContainerRuntime, InstanceLogs, InstanceMounter, InstanceNetwork, SecretReader, ServiceImages,
    ServiceStore, TokenMinter, TrafficRouter,
};
use crate::model::confinement::AddedCapability;
use crate::model::fault::{ErrorCode, Fault, FaultStage};
use crate::model::service::ServiceSpec;
use crate::model::share_owner::ShareOwnerResolver;

#[derive(Clone, Debug)]
pub struct Options {
    pub room: String,
    /// Address of this daemon for instances: `http://address:port`, with the address of [`InstanceNetwork::gateway`].
    pub address: String,
    /// Root directory of the logs: one directory per service with one subdirectory per instance. Created if missing.
    pub log_dir: PathBuf,
    /// Time between the stop signal of an instance and SIGKILL.
    pub stop_grace: Duration,
    /// Time limit for requests in flight before an instance is stopped.
    pub drain_limit: Duration,
    /// Time limit for [`ContainerRuntime::prepare`].
    pub prepare_limit: Duration,
    /// Time limit for every other call to the runtime, the network or the mounter.
    pub call_limit: Duration,
    /// Mapping from callers to the owners whose share a service counts against.
    pub owners: ShareOwnerResolver,
    /// Maximum number of services per owner.
    pub max_per_owner: usize,
    /// Memory limit in bytes for an instance whose deploy asks for none; `None` means no limit.
    pub default_memory: Option<u64>,
    /// Capabilities that a service may be given.
    pub allowed_capabilities: BTreeSet<AddedCapability>,
}

impl Options {
    pub fn new(room: String, address: String, log_dir: PathBuf) -> Self {
        Self {
            room,
            address,
            log_dir,
            stop_grace: Duration::from_secs(10),
            drain_limit: Duration::from_secs(30),
            prepare_limit: Duration::from_secs(1800),
            call_limit: Duration::from_secs(60),
            owners: ShareOwnerResolver::default(),
            max_per_owner: 64,
            default_memory: None,
            allowed_capabilities: BTreeSet::new(),
        }
    }

    pub(super) fn check_capabilities(&self, spec: &ServiceSpec) -> Result<(), CapabilityNotAllowed> {
        let asked = &spec.confinement.capabilities;
        match asked.difference(&self.allowed_capabilities).next() {
            Some(capability) => Err(CapabilityNotAllowed(*capability)),
            None => Ok(()),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the operator of this room allows no service the capability {0}")]
pub struct CapabilityNotAllowed(AddedCapability);

impl CapabilityNotAllowed {
    pub(super) const CODE: ErrorCode = ErrorCode::CapabilityNotAllowed;

    pub(super) fn hint(self) -> String {
        format!(
            "deploy it with --cap-add none, or allow the capability with allow_capabilities = [\"{}\"] in [services] of hearthd's configuration",
            self.0
        )
    }
}

impl From<CapabilityNotAllowed> for Fault {
    fn from(refused: CapabilityNotAllowed) -> Self {
        Self::new(FaultStage::Deploy, CapabilityNotAllowed::CODE, refused.to_string()).hint(refused.hint())
    }
}

/// The parts of the daemon that deploys depend on.
#[derive(Clone)]
pub struct DeployDependencies {
    pub runtime: Arc<dyn ContainerRuntime>,
    pub network: Arc<dyn InstanceNetwork>,
    pub router: Arc<dyn TrafficRouter>,
    pub mounts: Arc<dyn InstanceMounter>,
    pub store: Arc<dyn ServiceStore>,
    pub images: Arc<dyn ServiceImages>,
    pub logs: Arc<dyn InstanceLogs>,
    pub tokens: Arc<dyn TokenMinter>,
    pub secrets: Arc<dyn SecretReader>,
}
