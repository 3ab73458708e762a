use super::*;
use crate::build::fake::Gate;
use crate::model::fault::{ErrorCode, Fault, FaultStage};

fn spec_for(tags: &[&str]) -> BuildSpec {
    BuildSpec { tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(), ..spec("x") }
}

#[tokio::test]
async fn a_tag_of_another_registry_gets_its_content_first_and_its_name_last() {
    let room = Room::new(false);
    let service = room.start().await;
    let handle = service.handle();
    let tags = ["r.example/team/app:1", "room.meshagent.com/here:1"];
    let id = submit(&handle, spec_for(&tags)).await;
    assert_eq!(ended(&handle, &id).await.state, BuildState::Succeeded);
    let pushed = room.images.pushed.lock().clone();
    assert_eq!(pushed, ["content r.example/team/app:1", "name r.example/team/app:1"]);
    let published = room.images.published.lock().clone();
    assert_eq!(published.len(), 1, "{published:?}");
    assert_eq!(published[0].0, tags[1]);
}

#[tokio::test]
async fn a_push_that_fails_names_nothing_and_says_how_to_push_again() {
    let room = Room::new(false);
    let fault = Fault::new(FaultStage::Publish, ErrorCode::RegistryDenied, "401")
        .hint("give credentials")
        .retryable();
    *room.images.push_fault.lock() = Some(fault);
    let service = room.start().await;
    let handle = service.handle();
    let id = submit(&handle, spec_for(&["r.example/team/app:1", "room.meshagent.com/here:1"])).await;
    let record = ended(&handle, &id).await;
    assert_eq!(record.state, BuildState::Failed);
    let fault = record.fault.unwrap();
    assert_eq!(
        (fault.code.as_str(), fault.stage, fault.retryable),
        ("registry_denied", FaultStage::Publish, true)
    );
    let hint = fault.hint.unwrap();
    assert!(
        hint.starts_with("give credentials; ") && hint.contains("hearth images push team/app@sha256:"),
        "{hint}"
    );
    assert!(hint.ends_with(" r.example/team/app:1"), "{hint}");
    assert!(room.images.published.lock().is_empty());
}

#[tokio::test]
async fn a_name_that_a_registry_does_not_take_fails_the_build_and_names_nothing_here() {
    let room = Room::new(false);
    let fault =
        Fault::new(FaultStage::Publish, ErrorCode::RegistryDenied, "403").hint("ask for the right to write");
    *room.images.name_fault.lock() = Some(fault);
    let service = room.start().await;
    let handle = service.handle();
    let id = submit(&handle, spec_for(&["r.example/team/app:1", "room.meshagent.com/here:1"])).await;
    let record = ended(&handle, &id).await;
    assert_eq!((record.state, record.result.is_none()), (BuildState::Failed, true));
    let fault = record.fault.unwrap();
    assert_eq!((fault.code.as_str(), fault.stage), ("registry_denied", FaultStage::Publish));
    let hint = fault.hint.unwrap();
    assert!(
        hint.starts_with("ask for the right to write; ") && hint.ends_with(" r.example/team/app:1"),
        "{hint}"
    );
    assert_eq!(*room.images.pushed.lock(), ["content r.example/team/app:1"]);
    assert!(room.images.published.lock().is_empty(), "nothing is named here either");
}

#[tokio::test]
async fn a_build_that_is_cancelled_while_it_is_pushed_never_gets_its_name() {
    let room = Room::new(false);
    let gate = Gate::closed();
    *room.images.push_gate.lock() = Some(gate.clone());
    let service = room.start().await;
    let handle = service.handle();
    let id = submit(&handle, spec_for(&["r.example/team/app:1"])).await;
    gate.reached().await;
    assert_eq!(handle.cancel(&id).await.unwrap().state, BuildState::Cancelled);
    gate.open();
    assert!(room.images.pushed.lock().is_empty());
    assert_eq!(ended(&handle, &id).await.state, BuildState::Cancelled);
}
