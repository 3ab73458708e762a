//! Address leases of instances: one state file, written before an address is used and after it is released, so that no
//! instance network exists without a lease.
//!
//! Replaced by rename, without fsync: a killed process loses nothing, and a power failure removes every namespace that
//! a lost lease could have named.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use super::subnet;
use crate::deploy::port::NetworkError;
use crate::disk::is_disk_full;
use crate::model::id::InstanceId;
use crate::model::service::ServiceName;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct AddressLease {
    pub(super) address: Ipv4Addr,
    pub(super) name: ServiceName,
    /// True if the instance and other services cannot reach each other.
    #[serde(default)]
    pub(super) isolated: bool,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeasesRecord {
    /// Subnet of the leases; `None` before the first one is chosen.
    subnet: Option<String>,
    /// Address that was leased last.
    last: Option<Ipv4Addr>,
    leases: BTreeMap<InstanceId, AddressLease>,
}

pub(super) struct AddressLeases {
    path: PathBuf,
    record: LeasesRecord,
}

impl AddressLeases {
    /// Reads the leases. A damaged file is treated as empty: every instance then gets a new network.
    pub(super) fn read(path: PathBuf) -> io::Result<Self> {
        let record = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "failed to parse the address leases; starting empty");
                LeasesRecord::default()
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => LeasesRecord::default(),
            Err(error) => return Err(error),
        };
        Ok(Self { path, record })
    }

    /// Returns the subnet of the leases.
    pub(super) fn subnet(&self) -> Option<Ipv4Net> {
        self.record.subnet.as_ref()?.parse().ok()
    }

    /// Sets the subnet; all leases of a different subnet end.
    pub(super) fn set_subnet(&mut self, subnet: Ipv4Net) -> io::Result<()> {
        if self.subnet() == Some(subnet) {
            return Ok(());
        }
        self.record = LeasesRecord { subnet: Some(subnet.to_string()), ..LeasesRecord::default() };
        self.write()
    }

    /// Returns the instance's lease, creating it if there is none.
    pub(super) fn lease(
        &mut self,
        instance: &InstanceId,
        name: &ServiceName,
        isolated: bool,
        subnet: Ipv4Net,
    ) -> Result<AddressLease, NetworkError> {
        if let Some(lease) = self.record.leases.get(instance) {
            return Ok(lease.clone());
        }
        let taken: BTreeSet<_> = self.record.leases.values().map(|lease| lease.address).collect();
        let address = subnet::next_free(subnet, self.record.last, |address| taken.contains(&address))
            .ok_or_else(|| NetworkError::Exhausted { subnet: subnet.to_string() })?;
        let lease = AddressLease { address, name: name.clone(), isolated };
        self.record.leases.insert(instance.clone(), lease.clone());
        self.record.last = Some(address);
        if let Err(error) = self.write() {
            self.record.leases.remove(instance);
            let message = format!("{}: {error}", self.path.display());
            return Err(if is_disk_full(&error) {
                NetworkError::DiskFull(message)
            } else {
                NetworkError::Other(message)
            });
        }
        Ok(lease)
    }

    pub(super) fn release(&mut self, instance: &InstanceId) -> io::Result<()> {
        if self.record.leases.remove(instance).is_none() { Ok(()) } else { self.write() }
    }

    pub(super) fn get(&self, instance: &InstanceId) -> Option<&AddressLease> {
        self.record.leases.get(instance)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&InstanceId, &AddressLease)> {
        self.record.leases.iter()
    }

    /// Writes the file. There is only one writer, so the draft can have a fixed name.
    fn write(&self) -> io::Result<()> {
        let draft = self.path.with_extension("json.new");
        fs::write(&draft, serde_json::to_vec(&self.record)?)?;
        fs::rename(&draft, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_kept_over_a_restart_and_ends_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases.json");
        let subnet: Ipv4Net = "10.9.8.0/30".parse().unwrap();
        let (one, two) = (InstanceId::random(), InstanceId::random());
        let name: ServiceName = "web".parse().unwrap();
        let mut leases = AddressLeases::read(path.clone()).unwrap();
        leases.set_subnet(subnet).unwrap();
        let lease = leases.lease(&one, &name, false, subnet).unwrap();

        let mut leases = AddressLeases::read(path.clone()).unwrap();
        assert_eq!(leases.subnet(), Some(subnet));
        assert_eq!(leases.lease(&one, &name, false, subnet).unwrap(), lease);
        let error = leases.lease(&two, &name, false, subnet).unwrap_err();
        assert!(matches!(error, NetworkError::Exhausted { subnet } if subnet == "10.9.8.0/30"));
        leases.release(&one).unwrap();
        leases.release(&one).unwrap();
        assert_eq!(leases.lease(&two, &name, false, subnet).unwrap().address, lease.address);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_damaged_file_and_another_subnet_start_from_scratch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("leases.json");
        fs::write(&path, "{\"subnet\":\"10.1").unwrap();
        let mut leases = AddressLeases::read(path).unwrap();
        assert_eq!(leases.subnet(), None);
        let subnet: Ipv4Net = "10.9.8.0/24".parse().unwrap();
        leases.set_subnet(subnet).unwrap();
        let instance = InstanceId::random();
        leases.lease(&instance, &"web".parse().unwrap(), false, subnet).unwrap();
        leases.set_subnet("10.9.9.0/24".parse().unwrap()).unwrap();
        assert!(leases.get(&instance).is_none());
    }
}
