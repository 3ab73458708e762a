//! `/healthz`, `/readyz` and `/metrics` for probes and scrapers, without a token. They show the health and the
//! load of the daemon, never names of callers or objects.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse as _;
use axum::routing::get;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use metrics_exporter_prometheus::PrometheusHandle;

use crate::model::component::ComponentStatus;

/// Returns the current state of the components.
pub type ReadinessCheck = Arc<dyn Fn() -> Vec<ComponentStatus> + Send + Sync>;

/// Paths that are served without a token, with `GET`.
pub const PUBLIC_PATHS: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

pub fn router(readiness: ReadinessCheck, metrics: PrometheusHandle) -> Router {
    let handlers = [get(async || "ok\n"), get(readyz).with_state(readiness), get(render).with_state(metrics)];
    let routes = PUBLIC_PATHS.into_iter().zip(handlers);
    routes.fold(Router::new(), |router, (path, handler)| router.route(path, handler))
}

async fn readyz(State(readiness): State<ReadinessCheck>) -> (StatusCode, String) {
    let components = readiness();
    let line = |component: &ComponentStatus| {
        let state = if component.ready { "ready" } else { "not ready" };
        match component.detail.as_str() {
            "" => format!("{}: {state}\n", component.name),
            detail => format!("{}: {state}: {detail}\n", component.name),
        }
    };
    let status = if components.iter().all(|component| component.ready) {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, components.iter().map(line).collect())
}

/// Reports whether a request is a gRPC call, which is answered with a gRPC status.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Answers requests to unknown paths, in the protocol of the request.
pub async fn unknown_path(request: axum::extract::Request) -> axum::response::Response {
    if is_grpc(request.headers()) {
        return tonic::Status::unimplemented("this daemon has no such method").into_http();
    }
    (StatusCode::NOT_FOUND, "not found\n").into_response()
}

async fn render(State(metrics): State<PrometheusHandle>) -> String {
    metrics.run_upkeep();
    metrics.render()
}
