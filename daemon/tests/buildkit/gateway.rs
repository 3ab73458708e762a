//! Questions about a build, which BuildKit answers without running it.

use bollard_buildkit_proto::pb;
use hearthd::build::port::{SolveAnswer, SolveQuestion, SolveRequest};
use prost::Message as _;

use super::*;

async fn ask(
    kit: &Fixture,
    request: SolveRequest,
    question: SolveQuestion,
) -> Result<SolveAnswer, SolveError> {
    timeout(LIMIT, kit.kit.ask(request, question, CancellationToken::new())).await.unwrap()
}

fn json(answer: &SolveAnswer) -> serde_json::Value {
    serde_json::from_slice(&answer.metadata["result.json"]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_are_answered_without_running_a_step() {
    Fixture::run(async |kit| {
        let text = "# The base.\nFROM scratch AS base\nARG WHO=you\nCOPY busybox /bin/busybox\nFROM base as last\n\
                    RUN --mount=type=secret,id=key [\"/bin/busybox\", \"false\"]\n";
        let request = || kit.request(text, MemoryTree::files(vec![("busybox", b"x")]));

        let lint = json(&ask(kit, request(), SolveQuestion::Lint).await.unwrap());
        let rules: Vec<&str> =
            lint["warnings"].as_array().unwrap().iter().filter_map(|w| w["ruleName"].as_str()).collect();
        assert_eq!(rules, ["FromAsCasing"], "{lint}");

        let outline = json(&ask(kit, request(), SolveQuestion::Outline).await.unwrap());
        assert_eq!((&outline["args"][0]["name"], &outline["args"][0]["value"]), (&"WHO".into(), &"you".into()));
        assert_eq!(outline["secrets"][0]["name"], "key");

        let targets = json(&ask(kit, request(), SolveQuestion::Targets).await.unwrap());
        let names: Vec<_> = targets["targets"].as_array().unwrap().iter().map(|t| t["name"].as_str()).collect();
        assert_eq!(names, [Some("base"), Some("last")]);

        let definition = ask(kit, request(), SolveQuestion::Definition).await.unwrap().definitions;
        assert_eq!(definition.keys().collect::<Vec<_>>(), [""]);
        let definition = pb::Definition::decode(definition[""].as_slice()).unwrap();
        assert!(definition.source.is_some(), "the lines of the Dockerfile are in it");
        let commands: Vec<Vec<String>> = definition
            .def
            .iter()
            .filter_map(|bytes| match pb::Op::decode(bytes.as_slice()).unwrap().op? {
                pb::op::Op::Exec(exec) => Some(exec.meta?.args),
                _ => None,
            })
            .collect();
        assert_eq!(commands, [["/bin/busybox", "false"]]);

        let mut both = request();
        both.spec.platforms.extend(hearthd::model::image::Platform::parse("linux/arm64"));
        let definitions = ask(kit, both, SolveQuestion::Definition).await.unwrap().definitions;
        assert_eq!(definitions.len(), 1);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_reach_no_other_source_than_the_build_and_name_what_is_wrong() {
    Fixture::run(async |kit| {
        let request = |text: &str| kit.request(text, MemoryTree::default());
        let denied = ask(kit, request("FROM debian\n"), SolveQuestion::Definition).await;
        assert!(matches!(denied, Err(SolveError::Failed(fault)) if fault.code == "image_not_resolved"));
        let wrong = ask(kit, request("FROM scratch\nCOPPY a b\n"), SolveQuestion::Targets).await;
        assert!(matches!(wrong, Err(SolveError::Failed(fault)) if fault.code == "dockerfile_parse_error"));
        let stop = CancellationToken::new();
        stop.cancel();
        let stopped = kit.kit.ask(request("FROM scratch\n"), SolveQuestion::Lint, stop).await;
        assert!(matches!(stopped, Err(SolveError::Cancelled)));
    })
    .await;
}
