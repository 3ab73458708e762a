use std::sync::atomic::Ordering;

use super::*;
use crate::build::admission::AdmissionError;
use crate::build::fake::{Gate, digest_of, log, started};
use crate::build::log_text::BuildLogQuery;
use crate::build::port::BuildQuery;
use crate::build::retention::remove_old_builds;
use crate::build::service::BuildError;
use crate::build::submit::SubmitError;
use crate::model::fault::{DockerfileRange, ErrorCode, Fault, FaultStage};
use crate::model::id::PackId;
use crate::model::{BuildMount, BuildMountSource, Digest, MountAccess};
use crate::task;

fn with_pack(mut spec: BuildSpec, pack: &PackId) -> BuildSpec {
    spec.mounts.push(BuildMount {
        source: BuildMountSource::Pack(pack.to_string()),
        target: "/context".parse().unwrap(),
        mode: MountAccess::ReadOnly,
        create: false,
    });
    spec
}

fn progress(step: u32) -> Act {
    Act::Emit(BuildEventKind::StepFinished { step, cached: step == 1, duration: Duration::ZERO, error: None })
}

#[tokio::test]
async fn a_build_goes_from_its_spec_to_published_tags() {
    for in_sqlite in [false, true] {
        let room = Room::new(in_sqlite);
        let service = room.start().await;
        let handle = service.handle();
        room.script(vec![started(1), progress(1), started(2), log(2, "hello\n"), progress(2)]);
        let mut spec = spec("a/b:1");
        spec.tags.push("room.meshagent.com/c:2".parse().unwrap());
        let id = submit(&handle, spec).await;
        let record = ended(&handle, &id).await;
        assert_eq!(record.state, BuildState::Succeeded);
        let result = record.result.unwrap();
        assert_eq!((result.digest, result.size_bytes), (digest_of(&record.id), 42));
        assert_eq!((result.cached_steps, result.total_steps), (1, 2));
        assert_eq!(room.published(), ["room.meshagent.com/a/b:1", "room.meshagent.com/c:2"]);
        let all = events(&handle, &id, 1).await;
        assert_eq!(states(&all), [BuildState::Queued, BuildState::Running]);
        assert_eq!(handle.get(&id[..11]).await.unwrap().id.to_string(), id, "a prefix will do");
        let text = handle.read_log(&id, BuildLogQuery::default()).await.unwrap();
        assert_eq!(text.lines, ["#2 | hello"]);
        assert_eq!(handle.list(BuildQuery { limit: 5, ..BuildQuery::default() }).await.unwrap().len(), 1);
        settled(&handle, 0).await;
        let request = &room.solver.requests.lock()[0];
        assert_eq!(request.repository.as_str(), "a/b");
        assert_eq!(request.credentials.for_registry("127.0.0.1:4327").unwrap().username, "build");
    }
}

#[tokio::test]
async fn replay_from_any_number_equals_live() {
    let room = Room::new(true);
    let service = room.start().await;
    let handle = service.handle();
    let gate = Gate::closed();
    let mut acts = vec![Act::Wait(gate.clone()), started(1), started(2)];
    // Output of two steps in turns, because that of one would join into fewer events.
    acts.extend((0..300).map(|n| log(1 + n % 2, &format!("line {n}\n"))));
    room.script(acts);
    let id = submit(&handle, spec("a")).await;
    let live: Vec<_> = (0..5)
        .map(|n| {
            task::spawn("test", {
                let (handle, id) = (handle.clone(), id.clone());
                async move { events(&handle, &id, n * 2).await }
            })
        })
        .collect();
    gate.reached().await;
    gate.open();
    let whole = events(&handle, &id, 0).await;
    for (n, watcher) in live.into_iter().enumerate() {
        assert_eq!(watcher.await.unwrap(), whole[(n * 2).saturating_sub(1)..]);
    }
    for from in [1, 2, 64, 65, 128, whole.len() as u64, whole.len() as u64 + 1, 10_000] {
        let skipped = usize::try_from(from - 1).unwrap().min(whole.len());
        assert_eq!(events(&handle, &id, from).await, whole[skipped..], "{from}");
    }
}

#[tokio::test]
async fn dropped_watcher_harms_nothing() {
    let room = Room::new(false);
    let service = room.start().await;
    let handle = service.handle();
    let gate = Gate::closed();
    room.script(vec![started(1), log(1, "x"), Act::Wait(gate.clone()), log(1, "y")]);
    let id = submit(&handle, spec("a")).await;
    for _ in 0..3 {
        let mut stream = handle.watch(&id, 1, true).await.unwrap();
        stream.next().await.unwrap().unwrap();
    }
    // A watcher that never reads.
    let _idle = handle.watch(&id, 1, true).await.unwrap();
    gate.reached().await;
    let so_far: Vec<_> = handle.watch(&id, 1, false).await.unwrap().collect().await;
    assert!(so_far.len() >= 2, "without follow a stream ends at the newest event");
    gate.open();
    assert_eq!(ended(&handle, &id).await.state, BuildState::Succeeded);
    assert_eq!(room.published().len(), 1);
}

#[tokio::test]
async fn a_failed_build_reports_the_step_and_the_real_path_of_the_dockerfile() {
    let room = Room::new(false);
    let service = room.start().await;
    let handle = service.handle();
    let mut fault = Fault::new(FaultStage::Solve, ErrorCode::StepFailed, "exit code 3: echo canary-value");
    fault.exit_code = Some(3);
    fault.log_tail = vec!["the canary-value".to_owned()];
    fault.dockerfile = Some(DockerfileRange {
        path: "/Dockerfile".parse().unwrap(),
        start_line: 2,
        end_line: 2,
        text: "RUN false".to_owned(),
    });
    room.script(vec![started(1), log(1, "canary-"), log(1, "value\n"), Act::Fail(Box::new(fault))]);
    let mut request = request(spec("a"));
    request.secrets.values.insert("s".to_owned(), Secret::new(b"canary-value".to_vec()));
    let id = handle.submit(request).await.unwrap().id.to_string();
    let record = ended(&handle, &id).await;
    assert_eq!(record.state, BuildState::Failed);
    let fault = record.fault.unwrap();
    assert_eq!((fault.code.as_str(), fault.exit_code), ("step_failed", Some(3)));
    assert_eq!(fault.dockerfile.unwrap().path.as_str(), "/context/docker/Dockerfile");
    assert_eq!(fault.log_tail, ["the ***"]);
    assert!(room.published().is_empty());
    for entry in std::fs::read_dir(room.directory.path().join("logs")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!text.contains("canary-value") && text.contains("***"));
    }
}

#[tokio::test]
async fn images_of_the_room_are_pinned_and_unknown_ones_are_named() {
    let room = Room::new(false);
    let service = room.start().await;
    let handle = service.handle();
    let digest = Digest::from_sha256([1; 32]);
    room.images.known.lock().insert("room.meshagent.com/base:1".to_owned(), digest);
    *room.contexts.dockerfile.lock() =
        "# syntax=docker/dockerfile:1\nARG V=1\nFROM room.meshagent.com/base:$V\n".to_owned();
    let id = submit(&handle, spec("a")).await;
    assert_eq!(ended(&handle, &id).await.state, BuildState::Succeeded);
    {
        let requests = room.solver.requests.lock();
        assert_eq!(requests[0].images.len(), 1);
        assert_eq!(requests[0].images[0].name, "room.meshagent.com/base:1");
        assert_eq!(requests[0].images[0].digest, digest);
        assert!(
            requests[0].files.dockerfile_name.starts_with("# built in: "),
            "the frontend line is neutral"
        );
    }
    let mut other = spec("a");
    other.build_args.insert("V".to_owned(), "2".to_owned());
    let id = submit(&handle, other).await;
    let fault = ended(&handle, &id).await.fault.unwrap();
    assert_eq!(fault.code, "image_not_found");
    assert!(fault.message.contains("room.meshagent.com/base:2"), "{}", fault.message);
    let range = fault.dockerfile.unwrap();
    assert_eq!((range.start_line, range.text.as_str()), (3, "FROM room.meshagent.com/base:$V"));
}

#[tokio::test]
async fn a_missing_copy_source_fails_the_build_before_the_solve() {
    let room = Room::new(false);
    let service = room.start().await;
    let handle = service.handle();
    *room.contexts.dockerfile.lock() =
        "FROM scratch AS unused\nCOPY other /\nFROM scratch\nARG F=other\nCOPY $F /\n".to_owned();
    let mut missing = spec("a");
    missing.build_args.insert("F".to_owned(), "dir/file".to_owned());
    let id = submit(&handle, missing).await;
    let fault = ended(&handle, &id).await.fault.unwrap();
    assert_eq!((fault.code.as_str(), fault.stage), ("copy_source_missing", FaultStage::Context));
    assert_eq!(fault.message, "line 5: \"/dir/file\": not found in the build context");
    let range = fault.dockerfile.unwrap();
    assert_eq!((range.path.as_str(), range.text.as_str()), ("/context/docker/Dockerfile", "COPY $F /"));
    assert!(room.solver.requests.lock().is_empty());
}

#[tokio::test]
async fn no_frontend_but_the_built_in_one_runs() {
    let room = Room::new(false);
    let service = room.start().await;
    let handle = service.handle();
    let mut by_argument = spec("a");
    by_argument.build_args.insert("BUILDKIT_SYNTAX".to_owned(), "evil/frontend".to_owned());
    let id = submit(&handle, by_argument).await;
    assert_eq!(ended(&handle, &id).await.fault.unwrap().code, "frontend_not_allowed");
    let mut built_in = spec("a");
    built_in.build_args.insert("BUILDKIT_SYNTAX".to_owned(), "docker/dockerfile:1".to_owned());
    let id = submit(&handle, built_in).await;
    assert_eq!(ended(&handle, &id).await.state, BuildState::Succeeded);
    *room.contexts.dockerfile.lock() = "# syntax=evil/frontend\nFROM x\n".to_owned();
    let id = submit(&handle, spec("a")).await;
    let fault = ended(&handle, &id).await.fault.unwrap();
    assert_eq!(fault.code, "frontend_not_allowed");
    assert_eq!(fault.dockerfile.unwrap().text, "# syntax=evil/frontend");
    let requests = room.solver.requests.lock();
    assert_eq!(requests.len(), 1);
    assert!(requests[0].spec.build_args.is_empty());
}

#[tokio::test]
async fn a_solver_that_dies_is_given_a_second_chance_and_no_third() {
    let room = Room::new(false);
    let service = room.start().await;
    let handle = service.handle();
    room.script(vec![started(1), log(1, "a"), Act::Unavailable]);
    room.script(vec![Act::Unavailable]);
    room.script(vec![started(1), log(1, "b")]);
    let id = submit(&handle, spec("a")).await;
    assert_eq!(ended(&handle, &id).await.state, BuildState::Succeeded);
    let all = events(&handle, &id, 1).await;
    let warnings = all.iter().filter(|event| matches!(event.kind, BuildEventKind::Warning { .. })).count();
    assert_eq!(warnings, 1);
    let steps: Vec<u32> = all
        .iter()
        .filter_map(
            |event| if let BuildEventKind::StepStarted { step, .. } = event.kind { Some(step) } else { None },
        )
        .collect();
    assert_eq!(steps, [1, 2], "the second attempt's steps have numbers of their own");

    room.script(vec![started(1), Act::Unavailable]);
    room.script(vec![started(1), Act::Unavailable]);
    let id = submit(&handle, spec("a")).await;
    let fault = ended(&handle, &id).await.fault.unwrap();
    assert_eq!((fault.code.as_str(), fault.retryable), ("builder_unavailable", true));
}

#[tokio::test]
async fn files_that_change_under_a_build_are_looked_at_again_and_not_for_ever() {
    let room = Room::new(false);
    let service = room.start().await;
    let handle = service.handle();
    let changed = |code| {
        let message = "context file `f`: `/context/f` changed while it was read";
        vec![started(1), Act::Fail(Box::new(Fault::new(FaultStage::Context, code, message).retryable()))]
    };
    room.script(changed(ErrorCode::ContextChanged));
    room.script(changed(ErrorCode::ContextSelection));
    let id = submit(&handle, spec("a")).await;
    let record = ended(&handle, &id).await;
    assert_eq!(record.state, BuildState::Succeeded);
    assert!(record.context.is_some());
    let all = events(&handle, &id, 1).await;
    let warnings = all.iter().filter(|event| matches!(event.kind, BuildEventKind::Warning { .. })).count();
    assert_eq!(warnings, 2);

    for _ in 0..3 {
        room.script(changed(ErrorCode::ContextChanged));
    }
    let id = submit(&handle, spec("a")).await;
    let fault = ended(&handle, &id).await.fault.unwrap();
    assert!(fault.code == "context_changed" && fault.retryable && fault.message.contains("/context/f"));
    assert!(room.solver.scripts.lock().is_empty());
}

#[tokio::test]
async fn a_solver_that_stays_away_fails_the_build_after_the_wait() {
    let mut room = Room::new(false);
    room.options.solver_wait = Duration::from_millis(600);
    let service = room.start().await;
    let handle = service.handle();
    for _ in 0..10 {
        room.script(vec![Act::Unavailable]);
    }
    let id = submit(&handle, spec("a")).await;
    assert_eq!(ended(&handle, &id).await.fault.unwrap().code, "builder_unavailable");
}

#[tokio::test]
async fn a_build_over_its_time_fails_with_timeout_also_when_the_solver_does_not_listen() {
    let mut room = Room::new(false);
    room.options.stop_timeout = Duration::from_millis(100);
    let service = room.start().await;
    let handle = service.handle();
    for act in [Act::Wait(Gate::closed()), Act::Stubborn(Duration::from_secs(30))] {
        room.script(vec![started(1), act]);
        let mut spec = spec("a");
        spec.timeout = Some(Duration::from_millis(50));
        let id = submit(&handle, spec).await;
        let record = ended(&handle, &id).await;
        assert_eq!((record.state, record.fault.unwrap().code.as_str()), (BuildState::Failed, "timeout"));
    }
    assert!(room.published().is_empty());
    settled(&handle, 0).await;
}

#[tokio::test]
async fn a_task_that_panics_still_ends_its_build() {
    let room = Room::new(false);
    let service = room.start().await;
    let handle = service.handle();
    room.script(vec![started(1), Act::Panic]);
    let id = submit(&handle, spec("a")).await;
    assert_eq!(ended(&handle, &id).await.fault.unwrap().code, "internal");
    let id = submit(&handle, spec("a")).await;
    assert_eq!(ended(&handle, &id).await.state, BuildState::Succeeded, "the slot is free again");
}

#[tokio::test]
async fn slots_are_never_exceeded_and_callers_take_turns() {
    let mut room = Room::new(false);
    room.options.limits = AdmissionLimits { concurrency: 1, queue: 20, per_caller: 10 };
    let service = room.start().await;
    let handle = service.handle();
    let gate = Gate::closed();
    room.script(vec![Act::Wait(gate.clone())]);
    let mut ids = Vec::new();
    for caller in ["busy", "busy", "busy", "rare"] {
        let submitted =
            handle.submit(SubmitBuild { caller: caller.to_owned(), ..request(spec("a")) }).await.unwrap();
        ids.push(submitted.id);
    }
    gate.reached().await;
    assert_eq!(handle.running_and_waiting(), (1, 3));
    gate.open();
    for id in &ids {
        ended(&handle, id.as_str()).await;
    }
    let order: Vec<_> = room.solver.requests.lock().iter().map(|request| request.build.clone()).collect();
    assert_eq!(order, [ids[0].clone(), ids[1].clone(), ids[3].clone(), ids[2].clone()]);
    assert_eq!(room.solver.peak.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn refused_builds_say_why_and_leave_nothing() {
    let mut room = Room::new(true);
    room.options.limits = AdmissionLimits { concurrency: 1, queue: 1, per_caller: 2 };
    let service = room.start().await;
    let handle = service.handle();
    let gate = Gate::closed();
    room.script(vec![Act::Wait(gate.clone())]);
    submit(&handle, spec("a")).await;
    gate.reached().await;
    submit(&handle, spec("b")).await;
    let refused = handle.submit(request(spec("c"))).await.unwrap_err();
    assert!(matches!(refused, SubmitError::Denied(AdmissionError::CallerLimit { .. })), "{refused}");
    let refused =
        handle.submit(SubmitBuild { caller: "bob".to_owned(), ..request(spec("c")) }).await.unwrap_err();
    assert!(
        matches!(refused, SubmitError::Denied(AdmissionError::QueueFull { .. }))
            && refused.retry_after().is_some()
    );
    gate.open();
    let missing = with_pack(spec("c"), &PackId::random());
    settled(&handle, 0).await;
    let refused = handle.submit(request(missing)).await.unwrap_err();
    assert!(matches!(&refused, SubmitError::Refused(fault) if fault.code == "pack_not_found"), "{refused}");
    assert_eq!(handle.list(BuildQuery { limit: 9, ..BuildQuery::default() }).await.unwrap().len(), 2);
    assert_eq!(std::fs::read_dir(&room.options.log_dir).unwrap().count(), 2);

    drop(service);
    room.options.min_free_space = u64::MAX;
    let service = room.start().await;
    let refused = service.handle().submit(request(spec("c"))).await.unwrap_err();
    assert!(matches!(refused, SubmitError::DiskLow { floor: u64::MAX, .. }), "{refused}");
}

#[tokio::test]
async fn the_same_key_is_the_same_build_and_another_spec_under_it_is_refused() {
    for in_sqlite in [false, true] {
        let room = Room::new(in_sqlite);
        let service = room.start().await;
        let handle = service.handle();
        let keyed = |spec: BuildSpec, caller: &str| SubmitBuild {
            caller: caller.to_owned(),
            idempotency_key: Some("k".to_owned()),
            ..request(spec)
        };
        let both =
            tokio::join!(handle.submit(keyed(spec("a"), "ann")), handle.submit(keyed(spec("a"), "ann")));
        let (first, second) = (both.0.unwrap(), both.1.unwrap());
        assert_eq!(first.id, second.id);
        assert!(first.created != second.created);
        ended(&handle, first.id.as_str()).await;
        assert!(!handle.submit(keyed(spec("a"), "ann")).await.unwrap().created);
        let refused = handle.submit(keyed(spec("b"), "ann")).await.unwrap_err();
        assert!(matches!(&refused, SubmitError::KeyReused { build } if *build == first.id), "{refused}");
        assert!(handle.submit(keyed(spec("b"), "bob")).await.unwrap().created, "keys are per caller");
    }
}

#[tokio::test]
async fn packs_under_a_key_are_compared_by_their_files() {
    for in_sqlite in [false, true] {
        let room = Room::new(in_sqlite);
        let service = room.start().await;
        let handle = service.handle();
        let packs: Vec<PackId> = ["tree 1", "tree 1", "tree 2"]
            .map(|content| {
                let id = PackId::random();
                room.images.packs.lock().insert(id.clone(), 0);
                room.images.pack_contents.lock().insert(id.clone(), content.to_owned());
                id
            })
            .to_vec();
        let keyed = |pack: &PackId| SubmitBuild {
            idempotency_key: Some("k".to_owned()),
            ..request(with_pack(spec("a"), pack))
        };
        let first = handle.submit(keyed(&packs[0])).await.unwrap();
        let second = handle.submit(keyed(&packs[1])).await.unwrap();
        assert!(second.id == first.id && !second.created, "the same files were sent again");
        let other = handle.submit(keyed(&packs[2])).await.unwrap_err();
        assert!(matches!(&other, SubmitError::KeyReused { build } if *build == first.id), "{other}");
        ended(&handle, first.id.as_str()).await;
        // The pack of a build is removed with its end. Its caller may not have had the answer.
        room.images.pack_contents.lock().clear();
        assert_eq!(handle.submit(keyed(&packs[0])).await.unwrap().id, first.id);
        handle.submit(keyed(&packs[1])).await.unwrap_err();
        // The rights of the caller are no part of the request.
        let linked = |path_links| SubmitBuild {
            idempotency_key: Some("links".to_owned()),
            ..request(BuildSpec { path_links, ..spec("b") })
        };
        let followed = handle.submit(linked(SymlinkPolicy::Followed)).await.unwrap();
        assert_eq!(handle.submit(linked(SymlinkPolicy::Refused)).await.unwrap().id, followed.id);
    }
}

#[tokio::test]
async fn packs_are_held_from_submit_to_the_end_whatever_it_is() {
    let room = Room::new(false);
    let service = room.start().await;
    let handle = service.handle();
    let pack = PackId::random();
    room.images.packs.lock().insert(pack.clone(), 0);
    let held = || room.images.packs.lock()[&pack];
    let gate = Gate::closed();
    let fault = Box::new(Fault::new(FaultStage::Solve, ErrorCode::StepFailed, "x"));
    room.script(vec![Act::Wait(gate.clone())]);
    room.script(vec![Act::Fail(fault)]);
    let first = submit(&handle, with_pack(spec("a"), &pack)).await;
    gate.reached().await;
    let second = submit(&handle, with_pack(spec("b"), &pack)).await;
    ended(&handle, &second).await;
    handle.cancel(&second).await.unwrap();
    assert_eq!(held(), 1);
    handle.cancel(&first).await.unwrap();
    assert_eq!(held(), 0);
}

#[tokio::test]
async fn questions_about_no_build_or_several_are_errors_that_name_the_id() {
    let room = Room::new(true);
    let service = room.start().await;
    let handle = service.handle();
    for given in ["", "zzz", "../../etc", "%", &BuildId::random().to_string()] {
        assert!(matches!(handle.get(given).await, Err(BuildError::NotFound { .. })), "{given}");
        assert!(matches!(handle.watch(given, 1, true).await, Err(BuildError::NotFound { .. })), "{given}");
        assert!(matches!(handle.cancel(given).await, Err(BuildError::NotFound { .. })), "{given}");
        assert!(handle.remove(given).await.is_err(), "{given}");
    }
    let mut twins = [record("a", BuildState::Failed), record("a", BuildState::Failed)];
    (twins[0].id, twins[1].id) = ("abc000000000".parse().unwrap(), "abc000000001".parse().unwrap());
    for twin in twins {
        room.store.insert(twin, None).await.unwrap();
    }
    assert!(matches!(handle.get("abc").await, Err(BuildError::Ambiguous { .. })));
    assert_eq!(handle.get("abc000000001").await.unwrap().id.as_str(), "abc000000001");
}

#[tokio::test]
async fn removed_and_old_builds_are_gone_with_their_logs() {
    let mut room = Room::new(true);
    room.options.keep_ended = 2;
    let service = room.start().await;
    let handle = service.handle();
    let gate = Gate::closed();
    room.script(vec![Act::Wait(gate.clone())]);
    let running = submit(&handle, spec("a")).await;
    gate.reached().await;
    assert!(matches!(handle.remove(&running).await, Err(BuildError::NotEnded { .. })));
    let mut ids = Vec::new();
    for _ in 0..4 {
        let id = submit(&handle, spec("a")).await;
        ended(&handle, &id).await;
        settled(&handle, 1).await;
        ids.push(id);
    }
    handle.remove(&ids[3]).await.unwrap();
    assert!(handle.get(&ids[3]).await.is_err());
    assert_eq!(remove_old_builds(&handle.shared, Timestamp::now()).await.unwrap(), 1);
    assert!(handle.get(&ids[0]).await.is_err());
    assert!(handle.get(&ids[1]).await.is_ok());
    let later = Timestamp::now() + Duration::from_secs(86_401);
    assert_eq!(remove_old_builds(&handle.shared, later).await.unwrap(), 2);
    assert_eq!(std::fs::read_dir(&room.options.log_dir).unwrap().count(), 1, "only the running build's");
    gate.open();
    assert_eq!(ended(&handle, &running).await.state, BuildState::Succeeded);
}

#[tokio::test]
async fn the_logs_of_one_owner_are_bounded_and_the_oldest_go_first() {
    let mut room = Room::new(true);
    room.options.logs_per_owner = 30_000;
    let service = room.start().await;
    let handle = service.handle();
    let text = "x".repeat(10_000);
    let size = |id: &str| {
        std::fs::metadata(room.options.log_dir.join(format!("{id}.jsonl"))).map(|found| found.len())
    };
    let build = async |caller: &str| {
        room.script(vec![started(1), log(1, &text)]);
        let request = SubmitBuild { caller: caller.to_owned(), ..request(spec("a")) };
        let id = handle.submit(request).await.unwrap().id.to_string();
        assert_eq!(ended(&handle, &id).await.state, BuildState::Succeeded);
        settled(&handle, 0).await;
        id
    };
    let quiet = build("quiet").await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(build("ann").await);
    }
    // A retention pass follows the end of each build with a large log.
    let limit = tokio::time::Instant::now() + Duration::from_secs(20);
    while ids[..3].iter().any(|id| size(id).is_ok()) {
        assert!(tokio::time::Instant::now() < limit, "the oldest logs are kept");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(size(&ids[3]).is_ok() && size(&ids[4]).is_ok() && size(&quiet).is_ok());
    assert!(handle.get(&ids[0]).await.is_ok(), "the build itself stays");
    assert!(handle.read_log(&ids[0], BuildLogQuery::default()).await.unwrap().lines.is_empty());
    assert_eq!(states(&events(&handle, &ids[0], 1).await), [], "its watchers get its end");
}

#[tokio::test]
async fn layers_that_an_earlier_build_left_in_another_compression_are_converted_from_the_cache() {
    let room = Room::new(false);
    let base: Digest = format!("sha256:{}", "0b".repeat(32)).parse().unwrap();
    room.images.known.lock().insert("room.meshagent.com/base:1".to_owned(), base);
    *room.contexts.dockerfile.lock() =
        "FROM room.meshagent.com/base:1 AS a\nFROM a\nCOPY --from=other /x /\n".to_owned();
    room.images.known.lock().insert("docker.io/library/other:latest".to_owned(), base);
    room.images.known.lock().insert("other".to_owned(), base);
    let service = room.start().await;
    let handle = service.handle();
    *room.images.has_other_compression.lock() = true;
    let mut spec = spec("a");
    (spec.no_cache, spec.compression) = (NoCache::Everything, BuildCompression::Zstd);
    let id = submit(&handle, spec).await;
    assert_eq!(ended(&handle, &id).await.state, BuildState::Succeeded);
    let requests = room.solver.requests.lock();
    let solves: Vec<_> =
        requests.iter().map(|request| (request.converts_layers, request.spec.no_cache.clone())).collect();
    assert_eq!(solves, [(false, NoCache::Everything), (true, NoCache::Nothing)]);
    let forms = room.images.forms.lock();
    let converted: Vec<bool> = forms.iter().map(|form| form.converted).collect();
    assert_eq!(converted, [false, true]);
    for form in forms.iter() {
        let found = form.bases[0].base.as_ref().unwrap();
        assert_eq!((found.image.repository.as_str(), found.image.digest), ("base", base));
        assert_eq!(form.compression, BuildCompression::Zstd);
    }
}
