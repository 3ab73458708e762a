//! Lists: `tags/list`, `_catalog`, `referrers`. Every page is bounded, and links to the next one in `Link`.

use axum::body::Body;
use axum::response::Response;
use hearth_oci::OCI_INDEX_TYPE;
use http::header::{CONTENT_TYPE, LINK};
use http::{HeaderName, HeaderValue};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::error_response::RegistryErrorResponse;
use super::{QueryParams, RegistryApi, header_value, route};
use crate::access::policy::{CallerAction, decide};
use crate::image::port::{ReferrerQuery, TagQuery};
use crate::model::access::Caller;
use crate::model::manifest::Manifest;
use crate::model::{Digest, Repository, Tag};

/// Maximum and default number of entries of a page.
const MAX_PAGE: usize = 1000;
/// Maximum number of referrers of a page; their descriptors carry annotations, which may be long.
const MAX_REFERRERS: usize = 100;
const MAX_REFERRER_BYTES: usize = 4 * 1024 * 1024;
/// Number of repositories that are read from the catalog at a time to fill a page of those that the caller may list.
const CATALOG_BATCH: usize = 500;

const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

impl RegistryApi {
    pub(super) async fn list_tags(
        &self,
        repository: &Repository,
        query: &QueryParams,
    ) -> Result<Response, RegistryErrorResponse> {
        let limit = page_size(query)?;
        let after = match query.get("last").filter(|last| !last.is_empty()) {
            Some(last) => {
                let tag: Tag = last.parse().map_err(|_| bad_last("tag"))?;
                Some((repository.clone(), tag))
            }
            None => None,
        };
        let query = TagQuery { repository: Some(repository.clone()), after, limit: limit + 1 };
        let images = self.catalog.tags(query).await?;
        if images.is_empty() && !self.catalog.has_manifests(repository).await? {
            return Err(RegistryErrorResponse::unknown(
                "NAME_UNKNOWN",
                format!("there is no repository `{repository}`"),
            ));
        }
        let tags: Vec<&str> = images.iter().take(limit).map(|image| image.tag.as_str()).collect();
        let next = tags.last().filter(|_| images.len() > limit);
        let next = next.map(|last| format!("/v2/{repository}/tags/list?n={limit}&last={last}"));
        page(&json!({"name": repository, "tags": tags}), "application/json", next)
    }

    pub(super) async fn list_repositories(
        &self,
        caller: &Caller,
        query: &QueryParams,
    ) -> Result<Response, RegistryErrorResponse> {
        let limit = page_size(query)?;
        let mut after: Option<Repository> = match query.get("last").filter(|last| !last.is_empty()) {
            Some(last) => Some(last.parse().map_err(|_| bad_last("repository"))?),
            None => None,
        };
        let mut visible: Vec<Repository> = Vec::new();
        while visible.len() <= limit {
            let names = self.catalog.repositories(after.clone(), CATALOG_BATCH).await?;
            let is_last = names.len() < CATALOG_BATCH;
            after = names.last().cloned().or(after);
            let is_listed = |name: &Repository| decide(caller, &CallerAction::ListRepository(name)).is_ok();
            visible.extend(names.into_iter().filter(is_listed));
            if is_last {
                break;
            }
        }
        let has_more = visible.len() > limit;
        visible.truncate(limit);
        let next = visible.last().filter(|_| has_more);
        let next = next.map(|last| {
            format!("/v2/_catalog?n={limit}&last={}", utf8_percent_encode(last.as_str(), NON_ALPHANUMERIC))
        });
        page(&json!({"repositories": visible}), "application/json", next)
    }

    pub(super) async fn list_referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        query: &QueryParams,
    ) -> Result<Response, RegistryErrorResponse> {
        let artifact_type = query.get("artifactType").filter(|kind| !kind.is_empty()).map(str::to_owned);
        let after = query.get("last").filter(|last| !last.is_empty()).map(route::digest).transpose()?;
        let found = self
            .catalog
            .referrers(ReferrerQuery {
                repository: repository.clone(),
                subject: *subject,
                artifact_type: artifact_type.clone(),
                after,
                limit: MAX_REFERRERS + 1,
            })
            .await?;
        let mut manifests = Vec::new();
        let mut bytes = 0;
        let mut last = None;
        for descriptor in found.iter().take(MAX_REFERRERS) {
            let content = self.manifest_content(&descriptor.digest).await?;
            let about = Manifest::parse(&descriptor.media_type, &content)
                .map_err(|error| RegistryErrorResponse::internal("reading a referrer", &error))?;
            let about = about.metadata();
            let mut entry = json!({
                "mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size,
            });
            if let Some(kind) = &about.artifact_type {
                entry["artifactType"] = json!(kind);
            }
            if !about.annotations.is_empty() {
                entry["annotations"] = json!(about.annotations);
            }
            bytes += entry.to_string().len();
            manifests.push(entry);
            last = Some(descriptor.digest);
            if bytes > MAX_REFERRER_BYTES {
                break;
            }
        }
        let next = last.filter(|_| found.len() > manifests.len()).map(|last| {
            let kind = artifact_type
                .as_deref()
                .map(|kind| format!("&artifactType={}", utf8_percent_encode(kind, NON_ALPHANUMERIC)));
            format!("/v2/{repository}/referrers/{subject}?last={last}{}", kind.unwrap_or_default())
        });
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX_TYPE, "manifests": manifests});
        let mut response = page(&index, OCI_INDEX_TYPE, next)?;
        if artifact_type.is_some() {
            response.headers_mut().insert(OCI_FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
        }
        Ok(response)
    }
}

/// Parses `n`, which must consist of digits; larger values are reduced to [`MAX_PAGE`].
fn page_size(query: &QueryParams) -> Result<usize, RegistryErrorResponse> {
    match query.get("n") {
        None => Ok(MAX_PAGE),
        Some(n) if !n.is_empty() && n.bytes().all(|byte| byte.is_ascii_digit()) => {
            Ok(n.parse().unwrap_or(MAX_PAGE).min(MAX_PAGE))
        }
        Some(_) => {
            Err(RegistryErrorResponse::bad("PAGINATION_NUMBER_INVALID", "`n` is not a number of entries"))
        }
    }
}

fn bad_last(what: &str) -> RegistryErrorResponse {
    RegistryErrorResponse::bad("PAGINATION_NUMBER_INVALID", format!("`last` is not a {what}"))
}

fn page(
    content: &Value,
    media_type: &'static str,
    next: Option<String>,
) -> Result<Response, RegistryErrorResponse> {
    let mut response = Response::new(Body::from(content.to_string()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    if let Some(next) = next {
        response.headers_mut().insert(LINK, header_value(&format!("<{next}>; rel=\"next\""))?);
    }
    Ok(response)
}
