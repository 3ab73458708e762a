//! Tests on the real kernel, as root: each has a network of its own, removes it, and verifies the removal.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::wiring::{ATTACH_STEPS, link_of};
use super::*;

mod churn;
mod healing;
mod isolation;
mod pair;
mod reach;

/// Time limit for a connection; a successful one takes well under a millisecond.
const LIMIT: Duration = Duration::from_secs(2);

struct TestNetwork {
    network: RoomNetwork,
    options: Options,
    /// Keeps the inode of the network's directory, from which its name derives, from the directory of another test as
    /// long as this one looks at what it left.
    _inode: File,
    _dir: tempfile::TempDir,
}

impl TestNetwork {
    async fn open() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Options)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut options = Options::new(dir.path().to_owned());
        change(&mut options);
        let network = RoomNetwork::open(options.clone()).await.unwrap();
        let inode = File::open(dir.path().join("network")).unwrap();
        Self { network, options, _inode: inode, _dir: dir }
    }

    /// Opens the network again, as a daemon that starts after another was killed.
    async fn reopen(&mut self) {
        self.network = RoomNetwork::open(self.options.clone()).await.unwrap();
    }

    async fn attach(&self, name: &str) -> (InstanceId, NetworkAttachment) {
        let id = InstanceId::random();
        let attached = self.network.attach(&id, &name.parse().unwrap(), false).await.unwrap();
        (id, attached)
    }

    async fn attach_isolated(&self, name: &str) -> (InstanceId, NetworkAttachment) {
        let id = InstanceId::random();
        let attached = self.network.attach(&id, &name.parse().unwrap(), true).await.unwrap();
        (id, attached)
    }

    async fn close(self) {
        let (name, group) = (self.network.name().to_owned(), self.group().await);
        self.network.clone().close().await.unwrap();
        assert!(!tables().contains(&name), "nft table {name} is left");
        assert_eq!(links_of(&name, group), Vec::<String>::new());
        assert_eq!(mounts_below(&self.options.state_dir), Vec::<String>::new());
        assert_eq!(fs::read_dir(&self.options.state_dir).unwrap().count(), 0);
    }

    async fn group(&self) -> LinkGroups {
        self.network.state.lock().await.wiring.group
    }

    /// Returns all traces of instances: links, routes, files, namespaces, leases.
    async fn remains(&self) -> Vec<String> {
        let mut state = self.network.state.lock().await;
        let wiring = &mut state.wiring;
        let mut found: Vec<String> = wiring.leases.iter().map(|(id, _)| format!("lease {id}")).collect();
        found.extend(names(&wiring.namespaces()).into_iter().map(|name| format!("netns {name}")));
        found.extend(names(&wiring.instances()).into_iter().map(|name| format!("files {name}")));
        found.extend(mounts_below(&wiring.dir));
        found.extend(links_of(&wiring.name, wiring.group).into_iter().filter(|name| *name != wiring.name));
        let routes = links::routes(&mut wiring.netlink).unwrap();
        let own = |net: &Ipv4Net| wiring.subnet.contains(net) && net.prefix_len() == 32;
        let own = routes.iter().filter(|route| own(&route.net) && route.net.addr() != self.network.gateway());
        let broadcast = wiring.subnet.broadcast();
        found.extend(
            own.filter(|route| route.net.addr() != broadcast).map(|route| format!("route {}", route.net)),
        );
        let file = fs::read_to_string(wiring.dir.join("leases.json")).unwrap();
        if !file.contains(r#""leases":{}"#) {
            found.push(file);
        }
        found
    }
}

/// Cleans up after a failed test.
impl Drop for TestNetwork {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let name = self.network.name();
            let seed = u32::from_str_radix(&name[LINK_PREFIX.len() + 1..], 16).unwrap();
            for link in links_of(name, LinkGroups::of(seed)) {
                let _ = NetlinkSocket::open()
                    .and_then(|mut netlink| netlink.run(vec![links::delete_link(&link)]));
            }
            for mount in mounts_below(&self.options.state_dir) {
                let _ = namespace::remove(Path::new(&mount));
            }
            let _ =
                Command::new("nft").args(["delete", "table", "inet", name]).stderr(Stdio::null()).status();
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn tables() -> String {
    String::from_utf8(Command::new("nft").args(["list", "tables"]).output().unwrap().stdout).unwrap()
}

/// Returns the gateway link and the pairs of a daemon.
fn links_of(name: &str, group: LinkGroups) -> Vec<String> {
    let all = links::links(&mut NetlinkSocket::open().unwrap()).unwrap().into_iter();
    let own = all.filter(|link| link.name.starts_with(name) || group.has(link.group));
    own.map(|link| link.name).collect()
}

fn mounts_below(dir: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    targets.filter(|target| Path::new(target).starts_with(dir)).map(str::to_owned).collect()
}

/// Listens inside the namespace; connections wait in the socket's queue.
fn listen(namespace: &Path, port: u16) -> TcpListener {
    namespace::within(namespace, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap().unwrap()
}

fn connect(to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&to.into(), LIMIT)
}

fn connect_inside(namespace: &Path, to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
    let to = to.into();
    namespace::within(namespace, || connect(to)).unwrap()
}

fn at(attached: &NetworkAttachment, port: u16) -> SocketAddr {
    (attached.address, port).into()
}
