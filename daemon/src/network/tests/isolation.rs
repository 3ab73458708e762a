//! Attempts of an instance, with every capability in its own namespace, that must fail.

use std::net::UdpSocket;

use rustix::net::{AddressFamily, Protocol, RawProtocol, SendFlags, SocketAddrV4, SocketType};

use super::reach::OutsideNetwork;
use super::*;

/// Counts the packets that arrive on one link, before and after the room's rules.
struct PacketCounters {
    table: String,
}

impl PacketCounters {
    fn on(link: &str, what: &str) -> Self {
        let table = format!("tst-{:08x}", rand::random::<u32>());
        let chain = |name: &str, priority: i32| {
            format!(
                "chain {name} {{ type filter hook prerouting priority {priority}; policy accept;\n\
                 iifname \"{link}\" {what} counter\n}}\n"
            )
        };
        // The room's rules have priority -300.
        let script = format!("table inet {table} {{\n{}{}}}\n", chain("before", -310), chain("behind", -290));
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), script).unwrap();
        assert!(Command::new("nft").arg("-f").arg(file.path()).status().unwrap().success());
        Self { table }
    }

    fn read(&self, chain: &str) -> u64 {
        let listed =
            Command::new("nft").args(["list", "chain", "inet", &self.table, chain]).output().unwrap();
        let text = String::from_utf8(listed.stdout).unwrap();
        let (_, rest) = text.split_once("counter packets ").unwrap();
        rest.split(' ').next().unwrap().parse().unwrap()
    }
}

impl Drop for PacketCounters {
    fn drop(&mut self) {
        let gone = Command::new("nft").args(["delete", "table", "inet", &self.table]).status();
        assert!(gone.unwrap().success());
    }
}

/// Sends a datagram with a forged source address.
fn send_as(namespace: &Path, source: Ipv4Addr, to: Ipv4Addr, port: u16) {
    let [high, low] = port.to_be_bytes();
    let mut packet = vec![0x45, 0, 0, 33, 0, 0, 0, 0, 64, 17, 0, 0];
    packet.extend(source.octets());
    packet.extend(to.octets());
    packet.extend([0x30, 0x39, high, low, 0, 13, 0, 0]);
    packet.extend(b"spoof");
    namespace::within(namespace, || {
        let raw = Protocol::from_raw(RawProtocol::new(255).unwrap());
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(raw)).unwrap();
        let to = SocketAddrV4::new(to, 0);
        rustix::net::sendto(&socket, &packet, SendFlags::empty(), &to).unwrap();
    })
    .unwrap();
}

fn receives(socket: &UdpSocket) -> Option<Ipv4Addr> {
    socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let (_, from) = socket.recv_from(&mut [0; 16]).ok()?;
    match from.ip() {
        std::net::IpAddr::V4(address) => Some(address),
        std::net::IpAddr::V6(_) => None,
    }
}

#[tokio::test]
async fn what_an_instance_sends_from_an_address_that_is_not_its_own_goes_nowhere() {
    let room = TestNetwork::open().await;
    let ((_, thief), (_, web), (_, db)) =
        (room.attach("thief").await, room.attach("web").await, room.attach("db").await);
    let open = || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap();
    let listens = namespace::within(&db.namespace, open).unwrap();
    send_as(&thief.namespace, thief.address, db.address, 53);
    assert_eq!(receives(&listens), Some(thief.address));
    let elsewhere = [Ipv4Addr::new(203, 0, 113, 9), Ipv4Addr::LOCALHOST];
    for source in [web.address, db.address, room.network.gateway()].into_iter().chain(elsewhere) {
        send_as(&thief.namespace, source, db.address, 53);
        assert_eq!(receives(&listens), None, "from {source}");
    }
    room.close().await;
}

#[tokio::test]
async fn spoofed_packets_and_ipv6_are_dropped_before_anything_else_looks_at_them() {
    let room = TestNetwork::open().await;
    let ((id, thief), (_, web)) = (room.attach("thief").await, room.attach("web").await);
    let spoofed = PacketCounters::on(&link_of(&id), "udp dport 53");
    send_as(&thief.namespace, thief.address, web.address, 53);
    assert_eq!((spoofed.read("before"), spoofed.read("behind")), (1, 1));
    for source in [web.address, room.network.gateway()] {
        send_as(&thief.namespace, source, web.address, 53);
    }
    assert_eq!((spoofed.read("before"), spoofed.read("behind")), (3, 1));

    // IPv6 is disabled on the host end; the rule matters if somebody enables it.
    let host_end = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", link_of(&id));
    assert_eq!(fs::read_to_string(&host_end).unwrap().trim(), "1");
    fs::write(&host_end, "0").unwrap();
    let ipv6 = PacketCounters::on(&link_of(&id), "meta nfproto ipv6");
    namespace::within(&thief.namespace, || {
        fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "0").unwrap();
        let add = ["-6", "address", "add", "fd00::2/64", "dev", "eth0", "nodad"];
        assert!(Command::new("ip").args(add).status().unwrap().success());
        let neighbour = ["neighbour", "add", "fd00::1", "lladdr", "02:68:00:00:00:01", "dev", "eth0"];
        assert!(Command::new("ip").args(neighbour).status().unwrap().success());
        let socket = UdpSocket::bind("[fd00::2]:0").unwrap();
        socket.send_to(b"x", "[fd00::1]:53").unwrap();
    })
    .unwrap();
    let begun = Instant::now();
    while ipv6.read("before") == 0 {
        assert!(begun.elapsed() < LIMIT, "nothing was sent over IPv6");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(ipv6.read("behind"), 0);
    drop((spoofed, ipv6));
    room.close().await;
}

#[tokio::test]
async fn an_isolated_instance_reaches_no_other_and_none_reaches_it_but_the_host_does() {
    let world = OutsideNetwork::make();
    let room = TestNetwork::open().await;
    let (_, web) = room.attach("web").await;
    let ((_, alone), (_, other)) = (room.attach_isolated("alone").await, room.attach_isolated("other").await);
    let [_web, _alone, _other] = [&web, &alone, &other].map(|instance| listen(&instance.namespace, 80));
    for (from, to) in [(&web, &alone), (&alone, &web), (&alone, &other), (&other, &alone)] {
        connect_inside(&from.namespace, at(to, 80)).unwrap_err();
    }
    for instance in [&web, &alone, &other] {
        connect(at(instance, 80)).unwrap();
    }
    let api = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = api.local_addr().unwrap().port();
    room.network.allow_port(port).await.unwrap();
    let _outside = listen(&world.namespace, 443);
    for instance in [&web, &alone] {
        connect_inside(&instance.namespace, (room.network.gateway(), port)).unwrap();
        connect_inside(&instance.namespace, (world.machine(), 443)).unwrap();
    }
    room.close().await;
}

#[tokio::test]
async fn what_is_link_local_is_reached_by_the_host_only() {
    let net = Ipv4Net::new((0xa9fe_4000 | (rand::random::<u32>() & 0x0ff0)).into(), 28).unwrap();
    let metadata = OutsideNetwork::of(net);
    let room = TestNetwork::open().await;
    let (_, web) = room.attach("web").await;
    let _listens = listen(&metadata.namespace, 80);
    let _names = listen(&metadata.namespace, 53);
    connect((metadata.machine(), 80)).unwrap();
    connect_inside(&web.namespace, (metadata.machine(), 80)).unwrap_err();
    connect_inside(&web.namespace, (metadata.machine(), 53)).unwrap_err();
    room.close().await;

    // A cloud's resolver may have the same address as its metadata service: only DNS queries pass.
    let resolv_conf = tempfile::NamedTempFile::new().unwrap();
    fs::write(resolv_conf.path(), format!("nameserver {}\n", metadata.machine())).unwrap();
    let room = TestNetwork::with(|options| options.resolv_conf = resolv_conf.path().to_owned()).await;
    let (_, web) = room.attach("web").await;
    connect_inside(&web.namespace, (metadata.machine(), 53)).unwrap();
    connect_inside(&web.namespace, (metadata.machine(), 80)).unwrap_err();
    room.close().await;
}
