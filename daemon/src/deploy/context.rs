//! State that the loops of all services and the requests share. It knows the parts below it ([`ServiceEntries`],
//! [`ServiceLogs`], [`RoutePublisher`], [`InstanceEnvironment`]) and nothing that uses it.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::entries::ServiceEntries;
use super::env::InstanceEnvironment;
use super::options::{DeployDependencies, Options};
use super::port::ObservedInstance;
use super::routes::RoutePublisher;
use super::service_logs::ServiceLogs;

/// State shared by all service loops and requests.
pub(super) struct DeployContext {
    pub(super) options: Options,
    pub(super) ports: DeployDependencies,
    pub(super) entries: ServiceEntries,
    pub(super) logs: Arc<ServiceLogs>,
    pub(super) routes: RoutePublisher,
    pub(super) environment: InstanceEnvironment,
    /// Serializes requests that take a service name or a domain.
    pub(super) submit_lock: tokio::sync::Mutex<()>,
    /// The last listing of the runtime, with the time at which it was requested.
    pub(super) last_listing: tokio::sync::Mutex<Option<(Instant, Arc<Vec<ObservedInstance>>)>>,
    /// Held for reading from the preparation of an image until an instance uses its files.
    pub(super) image_lock: tokio::sync::RwLock<()>,
    /// `Ok` once the running instances have been reconciled with the stored services, otherwise the reason why not yet.
    pub(super) reconciled: watch::Sender<Result<(), String>>,
    pub(super) stop: CancellationToken,
    pub(super) tasks: TaskTracker,
}

impl DeployContext {
    pub(super) fn new(options: Options, ports: DeployDependencies) -> Self {
        Self {
            entries: ServiceEntries::default(),
            logs: Arc::new(ServiceLogs::new(options.log_dir.clone(), Arc::clone(&ports.logs))),
            routes: RoutePublisher::new(
                Arc::clone(&ports.router),
                Arc::clone(&ports.network),
                options.call_limit,
            ),
            environment: InstanceEnvironment {
                room: options.room.clone(),
                address: options.address.clone(),
                tokens: Arc::clone(&ports.tokens),
                secrets: Arc::clone(&ports.secrets),
            },
            submit_lock: tokio::sync::Mutex::default(),
            last_listing: tokio::sync::Mutex::default(),
            image_lock: tokio::sync::RwLock::default(),
            reconciled: watch::Sender::new(Err("running instances are being reconciled".to_owned())),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            options,
            ports,
        }
    }

    /// Publishes the routes and the name records of all services.
    pub(super) async fn publish_routes(&self) {
        self.routes.publish(&self.entries).await;
    }

    /// Spawns a task that is cancelled when the service loops stop.
    pub(super) fn spawn<F>(&self, name: &'static str, work: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let stop = self.stop.clone();
        let work = self.tasks.track_future(async move {
            tokio::select! {
                () = work => {}
                () = stop.cancelled() => {}
            }
        });
        drop(crate::task::spawn(name, work));
    }
}
