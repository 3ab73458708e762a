//! Labels on containerd's containers, snapshots and leases. All persistent state of instances is in these labels.

use std::collections::HashMap;

use jiff::Timestamp;
use prost_types::Timestamp as WireTimestamp;

use crate::model::service::{InstanceLabel, ProcessExit};

/// Label of containers and snapshots: the instance label, as JSON.
pub(super) const INSTANCE: &str = "hearth/instance";
/// Label of containers: number of the stop signal.
pub(super) const STOP_SIGNAL: &str = "hearth/stop-signal";
/// Label of containers: set while the process is being started, and kept.
pub(super) const STARTED: &str = "hearth/started";
/// Label of containers: the exit of the process, as JSON.
pub(super) const EXIT: &str = "hearth/exit";
/// Label of leases: digest of the image's manifest.
pub(super) const IMAGE: &str = "hearth/image";
/// Label of snapshots: marks a root of containerd's garbage collection.
pub(super) const ROOT: &str = "containerd.io/gc.root";

type LabelMap = HashMap<String, String>;

pub(super) fn instance(label: &InstanceLabel) -> Result<String, serde_json::Error> {
    serde_json::to_string(label)
}

pub(super) fn read_instance(labels: &LabelMap) -> Option<InstanceLabel> {
    labels.get(INSTANCE).and_then(|text| serde_json::from_str(text).ok())
}

pub(super) fn read_exit(labels: &LabelMap) -> Option<ProcessExit> {
    labels.get(EXIT).and_then(|text| serde_json::from_str(text).ok())
}

/// Converts the time of a containerd record. Returns the Unix epoch if the record has no valid time.
pub(super) fn time(stamp: Option<&WireTimestamp>) -> Timestamp {
    stamp.and_then(|stamp| Timestamp::new(stamp.seconds, stamp.nanos).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Returns an update mask that selects one field.
pub(super) fn field_mask(path: &str) -> Option<prost_types::FieldMask> {
    Some(prost_types::FieldMask { paths: vec![path.to_owned()] })
}
