//! The API server: gRPC, `/v2/`, health and metrics, on one TCP port and one unix socket.
//!
//! Every request passes [`auth`] first; every gRPC error is converted by [`error`].

mod audit;
pub mod auth;
mod convert;
pub mod error;
pub mod grpc;
mod guarded;
pub mod http;
pub mod receive;
mod revocable_body;
pub mod serve;
pub mod shares;
mod unread_request;
