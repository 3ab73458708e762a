//! Subscription to containerd's events: they wake the reconciliation, and exits are recorded while they are known.
//!
//! Events may be lost: a subscription does not report earlier events, and containerd confirms it only with the first
//! event. So each new subscription counts as a change, and so does every reconnection.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::events::TaskExit;
use containerd_client::services::v1::{Container, SubscribeRequest, UpdateContainerRequest};
use containerd_client::types::Envelope;
use prost::Message as _;
use tokio::sync::watch;

use super::channel::{call, limit};
use super::failure::{ContainerdFault, unless_missing};
use super::{ContainerdContext, ReadinessStatus, cgroup, labels, observe};

const PAUSE: Duration = Duration::from_millis(200);
/// Time after which a subscription is assumed to be active.
const SETTLE: Duration = Duration::from_millis(300);

pub(super) struct ContainerdEvents {
    pub inner: Arc<ContainerdContext>,
    pub changes: Arc<watch::Sender<u64>>,
    pub status: watch::Receiver<ReadinessStatus>,
}

impl ContainerdEvents {
    pub(super) async fn run(mut self) {
        loop {
            if self.status.wait_for(|status| status.ready).await.is_err() {
                return;
            }
            if let Err(status) = self.follow().await {
                tracing::debug!(error = %status, "containerd event stream ended");
            }
            self.changed();
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    async fn follow(&self) -> Result<(), tonic::Status> {
        let filters = vec![format!(r#"namespace=="{}",topic~="^/tasks/""#, self.inner.namespace)];
        let mut client = self.inner.connection.events();
        let settled = async {
            tokio::time::sleep(SETTLE).await;
            self.changed();
        };
        // Earlier changes are found by the reconciliation once the subscription is active.
        let subscribe = client.subscribe(SubscribeRequest { filters });
        let subscribed = async { Ok::<_, tonic::Status>(subscribe.await?.into_inner()) };
        tokio::pin!(subscribed, settled);
        let mut events = tokio::select! {
            events = &mut subscribed => events?,
            () = &mut settled => subscribed.await?,
        };
        while let Some(event) = events.message().await? {
            if let Err(fault) = self.handle_event(&event).await {
                tracing::warn!(error = %fault, topic = event.topic, "failed to record an instance exit");
            }
            self.changed();
        }
        Ok(())
    }

    async fn handle_event(&self, event: &Envelope) -> Result<(), ContainerdFault> {
        let Some(content) = event.event.as_ref().filter(|_| event.topic == "/tasks/exit") else {
            return Ok(());
        };
        let exit = TaskExit::decode(content.value.as_slice())
            .map_err(|error| ContainerdFault::Other(error.to_string()))?;
        // Additional processes of an instance have their own id.
        if exit.id != exit.container_id {
            return Ok(());
        }
        let group = cgroup::path(&self.inner.namespace, &exit.container_id);
        let at = labels::time(exit.exited_at.as_ref());
        let found = observe::exit(exit.exit_status, at, || cgroup::out_of_memory(&group));
        let text =
            serde_json::to_string(&found).map_err(|error| ContainerdFault::Other(error.to_string()))?;
        let container = Container {
            id: exit.container_id,
            labels: HashMap::from([(labels::EXIT.to_owned(), text)]),
            ..Container::default()
        };
        let update_mask = labels::field_mask(&format!("labels.{}", labels::EXIT));
        let request = UpdateContainerRequest { container: Some(container), update_mask };
        // An instance that is being removed needs no exit record.
        unless_missing(call(limit::RECORD, self.inner.connection.containers().update(request)).await)
            .map(|_| ())
    }
}
