//! Registry in memory, sufficient for BuildKit to push to and pull from.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

#[derive(Clone, Default)]
pub struct Registry {
    content: Arc<Mutex<HashMap<String, (String, Bytes)>>>,
}

impl Registry {
    /// Listens on a free port of the loopback until the test's runtime ends.
    pub async fn start() -> (Self, String) {
        let registry = Self::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let app = Router::new().fallback(answer).with_state(registry.clone());
        let app = app.layer(axum::extract::DefaultBodyLimit::disable());
        hearthd::task::spawn("test-registry", async move { axum::serve(listener, app).await });
        (registry, address)
    }

    pub fn get(&self, digest: &str) -> Option<Bytes> {
        self.content.lock().get(digest).map(|(_, bytes)| bytes.clone())
    }

    fn put(&self, kind: &str, bytes: Bytes) -> String {
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(&bytes)));
        self.content.lock().insert(digest.clone(), (kind.to_owned(), bytes));
        digest
    }
}

async fn answer(
    State(registry): State<Registry>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path();
    if path == "/v2/" {
        return StatusCode::OK.into_response();
    }
    if method == Method::POST && path.ends_with("/blobs/uploads/") {
        return (StatusCode::ACCEPTED, [(header::LOCATION, format!("{path}one"))]).into_response();
    }
    if method == Method::PUT {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        let digest = registry.put(kind, body);
        return (StatusCode::CREATED, [("docker-content-digest", digest)]).into_response();
    }
    let digest = path.rsplit('/').next().unwrap_or("");
    let found = registry.content.lock().get(digest).cloned();
    match found {
        None => StatusCode::NOT_FOUND.into_response(),
        Some((kind, bytes)) => {
            let headers = [
                (header::CONTENT_TYPE.as_str(), kind),
                (header::CONTENT_LENGTH.as_str(), bytes.len().to_string()),
                ("docker-content-digest", digest.to_owned()),
            ];
            let body = if method == Method::HEAD { Bytes::new() } else { bytes };
            (headers, axum::body::Body::from(body)).into_response()
        }
    }
}
