//! The room's registry: content in files ([`blobs`]) and the HTTP API ([`http`]).

pub mod blobs;
pub mod http;
mod uploads;

pub use http::{
    RegistryApi, RouteKind, RouteMethod, UploadLimits, invalid_token, route_pattern, too_many_requests,
    unauthorized,
};
