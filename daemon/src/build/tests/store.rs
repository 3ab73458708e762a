use super::*;
use crate::build::port::{BuildQuery, IdempotencyKey, InsertOutcome};
use crate::model::Digest;

fn key(caller: &str, key: &str, request: u8) -> Option<IdempotencyKey> {
    Some(IdempotencyKey {
        caller: caller.to_owned(),
        key: key.to_owned(),
        request: Digest::from_sha256([request; 32]),
    })
}

#[tokio::test]
async fn builds_are_kept_the_same_way_in_memory_and_in_sqlite() {
    for in_sqlite in [false, true] {
        let room = Room::new(in_sqlite);
        keeps_builds(room.store.as_ref()).await;
    }
}

async fn keeps_builds(store: &dyn BuildStore) {
    let states = [BuildState::Queued, BuildState::Running, BuildState::Failed];
    let mut records: Vec<BuildRecord> = states.iter().map(|state| record(state.as_str(), *state)).collect();
    for record in &records {
        assert_eq!(store.insert(record.clone(), None).await.unwrap(), InsertOutcome::New);
    }
    records.reverse();
    let list = |query: BuildQuery| async { store.list(query).await.unwrap() };
    assert_eq!(list(BuildQuery { limit: 10, ..BuildQuery::default() }).await, records);
    let page = BuildQuery { limit: 1, after: Some(records[0].id.clone()), ..BuildQuery::default() };
    assert_eq!(list(page).await, records[1..2]);
    let open = vec![BuildState::Queued, BuildState::Running];
    assert_eq!(list(BuildQuery { limit: 10, states: open, ..BuildQuery::default() }).await, records[1..]);
    let tag = Some("room.meshagent.com/failed".to_owned());
    assert_eq!(list(BuildQuery { limit: 10, tag, ..BuildQuery::default() }).await, records[..1]);
    let gone = BuildQuery { limit: 10, after: Some(BuildId::random()), ..BuildQuery::default() };
    assert_eq!(list(gone).await, []);

    let mut changed = records[0].clone();
    (changed.state, changed.last_sequence) = (BuildState::Cancelled, 9);
    store.update(changed.clone()).await.unwrap();
    assert_eq!(store.get(&changed.id).await.unwrap(), Some(changed.clone()));
    assert_eq!(store.get(&BuildId::random()).await.unwrap(), None);
    let found = store.ids_with_prefix(&changed.id.as_str()[..11], None, 2).await.unwrap();
    assert_eq!(found, [changed.id.clone()]);
    assert_eq!(store.ids_with_prefix("", None, 2).await.unwrap().len(), 2);
    assert_eq!(store.ids_with_prefix("", Some("ann"), 2).await.unwrap().len(), 2);
    assert_eq!(store.ids_with_prefix("", Some("eve"), 2).await.unwrap(), []);
    assert_eq!(store.ids_with_prefix("%", None, 2).await.unwrap(), []);

    let first = record("keyed", BuildState::Queued);
    assert_eq!(store.insert(first.clone(), key("ann", "k", 1)).await.unwrap(), InsertOutcome::New);
    let again = record("keyed", BuildState::Queued);
    assert_eq!(
        store.insert(again.clone(), key("ann", "k", 1)).await.unwrap(),
        InsertOutcome::Existing(first.id.clone())
    );
    assert_eq!(
        store.insert(again.clone(), key("ann", "k", 2)).await.unwrap(),
        InsertOutcome::Conflict(first.id.clone())
    );
    assert_eq!(store.get(&again.id).await.unwrap(), None, "nothing was stored");
    assert_eq!(store.insert(again.clone(), key("bob", "k", 2)).await.unwrap(), InsertOutcome::New);
    assert_eq!(
        store.find_by_key(&key("ann", "k", 1).unwrap()).await.unwrap(),
        Some(InsertOutcome::Existing(first.id.clone()))
    );
    store.remove(&first.id).await.unwrap();
    assert_eq!(store.get(&first.id).await.unwrap(), None);
    assert_eq!(store.find_by_key(&key("ann", "k", 1).unwrap()).await.unwrap(), None, "its key is free again");
}

#[tokio::test]
async fn a_database_that_was_closed_gives_back_what_was_stored() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.db");
    let kept = record("kept", BuildState::Queued);
    crate::store::StateStore::open(&path).unwrap().insert(kept.clone(), None).await.unwrap();
    let store = crate::store::StateStore::open(&path).unwrap();
    assert_eq!(store.get(&kept.id).await.unwrap(), Some(kept));
}

#[test]
fn the_platform_that_earlier_versions_stored_is_read() {
    let mut stored = serde_json::to_value(spec("a")).unwrap();
    let platforms = |stored: &serde_json::Value| {
        let spec: BuildSpec = serde_json::from_value(stored.clone()).unwrap();
        spec.platforms.iter().map(|platform| platform.as_str().to_owned()).collect::<Vec<_>>()
    };
    stored["platforms"] = serde_json::json!(["linux/amd64", "linux/arm64"]);
    assert_eq!(platforms(&stored), ["linux/amd64", "linux/arm64"]);
    stored.as_object_mut().unwrap().remove("platforms");
    stored["platform"] = serde_json::json!("linux/arm64");
    assert_eq!(platforms(&stored), ["linux/arm64"]);
    stored["platform"] = serde_json::Value::Null;
    assert_eq!(platforms(&stored), Vec::<String>::new());
}
