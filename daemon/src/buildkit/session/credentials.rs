//! Registry credentials, looked up when BuildKit asks for them, because they expire during long builds.

use std::sync::Arc;

use bollard_buildkit_proto::moby::filesync::v1::auth_server::Auth;
use bollard_buildkit_proto::moby::filesync::v1::{
    CredentialsRequest, CredentialsResponse, FetchTokenRequest, FetchTokenResponse, GetTokenAuthorityRequest,
    GetTokenAuthorityResponse, VerifyTokenAuthorityRequest, VerifyTokenAuthorityResponse,
};
use tonic::{Request, Response, Status};

use crate::build::port::CredentialProvider;

pub(super) struct RegistryAuthService(pub(super) Arc<dyn CredentialProvider>);

#[tonic::async_trait]
impl Auth for RegistryAuthService {
    async fn credentials(
        &self,
        request: Request<CredentialsRequest>,
    ) -> Result<Response<CredentialsResponse>, Status> {
        let found = self.0.for_registry(&request.into_inner().host);
        // An empty answer means that there are no credentials: BuildKit then accesses the registry anonymously.
        Ok(Response::new(found.map_or_else(CredentialsResponse::default, |credential| CredentialsResponse {
            username: credential.username,
            secret: credential.password.reveal().clone(),
        })))
    }

    // BuildKit fetches tokens itself when a client does not implement these calls.

    async fn fetch_token(
        &self,
        _: Request<FetchTokenRequest>,
    ) -> Result<Response<FetchTokenResponse>, Status> {
        Err(Status::unimplemented("tokens are fetched by BuildKit"))
    }

    async fn get_token_authority(
        &self,
        _: Request<GetTokenAuthorityRequest>,
    ) -> Result<Response<GetTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("tokens are fetched by BuildKit"))
    }

    async fn verify_token_authority(
        &self,
        _: Request<VerifyTokenAuthorityRequest>,
    ) -> Result<Response<VerifyTokenAuthorityResponse>, Status> {
        Err(Status::unimplemented("tokens are fetched by BuildKit"))
    }
}
