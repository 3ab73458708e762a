//! HTTP API of the registry: the OCI distribution spec 1.1, below `/v2/`.
//!
//! The layer in front authenticates the request and puts a [`Caller`] into its extensions. The handlers here
//! check by the policy what that caller may do with a repository, before anything is looked up.

mod blob;
mod error_response;
mod listing;
mod manifest;
mod range;
mod receive;
mod route;
mod unread_body;
mod upload;

use std::collections::HashMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, StatusCode};
use percent_encoding::percent_decode_str;
use tracing::Instrument as _;

use self::error_response::RegistryErrorResponse;
use self::route::RegistryRoute;
pub use self::route::{RouteKind, RouteMethod};
use super::blobs::BlobStore;
use super::uploads::OpenUploads;
use crate::access::policy;
use crate::image::port::{ArrivalListener, ImageCatalog};
use crate::model::access::Caller;
use crate::model::share_owner::ShareOwner;
use crate::task;

pub use super::uploads::UploadLimits;

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
/// Header by which older clients, such as `docker manifest`, recognise a registry; without it they refuse a response.
const API_VERSION: (HeaderName, HeaderValue) =
    (HeaderName::from_static("docker-distribution-api-version"), HeaderValue::from_static("registry/2.0"));

/// Handle of the registry's API; cheap to clone.
#[derive(Clone)]
pub struct RegistryApi {
    blobs: BlobStore,
    catalog: Arc<dyn ImageCatalog>,
    uploads: Arc<OpenUploads>,
    arrivals: Option<Arc<dyn ArrivalListener>>,
}

impl RegistryApi {
    pub fn new(limits: UploadLimits, blobs: BlobStore, catalog: Arc<dyn ImageCatalog>) -> Self {
        metrics::describe_counter!(
            "hearth_registry_requests_total",
            "Requests below /v2/ that the registry answered."
        );
        metrics::describe_counter!(
            "hearth_registry_damaged_blobs_total",
            "Blobs that were found damaged on the disk, and quarantined."
        );
        metrics::describe_counter!("hearth_registry_sent_bytes_total", "Content that /v2/ sent.");
        metrics::describe_counter!("hearth_registry_received_bytes_total", "Content that /v2/ received.");
        Self { blobs, catalog, uploads: Arc::new(OpenUploads::new(limits)), arrivals: None }
    }

    /// Notifies `arrivals` of pushed blobs and manifests.
    pub fn with_arrivals(mut self, arrivals: Arc<dyn ArrivalListener>) -> Self {
        self.arrivals = Some(arrivals);
        self
    }

    /// Routes for `/v2` and everything below it.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/v2", any(serve))
            .route("/v2/", any(serve))
            .route("/v2/{*path}", any(serve))
            .with_state(self.clone())
    }

    /// Drops the uploads that have been idle for too long, and returns their number. Must be called periodically.
    pub async fn expire_uploads(&self) -> usize {
        let expired = self.uploads.expired();
        let count = expired.len();
        if count > 0 && task::blocking("expire", move || drop(expired)).await.is_err() {
            tracing::warn!("failed to remove expired uploads; the next start removes them");
        }
        count
    }

    async fn answer(
        &self,
        route: &RegistryRoute,
        request: Request,
    ) -> Result<Response, RegistryErrorResponse> {
        let (parts, body) = request.into_parts();
        let caller =
            parts.extensions.get::<Caller>().cloned().ok_or_else(RegistryErrorResponse::unauthorized)?;
        let owner = parts.extensions.get::<ShareOwner>().map_or(caller.name.as_str(), |owner| &owner.0);
        let query = QueryParams::parse(parts.uri.query().unwrap_or_default());
        let (method, headers) = (&parts.method, &parts.headers);
        let verb = RouteMethod::of(method).filter(|verb| route.kind().methods().contains(verb));
        let verb = verb.ok_or_else(|| RegistryErrorResponse::method(route.kind()))?;
        if let Some(action) = route.action(verb) {
            policy::decide(&caller, &action)?;
        }
        match (route, verb) {
            (RegistryRoute::Base, _) => {
                let mut response = Response::new(Body::from("{}"));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                Ok(response)
            }
            (RegistryRoute::Catalog, _) => self.list_repositories(&caller, &query).await,
            (RegistryRoute::Tags(name), _) => self.list_tags(name, &query).await,
            (RegistryRoute::Referrers(name, subject), _) => self.list_referrers(name, subject, &query).await,
            (RegistryRoute::Manifest(name, reference), RouteMethod::Put) => {
                self.put_manifest(&caller, name, reference, headers, body).await
            }
            (RegistryRoute::Manifest(name, reference), RouteMethod::Delete) => {
                self.delete_manifest(name, reference).await
            }
            (RegistryRoute::Manifest(name, reference), _) => {
                self.get_manifest(name, reference, method, headers).await
            }
            (RegistryRoute::InvalidTag(_, tag), RouteMethod::Put) => {
                Err(RegistryErrorResponse::bad("MANIFEST_INVALID", format!("`{tag}` cannot be a tag")))
            }
            (RegistryRoute::InvalidTag(name, tag), _) => Err(RegistryErrorResponse::unknown(
                "MANIFEST_UNKNOWN",
                format!("repository `{name}` has no tag `{tag}`"),
            )),
            (RegistryRoute::Blob(name, digest), RouteMethod::Delete) => self.delete_blob(name, digest).await,
            (RegistryRoute::Blob(name, digest), _) => self.get_blob(name, digest, method, headers).await,
            (RegistryRoute::Uploads(name), _) => self.begin_upload(&caller, owner, name, &query, body).await,
            (RegistryRoute::Upload(name, id), RouteMethod::Patch) => {
                self.patch_upload(&caller, name, id, headers, body).await
            }
            (RegistryRoute::Upload(name, id), RouteMethod::Put) => {
                self.put_upload(&caller, name, id, &query, headers, body).await
            }
            (RegistryRoute::Upload(name, id), RouteMethod::Delete) => {
                self.cancel_upload(&caller, name, id).await
            }
            (RegistryRoute::Upload(name, id), _) => self.upload_status(&caller, name, id).await,
        }
    }
}

/// Pattern of a path without the names in it, for metrics and the audit trail.
pub fn route_pattern(path: &str) -> Option<&'static str> {
    RegistryRoute::parse(path).ok().map(|route| route.kind().pattern())
}

/// Response 401 to a request without a token, in the format of the distribution spec, for the layer that checks tokens.
pub fn unauthorized() -> Response {
    RegistryErrorResponse::unauthorized().into_response()
}

/// Response 401 to a request whose token is refused: `reason` is the code of the error.
pub fn invalid_token(reason: &str, message: &str) -> Response {
    RegistryErrorResponse::invalid_token(reason, message).into_response()
}

/// Response 429 in the format of the distribution spec, for the layers that limit the requests of a caller.
pub fn too_many_requests(message: &str) -> Response {
    RegistryErrorResponse::busy(message).into_response()
}

async fn serve(State(registry): State<RegistryApi>, request: Request) -> Response {
    let method = method_label(request.method());
    let parsed = RegistryRoute::parse(request.uri().path());
    let label = parsed.as_ref().map_or("none", |route| route.kind().label());
    let names = parsed.as_ref().ok();
    let span = tracing::info_span!(
        "registry",
        method,
        route = label,
        repository = names.and_then(RegistryRoute::repository).map(tracing::field::display),
        digest = names.and_then(RegistryRoute::digest).map(tracing::field::display),
    );
    let mut response = answer_request(&registry, parsed, request).instrument(span.clone()).await;
    span.in_scope(|| tracing::debug!(status = response.status().as_u16(), "registry request answered"));
    response.headers_mut().insert(API_VERSION.0, API_VERSION.1);
    let status = response.status().as_u16().to_string();
    metrics::counter!("hearth_registry_requests_total", "method" => method, "route" => label, "status" => status)
        .increment(1);
    response
}

/// Answers a request whose path was parsed, or refuses it with the error of the path.
async fn answer_request(
    registry: &RegistryApi,
    parsed: Result<RegistryRoute, RegistryErrorResponse>,
    request: Request,
) -> Response {
    let (request, rest) = unread_body::recover_on_drop(request);
    let answered = match parsed {
        Ok(route) => registry.answer(&route, request).await,
        // An unauthenticated client does not learn what is wrong with a path.
        Err(_) if request.extensions().get::<Caller>().is_none() => {
            Err(RegistryErrorResponse::unauthorized())
        }
        Err(refusal) => Err(refusal),
    };
    match answered {
        Ok(response) => response,
        Err(refusal) => {
            rest.drain().await;
            refusal.into_response()
        }
    }
}

fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// Query parameters of a request. If a key occurs twice, the first value counts.
#[derive(Debug, Default)]
struct QueryParams(HashMap<String, String>);

impl QueryParams {
    fn parse(text: &str) -> Self {
        let mut pairs = HashMap::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let plain =
                |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
            // Media types in queries contain a `+` that not every client encodes, and never a space.
            let value = if key == "artifactType" {
                percent_decode_str(value).decode_utf8_lossy().into_owned()
            } else {
                plain(value)
            };
            pairs.entry(plain(key)).or_insert(value);
        }
        Self(pairs)
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

fn header_value(text: &str) -> Result<HeaderValue, RegistryErrorResponse> {
    HeaderValue::from_str(text).map_err(|error| RegistryErrorResponse::internal("making a header", &error))
}
