use std::cell::RefCell;
use std::future::pending;
use std::sync::Arc;

use hearth_proto::v1::{
    DeployAction, DeployActionKind, DeploySuperseded, ErrorDetail, HealthCheck, Instance, Service,
    ServiceSpec,
};

use super::*;
use crate::client::scripted::{DaemonScript, event, live, lost, remark, with_client};
use crate::exit;

fn answer() -> DeployResponse {
    let spec = ServiceSpec {
        image: "web:1".into(),
        digest: "sha256:9b2c".into(),
        domains: vec!["www.example.com".into(), "*.example.com".into()],
        ..ServiceSpec::default()
    };
    DeployResponse {
        service_id: "7f3k9wq2m7xh".into(),
        name: "web".into(),
        revision: 3,
        urls: vec!["http://www.example.com:4380/".into()],
        spec: Some(spec),
        ..DeployResponse::default()
    }
}

#[test]
fn people_and_scripts_read_name_revision_digest_and_addresses() {
    let text = DeployView::new(&answer(), None).to_text();
    assert_eq!(text, "web 3 sha256:9b2c\nhttp://www.example.com:4380/");
}

#[test]
fn programs_read_a_typed_result_and_a_typed_plan() {
    let took = Some(Duration::from_millis(412));
    let value = serde_json::to_value(DeployView::new(&answer(), took)).unwrap();
    assert_eq!(
        (&value["name"], &value["revision"], &value["live"]),
        (&"web".into(), &3.into(), &true.into())
    );
    assert_eq!(value["took_seconds"], 0.412);
    assert_eq!(value["domains"][1], "*.example.com");
    assert_eq!(value.get("plan"), None);
    let route = DeployAction {
        kind: DeployActionKind::Route.into(),
        revision: 3,
        text: "lead the traffic to revision 3".into(),
        ..DeployAction::default()
    };
    let answer = answer();
    let view = DeployView { plan: Some(vec![action_json(&route)]), ..DeployView::new(&answer, None) };
    let value = serde_json::to_value(view).unwrap();
    assert_eq!(value["plan"][0]["action"], "route");
    assert_eq!((&value["live"], &value["took_seconds"]), (&Value::Null, &Value::Null));
}

/// Serializes the tests that raise SIGINT, because every listener of the process receives it.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Result of waiting for a scripted deploy.
async fn waited(script: DaemonScript, progress: ProgressMode) -> Result<(), Failure> {
    interrupted(script, progress, pending()).await
}

/// Result of waiting for a scripted deploy, with Ctrl-C when `interrupt` completes.
async fn interrupted(
    script: DaemonScript,
    progress: ProgressMode,
    interrupt: impl Future<Output = ()>,
) -> Result<(), Failure> {
    ended(script, WaitArgs { progress, ..WaitArgs::default() }, interrupt).await
}

async fn ended(
    script: DaemonScript,
    waiting: WaitArgs,
    interrupt: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let _alone = ALONE.lock().await;
    let script = Arc::new(script);
    let outcome = RefCell::new(Ok(()));
    let ended = &outcome;
    with_client(&script, |client| async move {
        let mut interrupts = InterruptListener::listen().unwrap();
        let (answer, interrupting) = (answer(), async {
            interrupt.await;
            rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::INT).unwrap();
            pending::<()>().await;
        });
        let waited = tokio::select! {
            waited = run(&client, &answer, &waiting, true, &mut interrupts) => waited,
            () = interrupting => Ok(()),
        };
        *ended.borrow_mut() = waited;
    })
    .await;
    outcome.into_inner()
}

fn script(events: Vec<Result<hearth_proto::v1::DeployEvent, tonic::Status>>) -> DaemonScript {
    let script = DaemonScript::default();
    script.watches.lock().push_back(events);
    script
}

#[tokio::test]
async fn a_deploy_is_waited_for_until_it_is_live_over_a_lost_connection() {
    let script = script(vec![event(1, 10, remark("a")), Err(lost())]);
    script.watches.lock().push_back(vec![event(1, 10, remark("a")), event(2, 20, live())]);
    assert!(waited(script, ProgressMode::Plain).await.is_ok());
}

#[tokio::test]
async fn a_failed_deploy_says_why_and_ends_with_one() {
    let detail = ErrorDetail {
        code: "exited".into(),
        message: "the app ended with exit code 3".into(),
        stage: "deploy".into(),
        exit_code: Some(3),
        log_tail: vec!["boom".into()],
        hint: "see its log".into(),
        ..ErrorDetail::default()
    };
    let failed = || script(vec![event(1, 10, Event::Failed(detail.clone()))]);
    let failure = waited(failed(), ProgressMode::Tty).await.unwrap_err();
    assert_eq!(exit::exit_code(&failure), 1);
    let shown = exit::error_text(&failure);
    for part in ["the app ended with exit code 3", "        | boom", "hint: see its log", "web, revision 3"] {
        assert!(shown.contains(part), "{shown}");
    }
    let value = serde_json::to_value(exit::error_document(&failure)).unwrap();
    assert_eq!((&value["error"]["service"], &value["error"]["revision"]), (&"web".into(), &3.into()));
    // The last lines may not have been shown before, so the failure carries them in any case.
    let failure = waited(failed(), ProgressMode::Plain).await.unwrap_err();
    assert!(exit::error_text(&failure).contains("boom"));
}

#[tokio::test]
async fn a_wait_for_a_start_that_cannot_succeed_ends_with_its_reason() {
    let mut script = script(vec![event(1, 10, remark("the runtime does not answer"))]);
    script.stays = true;
    *script.service.lock() = Some(Service { reason: "it starts".into(), ..Service::default() });
    let limit = Some(Duration::from_millis(300));
    let waiting = WaitArgs { progress: ProgressMode::Plain, limit, ..WaitArgs::default() };
    let failure = ended(script, waiting, pending()).await.unwrap_err();
    assert_eq!((failure.detail.code.as_str(), exit::exit_code(&failure)), ("wait_timed_out", 1));
    let expected = "waited 0.3s for revision 3 of web to be live; the room goes on trying, and no revision of web \
                    serves; the last trouble: the runtime does not answer";
    assert_eq!(failure.detail.message, expected);
    assert!(failure.detail.hint.contains("hearth services logs web"), "{}", failure.detail.hint);
}

#[test]
fn the_default_limit_of_a_wait_covers_the_start_limit_of_the_service() {
    assert_eq!(default_limit(&answer()), Duration::from_secs(180));
    let mut slow = answer();
    let start_limit = Some(duration::to_wire(Duration::from_secs(600)));
    slow.spec.as_mut().unwrap().health = Some(HealthCheck { start_limit, ..HealthCheck::default() });
    assert_eq!(default_limit(&slow), Duration::from_secs(720));
}

#[tokio::test]
async fn a_superseded_deploy_says_by_what() {
    let superseded = Event::Superseded(DeploySuperseded { by: 4 });
    let failure = waited(script(vec![event(1, 10, superseded)]), ProgressMode::Json).await.unwrap_err();
    assert_eq!((failure.detail.code.as_str(), exit::exit_code(&failure)), ("superseded", 1));
    assert!(failure.detail.message.contains("superseded by revision 4"), "{}", failure.detail.message);
}

#[tokio::test]
async fn an_interrupt_leaves_the_deploy_running_and_says_so() {
    let mut script = script(vec![event(1, 10, remark("a"))]);
    script.stays = true;
    let while_it_runs = tokio::time::sleep(Duration::from_millis(200));
    let failure = interrupted(script, ProgressMode::Plain, while_it_runs).await.unwrap_err();
    assert_eq!((failure.kind, exit::exit_code(&failure)), (FailureKind::Interrupted, 130));
    assert!(failure.detail.message.contains("hearth services show web"), "{}", failure.detail.message);
}

#[test]
fn a_failed_deploy_reports_which_revision_serves() {
    let instance = |revision, routed| Instance { revision, routed, ..Instance::default() };
    let service = |instances| Service { live_revision: Some(2), instances, ..Service::default() };
    let serving = service(vec![instance(3, false), instance(2, true)]);
    assert_eq!(serving_revision_text(&serving, &answer()), "revision 2 of web keeps serving");
    // A failed restart leaves the old instance of the same revision in place.
    assert_eq!(
        serving_revision_text(&service(vec![instance(3, true)]), &answer()),
        "revision 3 of web keeps serving"
    );
    assert_eq!(
        serving_revision_text(&service(vec![instance(2, false)]), &answer()),
        "no revision of web serves"
    );
    assert_eq!(serving_revision_text(&Service::default(), &answer()), "no revision of web serves");
}
