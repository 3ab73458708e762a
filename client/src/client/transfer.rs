//! Transfers of images between the room and other registries. The daemon transfers the content.

use hearth_proto::v1::transfer_event::Event;
use hearth_proto::v1::{PullImageRequest, PushImageRequest, TransferDone, TransferEvent, TransferProgress};
use tonic::{Request, Streaming};

use super::{Client, ClientError};

impl Client {
    /// Copies an image of another registry into the room. `on_progress` receives the progress.
    pub async fn pull_image(
        &self,
        request: PullImageRequest,
        on_progress: &mut dyn FnMut(&TransferProgress),
    ) -> Result<TransferDone, ClientError> {
        let events = self.message_or_error(self.images().pull(Request::new(request)).await)?;
        self.follow_transfer(events, on_progress).await
    }

    /// Sends an image of the room to another registry. `on_progress` receives the progress.
    pub async fn push_image(
        &self,
        request: PushImageRequest,
        on_progress: &mut dyn FnMut(&TransferProgress),
    ) -> Result<TransferDone, ClientError> {
        let events = self.message_or_error(self.images().push(Request::new(request)).await)?;
        self.follow_transfer(events, on_progress).await
    }

    async fn follow_transfer(
        &self,
        mut events: Streaming<TransferEvent>,
        on_progress: &mut dyn FnMut(&TransferProgress),
    ) -> Result<TransferDone, ClientError> {
        loop {
            let event = events.message().await;
            let event = event.map_err(|status| ClientError::from_status(&self.address, &status))?;
            match event.map(|event| event.event) {
                Some(Some(Event::Done(done))) => return Ok(done),
                Some(Some(Event::Progress(progress))) => on_progress(&progress),
                Some(None) => {}
                None => {
                    return Err(ClientError::Protocol(
                        "the event stream of a transfer ended without a final event".to_owned(),
                    ));
                }
            }
        }
    }
}
