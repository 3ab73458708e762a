//! Checks which network an external BuildKit gives to steps, as far as its workers report it.

use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::ListWorkersRequest;
use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use hearth_proto::status::root_cause_message;
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::supervise::port::ProbeError;

const LIMIT: Duration = Duration::from_secs(5);
/// Worker label with the effective `networkMode`: `cni`, `bridge` or `host`.
const LABEL: &str = "org.mobyproject.buildkit.worker.network";
const HOST: &str = "host";

/// Refuses a BuildKit with a worker that gives steps the network of its machine.
pub(super) async fn check(mut control: ControlClient<Channel>) -> Result<(), ProbeError> {
    let asked = timeout(LIMIT, control.list_workers(ListWorkersRequest::default())).await;
    let workers = match asked {
        Ok(Ok(answer)) => answer.into_inner().record,
        Ok(Err(status)) => return Err(ProbeError::NoAnswer(root_cause_message(&status))),
        Err(_) => return Err(ProbeError::NoAnswer("no answer in time".to_owned())),
    };
    refuse_host_network(workers.iter().map(|worker| worker.labels.get(LABEL).map(String::as_str)))
}

/// Accepts a worker without the label, since its network cannot be determined.
fn refuse_host_network<'a>(modes: impl Iterator<Item = Option<&'a str>>) -> Result<(), ProbeError> {
    if modes.into_iter().flatten().any(|mode| mode == HOST) {
        return Err(ProbeError::Refused(format!(
            "this BuildKit gives steps the network of its machine ({LABEL}={HOST}), where they reach everything that \
             listens there; set `networkMode` of its worker to `cni` or `bridge`, or set `builder.allow_host_network` \
             here if that is meant"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_on_the_network_of_its_machine_is_refused() {
        assert_eq!(refuse_host_network([Some("cni"), None, Some("bridge")].into_iter()), Ok(()));
        let refused = refuse_host_network([Some("cni"), Some("host")].into_iter()).unwrap_err();
        assert!(matches!(&refused, ProbeError::Refused(reason) if reason.contains("allow_host_network")));
    }
}
