use super::super::routed_pair::RoutedPair;
use super::*;

/// Network that does not belong to the daemon, with one machine in it, behind the host.
pub(super) struct OutsideNetwork {
    holder: String,
    pub(super) namespace: PathBuf,
    net: Ipv4Net,
    _dir: tempfile::TempDir,
}

impl OutsideNetwork {
    const MACHINE: u32 = 2;

    pub(super) fn make() -> Self {
        // A random part of the range for network benchmarks; each test has another one.
        Self::of(Ipv4Net::new((0xc612_0000 | (rand::random::<u32>() & 0x1_fff0)).into(), 28).unwrap())
    }

    pub(super) fn of(net: Ipv4Net) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let namespace = dir.path().join("world");
        let mut netlink = NetlinkSocket::open().unwrap();
        let holder = format!("wld-{:08x}", rand::random::<u32>());
        // Created first, so that its drop cleans up even if a later step fails.
        let world = Self { holder, namespace, net, _dir: dir };
        links::ensure_gateway_link(&mut netlink, &world.holder, net).unwrap();
        let mut inside = namespace::create(&world.namespace).unwrap();
        let file = File::open(&world.namespace).unwrap();
        let (address, gateway) = (world.machine(), subnet::gateway(net));
        let (outside, inner) = (format!("{}x", world.holder), "eth0".to_owned());
        let pair = RoutedPair { outside, inside: inner, address, gateway, source: gateway, group: 0 };
        pair.create(&mut netlink, file.as_fd(), &mut inside).unwrap();
        world
    }

    pub(super) fn machine(&self) -> Ipv4Addr {
        (u32::from(self.net.network()) + Self::MACHINE).into()
    }

    fn links(&self) -> Vec<String> {
        let all = links::links(&mut NetlinkSocket::open().unwrap()).unwrap().into_iter();
        all.map(|link| link.name).filter(|name| name.starts_with(&self.holder)).collect()
    }
}

impl Drop for OutsideNetwork {
    fn drop(&mut self) {
        let gone = NetlinkSocket::open().and_then(|mut netlink| {
            netlink
                .run(vec![links::delete_link(&format!("{}x", self.holder)), links::delete_link(&self.holder)])
        });
        gone.and_then(|()| namespace::remove(&self.namespace)).unwrap();
    }
}

#[tokio::test]
async fn instances_reach_each_other_and_one_port_of_the_gateway_and_nothing_else_of_the_host() {
    let room = TestNetwork::open().await;
    let ((_, web), (_, db)) = (room.attach("web").await, room.attach("db").await);
    let _web = listen(&web.namespace, 80);
    let _db = listen(&db.namespace, 5432);
    connect(at(&web, 80)).unwrap();
    connect_inside(&web.namespace, at(&db, 5432)).unwrap();
    connect_inside(&db.namespace, at(&web, 80)).unwrap();

    let gateway = room.network.gateway();
    let [ours, other] = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap());
    let port = |listener: &TcpListener| listener.local_addr().unwrap().port();
    connect_inside(&web.namespace, (gateway, port(&ours))).unwrap_err();
    room.network.allow_port(port(&ours)).await.unwrap();
    connect_inside(&web.namespace, (gateway, port(&ours))).unwrap();
    connect((gateway, port(&other))).unwrap();
    connect_inside(&web.namespace, (gateway, port(&other))).unwrap_err();

    // Other addresses of the host are unreachable too: the port is allowed on the gateway only.
    let addresses = links::addresses(&mut NetlinkSocket::open().unwrap()).unwrap();
    let elsewhere =
        addresses.iter().find(|one| !one.address.is_loopback() && one.address != gateway).unwrap();
    connect((elsewhere.address, port(&ours))).unwrap();
    for listener in [&ours, &other] {
        connect_inside(&web.namespace, (elsewhere.address, port(listener))).unwrap_err();
    }
    room.close().await;
}

#[tokio::test]
async fn instances_reach_the_world_as_the_host_and_the_world_does_not_reach_them() {
    let world = OutsideNetwork::make();
    let room = TestNetwork::open().await;
    let (_, web) = room.attach("web").await;
    let outside = listen(&world.namespace, 443);
    connect_inside(&web.namespace, (world.machine(), 443)).unwrap();
    let addresses = links::addresses(&mut NetlinkSocket::open().unwrap()).unwrap();
    let seen = outside.accept().unwrap().1.ip();
    assert!(addresses.iter().any(|one| one.address == seen), "{seen} is not the host's");

    let _web = listen(&web.namespace, 80);
    connect(at(&web, 80)).unwrap();
    connect_inside(&world.namespace, at(&web, 80)).unwrap_err();

    let before = world.links();
    room.network.reconcile(&BTreeSet::new()).await.unwrap();
    room.close().await;
    assert_eq!(world.links(), before);
    connect((world.machine(), 443)).unwrap();
}

#[tokio::test]
async fn two_daemons_of_one_host_do_not_see_each_other() {
    let (red, blue) = (TestNetwork::open().await, TestNetwork::open().await);
    assert_ne!(red.network.gateway(), blue.network.gateway());
    let ((_, one), (_, two)) = (red.attach("web").await, blue.attach("web").await);
    let _one = listen(&one.namespace, 80);
    let _two = listen(&two.namespace, 80);
    connect(at(&one, 80)).unwrap();
    connect(at(&two, 80)).unwrap();
    connect_inside(&one.namespace, at(&two, 80)).unwrap_err();
    connect_inside(&two.namespace, at(&one, 80)).unwrap_err();
    let api = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    let port = api.local_addr().unwrap().port();
    blue.network.allow_port(port).await.unwrap();
    connect_inside(&two.namespace, (blue.network.gateway(), port)).unwrap();
    connect_inside(&one.namespace, (blue.network.gateway(), port)).unwrap_err();

    // Removal of one network does not affect the other.
    red.network.reconcile(&BTreeSet::new()).await.unwrap();
    red.close().await;
    connect(at(&two, 80)).unwrap();
    blue.close().await;
}

#[tokio::test]
async fn an_instance_has_no_ipv6_and_may_listen_on_port_80_as_any_user() {
    let room = TestNetwork::open().await;
    let (_, web) = room.attach("web").await;
    let (ipv6, port) = namespace::within(&web.namespace, || {
        let first_port = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
        (fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap_or_default(), first_port)
    })
    .unwrap();
    assert_eq!((ipv6.as_str(), port.trim()), ("", "0"));
    for link in links_of(room.network.name(), room.group().await) {
        let off = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"));
        assert!(off.map_or(true, |off| off.trim() == "1"), "{link}");
    }
    room.close().await;
}

#[tokio::test]
async fn an_address_that_is_used_again_at_once_answers_at_once() {
    let room = TestNetwork::with(|options| options.subnet = Some(subnet_of_one_instance())).await;
    let mut times = Vec::new();
    for _ in 0..10 {
        let (id, web) = room.attach("web").await;
        let _web = listen(&web.namespace, 80);
        let begun = Instant::now();
        connect(at(&web, 80)).unwrap();
        times.push(begun.elapsed());
        let other =
            room.network.attach(&InstanceId::random(), &"db".parse().unwrap(), false).await.unwrap_err();
        assert!(matches!(other, NetworkError::Exhausted { .. }), "{other}");
        room.network.detach(&id).await.unwrap();
    }
    times.sort();
    // An ARP lookup would take at least 0.85 s; a busy machine may delay some connections, but not half of them.
    assert!(times[5] < Duration::from_millis(600), "{times:?}: somebody asked for the address");
    println!("connection to an address that is used again: {:?}, at most {:?}", times[5], times[9]);
    room.close().await;
}

fn subnet_of_one_instance() -> Ipv4Net {
    Ipv4Net::new((0xc612_0000 | (rand::random::<u32>() & 0x1_fffc)).into(), 30).unwrap()
}

#[tokio::test]
async fn two_hundred_instances_at_once_have_an_address_each() {
    let room = TestNetwork::open().await;
    let begun = Instant::now();
    let attaching = (0..200).map(|_| room.attach("web"));
    let attached = futures::future::join_all(attaching).await;
    let (attach, begun) = (begun.elapsed() / 200, Instant::now());
    let addresses: BTreeSet<_> = attached.iter().map(|(_, attached)| attached.address).collect();
    assert_eq!(addresses.len(), 200);
    for (_, instance) in &attached {
        let _listens = listen(&instance.namespace, 80);
        connect(at(instance, 80)).unwrap();
    }
    let (reach, begun) = (begun.elapsed() / 200, Instant::now());
    let detached = futures::future::join_all(attached.iter().map(|(id, _)| room.network.detach(id))).await;
    detached.into_iter().collect::<Result<Vec<_>, _>>().unwrap();
    println!("each: attach {attach:?}, connect {reach:?}, detach {:?}", begun.elapsed() / 200);
    assert_eq!(room.remains().await, Vec::<String>::new());
    room.close().await;
}

#[tokio::test]
async fn names_of_services_are_in_all_hosts_files_and_the_files_stay_the_same() {
    let room = TestNetwork::open().await;
    let ((_, web), (_, db)) = (room.attach("web").await, room.attach("db").await);
    let inode = fs::metadata(&web.hosts).unwrap().ino();
    let names =
        BTreeMap::from([("web", &web), ("db", &db)].map(|(name, to)| (name.parse().unwrap(), to.address)));
    room.network.set_names(names).await.unwrap();
    let hosts = fs::read_to_string(&web.hosts).unwrap();
    assert!(hosts.contains(&format!("{}\tdb\n", db.address)), "{hosts}");
    assert_eq!(fs::metadata(&web.hosts).unwrap().ino(), inode);
    // Later instances get the names too.
    let (_, late) = room.attach("late").await;
    assert!(fs::read_to_string(&late.hosts).unwrap().contains(&format!("{}\tweb\n", web.address)));
    assert_eq!(fs::read_to_string(&late.hostname_file).unwrap(), "late\n");
    assert!(fs::read_to_string(&late.resolv_conf).unwrap().contains("nameserver "));
    room.network.set_names(BTreeMap::new()).await.unwrap();
    assert_eq!(fs::read_to_string(&web.hosts).unwrap().lines().count(), 2);
    room.close().await;
}

#[tokio::test]
async fn a_subnet_that_the_host_reaches_otherwise_is_refused_and_never_chosen() {
    let world = OutsideNetwork::make();
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options::new(dir.path().to_owned());
    options.subnet = Some(world.net);
    let error = RoomNetwork::open(options.clone()).await.err().unwrap().to_string();
    assert!(error.contains("overlaps"), "{error}");
    options.subnet = Some("198.19.255.255/32".parse().unwrap());
    let error = RoomNetwork::open(options.clone()).await.err().unwrap().to_string();
    assert!(error.contains("/30"), "{error}");
    options.nft = "/no/such/nft".into();
    let error = RoomNetwork::open(options).await.err().unwrap().to_string();
    assert!(error.contains("install nftables"), "{error}");
}
