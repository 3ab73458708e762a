use super::*;
use crate::build::PruneBuilds;
use crate::build::service::BuildError;

async fn ids(handle: &Handle) -> Vec<String> {
    let query = crate::build::port::BuildQuery { limit: 100, ..Default::default() };
    handle.list(query).await.unwrap().into_iter().map(|record| record.id.to_string()).collect()
}

#[tokio::test]
async fn a_prune_removes_the_callers_ended_builds_and_spares_new_and_pinned_ones() {
    for in_sqlite in [false, true] {
        let room = Room::new(in_sqlite);
        let service = room.start().await;
        let handle = service.handle();
        let mut builds = Vec::new();
        for tag in ["a", "b", "c", "d"] {
            let id = submit(&handle, spec(tag)).await;
            ended(&handle, &id).await;
            builds.push(id);
        }
        let other =
            handle.submit(SubmitBuild { caller: "bob".to_owned(), ..request(spec("e")) }).await.unwrap();
        ended(&handle, &other.id.to_string()).await;
        settled(&handle, 0).await;
        assert!(handle.pin(&builds[0], true).await.unwrap().pinned);
        let prune = |keep, older_than, dry_run| PruneBuilds {
            submitted_by: Some("ann".to_owned()),
            keep,
            older_than: Duration::from_secs(older_than),
            dry_run,
        };
        assert!(handle.prune(prune(0, 3600, false)).await.unwrap().is_empty());
        let removed = |selected: Vec<BuildId>| selected.iter().map(ToString::to_string).collect::<Vec<_>>();
        let expected = [builds[2].clone(), builds[1].clone()];
        assert_eq!(removed(handle.prune(prune(1, 0, true)).await.unwrap()), expected);
        assert_eq!(ids(&handle).await.len(), 5);
        assert_eq!(removed(handle.prune(prune(1, 0, false)).await.unwrap()), expected);
        assert_eq!(ids(&handle).await, [other.id.to_string(), builds[3].clone(), builds[0].clone()]);
        assert!(!handle.pin(&builds[0], false).await.unwrap().pinned);
        assert_eq!(handle.prune(PruneBuilds::default()).await.unwrap().len(), 3);
    }
}

#[tokio::test]
async fn a_pinned_build_outlives_the_retention_and_one_that_runs_cannot_be_pinned() {
    let mut room = Room::new(false);
    room.options.keep_ended = 0;
    let service = room.start().await;
    let handle = service.handle();
    let gate = crate::build::fake::Gate::closed();
    room.script(vec![Act::Wait(gate.clone())]);
    let id = submit(&handle, spec("a")).await;
    assert!(matches!(handle.pin(&id, true).await, Err(BuildError::NotEnded { .. })));
    gate.open();
    ended(&handle, &id).await;
    handle.pin(&id, true).await.unwrap();
    let later = Timestamp::now() + Duration::from_secs(1_000_000);
    let remove = || crate::build::retention::remove_old_builds(&handle.shared, later);
    assert_eq!(remove().await.unwrap(), 0);
    handle.pin(&id, false).await.unwrap();
    assert_eq!(remove().await.unwrap(), 1);
}
