//! Where services of the room are reached. No service is routed yet, so every host is unknown.

use axum::Router;
use http::{HeaderMap, StatusCode, header};

/// Answers for hosts that no service of the room has claimed.
pub fn router() -> Router {
    Router::new().fallback(unknown_host)
}

async fn unknown_host(headers: HeaderMap) -> (StatusCode, String) {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or("this host");
    (StatusCode::NOT_FOUND, format!("no service of this room is routed at {host}\n"))
}
