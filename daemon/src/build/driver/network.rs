//! Faults of Dockerfiles that ask for a network that their build does not have.

use super::super::dockerfile::{self, NetworkAsked};
use crate::model::MountTarget;
use crate::model::build::{BuildSpec, Network};
use crate::model::fault::{DockerfileRange, Fault, Stage};

/// Why a Dockerfile cannot be built, where that is so.
pub(super) fn network_fault(dockerfile: &[u8], spec: &BuildSpec, path: &MountTarget) -> Option<Fault> {
    let offline = spec.network == Network::None;
    let refused = dockerfile::network_refused(dockerfile, &spec.build_args, spec.target.as_deref(), offline)?;
    let line = refused.start_line;
    let mut fault = match &refused.asked {
        NetworkAsked::Host => {
            let message = format!("line {line}: `RUN --network=host`: no step has the machine's network");
            Fault::new(Stage::Context, "host_network_refused", message)
                .hint("leave out `--network=host`; a step reaches the world without it")
        }
        NetworkAsked::Remote(url) => {
            // What follows may be a signature or a password.
            let shown = url.split(['?', '#']).next().unwrap_or_default();
            let message = format!("line {line}: `ADD {shown}`: the build has no network");
            Fault::new(Stage::Context, "network_none", message)
                .hint("put the file into the context, or build without `--network none`")
        }
    };
    fault.dockerfile = Some(DockerfileRange {
        path: path.clone(),
        start_line: refused.start_line,
        end_line: refused.end_line,
        text: refused.text,
    });
    Some(fault)
}
