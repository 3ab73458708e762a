//! The build queue: one caller cannot fill it.

use hearth_proto::v1::CancelBuildRequest;
use integration_tests::daemon::BASE;
use integration_tests::grpc::{Api, block_on, detail, spec};
use integration_tests::process;
use integration_tests::runner::Case;
use integration_tests::service::App;
use integration_tests::shared_cases;
use integration_tests::sources::Tree;

use super::*;

/// Configuration in which one build runs and eight may wait.
pub const CONFIG: &str = "[builds]\nconcurrency = 1\nqueue_length = 8\nper_caller = 100\n";

pub fn cases() -> Vec<Case> {
    shared_cases![one_owner_cannot_fill_the_queue_even_through_its_services]
}

/// Submits builds until one is refused; returns the ids of the accepted ones, and the code of the refusal.
async fn fill(daemon: &Daemon, token: &str) -> (Vec<String>, String) {
    let api = Api::connect(&daemon.listen(), Some(token.to_owned())).await;
    let mut accepted = Vec::new();
    for number in 0..20 {
        match api.submit(spec(&format!("queue-{number}:1"), "queue")).await {
            Ok(id) => accepted.push(id),
            Err(refused) => {
                let detail = detail(&refused);
                assert!(detail.retryable && detail.retry_after_ms.is_some(), "{refused:?}");
                return (accepted, detail.code);
            }
        }
    }
    panic!("20 builds were accepted");
}

fn one_owner_cannot_fill_the_queue_even_through_its_services(daemon: &Daemon) {
    daemon.base_image();
    daemon.put("queue", &Tree::new().dockerfile(&format!("FROM {BASE}\nRUN sleep 120\n")));
    let mint = |name: &str| daemon.mint(&["--name", name, "--scope", "full"]);
    let (greedy, second, third) = (mint("greedy"), mint("second"), mint("third"));
    App::page("x\n").pack(daemon, "app:1");
    let as_greedy = |arguments: &[&str]| {
        let mut client = daemon.client();
        process::run(client.env("HEARTH_TOKEN", &greedy).args(arguments), seconds(150))
    };
    let services: Vec<String> = ["one", "two"]
        .into_iter()
        .map(|name| {
            let deploy = ["deploy", "--tag", "app:1", "--name", name, "--env-token", "agentDefault"];
            as_greedy(&deploy).expect_code(0);
            let token = as_greedy(&["services", "exec", name, "--", "sh", "-c", "echo $MESHAGENT_TOKEN"]);
            token.expect_code(0).line().to_owned()
        })
        .collect();
    block_on(seconds(100), async {
        let (own, refused) = fill(daemon, &greedy).await;
        assert_eq!((own.len(), refused.as_str()), (1 + 4, "queue_share"));
        for service in &services {
            let (accepted, refused) = fill(daemon, service).await;
            assert_eq!(
                (accepted.len(), refused.as_str()),
                (0, "queue_share"),
                "a service counts for its deployer"
            );
        }
        let (theirs, refused) = fill(daemon, &second).await;
        assert_eq!((theirs.len(), refused.as_str()), (2, "queue_share"));
        let (last, _) = fill(daemon, &third).await;
        assert_eq!(last.len(), 1, "a third build is accepted");
        let api = Api::of(daemon).await;
        // The running build is the last to be cancelled, so that no other begins.
        for build_id in last.into_iter().chain(theirs).chain(own.into_iter().rev()) {
            api.builds().cancel(CancelBuildRequest { build_id }).await.unwrap();
        }
    });
}
