//! Services of one room, each of which may be hostile: none gets what belongs to another, or leaves anything that harms
//! the host.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::daemon::{Daemon, Options};
use integration_tests::process::{self, Output};
use integration_tests::runner::Group;
use integration_tests::service::{App, page};
use integration_tests::shared_cases;
use integration_tests::wait::seconds;

pub fn group() -> Group {
    let cases = shared_cases![
        a_neighbour_with_raw_sockets_gets_none_of_the_requests,
        raw_sockets_and_device_nodes_are_for_those_that_the_operator_allows,
        an_isolated_service_reaches_no_other_and_none_reaches_it,
        set_id_bits_and_devices_in_storage_mean_nothing_on_the_host,
        the_runtime_keeps_no_secret_and_no_token_of_a_service_that_runs,
    ];
    let config = "[services]\nallow_capabilities = ['NET_RAW']\n";
    Group::new("walls_services", cases).options(Options::room("walls-services").config(config)).in_sequence()
}

/// Claims by ARP, in every possible way, that the victim's address is the thief's, and sends packets as if from the
/// victim, so that anything that learns hardware addresses learns a wrong one. Prints how many packets for the victim
/// arrived.
const THIEF: &str = r#"
import socket, struct, sys, time
victim, gateway, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
link.bind(("eth0", 0))
mine = link.getsockname()[4]
ip = socket.inet_aton
def hardware(address):
    return bytes([2, 0x68]) + ip(address)
def arp(op, to, source, sender, target_hw, target):
    return to + source + b"\x08\x06" + struct.pack("!HHBBH", 1, 0x800, 6, 4, op) + source + ip(sender) + target_hw + ip(target)
everybody = b"\xff" * 6
stolen, end = 0, time.time() + seconds
print("ready", flush=True)
link.settimeout(0.02)
while time.time() < end:
    for source in (mine, hardware(victim)):
        link.send(arp(2, everybody, source, victim, everybody, victim))
        link.send(arp(1, everybody, source, victim, b"\0" * 6, victim))
        link.send(arp(2, hardware(gateway), source, victim, hardware(gateway), gateway))
    stop = time.time() + 0.05
    while time.time() < stop:
        try:
            frame = link.recv(2048)
        except socket.timeout:
            break
        # Of IPv4, for the victim, and not what this process sent itself.
        if frame[12:14] == b"\x08\x00" and frame[30:34] == ip(victim):
            stolen += 1
print("stolen", stolen, flush=True)
"#;

#[track_caller]
fn deploy(daemon: &Daemon, name: &str, more: &[&str]) {
    App::page(&format!("{name}\n")).pack(daemon, &format!("{name}:1"));
    daemon.hearth_ok(&[&["deploy", "--tag", &format!("{name}:1")], more].concat());
}

/// Runs a command inside of a service; returns the output whether or not the command succeeds.
fn inside(daemon: &Daemon, service: &str, command: &str) -> Output {
    daemon.hearth(&["services", "exec", service, "--", "sh", "-c", command])
}

/// Returns address and network namespace of the instance that has a service's traffic, or else of the first one.
#[track_caller]
fn instance(daemon: &Daemon, service: &str) -> (String, PathBuf) {
    let show = daemon.hearth_ok(&["services", "show", service, "--json"]).json();
    let instances = show["instances"].as_array().expect("instances");
    let routed = instances.iter().find(|instance| instance["routed"] == true);
    let instance = routed.unwrap_or(&instances[0]);
    let text = |name: &str| instance[name].as_str().unwrap_or_default().to_owned();
    (text("address"), daemon.state().join("network/netns").join(text("instance")))
}

fn effective_capabilities(daemon: &Daemon, service: &str) -> u64 {
    let status = inside(daemon, service, "grep CapEff /proc/1/status");
    u64::from_str_radix(status.stdout.split_whitespace().nth(1).unwrap_or_default(), 16)
        .expect("capabilities")
}

const NET_RAW: u64 = 1 << 13;
const MKNOD: u64 = 1 << 27;

/// On a bridge that learns addresses, six of six requests reached the thief.
fn a_neighbour_with_raw_sockets_gets_none_of_the_requests(daemon: &Daemon) {
    deploy(daemon, "victim", &["--domain", "victim.test", "--public"]);
    deploy(daemon, "client", &[]);
    deploy(daemon, "thief", &["--cap-add", "NET_RAW"]);
    assert_ne!(
        effective_capabilities(daemon, "thief") & NET_RAW,
        0,
        "the thief has the capabilities for the attack"
    );
    let (victim, _) = instance(daemon, "victim");
    let (_, namespace) = instance(daemon, "thief");
    let routes = inside(daemon, "thief", "ip route").stdout;
    let gateway = routes.split_whitespace().skip_while(|word| *word != "via").nth(1).expect("a gateway");
    let mut thief = Command::new("nsenter");
    thief.arg(format!("--net={}", namespace.display())).args(["python3", "-c", THIEF, &victim, gateway, "6"]);
    let thief = process::start(&mut thief);
    std::thread::sleep(seconds(1));
    for _ in 0..6 {
        assert_eq!(page(daemon, "victim.test"), "victim\n");
        assert_eq!(inside(daemon, "client", "wget -q -O - http://victim:8000/").stdout, "victim\n");
    }
    let told = thief.finish(seconds(20)).expect("the thief ends");
    assert!(told.stdout.contains("ready") && told.stdout.contains("stolen 0\n"), "{told}");
    assert_eq!(page(daemon, "victim.test"), "victim\n");
}

fn raw_sockets_and_device_nodes_are_for_those_that_the_operator_allows(daemon: &Daemon) {
    deploy(daemon, "plain", &[]);
    let has = || effective_capabilities(daemon, "plain");
    assert_eq!(has() & (NET_RAW | MKNOD), 0);
    let raw = |daemon: &Daemon| inside(daemon, "plain", "arping -c 1 -w 1 -I eth0 10.0.0.1 2>&1").stdout;
    assert!(
        raw(daemon).contains("ermission denied") || raw(daemon).contains("not permitted"),
        "{}",
        raw(daemon)
    );
    // Programs that ping through an ICMP datagram socket need no capability.
    let range = inside(daemon, "plain", "cat /proc/sys/net/ipv4/ping_group_range").stdout;
    assert_eq!(range.split_whitespace().collect::<Vec<_>>(), ["0", "2147483647"]);
    for path in ["/tmp-device", "/dev/device"] {
        let made = inside(daemon, "plain", &format!("mknod {path} b 8 0 2>&1"));
        assert!(made.code != 0 && made.stdout.contains("not permitted"), "{made}");
    }

    let refused = daemon.hearth(&["deploy", "--tag", "plain:1", "--cap-add", "MKNOD", "--json"]);
    refused.expect_code(1).says(&["MKNOD", "allow_capabilities"]);
    assert!(refused.to_string().contains("capability_not_allowed"), "{refused}");
    daemon.hearth(&["deploy", "--tag", "plain:1", "--cap-add", "SYS_ADMIN"]).says(&["NET_RAW and MKNOD"]);
    assert_eq!(has() & (NET_RAW | MKNOD), 0, "nothing changed");

    daemon.hearth_ok(&["deploy", "--tag", "plain:1", "--cap-add", "net_raw"]);
    assert_eq!(has() & (NET_RAW | MKNOD), NET_RAW);
    assert!(!raw(daemon).contains("ermi"), "{}", raw(daemon));
    daemon.hearth_ok(&["deploy", "--tag", "plain:1", "--env", "A=1"]);
    assert_eq!(has() & NET_RAW, NET_RAW, "kept");
    let yaml = daemon.hearth_ok(&["services", "show", "plain", "-o", "yaml"]).stdout;
    assert!(yaml.contains("capabilities:\n  - NET_RAW"), "{yaml}");
    daemon.hearth_ok(&["deploy", "--tag", "plain:1", "--cap-add", "none"]);
    assert_eq!(has() & NET_RAW, 0, "taken back");
}

fn an_isolated_service_reaches_no_other_and_none_reaches_it(daemon: &Daemon) {
    deploy(daemon, "open", &["--domain", "open.test", "--public"]);
    deploy(daemon, "alone", &["--domain", "alone.test", "--public", "--isolated"]);
    let asks = |from: &str, to: &str| {
        let seen = inside(daemon, from, &format!("timeout 3 wget -q -O - http://{to}:8000/ 2>&1"));
        (seen.code == 0).then_some(seen.stdout)
    };
    let addresses = || (instance(daemon, "open").0, instance(daemon, "alone").0);
    let (open, alone) = addresses();
    assert_eq!(asks("open", &alone), None);
    assert_eq!(asks("open", "alone"), None);
    assert_eq!(asks("alone", &open), None);
    assert_eq!(asks("alone", "open"), None);
    assert_eq!(page(daemon, "alone.test"), "alone\n", "the ingress reaches the service");
    let api = inside(daemon, "alone", "wget -q -O - $HEARTH_ADDR/healthz");
    assert_eq!(api.stdout, "ok\n", "the service reaches the daemon: {api}");

    // An update keeps the isolation, and it can be turned off again.
    daemon.hearth_ok(&["deploy", "--tag", "alone:1", "--env", "A=1"]);
    assert_eq!(asks("alone", &open), None);
    assert!(daemon.hearth_ok(&["services", "show", "alone", "-o", "yaml"]).stdout.contains("isolated: true"));
    daemon.hearth_ok(&["deploy", "--tag", "alone:1", "--not-isolated"]);
    let (open, alone) = addresses();
    assert_eq!(asks("alone", &open).as_deref(), Some("open\n"));
    assert_eq!(asks("open", &alone).as_deref(), Some("alone\n"));
    assert_eq!(asks("open", "alone").as_deref(), Some("alone\n"));
}

/// Runs a program of the host's room storage as a user that is not root.
fn as_nobody(program: &Path) -> Output {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(program).arg("-u");
    process::run(&mut command, seconds(10))
}

fn set_id_bits_and_devices_in_storage_mean_nothing_on_the_host(daemon: &Daemon) {
    let planted = daemon.room_files().join("planted");
    fs::create_dir_all(&planted).unwrap();
    fs::copy("/usr/bin/id", planted.join("id")).unwrap();
    // Opens the directories, because their protection from the host's user is not part of this test.
    for directory in daemon.room_files().ancestors().take_while(|dir| dir.starts_with(daemon.directory())) {
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(directory, open).unwrap();
    }
    deploy(daemon, "planter", &["--room-mount", "planted:/data"]);
    let made = inside(daemon, "planter", "chown 0:0 /data/id && chmod 6755 /data/id && ls -l /data/id");
    assert!(made.stdout.starts_with("-rwsr-sr-x"), "{made}");
    let ran = as_nobody(&planted.join("id"));
    assert_eq!(ran.stdout, "65534\n", "the host ran the program as another user: {ran}");
    let device = inside(daemon, "planter", "mknod /data/null c 1 3 2>&1");
    assert!(device.stdout.contains("not permitted"), "{device}");
    // A device node that was created in another way cannot be opened either: no mount of the storage allows it.
    process::run(Command::new("mknod").arg(planted.join("null")).args(["c", "1", "3"]), seconds(5))
        .expect_code(0);
    let opened = fs::write(planted.join("null"), "x");
    assert_eq!(opened.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
    let opened = inside(daemon, "planter", "echo x 2>&1 > /data/null");
    assert!(opened.code != 0 && opened.to_string().contains("ermission denied"), "{opened}");
    daemon.hearth_ok(&["services", "rm", "--now", "planter"]);
}

fn the_runtime_keeps_no_secret_and_no_token_of_a_service_that_runs(daemon: &Daemon) {
    const CANARY: &str = "canary-4f1c9e";
    let mut set = daemon.client();
    set.args(["secrets", "set", "vault"]);
    process::run_with_input(&mut set, CANARY.as_bytes(), seconds(60)).expect_code(0);
    deploy(
        daemon,
        "keeper",
        &["--env-secret", "VAULT=vault", "--meshagent-token", "userDefault", "--env", "A=shown"],
    );
    let token =
        |text: &str| text.lines().find_map(|line| line.strip_prefix("MESHAGENT_TOKEN=").map(str::to_owned));
    let own = inside(daemon, "keeper", "tr '\\0' '\\n' < /proc/1/environ").stdout;
    assert!(own.contains(&format!("VAULT={CANARY}\n")), "the app has the secret: {own}");
    let own_token = token(&own).expect("a token");

    let (_, namespace) = instance(daemon, "keeper");
    let id = namespace.file_name().unwrap().to_str().unwrap().to_owned();
    let containerd = daemon.state().join("containerd");
    let name = integration_tests::network::namespace_of(&daemon.state()).unwrap();
    let mut ctr = Command::new("ctr");
    ctr.arg("--address").arg(containerd.join("containerd.sock")).args(["--namespace", &name]);
    let record = process::run(ctr.args(["containers", "info", &id]), seconds(20));
    let bundle = containerd.join("state/io.containerd.runtime.v2.task").join(name).join(&id);
    let config = fs::read_to_string(bundle.join("config.json")).unwrap();
    for kept in [&record.expect_code(0).stdout, &config] {
        assert!(kept.contains("A=shown"), "{kept}");
        assert!(!kept.contains(CANARY) && !kept.contains(&own_token), "{kept}");
    }

    // An additional process has everything that the app has.
    let seen = inside(daemon, "keeper", "env").stdout;
    assert!(seen.contains(&format!("VAULT={CANARY}\n")) && seen.contains("A=shown\n"), "{seen}");
    assert!(token(&seen).is_some_and(|token| token.split('.').count() == 3), "{seen}");
    let given =
        daemon.hearth(&["services", "exec", "-e", "VAULT=mine", "keeper", "--", "sh", "-c", "echo $VAULT"]);
    assert_eq!(given.stdout, "mine\n", "{given}");
}
