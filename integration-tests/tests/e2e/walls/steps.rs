//! Each RUN step has a network of its own, which reaches public addresses and nothing of the machine, the room, private
//! networks or other steps.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use integration_tests::binaries::repository;
use integration_tests::daemon::{BASE, Daemon, Options, scratch};
use integration_tests::http::Request;
use integration_tests::process::{self, Output};
use integration_tests::runner::Group;
use integration_tests::service::{App, get};
use integration_tests::sources::Tree;
use integration_tests::wait::{self, seconds};
use integration_tests::world::World;
use integration_tests::{lone_cases, step_network};

pub fn group() -> Group {
    Group::new(
        "walls_steps",
        lone_cases![
            a_step_reaches_public_addresses_and_names,
            a_step_reaches_no_port_of_this_machine_on_any_address,
            a_step_reaches_no_private_network_and_no_link_local_address,
            a_step_reaches_no_service_of_the_room,
            a_step_reaches_no_other_step,
            a_step_sees_no_packet_of_others,
            a_step_cannot_use_another_source_address,
            a_step_has_no_ipv6_and_no_sockets_of_others,
            a_killed_daemon_leaves_no_network_to_the_next,
            an_egress_list_allows_what_it_names_and_reports_what_it_refused,
            the_error_of_a_refused_private_address_has_its_name,
            a_step_cannot_use_the_network_of_the_host,
            a_build_without_network_fetches_no_url,
        ],
    )
    .in_sequence()
}

/// A daemon, and a simulated public network that its steps may reach.
struct StepTest {
    daemon: Daemon,
    world: World,
}

impl StepTest {
    fn start(name: &str) -> Self {
        Self::with(name, "")
    }

    /// Starts a daemon with these lines in `[builds.egress]`.
    fn with(name: &str, egress: &str) -> Self {
        let world = World::make(&scratch().join(format!("{name}-world")));
        let config = format!("[builds.egress]\nresolvers = ['{}']\n{egress}\n", world.resolver());
        let daemon = Daemon::start(Options::room(name).config(&config));
        daemon.base_image();
        Self { daemon, world }
    }

    /// Builds one step that runs this script; returns what the script wrote to `/out`.
    #[track_caller]
    fn step(&self, name: &str, script: &str) -> String {
        self.put(name, script);
        let tag = format!("{name}:1");
        self.daemon.build_ok(&tag, name, &["--no-cache"]);
        self.daemon.image(&tag).file("out")
    }

    #[track_caller]
    fn put(&self, name: &str, script: &str) {
        let tree = Tree::new()
            .dockerfile(&format!("FROM {BASE}\nCOPY attack step /\nRUN sh /step > /out 2>&1\n"))
            .file_with_mode("attack", fs::read(attack()).expect("program"), 0o755)
            .file("step", script);
        self.daemon.put(name, &tree);
    }

    /// Builds one step whose script fails; returns the error.
    #[track_caller]
    fn refused(&self, name: &str, script: &str) -> serde_json::Value {
        self.put(name, script);
        error_of(&self.daemon.build(&format!("{name}:1"), name, &["--no-cache", "--json"]))
    }
}

/// Returns the typed error of a failed build.
#[track_caller]
fn error_of(output: &Output) -> serde_json::Value {
    assert_ne!(output.code, 0, "{output}");
    output.json()["error"].clone()
}

/// Compiles `attack.c`, once; returns the program.
fn attack() -> PathBuf {
    let program = scratch().join("attack");
    if !program.exists() {
        let source = repository().join("integration-tests/tests/e2e/walls/attack.c");
        let mut compiler = Command::new("cc");
        process::run(compiler.args(["-static", "-O1", "-o"]).arg(&program).arg(source), seconds(60))
            .expect_code(0);
    }
    program
}

/// Shell function that tries to connect, and prints the address when that works.
const TRY: &str = "try() { nc -w 2 \"$1\" \"$2\" </dev/null >/dev/null 2>&1 && echo \"reached $1 $2\"; }\n";

/// Returns all IPv4 addresses of this machine.
fn own_addresses() -> Vec<String> {
    let shown = process::run(Command::new("ip").args(["-4", "-o", "address", "show"]), seconds(10));
    let address = |line: &str| Some(line.split_whitespace().nth(3)?.split('/').next()?.to_owned());
    shown.stdout.lines().filter_map(address).collect()
}

fn a_step_reaches_public_addresses_and_names() {
    let test = StepTest::start("sw");
    let World { one, host, .. } = test.world;
    let script = format!(
        "wget -q -O - http://{one}/page; wget -q -O - http://one.test/page; wget -q -O - http://one.test/cgi-bin/who\n"
    );
    // The server has no route to the step's address, so NAT must show it the address of the machine.
    assert_eq!(test.step("world", &script), format!("the world\nthe world\n{host}\n"));
}

fn a_step_reaches_no_port_of_this_machine_on_any_address() {
    let test = StepTest::start("sm");
    // Represents any program of this machine that listens on all addresses.
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    let [api, ingress] = [test.daemon.listen(), test.daemon.ingress()]
        .map(|address| address.rsplit_once(':').expect("a port").1.to_owned());
    let mut script = TRY.to_owned();
    for address in own_addresses().iter().map(String::as_str).chain(["169.254.1.1", "0.0.0.0"]) {
        for port in [&api, &ingress, &port.to_string(), "53", "22", "111"] {
            script += &format!("try {address} {port}\n");
        }
    }
    script += &format!(
        "gateway=$(ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p'); echo gateway $gateway\n\
         for port in {api} {ingress} {port} 53; do try $gateway $port; done; try loopback.test {api}; echo end\n"
    );
    let out = test.step("machine", &script);
    let lines: Vec<_> = out.lines().collect();
    assert!(matches!(lines.as_slice(), [gateway, "end"] if gateway.starts_with("gateway 1")), "{out}");
    assert_eq!(listener.accept().map(drop).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
}

fn a_step_reaches_no_private_network_and_no_link_local_address() {
    let test = StepTest::start("sp");
    let private = test.world.private;
    let script = format!(
        "{TRY}for a in {private} private.test 169.254.169.254 metadata.test 10.0.0.1 172.16.0.1 192.168.0.1 100.64.0.1 \
         224.0.0.1 240.0.0.1; do try $a 80; done; echo end\n"
    );
    let begun = Instant::now();
    assert_eq!(test.step("private", &script), "end\n");
    assert!(begun.elapsed() < seconds(30), "a refusal comes at once");
    // The operator may allow one private address in addition to all public ones.
    let options = format!(
        "[builds.egress]\nresolvers = ['{}']\nallow = ['0.0.0.0/0', '{private}/32']\n",
        test.world.resolver()
    );
    test.daemon.terminate();
    test.daemon.restart_with(Options::room("sp").config(&options));
    let script = "wget -q -O - http://private.test/page; wget -q -O - http://one.test/page\n";
    assert_eq!(test.step("opened", script), "the world\nthe world\n");
}

fn a_step_reaches_no_service_of_the_room() {
    let test = StepTest::start("ss");
    let daemon = &test.daemon;
    App::page("secret of the room\n").pack(daemon, "app:1");
    daemon.hearth_ok(&["deploy", "--tag", "app:1", "--domain", "app.test", "--public"]);
    assert_eq!(get(daemon, "app.test", "/").status, 200);
    let leases = fs::read_to_string(daemon.state().join("network/leases.json")).unwrap();
    let leases: serde_json::Value = serde_json::from_str(&leases).unwrap();
    let address = leases["leases"].as_object().unwrap().values().next().unwrap()["address"].as_str().unwrap();
    let script = format!(
        "{TRY}try {address} 8000; try app 8000; wget -T 3 -q -O - http://{address}:8000/; echo end\n"
    );
    let out = test.step("service", &script);
    assert!(!out.contains("reached") && !out.contains("secret") && out.ends_with("end\n"), "{out}");
}

fn a_step_reaches_no_other_step() {
    let test = StepTest::start("so");
    let listens = "ip -4 -o address show dev eth1 | sed 's/.*inet \\([0-9.]*\\).*/address \\1/' >/dev/stderr\n\
                   timeout 25 nc -l -p 9000 </dev/null; echo ended\n";
    test.daemon.put(
        "listens",
        &Tree::new().file("step", listens).dockerfile(&format!("FROM {BASE}\nCOPY step /\nRUN sh /step\n")),
    );
    let mut client = test.daemon.client();
    client.args(test.daemon.build_arguments("listens:1", "listens:/context:ro", &["--no-cache"]));
    let listener = process::start(&mut client);
    // Addresses that the steps of this daemon have now or will have next.
    let name = step_network::name_of(&test.daemon.state()).unwrap();
    wait::until(seconds(20), "namespaces are ready", || step_network::links(&test.daemon.state()).len() > 3);
    let routes = process::run(Command::new("ip").args(["-4", "route", "show"]), seconds(10));
    let addresses: Vec<_> = routes
        .stdout
        .lines()
        .filter(|line| line.contains(&format!("dev {name}")) && !line.contains('/'))
        .filter_map(|line| line.split(' ').next())
        .collect();
    let script = format!("{TRY}sleep 3; for a in {}; do try $a 9000; done; echo end\n", addresses.join(" "));
    assert!(addresses.len() > 3, "{routes}");
    let own = test.step("tries", &script);
    // A refused port of the step itself answers as well: only a connection counts.
    assert_eq!(own, "end\n", "{addresses:?}");
    let ended = listener.finish(seconds(90)).expect("the step that listens ends");
    assert!(ended.code == 0 && ended.stderr.contains("address 1"), "{ended}");
}

fn a_step_sees_no_packet_of_others() {
    let test = StepTest::start("sn");
    let stop = AtomicBool::new(false);
    let token = test.daemon.token();
    let out = std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                Request::new("GET", "/v2/").bearer(token).send(&test.daemon.listen());
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let out = test.step("sniffs", &format!("/attack sniff 4 '{token}'\nls /sys/class/net\n"));
        stop.store(true, Ordering::Relaxed);
        traffic.join().unwrap();
        out
    });
    assert!(!out.contains("found"), "the token of a caller was read");
    let links: Vec<_> = out.lines().skip(1).collect();
    assert_eq!(links, ["eth1", "lo"], "{out}");
}

fn a_step_cannot_use_another_source_address() {
    let test = StepTest::start("sa");
    let World { one, two, .. } = test.world;
    let program = attack();
    let listens = [program.to_str().unwrap(), "listen", "4001", "6"];
    let listener = process::start(&mut test.world.command(&listens));
    std::thread::sleep(Duration::from_millis(500));
    let gateway = "$(ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p')";
    let script = format!(
        "for source in {two} 127.0.0.1 192.0.2.2 {gateway} 10.1.2.3; do /attack spoof $source {one} 4001; done\n\
         /attack say {one} 4001\n"
    );
    let out = test.step("spoofs", &script);
    assert!(out.matches("sent").count() >= 3, "the step may send: {out}");
    let text = listener.finish(seconds(20)).expect("the listener ends").stdout;
    assert_eq!(text, "honest\n", "only packets with the step's own address leave");
}

fn a_step_has_no_ipv6_and_no_sockets_of_others() {
    let test = StepTest::start("s6");
    let script = "cat /proc/net/if_inet6; grep -c @ /proc/net/unix; ls /dev/otel-grpc.sock /run/buildkit \
                  /run/containerd 2>/dev/null; find / -xdev -type s; ip -6 route\n";
    assert_eq!(test.step("ipv6", script), "0\n");
    // The host's end of the veth pair must not have an IPv6 address either, to which a raw frame could be sent.
    for link in step_network::links(&test.daemon.state()) {
        let shown =
            process::run(Command::new("ip").args(["-6", "-o", "address", "show", "dev", &link]), seconds(10));
        assert_eq!(shown.stdout, "", "{link}");
    }
}

fn a_killed_daemon_leaves_no_network_to_the_next() {
    let test = StepTest::start("sk");
    let state = test.daemon.state();
    test.step("before", "true\n");
    let table = step_network::name_of(&state).unwrap();
    test.daemon.kill9();
    // Namespaces end with the builder, and their links with them; the table survives the kill.
    let tables = || process::run(Command::new("nft").args(["list", "tables"]), seconds(10)).stdout;
    assert!(tables().contains(&table));
    test.daemon.restart();
    assert_eq!(test.step("after", "wget -q -O - http://one.test/page\n"), "the world\n");
    let status = test.daemon.terminate();
    assert!(status.success(), "{status}");
    assert_eq!(step_network::sweep(&state), Vec::<String>::new());
}

fn an_egress_list_allows_what_it_names_and_reports_what_it_refused() {
    let test = StepTest::with("se", "allow = ['*.one.test', 'metadata.test']");
    let World { one, two, .. } = test.world;
    // An address alone cannot be reached before a name lookup has opened it.
    let script =
        format!("{TRY}try {one} 80; try {two} 80; try one.test 80; try metadata.test 80; echo end\n");
    assert_eq!(test.step("raw", &script), "end\n");
    assert_eq!(test.step("named", "wget -q -O - http://www.one.test/page\n"), "the world\n");

    let begun = Instant::now();
    let error = test.refused("other", "wget -q -O - http://two.test/page\n");
    assert!(begun.elapsed() < seconds(20), "a refusal comes at once");
    assert_eq!(error["code"], "egress_refused", "{error}");
    assert!(error["message"].as_str().unwrap().contains("two.test"), "{error}");
    assert!(error["step"].as_str().unwrap().contains("RUN sh /step"), "{error}");
    assert!(error["hint"].as_str().unwrap().contains("builds.egress"), "{error}");

    let error = test.refused("address", &format!("nc -w 3 {two} 80 </dev/null\n"));
    assert_eq!(error["code"], "egress_refused", "{error}");
    assert!(error["message"].as_str().unwrap().contains(&format!("{two} port 80")), "{error}");
    assert_eq!(error["exit_code"], 1, "{error}");

    // A step that fails by itself is not reported as refused.
    let error = test.refused("own", "exit 7\n");
    assert_eq!(
        (error["code"].as_str(), error["exit_code"].as_i64()),
        (Some("step_failed"), Some(7)),
        "{error}"
    );
}

fn the_error_of_a_refused_private_address_has_its_name() {
    let test = StepTest::start("sr");
    let private = test.world.private;
    let error = test.refused("inner", "nc -w 3 private.test 80 </dev/null\n");
    assert_eq!(error["code"], "egress_refused", "{error}");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(&format!("private.test ({private} port 80)")), "{error}");
}

fn a_step_cannot_use_the_network_of_the_host() {
    let test = StepTest::start("sh");
    let dockerfile = format!("FROM {BASE}\nRUN --network=host ls /sys/class/net\n");
    test.daemon.put("host", &Tree::new().dockerfile(&dockerfile));
    let error = error_of(&test.daemon.build("host:1", "host", &["--json"]));
    assert_eq!(error["code"], "host_network_refused", "{error}");
}

fn a_build_without_network_fetches_no_url() {
    let test = StepTest::start("su");
    let one = test.world.one;
    let dockerfile = format!("FROM {BASE}\nARG WHERE=http://{one}\nRUN true\nADD ${{WHERE}}/page /\n");
    test.daemon.put("url", &Tree::new().dockerfile(&dockerfile));
    let error = error_of(&test.daemon.build("url:1", "url", &["--network", "none", "--json"]));
    assert_eq!(error["code"], "network_none", "{error}");
    assert_eq!(error["dockerfile"]["start_line"], 4, "{error}");
}
