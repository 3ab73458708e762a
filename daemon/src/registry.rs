//! The room's registry: content in files ([`blobs`]) and the HTTP API ([`http`]).

pub mod blobs;
pub mod http;
mod uploads;

pub use http::{Registry, RouteKind, UploadLimits, Verb, pattern_of, too_many, unauthorized};
