//! Stop and complete removal of an instance.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use containerd_client::services::v1 as services;
use containerd_client::types::v1::Status;
use services::{
    DeleteContainerRequest, DeleteTaskRequest, GetContainerRequest, GetRequest, KillRequest, WaitRequest,
};
use tokio::time::timeout;

use super::channel::{call, limit};
use super::failure::{ContainerdFault, unless_missing};
use super::{ContainerdContext, cgroup, images, labels, leftover};
use crate::deploy::port::RuntimeError;
use crate::model::id::InstanceId;

const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;
/// Time limit for a killed process to disappear; one in an uninterruptible wait takes longer.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Time limit for containerd to finish an operation in progress on a task.
const UNDERWAY: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(20);
/// Error texts of a kill call for a process that has already exited.
const ENDED: [&str; 3] = ["process already finished", "no such process", "container not running"];

impl ContainerdContext {
    pub(super) async fn stop(&self, instance: &InstanceId, grace: Duration) -> Result<(), RuntimeError> {
        let request = GetContainerRequest { id: instance.to_string() };
        let container = call(limit::RECORD, self.connection.containers().get(request)).await;
        let container =
            container.map_err(|fault| fault.into_instance_error(instance))?.container.unwrap_or_default();
        let signal =
            container.labels.get(labels::STOP_SIGNAL).and_then(|text| text.parse().ok()).unwrap_or(SIGTERM);
        if !self.is_running(instance).await.map_err(ContainerdFault::into_runtime_error)? {
            return Ok(());
        }
        let ended = async {
            self.kill(instance, signal, false).await?;
            Ok(timeout(grace, self.wait_until_exited(instance)).await.is_ok())
        };
        if ended.await.map_err(ContainerdFault::into_runtime_error)? {
            return Ok(());
        }
        tracing::warn!(instance.id = %instance, signal, ?grace, "instance ignored its stop signal; killing it");
        self.kill_and_wait(instance).await.map_err(ContainerdFault::into_runtime_error)
    }

    async fn kill_and_wait(&self, instance: &InstanceId) -> Result<(), ContainerdFault> {
        self.kill(instance, SIGKILL, true).await?;
        match timeout(KILL_LIMIT, self.wait_until_exited(instance)).await {
            Ok(()) => Ok(()),
            Err(_) => Err(ContainerdFault::Other(format!("instance {instance} does not end after SIGKILL"))),
        }
    }

    async fn is_running(&self, instance: &InstanceId) -> Result<bool, ContainerdFault> {
        let request = GetRequest { container_id: instance.to_string(), exec_id: String::new() };
        let found = unless_missing(call(limit::RECORD, self.connection.tasks().get(request)).await)?;
        let process = found.and_then(|found| found.process);
        // An unknown status means that the shim does not answer.
        Ok(process.is_some_and(|process| process.status() != Status::Stopped))
    }

    /// Sends a signal. Does nothing if the process has exited.
    async fn kill(&self, instance: &InstanceId, signal: u32, all: bool) -> Result<(), ContainerdFault> {
        let request = KillRequest { container_id: instance.to_string(), exec_id: String::new(), signal, all };
        match call(limit::PROCESS, self.connection.tasks().kill(request)).await {
            Ok(()) | Err(ContainerdFault::NotFound(_) | ContainerdFault::ShimGone(_)) => Ok(()),
            Err(fault) if ENDED.iter().any(|text| fault.to_string().contains(text)) => Ok(()),
            Err(fault) => Err(fault),
        }
    }

    /// Waits until the instance has exited. The caller sets the time limit.
    async fn wait_until_exited(&self, instance: &InstanceId) {
        loop {
            let request = WaitRequest { container_id: instance.to_string(), exec_id: String::new() };
            match self.connection.tasks().wait(request).await.map_err(ContainerdFault::from) {
                Ok(_) | Err(ContainerdFault::NotFound(_)) => return,
                // containerd was restarted, or its shim was killed.
                Err(fault) => {
                    tracing::debug!(error = %fault, instance.id = %instance, "lost the wait for an instance; waiting again");
                    tokio::time::sleep(POLL).await;
                }
            }
        }
    }

    pub(super) async fn remove(&self, instance: &InstanceId) -> Result<(), RuntimeError> {
        self.remove_parts(instance).await.map_err(ContainerdFault::into_runtime_error)
    }

    async fn remove_parts(&self, instance: &InstanceId) -> Result<(), ContainerdFault> {
        let task = self.tasks.as_ref().map(|tasks| tasks.join(&self.namespace).join(instance.as_str()));
        let started = Instant::now();
        let mut had_task = false;
        loop {
            had_task |= self.remove_task(instance).await?;
            // A directory without a task belongs to a task that containerd is creating, or removing after its shim was
            // killed. The container must stay until then: without it, nobody can remove the task.
            if !task.as_ref().is_some_and(|task| task.exists()) || started.elapsed() > UNDERWAY {
                break;
            }
            tokio::time::sleep(POLL).await;
        }
        self.remove_leftovers(instance, task, had_task).await?;
        let request = DeleteContainerRequest { id: instance.to_string() };
        unless_missing(call(limit::RECORD, self.connection.containers().delete(request)).await)?;
        let snapshotter = self.snapshotter().await?;
        images::remove_snapshot(&self.connection, snapshotter, instance.as_str()).await
    }

    /// Removes the task; returns whether there was one.
    async fn remove_task(&self, instance: &InstanceId) -> Result<bool, ContainerdFault> {
        let delete = || async {
            let request = DeleteTaskRequest { container_id: instance.to_string() };
            unless_missing(call(limit::PROCESS, self.connection.tasks().delete(request)).await)
        };
        let started = Instant::now();
        loop {
            match delete().await {
                Ok(deleted) => return Ok(deleted.is_some()),
                Err(ContainerdFault::Precondition(_)) if started.elapsed() < UNDERWAY => {
                    self.kill_and_wait(instance).await?;
                }
                Err(ContainerdFault::ShimGone(_)) if started.elapsed() < UNDERWAY => {
                    tokio::time::sleep(POLL).await;
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Removes leftovers of a killed shim.
    async fn remove_leftovers(
        &self,
        instance: &InstanceId,
        task: Option<PathBuf>,
        had_task: bool,
    ) -> Result<(), ContainerdFault> {
        let ours = task.is_some();
        let shim = leftover::LostShim { namespace: self.namespace.clone(), instance: instance.to_string() };
        let paths = leftover::LeftoverPaths {
            lost_shim: (!had_task).then_some(shim),
            task,
            socket: ours.then(|| leftover::shim_socket(&self.socket, &self.namespace, instance.as_str())),
            runc: self.runc.clone().map(|runc| (runc.program, runc.root.join(&self.namespace))),
            cgroup: cgroup::path(&self.namespace, instance.as_str()),
            instance: instance.to_string(),
        };
        let removed =
            crate::task::blocking("remove-leftovers", move || leftover::remove_leftovers(&paths)).await;
        let removed = removed.map_err(std::io::Error::other).and_then(|removed| removed);
        removed
            .map_err(|error| ContainerdFault::Other(format!("what is left of instance {instance}: {error}")))
    }
}
