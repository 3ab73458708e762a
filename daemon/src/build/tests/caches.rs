use super::*;
use crate::build::fake::CACHE_DIGEST;
use crate::model::fault::ErrorCode;

fn cached_spec(from: &[&str], to: &[&str]) -> BuildSpec {
    BuildSpec {
        cache_from: from.iter().map(|text| text.parse().unwrap()).collect(),
        cache_to: to.iter().map(|text| text.parse().unwrap()).collect(),
        ..spec("app:1")
    }
}

const CACHE: &str = "room.meshagent.com/app:cache";

#[tokio::test]
async fn a_written_cache_gets_its_tag_with_the_image() {
    let room = Room::new(false);
    let service = room.start().await;
    let handle = service.handle();
    let to = ["type=inline", &format!("type=registry,ref={CACHE},mode=max")];
    let id = submit(&handle, cached_spec(&[], &to)).await;
    assert_eq!(ended(&handle, &id).await.state, BuildState::Succeeded);
    let published = room.images.published.lock().clone();
    assert!(published.contains(&(CACHE.to_owned(), CACHE_DIGEST)), "{published:?}");
    assert_eq!(published.len(), 2);
    let caches = room.solver.requests.lock()[0].caches.clone();
    assert!(caches.inline && caches.export.unwrap().all_steps);
}

#[tokio::test]
async fn a_cache_that_cannot_be_used_is_a_warning_and_one_that_cannot_be_written_is_an_error() {
    let room = Room::new(false);
    let service = room.start().await;
    let handle = service.handle();
    room.images.known.lock().insert(CACHE.to_owned(), CACHE_DIGEST);
    let from = [CACHE, "room.meshagent.com/none:cache"];
    let id = submit(&handle, cached_spec(&from, &["type=local,dest=c,ignore-error=true"])).await;
    assert_eq!(ended(&handle, &id).await.state, BuildState::Succeeded);
    let imports = room.solver.requests.lock()[0].caches.imports.clone();
    assert_eq!(imports.iter().map(|cache| cache.digest).collect::<Vec<_>>(), [CACHE_DIGEST]);

    let id = submit(&handle, cached_spec(&[], &["type=local,dest=c"])).await;
    let record = ended(&handle, &id).await;
    assert_eq!(record.fault.unwrap().code, ErrorCode::BuildCacheNotWritten);
    assert_eq!(room.published().len(), 1);
}
