use std::future::{pending, ready};
use std::time::Duration;

use axum::body::Body;

use super::*;
use crate::access::policy::PolicyRule;
use crate::audit::{AuditQuery, FileLimits};

const CHANGES: &str = "/hearth.v1.Builds/Submit";
const READS: &str = "/hearth.v1.Builds/Get";

fn trail() -> (tempfile::TempDir, AuditTrail) {
    let directory = tempfile::tempdir().unwrap();
    let limits = FileLimits { bytes: 1 << 20, age: Duration::from_secs(86400) };
    let trail = AuditTrail::open(directory.path(), limits).unwrap();
    (directory, trail)
}

fn call(path: &str) -> AuditedCall {
    AuditedCall::of(&Verb::POST, path, PeerIdentity::Unix { uid: 0 })
}

async fn records(trail: &AuditTrail) -> Vec<AuditRecord> {
    trail.read(AuditQuery { limit: 100, ..AuditQuery::default() }).await.unwrap()
}

#[tokio::test]
async fn a_call_whose_client_goes_away_is_recorded_where_it_changes_something() {
    let (_directory, trail) = trail();
    for path in [CHANGES, READS] {
        let handler = async {
            record_object("a/b:1");
            pending().await
        };
        let cut = call(path).recorded(&trail, "ann", handler);
        assert!(tokio::time::timeout(Duration::from_millis(10), cut).await.is_err());
    }
    let [record] = records(&trail).await.try_into().unwrap();
    assert_eq!((&*record.caller, &*record.action, &*record.object), ("ann", "Builds.Submit", "a/b:1"));
    assert_eq!(record.outcome, AuditOutcome::Failed);
    assert!(record.detail.contains("went away"), "{}", record.detail);
}

#[tokio::test]
async fn a_denial_that_the_answer_hides_is_recorded_as_one() {
    let (_directory, trail) = trail();
    let denied =
        || AccessDenied { what: "use upload `x`".to_owned(), grant: "", rule: PolicyRule::UploadOwner };
    let not_found = || {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_FOUND;
        response
    };
    let by_handler = async {
        record_hidden_denial(&denied());
        not_found()
    };
    call(READS).recorded(&trail, "bob", by_handler).await;
    let mut with_extension = not_found();
    with_extension.extensions_mut().insert(denied());
    let answer = call("/v2/a/blobs/uploads/x").recorded(&trail, "bob", ready(with_extension)).await;
    assert!(answer.extensions().get::<AccessDenied>().is_none());
    call(READS).recorded(&trail, "bob", ready(not_found())).await;
    let records = records(&trail).await;
    assert_eq!(records.len(), 2, "{records:?}");
    for record in records {
        assert_eq!(record.outcome, AuditOutcome::Denied);
        assert_eq!(record.detail, "use upload `x`: only its owner may");
    }
}

#[tokio::test]
async fn a_token_in_an_unknown_path_or_verb_is_not_recorded() {
    let (_directory, trail) = trail();
    let secret = "eyJhbGciOiJIUzI1NiJ9.eyJuYW1lIjoiYSJ9.c2lnbmF0dXJl";
    let verb = Verb::from_bytes(secret.as_bytes()).unwrap();
    let post = &Verb::POST;
    for (verb, path) in [
        (post, format!("/hearth.v1.Builds/{secret}")),
        (post, format!("/v2/{secret}")),
        (post, format!("/v2/a/unknown/{secret}")),
        (post, format!("/{secret}")),
        (&verb, "/v2/a/manifests/1".to_owned()),
    ] {
        let call = AuditedCall::of(verb, &path, PeerIdentity::Unix { uid: 0 });
        assert!(!call.action().contains(secret), "{}", call.action());
        let mut denied = Response::new(Body::empty());
        *denied.status_mut() = StatusCode::UNAUTHORIZED;
        call.recorded(&trail, "", ready(denied)).await;
    }
    let records = records(&trail).await;
    assert_eq!(records.len(), 5);
    assert!(!format!("{records:?}").contains("eyJ"), "{records:?}");
}
