//! Runs an additional process in an instance of a service.

use hearth_proto::v1::exec_request::Message;
use hearth_proto::v1::{ExecBegin, ExecRequest, ExecResponse, exec_response};
use tokio::sync::mpsc;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming};

use super::{Client, ClientError};

/// Maximum number of input messages that wait to be sent.
const QUEUED_MESSAGES: usize = 16;

/// A running process. Dropping this value ends the process.
pub struct ExecProcess {
    /// Input of the process. The channel closes when the process has ended.
    pub input: mpsc::Sender<Message>,
    output: Streaming<ExecResponse>,
    address: String,
}

impl Client {
    /// Starts a process; returns when it runs.
    pub async fn exec(&self, begin: ExecBegin) -> Result<ExecProcess, ClientError> {
        let (input, messages) = mpsc::channel(QUEUED_MESSAGES);
        let requests = tokio_stream::once(Message::Begin(begin))
            .chain(ReceiverStream::new(messages))
            .map(|message| ExecRequest { message: Some(message) });
        let output = self.message_or_error(self.services().exec(Request::new(requests)).await)?;
        Ok(ExecProcess { input, output, address: self.address.clone() })
    }
}

impl ExecProcess {
    /// Returns the next output of the process, or its exit. A stream that ends before the exit is an error.
    pub async fn next(&mut self) -> Result<exec_response::Message, ClientError> {
        loop {
            let message = self.output.message().await;
            let message = message.map_err(|status| ClientError::from_status(&self.address, &status))?;
            match message {
                Some(ExecResponse { message: Some(message) }) => return Ok(message),
                Some(ExecResponse { message: None }) => {}
                None => {
                    return Err(ClientError::Protocol("the process ended without its exit code".to_owned()));
                }
            }
        }
    }
}
