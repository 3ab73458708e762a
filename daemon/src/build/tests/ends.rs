//! Ends of builds that cannot be stored at once.

use std::sync::atomic::Ordering;

use super::*;
use crate::build::event_log::EventLog;
use crate::build::fake::{Gate, log, started};
use crate::build::service::BuildError;

/// Room whose store finds the disk full when told to, with a build that waits at the gate.
async fn room_with_build() -> (Room, Arc<MemoryStore>, Gate) {
    let store = Arc::new(MemoryStore::default());
    let room = Room { store: Arc::clone(&store) as _, ..Room::new(false) };
    let gate = Gate::closed();
    room.script(vec![started(1), log(1, "x"), Act::Wait(gate.clone()), log(1, "y")]);
    (room, store, gate)
}

fn is_unstored<T>(result: Result<T, BuildError>) -> bool {
    matches!(result, Err(BuildError::Unstored { failure, .. }) if failure.disk_full)
}

#[tokio::test]
async fn an_end_that_cannot_be_stored_is_told_to_nobody_until_it_is() {
    let (room, store, gate) = room_with_build().await;
    let service = room.start().await;
    let handle = service.handle();
    let id = submit(&handle, spec("a")).await;
    gate.reached().await;
    let watching = tokio::spawn({
        let handle = handle.clone();
        let id = id.clone();
        async move { events(&handle, &id, 1).await }
    });
    store.full.store(true, Ordering::SeqCst);
    gate.open();
    let cancelled = tokio::time::timeout(Duration::from_secs(20), handle.cancel(&id)).await;
    assert!(is_unstored(cancelled.expect("a caller waits for a full disk")));
    assert!(is_unstored(handle.remove(&id).await));
    assert_eq!(handle.get(&id).await.unwrap().state, BuildState::Running);
    assert!(!watching.is_finished(), "nobody is told of an end that is not stored");

    store.full.store(false, Ordering::SeqCst);
    let seen = watching.await.unwrap();
    let ends = seen.iter().filter(|event| matches!(event.kind, BuildEventKind::Finished { .. })).count();
    assert_eq!(ends, 1);
    let state = ended(&handle, &id).await.state;
    assert!(matches!(state, BuildState::Succeeded | BuildState::Cancelled), "{state:?}");
    assert_eq!(handle.cancel(&id).await.unwrap().state, state);
    handle.remove(&id).await.unwrap();
}

#[test]
fn a_daemon_that_dies_with_an_end_that_is_not_stored_runs_the_build_again() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let daemon = runtime();
    let (room, store, id) = daemon.block_on(async {
        let (room, store, gate) = room_with_build().await;
        let service = room.start().await;
        let id = submit(&service.handle(), spec("a")).await;
        gate.reached().await;
        store.full.store(true, Ordering::SeqCst);
        gate.open();
        let unstored = async {
            while !is_unstored(service.handle().remove(&id).await) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), unstored).await.expect("the end was stored");
        std::mem::forget(service);
        (room, store, id)
    });
    daemon.shutdown_timeout(Duration::from_secs(5));
    // The disk is still full at the start of the next run.
    runtime().block_on(async {
        let service = room.start().await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        store.full.store(false, Ordering::SeqCst);
        let record = ended(&service.handle(), &id).await;
        // Its start could be stored in time, or the build failed with the reason.
        assert!(matches!(record.state, BuildState::Succeeded | BuildState::Failed), "{record:?}");
    });
}

#[tokio::test]
async fn an_end_that_only_the_log_has_is_the_end_of_the_build() {
    for (state, in_sqlite) in [(BuildState::Failed, true), (BuildState::Succeeded, false)] {
        let room = Room::new(in_sqlite);
        let record = record("left", BuildState::Running);
        std::fs::create_dir_all(&room.options.log_dir).unwrap();
        let log = EventLog::create(&room.options.log_dir, &record.id).unwrap();
        let changed = |state| BuildEventKind::StateChanged { state };
        let mut kinds = vec![changed(BuildState::Queued), changed(BuildState::Running)];
        kinds.extend((0..200).map(|n| BuildEventKind::StepStarted { step: n, name: n.to_string() }));
        kinds.push(BuildEventKind::Finished { state });
        let length = kinds.len() as u64;
        // An earlier release ran the build again.
        kinds
            .extend([changed(BuildState::Queued), BuildEventKind::Finished { state: BuildState::Cancelled }]);
        log.append(kinds).unwrap();
        room.store.insert(record.clone(), None).await.unwrap();

        let service = room.start().await;
        let id = record.id.to_string();
        let found = ended(&service.handle(), &id).await;
        assert_eq!((found.state, found.last_sequence), (state, length));
        assert_eq!(found.fault.is_some(), state == BuildState::Failed);
        assert!(found.finished_at.is_some());
        assert!(room.solver.requests.lock().is_empty(), "it is not run again");
        let log = EventLog::reopen(&room.options.log_dir, &record.id).unwrap();
        assert_eq!((log.last_sequence(), log.read(150, 1).unwrap()[0].sequence), (length, 150));
        log.append(vec![changed(BuildState::Queued)]).unwrap();
        assert_eq!(log.read(length + 1, 1).unwrap().len(), 1, "the index fits the rest");
        service.handle().remove(&id).await.unwrap();
    }
}

#[tokio::test]
async fn what_went_in_is_attached_before_the_tags_are_set() {
    let room = Room::new(false);
    let handle = room.start().await.handle();
    let gate = Gate::closed();
    *room.images.publish_gate.lock() = Some(gate.clone());
    let id = submit(&handle, spec("app:1")).await;
    gate.reached().await;
    let attached = room.images.attached.lock().clone();
    assert_eq!(attached.len(), 1);
    assert_eq!(
        attached[0].provenance.as_ref().unwrap().content["runDetails"]["metadata"]["invocationId"],
        id.as_str()
    );
    gate.open();
    assert_eq!(ended(&handle, &id).await.state, BuildState::Succeeded);
}
