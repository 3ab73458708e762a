//! The fake runtime: containers whose apps listen, exit or stay silent.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;

use super::{FakeApp, FakeWorld, exec};
use crate::deploy::port::{
    ContainerRuntime, ExecSpec, ExecStreams, InstanceImage, InstanceSpec, InstanceState, ObservedInstance,
    RuntimeError,
};
use crate::model::Digest;
use crate::model::fault::ErrorCode;
use crate::model::id::InstanceId;
use crate::model::service::{InstanceLabel, ResourceLimits};
use crate::task;

pub struct FakeContainer {
    pub label: InstanceLabel,
    pub state: InstanceState,
    pub limits: ResourceLimits,
    pub(super) listener: Option<tokio::task::JoinHandle<()>>,
}

impl Drop for FakeContainer {
    fn drop(&mut self) {
        if let Some(listener) = &self.listener {
            listener.abort();
        }
    }
}

impl FakeContainer {
    pub const fn runs(&self) -> bool {
        matches!(self.state, InstanceState::Running { .. })
    }
}

async fn serve(address: SocketAddr, status: u16) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 2048];
        let _ = stream.read(&mut request).await;
        let answer = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n\r\nhello");
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

#[async_trait]
impl ContainerRuntime for FakeWorld {
    async fn prepare(&self, _image: &InstanceImage) -> Result<(), RuntimeError> {
        self.live_or_die().await;
        if self.state().runtime_unavailable {
            Err(RuntimeError::Unavailable("gone".to_owned()))
        } else {
            Ok(())
        }
    }

    async fn keep_images(&self, _wanted: &BTreeSet<Digest>) -> Result<(), RuntimeError> {
        Ok(())
    }

    async fn start(&self, spec: InstanceSpec) -> Result<(), RuntimeError> {
        self.live_or_die().await;
        let id = spec.label.instance.clone();
        let app = self.state().by_digest[&spec.image.manifest];
        if app == FakeApp::NotFound {
            let message = "exec: \"nope\": not found".to_owned();
            return Err(RuntimeError::StartFailed { code: ErrorCode::CommandNotFound, message });
        }
        {
            let mut state = self.state();
            assert!(state.networks.contains(&id) && state.mounts.contains(&id), "started without its parts");
            let (label, limits) = (spec.label.clone(), spec.limits);
            let container = FakeContainer { label, state: InstanceState::Incomplete, limits, listener: None };
            state.instances.insert(id.clone(), container);
            let env = spec.env.iter().map(|(name, value)| (name.clone(), value.reveal().clone())).collect();
            state.env.insert(id.clone(), env);
        }
        // The daemon may die while the instance is incomplete.
        self.live_or_die().await;
        {
            let mut state = self.state();
            let revision = spec.label.revision;
            state.journal.push(format!("start {revision}"));
            let of_service = |container: &&FakeContainer| container.label.service == spec.label.service;
            let count = state.instances.values().filter(of_service).count();
            state.peak = state.peak.max(count);
            let target = SocketAddr::from((spec.network.address, 8080));
            let status = match app {
                FakeApp::Serves(status) => Some(status),
                _ => None,
            };
            let listener = status.map(|status| task::spawn("app", serve(target, status)));
            let container = state.instances.get_mut(&id).unwrap();
            container.listener = listener;
            container.state = InstanceState::Running { pid: u32::MAX };
        }
        match app {
            FakeApp::Exits(code) => self.end_instance(&id, Some(code), false),
            FakeApp::Hungry => self.end_instance(&id, Some(137), true),
            _ => {}
        }
        // The daemon may also die while the instance is running.
        self.live_or_die().await;
        Ok(())
    }

    async fn stop(&self, instance: &InstanceId, _grace: Duration) -> Result<(), RuntimeError> {
        self.live_or_die().await;
        {
            let mut state = self.state();
            if state.unavailable_stops > 0 {
                state.unavailable_stops -= 1;
                return Err(RuntimeError::Unavailable("gone".to_owned()));
            }
            if let Some(revision) = state.instances.get(instance).map(|container| container.label.revision) {
                state.journal.push(format!("stop {revision}"));
            }
        }
        self.end_instance(instance, Some(0), false);
        self.live_or_die().await;
        Ok(())
    }

    async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        self.live_or_die().await;
        self.state().instances.remove(instance);
        self.changed();
        self.live_or_die().await;
        Ok(())
    }

    async fn list(&self) -> Result<Vec<ObservedInstance>, RuntimeError> {
        self.live_or_die().await;
        let state = self.state();
        if state.runtime_unavailable {
            return Err(RuntimeError::Unavailable("gone".to_owned()));
        }
        let observed = |container: &FakeContainer| ObservedInstance {
            label: container.label.clone(),
            state: container.state,
        };
        Ok(state.instances.values().map(observed).collect())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    async fn exec(&self, instance: &InstanceId, exec: ExecSpec) -> Result<ExecStreams, RuntimeError> {
        if self.state().instances.get(instance).is_some_and(FakeContainer::runs) {
            exec::start(&self.processes, &exec)
        } else {
            Err(RuntimeError::NotRunning(instance.clone()))
        }
    }
}
