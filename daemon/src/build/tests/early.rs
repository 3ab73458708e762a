//! Tests of when the context of a build is prepared.

use std::sync::atomic::Ordering;

use super::*;
use crate::build::fake::Gate;
use crate::model::{BuildMount, BuildMountSource, MountAccess};

fn looks(room: &Room) -> usize {
    room.contexts.looks.load(Ordering::SeqCst)
}

#[tokio::test]
async fn a_build_with_a_slot_looks_at_its_files_once_and_from_its_submission_on() {
    for in_sqlite in [false, true] {
        let room = Room::new(in_sqlite);
        let service = room.start().await;
        let handle = service.handle();
        let gate = Gate::closed();
        *room.contexts.gate.lock() = Some(gate.clone());
        let id = submit(&handle, spec("a")).await;
        gate.reached().await;
        assert!(!handle.get(&id).await.unwrap().state.is_final(), "accepted before the look is over");
        gate.open();
        assert_eq!(ended(&handle, &id).await.state, BuildState::Succeeded);
        assert_eq!(looks(&room), 1);
    }
}

#[tokio::test]
async fn a_build_that_waits_looks_at_its_files_when_its_turn_has_come() {
    let mut room = Room::new(true);
    room.options.limits.concurrency = 1;
    let service = room.start().await;
    let handle = service.handle();
    let gate = Gate::closed();
    room.script(vec![Act::Wait(gate.clone())]);
    let first = submit(&handle, spec("a")).await;
    gate.reached().await;
    *room.contexts.dockerfile.lock() = "FROM scratch AS before\n".to_owned();
    let second = submit(&handle, spec("b")).await;
    assert_eq!(looks(&room), 1);
    *room.contexts.dockerfile.lock() = "FROM scratch AS after\n".to_owned();
    gate.open();
    for id in [first, second] {
        assert_eq!(ended(&handle, &id).await.state, BuildState::Succeeded);
    }
    assert_eq!(looks(&room), 2);
    let requests = room.solver.requests.lock();
    assert_eq!(requests[1].files.dockerfile_name, "FROM scratch AS after\n");
}

#[tokio::test]
async fn a_submission_that_is_not_accepted_brings_no_image_into_the_room() {
    let room = Room::new(true);
    let service = room.start().await;
    let handle = service.handle();
    let with_image = |tag: &str| {
        let mut spec = spec(tag);
        spec.mounts.push(BuildMount {
            source: BuildMountSource::Image {
                reference: "docker.io/library/busybox:1".parse().unwrap(),
                subpath: String::new(),
            },
            target: "/context".parse().unwrap(),
            mode: MountAccess::ReadOnly,
            create: false,
        });
        SubmitBuild { idempotency_key: Some("key".to_owned()), ..request(spec) }
    };
    let id = handle.submit(with_image("a")).await.unwrap().id.to_string();
    assert_eq!(ended(&handle, &id).await.state, BuildState::Succeeded);
    assert_eq!(looks(&room), 1);
    handle.submit(with_image("b")).await.unwrap_err();
    // Without the log directory, the next submission fails after its reservation was taken.
    std::fs::remove_dir_all(&room.options.log_dir).unwrap();
    let refused = SubmitBuild { idempotency_key: None, ..with_image("c") };
    handle.submit(refused).await.unwrap_err();
    assert_eq!(looks(&room), 1);
}
