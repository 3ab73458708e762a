use super::*;
use crate::build::event_log::EventLog;
use crate::build::fake::{Gate, log, started};
use crate::model::fault::ErrorCode;
use crate::model::id::PackId;
use crate::model::{BuildMount, BuildMountSource, MountAccess};

/// Stores a build as an earlier run of the daemon left it.
async fn left_behind(room: &Room, state: BuildState, change: impl FnOnce(&mut BuildRecord)) -> String {
    let mut record = record("left", state);
    change(&mut record);
    std::fs::create_dir_all(&room.options.log_dir).unwrap();
    let log = EventLog::create(&room.options.log_dir, &record.id).unwrap();
    log.append(vec![BuildEventKind::StateChanged { state: BuildState::Queued }]).unwrap();
    if state == BuildState::Running {
        log.append(vec![
            BuildEventKind::StateChanged { state },
            BuildEventKind::StepStarted { step: 1, name: "a".to_owned() },
        ])
        .unwrap();
        // The last line was cut short by the crash.
        let mut bytes = std::fs::read(log.path()).unwrap();
        bytes.extend(b"{\"sequence\":4,\"ti");
        std::fs::write(log.path(), bytes).unwrap();
    }
    room.store.insert(record.clone(), None).await.unwrap();
    record.id.to_string()
}

#[tokio::test]
async fn after_a_crash_every_build_reaches_an_end() {
    for in_sqlite in [false, true] {
        let room = Room::new(in_sqlite);
        let pack = PackId::random();
        let gone = |record: &mut BuildRecord| {
            record.spec.mounts.push(BuildMount {
                source: BuildMountSource::Pack(pack.to_string()),
                target: "/context".parse().unwrap(),
                mode: MountAccess::ReadOnly,
                create: false,
            });
        };
        let queued = left_behind(&room, BuildState::Queued, |_| {}).await;
        let once = left_behind(&room, BuildState::Running, |record| record.attempts = 1).await;
        let twice = left_behind(&room, BuildState::Running, |record| record.attempts = 2).await;
        let secret = left_behind(&room, BuildState::Running, |record| {
            (record.attempts, record.has_secrets) = (1, true);
        })
        .await;
        let secret_queued = left_behind(&room, BuildState::Queued, |record| record.has_secrets = true).await;
        let packless = left_behind(&room, BuildState::Queued, gone).await;
        let stray = BuildId::random();
        EventLog::create(&room.options.log_dir, &stray).unwrap();

        room.script(vec![started(1), log(1, "again")]);
        room.script(vec![started(1), log(1, "again")]);
        let service = room.start().await;
        let handle = service.handle();
        for (id, expected) in [
            (&queued, BuildState::Succeeded),
            (&once, BuildState::Succeeded),
            (&twice, BuildState::Interrupted),
            (&secret, BuildState::Interrupted),
            (&secret_queued, BuildState::Interrupted),
            (&packless, BuildState::Interrupted),
        ] {
            let record = ended(&handle, id).await;
            assert_eq!(record.state, expected);
            if expected == BuildState::Interrupted {
                let fault = record.fault.unwrap();
                assert_eq!((fault.code.as_str(), fault.retryable), ("interrupted", true));
            }
        }
        let all = events(&handle, &once, 1).await;
        use BuildState::{Queued, Running};
        assert_eq!(states(&all), [Queued, Running, Queued, Running]);
        assert_eq!(handle.get(&once).await.unwrap().attempts, 2);
        assert!(all.iter().any(|event| matches!(event.kind, BuildEventKind::StepStarted { step: 2, .. })));
        assert_eq!(room.solver.requests.lock().len(), 2);
        assert!(
            EventLog::open(&room.options.log_dir, &stray).unwrap().is_none(),
            "a log without a build is removed"
        );
    }
}

#[test]
fn a_daemon_killed_mid_build_runs_it_again_and_one_killed_twice_interrupts_it() {
    let room = Room::new(true);
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let mut id = String::new();
    for _ in 0..2 {
        let gate = Gate::closed();
        room.script(vec![started(1), log(1, "x"), Act::Wait(gate.clone())]);
        let daemon = runtime();
        daemon.block_on(async {
            let service = room.start().await;
            if id.is_empty() {
                id = submit(&service.handle(), spec("a")).await;
            }
            gate.reached().await;
            // The daemon is killed without a drain: its runtime is dropped with all tasks.
            std::mem::forget(service);
        });
        daemon.shutdown_timeout(Duration::from_secs(5));
    }
    runtime().block_on(async {
        let service = room.start().await;
        assert_eq!(ended(&service.handle(), &id).await.state, BuildState::Interrupted);
        let queued = submit(&service.handle(), spec("b")).await;
        assert_eq!(ended(&service.handle(), &queued).await.state, BuildState::Succeeded);
    });
    assert_eq!(room.published(), ["room.meshagent.com/b"]);
}

#[tokio::test]
async fn draining_lets_builds_end_and_leaves_the_rest_to_the_next_run() {
    let room = Room::new(true);
    let service = room.start().await;
    let handle = service.handle();
    let (gate, other) = (Gate::closed(), Gate::closed());
    room.script(vec![started(1), Act::Wait(gate.clone())]);
    room.script(vec![started(1), Act::Wait(other.clone())]);
    let plain = submit(&handle, spec("plain")).await;
    gate.reached().await;
    let mut secret = request(spec("secret"));
    secret.secrets.values.insert("s".to_owned(), Secret::new(b"abcdef".to_vec()));
    let secret = handle.submit(secret).await.unwrap().id.to_string();
    other.reached().await;
    let waiting = submit(&handle, spec("waiting")).await;
    let watcher = handle.watch(&plain, 1, true).await.unwrap();
    handle.drain(Duration::from_millis(30)).await;
    assert!(handle.submit(request(spec("late"))).await.is_err());
    assert_eq!(handle.get(&plain).await.unwrap().state, BuildState::Queued);
    assert_eq!(handle.get(&waiting).await.unwrap().state, BuildState::Queued);
    assert_eq!(handle.get(&secret).await.unwrap().state, BuildState::Interrupted);
    let seen: Vec<_> = watcher.collect().await;
    assert!(seen.into_iter().all(|event| !matches!(event.unwrap().kind, BuildEventKind::Finished { .. })));
    drop(service);

    let service = room.start().await;
    for id in [&plain, &waiting] {
        assert_eq!(ended(&service.handle(), id).await.state, BuildState::Succeeded);
    }
    let idle = service.handle();
    idle.drain(Duration::from_secs(5)).await;
    assert_eq!(idle.running_and_waiting(), (0, 0));
}

#[tokio::test]
async fn a_log_that_lost_its_last_event_still_ends_for_its_readers() {
    let room = Room::new(true);
    let service = room.start().await;
    let handle = service.handle();
    room.script(vec![started(1), log(1, "x")]);
    let id = submit(&handle, spec("a")).await;
    let whole = events(&handle, &id, 1).await;
    settled(&handle, 0).await;
    let path = room.options.log_dir.join(format!("{id}.jsonl"));
    let text = std::fs::read_to_string(&path).unwrap();
    let cut = text.trim_end().rfind('\n').unwrap() + 1;
    std::fs::write(&path, &text[..cut]).unwrap();
    let again = events(&handle, &id, 1).await;
    let kinds = |events: &[BuildEvent]| events.iter().map(|event| event.kind.clone()).collect::<Vec<_>>();
    assert_eq!(kinds(&again), kinds(&whole));
    assert_eq!(events(&handle, &id, whole.len() as u64 + 1).await, []);
    std::fs::remove_file(&path).unwrap();
    // Without its file, the whole log is missing, and its last event keeps its number.
    let missing = BuildEventKind::Damaged { events: whole.len() as u64 - 1, bytes: 0 };
    let without = events(&handle, &id, 1).await;
    assert_eq!(kinds(&without), [missing, whole.last().unwrap().kind.clone()]);
    assert_eq!(without[1].sequence, whole.len() as u64);
}

#[tokio::test]
async fn a_build_that_waited_over_a_restart_is_run_in_the_domain_that_it_was_submitted_in() {
    for in_sqlite in [false, true] {
        let room = Room::new(in_sqlite);
        let team = TrustDomain::of_service("team");
        let in_team =
            left_behind(&room, BuildState::Queued, |record| record.domain = Some(team.clone())).await;
        let ended_in = async |id: &str| {
            room.script(vec![started(1)]);
            let service = room.start().await;
            ended(&service.handle(), id).await;
            room.solver.requests.lock().last().map(|request| request.domain.clone())
        };
        assert_eq!(ended_in(&in_team).await, Some(team));
        // A record that was stored before there were trust domains.
        let of_ann = left_behind(&room, BuildState::Queued, |_| {}).await;
        assert_eq!(ended_in(&of_ann).await, Some(TrustDomain::of_caller("ann")));
        // At that time a participant could have this name, so it is not treated as root.
        let of_uid =
            left_behind(&room, BuildState::Queued, |record| record.submitted_by = "uid:0".to_owned()).await;
        assert_eq!(ended_in(&of_uid).await, Some(TrustDomain::of_caller("uid:0")));
    }
}

#[tokio::test]
async fn a_build_with_a_secret_of_the_room_runs_again_with_its_current_value() {
    let room = Room::new(true);
    let name = || "npm-token".parse().unwrap();
    let running = left_behind(&room, BuildState::Running, |record| {
        record.attempts = 1;
        record.spec.room_secrets.insert("npm".to_owned(), name());
    })
    .await;
    let missing = left_behind(&room, BuildState::Queued, |record| {
        record.spec.room_secrets.insert("x".to_owned(), "gone".parse().unwrap());
    })
    .await;
    room.secrets.0.lock().insert("npm-token".to_owned(), "newest".to_owned());
    let service = room.start().await;
    let handle = service.handle();
    assert_eq!(ended(&handle, running.as_str()).await.state, BuildState::Succeeded);
    let failed = ended(&handle, missing.as_str()).await;
    assert_eq!(failed.fault.unwrap().code, ErrorCode::SecretNotFound);
    let requests = room.solver.requests.lock();
    let values: Vec<_> = requests.iter().map(|request| request.secrets["npm"].reveal().clone()).collect();
    assert_eq!(values, [b"newest".to_vec()]);
}
