//! A scripted daemon for tests, behind a real unix socket.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _, stream};
use hearth_proto::v1::exec_request::Message;
use hearth_proto::v1::services_server::{Services, ServicesServer};
use hearth_proto::v1::*;
use parking_lot::Mutex;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status, Streaming};

use super::{Client, DaemonAddress, DaemonTarget};

type ScriptedStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers to each kind of call, in order, and a record of the requests.
#[derive(Default)]
pub(crate) struct DaemonScript {
    pub watches: Mutex<VecDeque<Vec<Result<DeployEvent, Status>>>>,
    pub logs: Mutex<VecDeque<Vec<Result<LogLine, Status>>>>,
    /// The service that Get returns; none means that it does not exist.
    pub service: Mutex<Option<Service>>,
    pub watched: Mutex<Vec<WatchDeployRequest>>,
    pub read: Mutex<Vec<ReadServiceLogsRequest>>,
    /// True when a watch stays open after its last event, like that of a running deploy.
    pub stays: bool,
}

/// Runs `test` with a client that is connected to a daemon with this `script`.
pub(crate) async fn with_client<F: Future<Output = ()>>(
    script: &Arc<DaemonScript>,
    test: impl FnOnce(Client) -> F,
) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
    let daemon = tonic::transport::Server::builder()
        .add_service(ServicesServer::new(ScriptedDaemon(Arc::clone(script))))
        .serve_with_incoming(listener);
    let testing = async {
        let target = DaemonTarget {
            token_from_environment: false,
            address: DaemonAddress::Unix(socket.clone()),
            token: None,
        };
        test(Client::connect(&target).await.unwrap()).await;
    };
    let limit = std::time::Duration::from_secs(20);
    tokio::select! {
        ended = daemon => panic!("the daemon ended: {ended:?}"),
        done = tokio::time::timeout(limit, testing) => done.unwrap(),
    }
}

struct ScriptedDaemon(Arc<DaemonScript>);

fn not_scripted<T>() -> Result<Response<T>, Status> {
    Err(Status::unimplemented("not in the script"))
}

#[tonic::async_trait]
impl Services for ScriptedDaemon {
    type WatchStream = ScriptedStream<DeployEvent>;
    type LogsStream = ScriptedStream<ServiceLogLines>;
    type ExecStream = ScriptedStream<ExecResponse>;

    async fn watch(
        &self,
        request: Request<WatchDeployRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        self.0.watched.lock().push(request.into_inner());
        let next = self.0.watches.lock().pop_front();
        let events = stream::iter(next.ok_or_else(|| Status::unavailable("the script is over"))?);
        let stays = self.0.stays;
        let rest = stream::once(async move {
            if stays {
                std::future::pending::<()>().await;
            }
        });
        Ok(Response::new(Box::pin(events.chain(rest.filter_map(|()| async { None })))))
    }

    async fn logs(
        &self,
        request: Request<ReadServiceLogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        self.0.read.lock().push(request.into_inner());
        let next = self.0.logs.lock().pop_front();
        let lines = next.ok_or_else(|| Status::unavailable("the script is over"))?;
        let message = |line| {
            let lines = vec![InstanceLogLine { instance_id: "m7xh7f3k9wq2".into(), line: Some(line) }];
            ServiceLogLines { lines }
        };
        let lines = lines.into_iter().map(move |line| line.map(message));
        Ok(Response::new(Box::pin(stream::iter(lines))))
    }

    async fn get(&self, _: Request<GetServiceRequest>) -> Result<Response<Service>, Status> {
        let service = self.0.service.lock().clone();
        service.map(Response::new).ok_or_else(|| {
            let detail = ErrorDetail { code: "service_not_found".into(), ..ErrorDetail::default() };
            hearth_proto::status::status_with_detail(tonic::Code::NotFound, &detail)
        })
    }

    /// Echoes its input: stdin as standard output, sizes and signals as standard error. Exits at the end of
    /// the input, with the number of arguments as exit code.
    async fn exec(
        &self,
        request: Request<Streaming<ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let mut given = request.into_inner();
        let Some(Message::Begin(begin)) = given.message().await?.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("the first message is not `begin`"));
        };
        let code = i32::try_from(begin.command.len()).ok();
        let answers = given.map(move |message| {
            use exec_response::Message as Answer;
            let answer = match message?.message {
                Some(Message::Stdin(bytes)) => Answer::Stdout(bytes),
                Some(Message::StdinEnd(_)) => Answer::Exited(Exit { code, ..Exit::default() }),
                Some(Message::Resize(size)) => {
                    Answer::Stderr(format!("{}x{}", size.columns, size.rows).into())
                }
                Some(Message::Signal(number)) => Answer::Stderr(format!("signal {number}").into()),
                Some(Message::Begin(_)) | None => return Err(Status::invalid_argument("not now")),
            };
            Ok(ExecResponse { message: Some(answer) })
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn deploy(&self, _: Request<DeployRequest>) -> Result<Response<DeployResponse>, Status> {
        not_scripted()
    }
    async fn list(&self, _: Request<ListServicesRequest>) -> Result<Response<ListServicesResponse>, Status> {
        not_scripted()
    }
    async fn restart(&self, _: Request<RestartServiceRequest>) -> Result<Response<DeployResponse>, Status> {
        not_scripted()
    }
    async fn rollback(&self, _: Request<RollbackServiceRequest>) -> Result<Response<DeployResponse>, Status> {
        not_scripted()
    }
    async fn remove(
        &self,
        _: Request<RemoveServiceRequest>,
    ) -> Result<Response<RemoveServiceResponse>, Status> {
        not_scripted()
    }
    async fn list_routes(
        &self,
        _: Request<ListRoutesRequest>,
    ) -> Result<Response<ListRoutesResponse>, Status> {
        not_scripted()
    }
    async fn remove_route(
        &self,
        _: Request<RemoveRouteRequest>,
    ) -> Result<Response<RemoveRouteResponse>, Status> {
        not_scripted()
    }
}

/// Builds an event at a time in milliseconds.
pub(crate) fn event(
    sequence: u64,
    milliseconds: i64,
    event: deploy_event::Event,
) -> Result<DeployEvent, Status> {
    let nanos = i32::try_from(milliseconds % 1000 * 1_000_000).unwrap();
    let time = Some(prost_types::Timestamp { seconds: milliseconds / 1000, nanos });
    Ok(DeployEvent { sequence, time, event: Some(event) })
}

pub(crate) fn remark(text: &str) -> deploy_event::Event {
    deploy_event::Event::Trouble(DeployTrouble { message: text.to_owned() })
}

pub(crate) fn live() -> deploy_event::Event {
    deploy_event::Event::Live(DeployLive { took: None })
}

pub(crate) fn lost() -> Status {
    Status::unavailable("the connection broke")
}
