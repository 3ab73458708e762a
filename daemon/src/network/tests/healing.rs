use super::*;

/// Environment variable of a child process that the test kills: the state directory of the room that it attaches to.
const KILLED: &str = "HEARTH_TEST_ATTACH_UNTIL_KILLED";

/// Executes only the first steps of an attach.
async fn attach_in_part(room: &TestNetwork, steps: usize) -> InstanceId {
    let id = InstanceId::random();
    let mut state = room.network.state.lock().await;
    let instance = state.wiring.lease(&id, &"web".parse().unwrap(), false).unwrap();
    state.wiring.run_steps(&instance, steps).unwrap();
    id
}

#[tokio::test]
async fn a_daemon_that_was_killed_after_any_step_of_an_attach_leaves_nothing() {
    let mut room = TestNetwork::open().await;
    for steps in 0..=ATTACH_STEPS.len() {
        attach_in_part(&room, steps).await;
        assert_ne!(room.remains().await, Vec::<String>::new());
        room.reopen().await;
        room.network.reconcile(&BTreeSet::new()).await.unwrap();
        assert_eq!(room.remains().await, Vec::<String>::new(), "after {steps} steps");
    }
    room.close().await;
}

#[tokio::test]
async fn an_attach_that_was_cut_short_is_finished_by_the_next() {
    let mut room = TestNetwork::open().await;
    for steps in 0..=ATTACH_STEPS.len() {
        let id = attach_in_part(&room, steps).await;
        room.reopen().await;
        let wanted = BTreeSet::from([id.clone()]);
        room.network.reconcile(&wanted).await.unwrap();
        let web = room.network.attach(&id, &"web".parse().unwrap(), false).await.unwrap();
        let _web = listen(&web.namespace, 80);
        connect(super::at(&web, 80)).unwrap();
    }
    room.close().await;
}

#[tokio::test]
async fn whatever_is_taken_from_an_instance_is_mended_around_its_namespace() {
    let mut room = TestNetwork::open().await;
    let (id, web) = room.attach("web").await;
    let _web = listen(&web.namespace, 80);
    let namespace = fs::metadata(&web.namespace).unwrap().ino();
    let name = room.network.name().to_owned();
    let link = link_of(&id);
    let harms: [(&str, Vec<String>); 8] = [
        ("link", vec![format!("ip link delete {link}")]),
        ("port", vec![format!("ip link set {link} master {name}")]),
        ("group", vec![format!("ip link set {link} group 0")]),
        ("route", vec![format!("ip route delete {} dev {link}", web.address)]),
        ("gateway", vec![format!("ip link delete {name}")]),
        ("gateway down", vec![format!("ip link set {name} down")]),
        ("neighbour", vec![format!("ip neighbour flush dev {link} nud permanent")]),
        ("table", vec![format!("nft delete table inet {name}")]),
    ];
    for (what, commands) in harms {
        for command in &commands {
            let words: Vec<&str> = command.split(' ').collect();
            assert!(Command::new(words[0]).args(&words[1..]).status().unwrap().success(), "{command}");
        }
        room.network.reconcile(&BTreeSet::from([id.clone()])).await.unwrap();
        connect(super::at(&web, 80)).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(tables().contains(&name), "{what}");
        let again = room.network.attach(&id, &"web".parse().unwrap(), false).await.unwrap();
        assert_eq!(again, web, "{what}");
    }
    // From inside the namespace, which a service can do only with more capabilities than it gets.
    namespace::within(&web.namespace, || {
        assert!(Command::new("ip").args(["link", "set", "eth0", "down"]).status().unwrap().success());
    })
    .unwrap();
    room.reopen().await;
    room.network.reconcile(&BTreeSet::from([id.clone()])).await.unwrap();
    connect(super::at(&web, 80)).unwrap();
    assert_eq!(fs::metadata(&web.namespace).unwrap().ino(), namespace, "the service runs in this one");
    room.close().await;
}

/// State that an earlier version left: pairs that are ports of one bridge.
#[tokio::test]
async fn an_instance_on_the_bridge_of_an_older_version_is_rewired_while_it_runs() {
    let mut room = TestNetwork::open().await;
    let ((id, web), (other, db)) = (room.attach("web").await, room.attach("db").await);
    let name = room.network.name().to_owned();
    let _web = listen(&web.namespace, 80);
    for id in [&id, &other] {
        let link = link_of(id);
        for words in [format!("link set {link} group 0 arp on"), format!("link set {link} master {name}")] {
            assert!(Command::new("ip").args(words.split(' ')).status().unwrap().success(), "{words}");
        }
    }
    room.reopen().await;
    // Once the new version runs, nothing shares the bridge.
    let shown = Command::new("ip").args(["-o", "link", "show", "master", &name]).output().unwrap();
    assert_eq!(String::from_utf8(shown.stdout).unwrap(), "");
    room.network.reconcile(&BTreeSet::from([id.clone(), other.clone()])).await.unwrap();
    connect(super::at(&web, 80)).unwrap();
    connect_inside(&db.namespace, super::at(&web, 80)).unwrap();
    room.close().await;
}

#[tokio::test]
async fn what_no_lease_names_is_taken_away_too() {
    let mut room = TestNetwork::open().await;
    room.attach("web").await;
    let leases = room.options.state_dir.join("network/leases.json");
    fs::remove_file(leases).unwrap();
    room.reopen().await;
    room.network.reconcile(&BTreeSet::new()).await.unwrap();
    // There are no leases, so only the subnet has been written.
    assert_eq!(room.remains().await, Vec::<String>::new());
    room.close().await;
}

#[tokio::test]
async fn after_a_reboot_subnet_and_addresses_are_the_same() {
    let mut room = TestNetwork::open().await;
    let (id, web) = room.attach("web").await;
    let gateway = room.network.gateway();
    // Simulates a reboot: links, mounts and rules are gone, files are not.
    let mut netlink = NetlinkSocket::open().unwrap();
    netlink.run(vec![links::delete_link(&link_of(&id)), links::delete_link(room.network.name())]).unwrap();
    rustix::mount::unmount(&web.namespace, rustix::mount::UnmountFlags::DETACH).unwrap();
    let table = ["delete", "table", "inet", room.network.name()];
    assert!(Command::new("nft").args(table).status().unwrap().success());

    room.reopen().await;
    assert_eq!(room.network.gateway(), gateway);
    let again = room.network.attach(&id, &"web".parse().unwrap(), false).await.unwrap();
    assert_eq!(again, web);
    let _web = listen(&again.namespace, 80);
    connect(super::at(&again, 80)).unwrap();
    room.close().await;
}

#[tokio::test]
async fn a_detach_can_be_repeated_and_one_of_an_unknown_instance_does_nothing() {
    let room = TestNetwork::open().await;
    let (id, _) = room.attach("web").await;
    room.network.detach(&id).await.unwrap();
    room.network.detach(&id).await.unwrap();
    room.network.detach(&InstanceId::random()).await.unwrap();
    assert_eq!(room.remains().await, Vec::<String>::new());
    room.close().await;
}

#[tokio::test]
async fn a_daemon_killed_at_any_moment_leaves_nothing_that_the_next_does_not_take_away() {
    let mut room = TestNetwork::open().await;
    for round in 0..12u64 {
        let mut daemon = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "network::tests::healing::attaches_and_detaches_until_killed"])
            .env(KILLED, &room.options.state_dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let begun = Instant::now();
        while fs::read_dir(room.options.state_dir.join("network/netns")).unwrap().count() == 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "it attaches nothing");
            assert!(daemon.try_wait().unwrap().is_none(), "it ended by itself");
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_micros(700 * round));
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        room.reopen().await;
        room.network.reconcile(&BTreeSet::new()).await.unwrap();
        assert_eq!(room.remains().await, Vec::<String>::new(), "round {round}");
    }
    room.close().await;
}

#[tokio::test]
#[ignore = "run by another test, which kills it"]
async fn attaches_and_detaches_until_killed() {
    let Some(state) = std::env::var_os(KILLED) else {
        return;
    };
    let network = RoomNetwork::open(Options::new(state.into())).await.unwrap();
    // The test kills the process; otherwise it ends after this time.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(60) {
        let id = InstanceId::random();
        network.attach(&id, &"web".parse().unwrap(), false).await.unwrap();
        network.detach(&id).await.unwrap();
    }
}
