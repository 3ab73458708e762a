//! Converts the ports of a manifest, and the settings that it states for each port: health check and
//! public access.

use hearth_proto::v1::{PortKind, ServicePort, ServiceSpec};

use super::super::{ManifestPort, PortType};
use super::{FieldError, field_error};
use crate::cli::deploy::network;

pub(super) struct TrafficSettings {
    pub ports: Vec<ServicePort>,
    pub liveness: Option<String>,
    pub public: bool,
}

/// Returns the port that the health check uses: the first published port of kind http or h2c, otherwise the
/// first such port.
fn probed_port(ports: &[ManifestPort]) -> Option<u32> {
    let mut http = ports.iter().filter(|port| port.kind != PortType::Tcp);
    let published = http.clone().find(|port| port.published != Some(false));
    published.or_else(|| http.next()).map(|port| port.num)
}

pub(super) fn traffic(ports: Vec<ManifestPort>) -> Result<TrafficSettings, FieldError> {
    let probed = probed_port(&ports);
    let mut liveness = None;
    let mut public: Option<bool> = None;
    let mut wire = Vec::new();
    for port in ports {
        let field = format!("ports: {}", port.num);
        let kind = match port.kind {
            PortType::Http => "http",
            PortType::Tcp => "tcp",
            PortType::H2c => "h2c",
        };
        let parsed =
            network::port(&format!("{}/{kind}", port.num)).map_err(|why| field_error("ports", &why))?;
        if let Some(path) = port.liveness {
            if probed != Some(port.num) {
                let why = "the health check uses the first published http port: set liveness there";
                return Err(field_error(field, &why));
            }
            liveness = Some(network::liveness(&path).map_err(|why| field_error(&field, &why))?);
        }
        if port.published != Some(false) {
            let given = port.public.unwrap_or(false);
            if *public.get_or_insert(given) != given {
                return Err(field_error(field, "`public` is the same for all published ports of a service"));
            }
        }
        wire.push(ServicePort { published: port.published, ..parsed });
    }
    network::check_ports(&wire).map_err(|why| field_error("ports", &why))?;
    Ok(TrafficSettings { ports: wire, liveness, public: public.unwrap_or(false) })
}

pub(super) fn ports(spec: &ServiceSpec) -> Vec<ManifestPort> {
    let port = |port: &ServicePort| {
        let published = port.published.unwrap_or(true);
        ManifestPort {
            num: port.number,
            kind: match port.kind() {
                PortKind::Unspecified | PortKind::Http => PortType::Http,
                PortKind::Tcp => PortType::Tcp,
                PortKind::H2c => PortType::H2c,
            },
            liveness: None,
            published: Some(published),
            public: published.then_some(spec.public),
        }
    };
    let mut ports: Vec<ManifestPort> = spec.ports.iter().map(port).collect();
    let path = spec.health.as_ref().map(|health| &health.path).filter(|path| !path.is_empty());
    let probed = probed_port(&ports);
    if let Some(port) = ports.iter_mut().find(|port| Some(port.num) == probed) {
        port.liveness = path.cloned();
    }
    ports
}
