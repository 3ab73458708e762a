//! Build slots: one caller cannot occupy all of them.

use hearth_proto::v1::CancelBuildRequest;
use integration_tests::daemon::BASE;
use integration_tests::grpc::{Api, block_on, spec};
use integration_tests::process;
use integration_tests::runner::Case;
use integration_tests::shared_cases;
use integration_tests::sources::Tree;

use super::*;

pub fn cases() -> Vec<Case> {
    shared_cases![long_builds_of_one_caller_leave_a_slot_to_another]
}

fn long_builds_of_one_caller_leave_a_slot_to_another(daemon: &Daemon) {
    daemon.base_image();
    daemon.put("long", &Tree::new().dockerfile(&format!("FROM {BASE}\nRUN sleep 40.1207\n")));
    daemon.put("short", &Tree::new().dockerfile(&format!("FROM {BASE}\nRUN true\n")));
    let mint = |name: &str| daemon.mint(&["--name", name, "--scope", "full"]);
    let (greedy, other) = (mint("greedy"), mint("other"));
    let sleeps = || {
        let steps = process::with_command("sleep 40.1207");
        steps.iter().filter(|step| !step.command.contains("sh -c")).count()
    };
    let ids = block_on(seconds(60), async {
        let api = Api::connect(&daemon.listen(), Some(greedy)).await;
        let mut ids = Vec::new();
        for number in 0..8 {
            ids.push(api.submit(spec(&format!("long-{number}:1"), "long")).await.unwrap());
        }
        ids
    });
    assert!(soon(seconds(30), || sleeps() > 0), "no build runs");
    let begun = Instant::now();
    let mut client = daemon.client();
    let arguments = daemon.build_arguments("short:1", "short:/context:ro", &["--no-cache"]);
    process::run(client.env("HEARTH_TOKEN", &other).args(arguments), seconds(150)).expect_code(0);
    let took = begun.elapsed();
    runner::note(&format!("the build of the other caller took {took:?}"));
    assert!(took < seconds(25), "the build waited for the long builds of the other caller: {took:?}");
    block_on(seconds(60), async {
        let api = Api::of(daemon).await;
        for build_id in ids.into_iter().rev() {
            api.builds().cancel(CancelBuildRequest { build_id }).await.unwrap();
        }
    });
}
