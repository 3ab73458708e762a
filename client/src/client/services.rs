//! Calls of the Services service: services and their routes.

use std::time::Duration;

use hearth_proto::v1::{
    DeployRequest, DeployResponse, GetServiceRequest, ListRoutesRequest, ListServicesRequest,
    RemoveRouteRequest, RemoveServiceRequest, RemoveServiceResponse, RestartServiceRequest,
    RollbackServiceRequest, Service, ServiceRoute,
};

use super::{Client, ClientError, request_with_timeout, unary_request};
use crate::duration;

/// Default time limit of a deploy, which copies an image of another registry into the room before it answers.
pub const DEPLOY_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// Default time limit of a removal in addition to the grace time. The daemon answers within a minute after the
/// grace time.
pub const REMOVE_TIMEOUT: Duration = Duration::from_secs(90);

impl Client {
    /// Creates a new revision of a service, or a new service, within `limit`; answers before the revision runs.
    pub async fn deploy(
        &self,
        request: DeployRequest,
        limit: Duration,
    ) -> Result<DeployResponse, ClientError> {
        self.message_or_error(self.services().deploy(request_with_timeout(limit, request)).await)
    }

    /// One service with its revisions, by its name or id.
    pub async fn service(&self, service: &str) -> Result<Service, ClientError> {
        let request = GetServiceRequest { service: service.to_owned() };
        self.message_or_error(self.services().get(unary_request(request)).await)
    }

    /// All services, by name, without their revisions.
    pub async fn list_services(&self) -> Result<Vec<Service>, ClientError> {
        let mut services = Vec::new();
        let mut request = ListServicesRequest { page_size: 1000, page_token: String::new() };
        loop {
            let page = self.message_or_error(self.services().list(unary_request(request.clone())).await)?;
            services.extend(page.services);
            if page.next_page_token.is_empty() {
                return Ok(services);
            }
            if page.next_page_token == request.page_token {
                return Err(ClientError::Protocol(
                    "a page of services has itself as the next page".to_owned(),
                ));
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Replaces the instance of a service by another of the same revision.
    pub async fn restart_service(&self, service: &str) -> Result<DeployResponse, ClientError> {
        let request = RestartServiceRequest { service: service.to_owned() };
        self.message_or_error(self.services().restart(unary_request(request)).await)
    }

    /// Creates a new revision from an earlier one. Revision 0 means the last one that was live before.
    pub async fn roll_back_service(
        &self,
        service: &str,
        revision: u32,
    ) -> Result<DeployResponse, ClientError> {
        let request = RollbackServiceRequest { service: service.to_owned(), revision };
        self.message_or_error(self.services().rollback(unary_request(request)).await)
    }

    /// Stops and removes a service; answers when nothing of it is left. `grace` is the time between the stop signal and
    /// SIGKILL.
    pub async fn remove_service(
        &self,
        service: &str,
        grace: Option<Duration>,
        limit: Duration,
    ) -> Result<RemoveServiceResponse, ClientError> {
        let request =
            RemoveServiceRequest { service: service.to_owned(), grace: grace.map(duration::to_wire) };
        self.message_or_error(self.services().remove(request_with_timeout(limit, request)).await)
    }

    /// Every domain of the room's services.
    pub async fn list_routes(&self) -> Result<Vec<ServiceRoute>, ClientError> {
        let answer =
            self.message_or_error(self.services().list_routes(unary_request(ListRoutesRequest {})).await)?;
        Ok(answer.routes)
    }

    /// Removes a domain from its service. Returns the service's name.
    pub async fn remove_route(&self, domain: &str) -> Result<String, ClientError> {
        let request = RemoveRouteRequest { domain: domain.to_owned() };
        let answer = self.message_or_error(self.services().remove_route(unary_request(request)).await)?;
        Ok(answer.service)
    }
}
