//! Faults of Dockerfiles that ask for network access that their build does not have.

use super::super::dockerfile::{Dockerfile, NetworkRequest};
use crate::model::MountTarget;
use crate::model::build::{BuildNetwork, BuildSpec};
use crate::model::fault::{ErrorCode, Fault, FaultStage};

/// Returns the fault of a Dockerfile that asks for more network than the build allows.
pub(super) fn network_fault(dockerfile: &Dockerfile, spec: &BuildSpec, path: &MountTarget) -> Option<Fault> {
    let offline = spec.network == BuildNetwork::None;
    let refused = dockerfile.find_refused_network(&spec.build_args, spec.target.as_deref(), offline)?;
    let line = refused.excerpt.start_line;
    let mut fault = match &refused.request {
        NetworkRequest::Host => {
            let message = format!("line {line}: `RUN --network=host`: no step has the machine's network");
            Fault::new(FaultStage::Context, ErrorCode::HostNetworkRefused, message)
        }
        NetworkRequest::Remote(url) => {
            // The query may contain a signature or a password.
            let shown_url = url.split(['?', '#']).next().unwrap_or_default();
            let message = format!("line {line}: `ADD {shown_url}`: the build has no network");
            Fault::new(FaultStage::Context, ErrorCode::NetworkNone, message)
        }
    };
    fault.dockerfile = Some(refused.excerpt.range(path));
    Some(fault)
}
