//! Values for `RUN --mount=type=secret`.

use std::collections::BTreeMap;

use bollard_buildkit_proto::moby::buildkit::secrets::v1::secrets_server::Secrets;
use bollard_buildkit_proto::moby::buildkit::secrets::v1::{GetSecretRequest, GetSecretResponse};
use tonic::{Request, Response, Status};

use crate::model::secret::Secret;

/// Secret values by secret id.
pub(crate) struct SecretValues(pub(crate) BTreeMap<String, Secret<Vec<u8>>>);

#[tonic::async_trait]
impl Secrets for SecretValues {
    async fn get_secret(
        &self,
        request: Request<GetSecretRequest>,
    ) -> Result<Response<GetSecretResponse>, Status> {
        let id = request.into_inner().id;
        // `not found` makes BuildKit omit a secret that is not required.
        let value = self.0.get(&id).ok_or_else(|| Status::not_found(format!("secret {id} was not given")))?;
        Ok(Response::new(GetSecretResponse { data: value.reveal().clone() }))
    }
}
