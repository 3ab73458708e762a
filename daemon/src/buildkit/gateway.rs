//! Gateway: questions to BuildKit about a build that do not make an image.
//!
//! ```text
//! Control.Solve without frontend and definition ----------------- runs until Return --> answer
//!    '- registers a build id: LLBBridge.Solve, LLBBridge.Solve, ... LLBBridge.Return
//! ```
//!
//! BuildKit treats the calls of `LLBBridge` that carry the build id as calls of a frontend inside that solve: they have
//! its sessions and its source policy. A gateway is opened with the same request as an ordinary solve and therefore
//! reaches the same sources.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use bollard_buildkit_proto::moby::buildkit::v1::control_client::ControlClient;
use bollard_buildkit_proto::moby::buildkit::v1::frontend;
use bollard_buildkit_proto::moby::buildkit::v1::frontend::llb_bridge_client::LlbBridgeClient;
use futures::future::BoxFuture;
use prost::Message as _;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Status};

use super::session::BuildKitSession;
use super::session::trees::TreeLease;
use super::solve::progress::SolveProgress;
use super::solve::{attributes, failure, unavailable};
use super::{BuildKitClient, channel};
use crate::build::port::{SolveAnswer, SolveError, SolveProgram, SolveQuestion, SolveRequest};

/// Metadata key with which a call of `LLBBridge` names its build.
const BUILD_ID: &str = "buildkit-controlapi-buildid";
/// Time limit for one question. BuildKit reads the Dockerfile and the configurations of base images for it.
const QUESTION_LIMIT: Duration = Duration::from_secs(120);
/// Time limit for BuildKit to end the solve after the last question.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

impl BuildKitClient {
    /// Answers a question about a build, within a time limit.
    pub(super) async fn answer(
        &self,
        request: &SolveRequest,
        question: SolveQuestion,
        cancel: &CancellationToken,
    ) -> Result<SolveAnswer, SolveError> {
        if let Some(fault) = attributes::reserved_argument_fault(request) {
            return Err(SolveError::Failed(Box::new(fault)));
        }
        if let SolveProgram::Llb { graph, .. } = &request.program {
            let definitions = match question {
                SolveQuestion::Definition => BTreeMap::from([(String::new(), graph.graph().encode())]),
                SolveQuestion::Lint | SolveQuestion::Outline | SolveQuestion::Targets => BTreeMap::new(),
            };
            return Ok(SolveAnswer { definitions, ..SolveAnswer::default() });
        }
        let answered = tokio::select! {
            () = cancel.cancelled() => return Err(SolveError::Cancelled),
            answered = timeout(QUESTION_LIMIT, self.ask_frontend(request, question)) => answered,
        };
        let status = match answered {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(status)) => status,
            Err(_) => Status::unavailable(format!("no answer in {QUESTION_LIMIT:?}")),
        };
        if channel::is_connection_lost(&status) {
            return Err(unavailable(&status));
        }
        let progress = SolveProgress::new(&request.files.dockerfile_name);
        Err(SolveError::Failed(Box::new(failure::fault_of_status(&status, &progress, false))))
    }

    async fn ask_frontend(
        &self,
        request: &SolveRequest,
        question: SolveQuestion,
    ) -> Result<SolveAnswer, Status> {
        let mut gateway = Gateway::open(self, request).await?;
        let mut frontend_opt = attributes::frontend(request, self.shared);
        if let Some(id) = subrequest(question) {
            frontend_opt.insert("requestid".to_owned(), id.to_owned());
        }
        let asked = frontend::SolveRequest {
            frontend: attributes::DOCKERFILE_FRONTEND.to_owned(),
            frontend_opt,
            allow_result_return: true,
            allow_result_array_ref: true,
            ..frontend::SolveRequest::default()
        };
        let result = gateway.solve(asked).await?;
        gateway.close().await;
        Ok(answer_of(result))
    }
}

/// Returns the id of a sub-request of the Dockerfile frontend.
fn subrequest(question: SolveQuestion) -> Option<&'static str> {
    match question {
        SolveQuestion::Lint => Some("frontend.lint"),
        SolveQuestion::Outline => Some("frontend.outline"),
        SolveQuestion::Targets => Some("frontend.targets"),
        SolveQuestion::Definition => None,
    }
}

fn answer_of(result: frontend::Result) -> SolveAnswer {
    let refs: HashMap<String, frontend::Ref> = match result.result {
        Some(frontend::result::Result::Ref(one)) => HashMap::from([(String::new(), one)]),
        Some(frontend::result::Result::Refs(all)) => all.refs,
        Some(frontend::result::Result::RefDeprecated(_) | frontend::result::Result::RefsDeprecated(_))
        | None => HashMap::new(),
    };
    let definitions =
        refs.into_iter().filter_map(|(name, one)| Some((name, one.def?.encode_to_vec()))).collect();
    SolveAnswer { metadata: result.metadata.into_iter().collect::<BTreeMap<_, _>>(), definitions }
}

/// An open solve that waits for calls of a frontend; dropping it cancels the solve.
pub(super) struct Gateway {
    bridge: LlbBridgeClient<Channel>,
    build_id: MetadataValue<Ascii>,
    /// The call of `Control.Solve`, which is answered when the gateway is closed or the solve fails.
    control_solve: BoxFuture<'static, Result<(), Status>>,
    _sessions: (TreeLease, BuildKitSession),
}

impl Gateway {
    pub(super) async fn open(client: &BuildKitClient, request: &SolveRequest) -> Result<Self, Status> {
        let sessions = client.open_sessions(request).await?;
        let solve = attributes::open_request(request, sessions.1.id());
        let build_id = solve.r#ref.parse().map_err(|_| Status::internal("the id of a solve is not ASCII"))?;
        let mut control: ControlClient<Channel> = client.control.clone();
        let control_solve = Box::pin(async move { control.solve(solve).await.map(|_| ()) });
        let bridge = channel::bridge(&client.address);
        Ok(Self { bridge, build_id, control_solve, _sessions: sessions })
    }

    fn call<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert(BUILD_ID, self.build_id.clone());
        request
    }

    pub(super) async fn solve(
        &mut self,
        request: frontend::SolveRequest,
    ) -> Result<frontend::Result, Status> {
        let call = self.call(request);
        let answer = tokio::select! {
            biased;
            answer = self.bridge.solve(call) => answer?,
            ended = &mut self.control_solve => {
                ended?;
                return Err(Status::unavailable("BuildKit ended the solve before its question"));
            }
        };
        answer.into_inner().result.ok_or_else(|| Status::internal("BuildKit gave no result"))
    }

    /// Ends the solve without a result.
    pub(super) async fn close(mut self) {
        let call = self.call(frontend::ReturnRequest {
            result: Some(frontend::Result::default()),
            ..frontend::ReturnRequest::default()
        });
        let ended = timeout(CLOSE_LIMIT, async {
            self.bridge.r#return(call).await?;
            self.control_solve.await
        });
        match ended.await {
            Ok(Ok(())) => {}
            // The answers are here, and dropping the call of Solve cancels it.
            Ok(Err(error)) => tracing::debug!(%error, "failed to end a solve without a result"),
            Err(_) => tracing::debug!(limit = ?CLOSE_LIMIT, "BuildKit did not end a solve without a result"),
        }
    }
}
