//! Calls of the Builds service.

use std::time::Duration;

use hearth_proto::v1::{
    Build, CancelBuildRequest, GetBuildRequest, InspectBuildRequest, InspectBuildResponse, ListBuildsRequest,
    PinBuildRequest, PruneBuildsRequest, PruneBuildsResponse, ReadBuildLogRequest, ReadBuildLogResponse,
    ReadStepHistoryRequest, ReadStepHistoryResponse, RemoveBuildRequest, SubmitBuildRequest,
    SubmitBuildResponse, WhyBuildRequest, WhyBuildResponse,
};

use super::{Client, ClientError, request_with_timeout, unary_request};

/// Default time limit of Cancel, which answers after the build's processes have ended.
pub const CANCEL_TIMEOUT: Duration = Duration::from_secs(180);

/// Time limit of Inspect, which fetches the base images of a Dockerfile.
const INSPECT_TIMEOUT: Duration = Duration::from_secs(310);
/// Time limit of Prune, which removes thousands of logs.
const PRUNE_TIMEOUT: Duration = Duration::from_secs(180);

impl Client {
    /// Starts a build and returns its id at once.
    pub async fn submit_build(
        &self,
        request: SubmitBuildRequest,
    ) -> Result<SubmitBuildResponse, ClientError> {
        self.message_or_error(self.builds().submit(unary_request(request)).await)
    }

    /// Returns a build by its id or an unambiguous prefix of it.
    pub async fn build(&self, build_id: &str) -> Result<Build, ClientError> {
        let request = GetBuildRequest { build_id: build_id.to_owned() };
        self.message_or_error(self.builds().get(unary_request(request)).await)
    }

    /// Returns the newest `limit` builds that match `filter`.
    pub async fn list_builds(
        &self,
        filter: ListBuildsRequest,
        limit: usize,
    ) -> Result<Vec<Build>, ClientError> {
        let mut builds = Vec::new();
        let mut request = filter;
        loop {
            let missing = limit.saturating_sub(builds.len());
            request.page_size = u32::try_from(missing.min(1000)).unwrap_or(1000);
            let page = self.message_or_error(self.builds().list(unary_request(request.clone())).await)?;
            builds.extend(page.builds.into_iter().take(missing));
            if builds.len() >= limit || page.next_page_token.is_empty() {
                return Ok(builds);
            }
            if page.next_page_token == request.page_token {
                return Err(ClientError::Protocol(
                    "the daemon named a page of builds as its own next page".to_owned(),
                ));
            }
            request.page_token = page.next_page_token;
        }
    }

    /// Returns a part of a build's log as text.
    pub async fn read_log(&self, request: ReadBuildLogRequest) -> Result<ReadBuildLogResponse, ClientError> {
        self.message_or_error(self.builds().read_log(unary_request(request)).await)
    }

    /// Returns the steps of the last builds of a tag, newest first.
    pub async fn step_history(&self, tag: &str) -> Result<ReadStepHistoryResponse, ClientError> {
        let request = ReadStepHistoryRequest { tag: tag.to_owned(), limit: 0 };
        self.message_or_error(self.builds().read_step_history(unary_request(request)).await)
    }

    /// Explains why steps of a build ran, within a time limit.
    pub async fn why_build(
        &self,
        request: WhyBuildRequest,
        limit: Duration,
    ) -> Result<WhyBuildResponse, ClientError> {
        self.message_or_error(self.builds().why(request_with_timeout(limit, request)).await)
    }

    /// Cancels a build and waits until its processes have ended.
    pub async fn cancel_build(&self, build_id: &str, limit: Duration) -> Result<Build, ClientError> {
        let request = CancelBuildRequest { build_id: build_id.to_owned() };
        self.message_or_error(self.builds().cancel(request_with_timeout(limit, request)).await)
    }

    /// Asks a question about a Dockerfile.
    pub async fn inspect_build(
        &self,
        request: InspectBuildRequest,
    ) -> Result<InspectBuildResponse, ClientError> {
        self.message_or_error(self.builds().inspect(request_with_timeout(INSPECT_TIMEOUT, request)).await)
    }

    /// Keeps a build that has ended, or ends that.
    pub async fn pin_build(&self, build_id: &str, pinned: bool) -> Result<Build, ClientError> {
        let request = PinBuildRequest { build_id: build_id.to_owned(), pinned };
        self.message_or_error(self.builds().pin(unary_request(request)).await)
    }

    /// Removes builds that have ended.
    pub async fn prune_builds(
        &self,
        request: PruneBuildsRequest,
    ) -> Result<PruneBuildsResponse, ClientError> {
        self.message_or_error(self.builds().prune(request_with_timeout(PRUNE_TIMEOUT, request)).await)
    }

    /// Removes the record of a build that has ended.
    pub async fn remove_build(&self, build_id: &str) -> Result<(), ClientError> {
        let request = RemoveBuildRequest { build_id: build_id.to_owned() };
        self.message_or_error(self.builds().remove(unary_request(request)).await).map(|_| ())
    }
}
