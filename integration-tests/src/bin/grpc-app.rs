//! A gRPC server for end-to-end tests: the standard health service, over HTTP/2 without TLS.

#![allow(clippy::expect_used, reason = "a program of tests")]

use std::net::{Ipv4Addr, SocketAddr};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 50051));
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("app", tonic_health::ServingStatus::Serving).await;
    let served = tonic::transport::Server::builder().add_service(health).serve(address).await;
    served.expect("the port can be listened on");
}
