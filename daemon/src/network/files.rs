//! Contents of `/etc/hosts`, `/etc/resolv.conf` and `/etc/hostname` of an instance.
//!
//! The files are bind-mounted into the instance, so each is rewritten in place: the instance would not see a new file
//! of the same name.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File, Permissions};
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::leases::AddressLease;
use crate::model::service::ServiceName;

/// systemd-resolved's list of the servers behind its stub on 127.0.0.53.
const BEHIND_THE_STUB: &str = "/run/systemd/resolve/resolv.conf";
const MAX_RESOLV_CONF: usize = 64 << 10;

/// Directory with the files of one instance.
pub(super) struct InstanceFiles(PathBuf);

impl InstanceFiles {
    pub(super) fn of(dir: PathBuf) -> Self {
        Self(dir)
    }

    pub(super) fn hosts(&self) -> PathBuf {
        self.0.join("hosts")
    }

    pub(super) fn resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }

    pub(super) fn hostname(&self) -> PathBuf {
        self.0.join("hostname")
    }

    pub(super) fn write(
        &self,
        lease: &AddressLease,
        names: &BTreeMap<ServiceName, Ipv4Addr>,
        resolv_conf: &str,
    ) -> io::Result<()> {
        fs::create_dir_all(&self.0)?;
        write_in_place(&self.resolv_conf(), resolv_conf)?;
        write_in_place(&self.hostname(), &format!("{}\n", lease.name))?;
        self.write_hosts(lease, names)
    }

    pub(super) fn write_hosts(
        &self,
        lease: &AddressLease,
        names: &BTreeMap<ServiceName, Ipv4Addr>,
    ) -> io::Result<()> {
        write_in_place(&self.hosts(), &hosts(lease, names))
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

/// Rewrites a file in place, unless it is already equal. A concurrent reader gets either the old or the new lines, at
/// worst with the rest of an old line at the end.
fn write_in_place(path: &Path, text: &str) -> io::Result<()> {
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(());
    }
    let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
    // Any user of the instance can read it, whatever the umask of this process.
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

/// Returns the hosts file. An instance resolves the name of its own service to itself, even while another instance
/// receives the traffic. An isolated instance resolves no other service.
fn hosts(lease: &AddressLease, names: &BTreeMap<ServiceName, Ipv4Addr>) -> String {
    let mut text = "127.0.0.1\tlocalhost\n".to_owned();
    if !lease.name.is_own_host_name() {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}\t{}", lease.address, lease.name);
    }
    let others = names.iter().filter(|(name, _)| **name != lease.name && !name.is_own_host_name());
    for (name, address) in others.filter(|_| !lease.isolated) {
        let _ = writeln!(text, "{address}\t{name}");
    }
    text
}

/// Resolvers of the room's instances.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct InstanceResolvers {
    pub(super) resolv_conf: String,
    pub(super) servers: Vec<Ipv4Addr>,
}

/// Returns the host's resolvers that instances can reach, or `fallback`.
pub(super) fn resolvers(resolv_conf: &Path, fallback: &[Ipv4Addr]) -> InstanceResolvers {
    reachable(&read(resolv_conf), &read(Path::new(BEHIND_THE_STUB)), fallback)
}

fn reachable(host: &str, behind_the_stub: &str, fallback: &[Ipv4Addr]) -> InstanceResolvers {
    for text in [host, behind_the_stub] {
        let found = usable(text);
        if !found.servers.is_empty() {
            return found;
        }
    }
    tracing::warn!(
        ?fallback,
        "found no resolver of the host that services can reach; using the fallback resolvers"
    );
    let lines: String = fallback.iter().map(|server| format!("nameserver {server}\n")).collect();
    usable(&format!("{host}\n{lines}"))
}

/// Reads a file; one that is missing or cannot be read is treated as empty.
fn read(path: &Path) -> String {
    match fs::read(path) {
        Ok(mut text) => {
            text.truncate(MAX_RESOLV_CONF);
            String::from_utf8_lossy(&text).into_owned()
        }
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(path = %path.display(), %error, "failed to read the host's resolvers");
            }
            String::new()
        }
    }
}

/// Returns the file without resolvers on loopback, which belongs to each instance itself, and on IPv6, which instances
/// lack.
fn usable(text: &str) -> InstanceResolvers {
    let mut found = InstanceResolvers { resolv_conf: String::new(), servers: Vec::new() };
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("nameserver"), Some(server)) => match server.parse() {
                Ok(IpAddr::V4(server)) if !server.is_loopback() && !server.is_unspecified() => {
                    found.servers.push(server);
                    found.resolv_conf += &format!("nameserver {server}\n");
                }
                _ => {}
            },
            (Some("search" | "domain" | "options" | "sortlist"), _) => {
                found.resolv_conf += line.trim();
                found.resolv_conf.push('\n');
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn lease() -> AddressLease {
        AddressLease { address: Ipv4Addr::new(10, 1, 2, 3), name: "web".parse().unwrap(), isolated: false }
    }

    #[test]
    fn hosts_files_are_rewritten_in_the_same_inode() {
        let dir = tempfile::tempdir().unwrap();
        let files = InstanceFiles::of(dir.path().join("a"));
        let mut names = BTreeMap::from([("db".parse().unwrap(), Ipv4Addr::new(10, 1, 2, 9))]);
        files.write(&lease(), &names, "nameserver 1.1.1.1\n").unwrap();
        let inode = fs::metadata(files.hosts()).unwrap().ino();
        let expected = "127.0.0.1\tlocalhost\n10.1.2.3\tweb\n10.1.2.9\tdb\n";
        assert_eq!(fs::read_to_string(files.hosts()).unwrap(), expected);
        assert_eq!(fs::metadata(files.hosts()).unwrap().mode() & 0o777, 0o644);
        assert_eq!(fs::read_to_string(files.hostname()).unwrap(), "web\n");

        // The name of its own service resolves to the instance itself, although another instance receives the traffic.
        names = BTreeMap::from([("web".parse().unwrap(), Ipv4Addr::new(10, 1, 2, 8))]);
        // No service may take the name of an instance's own host.
        names.insert("localhost".parse().unwrap(), Ipv4Addr::new(10, 1, 2, 7));
        files.write_hosts(&lease(), &names).unwrap();
        assert_eq!(fs::read_to_string(files.hosts()).unwrap(), "127.0.0.1\tlocalhost\n10.1.2.3\tweb\n");
        assert_eq!(fs::metadata(files.hosts()).unwrap().ino(), inode);

        let isolated = AddressLease { isolated: true, ..lease() };
        names.insert("db".parse().unwrap(), Ipv4Addr::new(10, 1, 2, 9));
        files.write_hosts(&isolated, &names).unwrap();
        assert_eq!(fs::read_to_string(files.hosts()).unwrap(), "127.0.0.1\tlocalhost\n10.1.2.3\tweb\n");
        files.remove().unwrap();
        files.remove().unwrap();
    }

    #[test]
    fn resolvers_on_loopback_and_ipv6_are_left_out_and_the_rest_kept() {
        let text = "# made by hand\nnameserver 127.0.0.1\nnameserver ::1\nnameserver fe80::1%eth0\n\
                    nameserver 10.0.0.2\n search  a.example b\noptions ndots:2\nnameserver\nsortlist 1.2.3.4\n";
        let found = usable(text);
        assert_eq!(found.servers, [Ipv4Addr::new(10, 0, 0, 2)]);
        let expected = "nameserver 10.0.0.2\nsearch  a.example b\noptions ndots:2\nsortlist 1.2.3.4\n";
        assert_eq!(found.resolv_conf, expected);
    }

    #[test]
    fn a_host_with_a_stub_gives_what_is_behind_it_and_one_with_nothing_the_fallback() {
        let (stub, fallback) = ("search x.example\nnameserver 127.0.0.53\n", [Ipv4Addr::new(9, 9, 9, 9)]);
        let behind = "search y.example\nnameserver 10.0.0.2\n";
        assert_eq!(reachable(behind, stub, &fallback).resolv_conf, behind);
        assert_eq!(reachable(stub, behind, &fallback).servers, [Ipv4Addr::new(10, 0, 0, 2)]);
        assert_eq!(reachable(stub, stub, &fallback).resolv_conf, "search x.example\nnameserver 9.9.9.9\n");
        assert_eq!(reachable("", "", &fallback).servers, fallback);
    }
}
