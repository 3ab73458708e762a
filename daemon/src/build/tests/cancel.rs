use super::*;
use crate::build::fake::{Gate, log, started};
use crate::task;

/// Stage of a build at its cancellation.
#[derive(Clone, Copy, Debug)]
enum At {
    Waiting,
    Context,
    Solve,
    Verify,
}

#[tokio::test]
async fn cancelled_build_never_publishes_its_tag() {
    for (at, in_sqlite) in [
        (At::Waiting, false),
        (At::Waiting, true),
        (At::Context, false),
        (At::Solve, false),
        (At::Solve, true),
        (At::Verify, false),
    ] {
        let mut room = Room::new(in_sqlite);
        room.options.limits.concurrency = 1;
        let service = room.start().await;
        let handle = service.handle();
        let (gate, first) = (Gate::closed(), Gate::closed());
        match at {
            At::Waiting => {
                room.script(vec![Act::Wait(first.clone())]);
                submit(&handle, spec("first")).await;
                first.reached().await;
            }
            At::Context => *room.contexts.gate.lock() = Some(gate.clone()),
            At::Solve => room.script(vec![started(1), log(1, "x"), Act::Wait(gate.clone())]),
            At::Verify => *room.images.verify_gate.lock() = Some(gate.clone()),
        }
        let id = submit(&handle, spec("victim")).await;
        if !matches!(at, At::Waiting) {
            gate.reached().await;
        }
        let opener = gate.clone();
        if matches!(at, At::Verify) {
            // Verification is short and is not interrupted: it completes, and then nothing is published.
            task::spawn("test", async move {
                tokio::time::sleep(Duration::from_millis(20)).await;
                opener.open();
            });
        }
        let record = handle.cancel(&id).await.unwrap();
        assert_eq!(record.state, BuildState::Cancelled, "{at:?}");
        gate.open();
        first.open();
        assert_eq!(ended(&handle, &id).await.state, BuildState::Cancelled);
        assert_eq!(
            handle.cancel(&id).await.unwrap().state,
            BuildState::Cancelled,
            "once more changes nothing"
        );
        let next = submit(&handle, spec("next")).await;
        assert_eq!(ended(&handle, &next).await.state, BuildState::Succeeded, "{at:?}");
        assert!(!room.published().iter().any(|tag| tag.contains("victim")), "{at:?}");
    }
}

#[tokio::test]
async fn a_build_that_publishes_is_not_cancelled_any_more() {
    let room = Room::new(false);
    let service = room.start().await;
    let handle = service.handle();
    let gate = Gate::closed();
    *room.images.publish_gate.lock() = Some(gate.clone());
    let id = submit(&handle, spec("a")).await;
    gate.reached().await;
    let cancel = task::spawn("test", {
        let (handle, id) = (handle.clone(), id.clone());
        async move { handle.cancel(&id).await.unwrap() }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    gate.open();
    assert_eq!(cancel.await.unwrap().state, BuildState::Succeeded);
    assert_eq!(room.published().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn cancel_and_publish_racing_agree_on_the_end() {
    let mut room = Room::new(false);
    room.options.limits = AdmissionLimits { concurrency: 8, queue: 1000, per_caller: 1000 };
    let service = room.start().await;
    let handle = service.handle();
    let mut racers = Vec::new();
    for n in 0..200u64 {
        let handle = handle.clone();
        racers.push(task::spawn("test", async move {
            let tag = format!("race-{n}");
            let id = submit(&handle, spec(&tag)).await;
            tokio::time::sleep(Duration::from_micros(n * 40)).await;
            let record = handle.cancel(&id).await.unwrap();
            assert!(record.state.is_final());
            (tag, record.state)
        }));
    }
    let mut cancelled = 0;
    for racer in racers {
        let (tag, state) = racer.await.unwrap();
        let published = room.published().contains(&format!("room.meshagent.com/{tag}"));
        assert_eq!(published, state == BuildState::Succeeded, "{tag} {state:?}");
        cancelled += usize::from(state == BuildState::Cancelled);
    }
    assert!(cancelled > 0, "nothing was cancelled: the race did not happen");
    settled(&handle, 0).await;
}
