//! What is written on containerd's records, so that nothing needs to be remembered elsewhere.

use std::collections::HashMap;

use jiff::Timestamp;
use prost_types::Timestamp as WireTimestamp;

use crate::model::service::{Exit, InstanceLabel};

/// Of containers and snapshots: whose they are, as JSON.
pub(super) const INSTANCE: &str = "hearth/instance";
/// Of containers: number of the signal that asks the process to end.
pub(super) const STOP_SIGNAL: &str = "hearth/stop-signal";
/// Of containers: that a process was started, or was about to be.
pub(super) const STARTED: &str = "hearth/started";
/// Of containers: how the process ended, as JSON.
pub(super) const EXIT: &str = "hearth/exit";
/// Of leases: the image's manifest.
pub(super) const IMAGE: &str = "hearth/image";
/// Of snapshots: containerd's word for what its collection starts from.
pub(super) const ROOT: &str = "containerd.io/gc.root";

type Labels = HashMap<String, String>;

pub(super) fn instance(label: &InstanceLabel) -> Result<String, serde_json::Error> {
    serde_json::to_string(label)
}

pub(super) fn read_instance(labels: &Labels) -> Option<InstanceLabel> {
    labels.get(INSTANCE).and_then(|text| serde_json::from_str(text).ok())
}

pub(super) fn read_exit(labels: &Labels) -> Option<Exit> {
    labels.get(EXIT).and_then(|text| serde_json::from_str(text).ok())
}

/// Time of a record; the epoch where there is none.
pub(super) fn time(stamp: Option<&WireTimestamp>) -> Timestamp {
    stamp.and_then(|stamp| Timestamp::new(stamp.seconds, stamp.nanos).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

pub(super) fn update(path: &str) -> Option<prost_types::FieldMask> {
    Some(prost_types::FieldMask { paths: vec![path.to_owned()] })
}
