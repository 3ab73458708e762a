//! The daemon fetches nothing for a build from its own machine, even when the machine has a public address.

use integration_tests::daemon::{Daemon, Options};
use integration_tests::lone_cases;
use integration_tests::process::Output;
use integration_tests::runner::Group;
use integration_tests::scripted::{Asked, Reply, Scripted};
use integration_tests::sources::Tree;

use super::images::PrivateAddress as MachineAddress;

pub fn group() -> Group {
    Group::new("walls_own_addresses", lone_cases![a_public_address_of_this_machine_is_as_closed_as_loopback])
        .in_sequence()
}

fn build(room: &Daemon, name: &str, dockerfile: &str) -> Output {
    room.put(name, &Tree::new().dockerfile(dockerfile));
    room.build(&format!("{name}:1"), name, &["--json"])
}

fn a_public_address_of_this_machine_is_as_closed_as_loopback() {
    const PUBLIC: &str = "44.45.81.1";
    const LISTED: &str = "10.231.81.1";
    let _listed = MachineAddress::make("hwi-own0", "10.231.81.1/32");
    let allow = |more: &str| format!("[builds.egress]\nallow = [\"0.0.0.0/0\", \"{LISTED}\"{more}]\n");
    let room = Daemon::start(Options::room("wi-own").config(&allow("")));
    // The daemon did not see this address when it started.
    let _public = MachineAddress::make("hwi-own1", "44.45.81.1/32");
    let private_service = Scripted::start_at(&format!("{PUBLIC}:0"), |_| Reply::new(200, "secret")).unwrap();
    let host = private_service.host();
    let away = format!("http://{host}");
    let outer = Scripted::start_at(&format!("{LISTED}:0"), move |asked: &Asked| {
        Reply::new(302, "").header("location", &format!("{away}{}", asked.path))
    })
    .unwrap();

    for (name, line, code) in [
        ("file", format!("ADD http://{host}/x /"), "egress_denied"),
        ("mapped", format!("ADD http://[::ffff:{}/x /", host.replace(':', "]:")), "egress_denied"),
        ("redirected", format!("ADD http://{}/x /", outer.host()), "egress_denied"),
        ("git", format!("ADD http://{host}/x.git /"), "egress_denied"),
        ("git-redirected", format!("ADD http://{}/x.git /", outer.host()), "egress_refused"),
        ("image", format!("COPY --from={host}/alice/web:1 /x /"), "registry_address_refused"),
    ] {
        let output = build(&room, name, &format!("FROM scratch\n{line}\n"));
        assert_eq!(output.json()["error"]["code"], code, "{name}: {output}");
        output.says(&[PUBLIC]);
    }
    let output = build(&room, "base", &format!("FROM {host}/alice/web:1\n"));
    assert_eq!(output.json()["error"]["code"], "registry_address_refused", "{output}");
    assert!(outer.connections() >= 2, "{:?}", outer.asked());
    assert_eq!(private_service.connections(), 0, "{:?}", private_service.asked());

    // A block around the address does not allow it, the address itself does.
    room.terminate();
    room.restart_with(Options::room("wi-own").config(&allow(", \"44.45.0.0/16\"")));
    let output = build(&room, "block", &format!("FROM scratch\nADD http://{host}/x /\n"));
    assert_eq!(output.json()["error"]["code"], "egress_denied", "{output}");
    assert_eq!(private_service.connections(), 0, "{:?}", private_service.asked());
    room.terminate();
    room.restart_with(Options::room("wi-own").config(&allow(&format!(", \"{PUBLIC}\""))));
    build(&room, "listed", &format!("FROM scratch\nADD http://{host}/x /\n")).expect_code(0);
    assert_eq!(room.image("listed:1").file("x"), "secret");
}
