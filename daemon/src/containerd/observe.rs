//! Observed state of each instance, derived from its container, its task and its labels.
//!
//! | container | task | labels of the container | state |
//! |---|---|---|---|
//! | - | - | (a snapshot alone) | incomplete |
//! | yes | - | none | incomplete |
//! | yes | created | any | incomplete |
//! | yes | running, paused | any | running |
//! | yes | unknown | no exit | running: its shim does not answer in time, and its pid is unknown (0) |
//! | yes | stopped | any | exited, with the task's status |
//! | yes | - | exit | exited, with the recorded status |
//! | yes | - | started | exited with unknown status: containerd 2.x loses it, and so does a reboot |

use std::collections::HashMap;

use containerd_client::services::v1 as services;
use containerd_client::services::v1::snapshots as wire;
use containerd_client::types::v1::{Process, Status};
use jiff::Timestamp;
use services::{Container, ListContainersRequest, ListTasksRequest};

use super::channel::{call, limit};
use super::failure::ContainerdFault;
use super::{ContainerdContext, cgroup, labels};
use crate::deploy::port::{InstanceState, ObservedInstance, RuntimeError};
use crate::model::service::ProcessExit;

impl ContainerdContext {
    pub(super) async fn list(&self) -> Result<Vec<ObservedInstance>, RuntimeError> {
        self.observe().await.map_err(ContainerdFault::into_runtime_error)
    }

    async fn observe(&self) -> Result<Vec<ObservedInstance>, ContainerdFault> {
        // Tasks are listed first, in reverse order of their creation by a start: an instance that starts meanwhile is
        // seen in part or not at all.
        let tasks =
            call(limit::RECORD, self.connection.tasks().list(ListTasksRequest::default())).await?.tasks;
        let mut tasks: HashMap<String, Process> =
            tasks.into_iter().map(|task| (task.id.clone(), task)).collect();
        let filters = vec![format!("labels.\"{}\"", labels::INSTANCE)];
        let request = ListContainersRequest { filters };
        let containers = call(limit::RECORD, self.connection.containers().list(request)).await?.containers;
        let mut observed = HashMap::new();
        for container in containers {
            let Some(label) = labels::read_instance(&container.labels) else {
                tracing::warn!(container.id = %container.id, "skipped a container with an unreadable label");
                continue;
            };
            let task = tasks.remove(&container.id);
            let group = cgroup::path(&self.namespace, &container.id);
            let state = state(&container, task.as_ref(), || cgroup::out_of_memory(&group));
            observed.insert(container.id, ObservedInstance { label, state });
        }
        for (key, labels) in self.snapshots().await? {
            if let Some(label) = labels::read_instance(&labels) {
                observed.entry(key).or_insert(ObservedInstance { label, state: InstanceState::Incomplete });
            }
        }
        Ok(observed.into_values().collect())
    }

    /// Returns name and labels of every snapshot of an instance.
    async fn snapshots(&self) -> Result<Vec<(String, HashMap<String, String>)>, ContainerdFault> {
        let request = wire::ListSnapshotsRequest {
            snapshotter: self.snapshotter().await?.to_owned(),
            filters: vec![format!("labels.\"{}\"", labels::INSTANCE)],
        };
        let listed = async {
            let mut found = Vec::new();
            let mut client = self.connection.snapshots();
            let mut answers = client.list(request).await?.into_inner();
            while let Some(answer) = answers.message().await? {
                found.extend(answer.info.into_iter().map(|info| (info.name, info.labels)));
            }
            Ok(tonic::Response::new(found))
        };
        call(limit::RECORD, listed).await
    }
}

/// Derives the state of an instance. `out_of_memory` is called only if the exit may be due to lack of memory.
fn state(
    container: &Container,
    task: Option<&Process>,
    out_of_memory: impl FnOnce() -> Option<bool>,
) -> InstanceState {
    let written = labels::read_exit(&container.labels);
    match task.map(|task| (task.status(), task)) {
        Some((Status::Created, _)) => InstanceState::Incomplete,
        Some((Status::Stopped, task)) => {
            InstanceState::Exited(written.unwrap_or_else(|| {
                exit(task.exit_status, labels::time(task.exited_at.as_ref()), out_of_memory)
            }))
        }
        Some((Status::Running | Status::Paused | Status::Pausing, task)) => {
            InstanceState::Running { pid: task.pid }
        }
        // The task of a killed shim is no longer listed.
        Some((Status::Unknown, task)) => match written {
            Some(exit) => InstanceState::Exited(exit),
            None => InstanceState::Running { pid: task.pid },
        },
        None => match written {
            Some(exit) => InstanceState::Exited(exit),
            None if container.labels.contains_key(labels::STARTED) => {
                let at = labels::time(container.updated_at.as_ref());
                InstanceState::Exited(ProcessExit { code: None, out_of_memory: false, at })
            }
            None => InstanceState::Incomplete,
        },
    }
}

/// Converts an exit status, which follows the convention of shells already: 128 plus the number of the signal.
pub(super) fn exit(status: u32, at: Timestamp, out_of_memory: impl FnOnce() -> Option<bool>) -> ProcessExit {
    ProcessExit {
        code: i32::try_from(status).ok(),
        out_of_memory: status != 0 && out_of_memory().unwrap_or(false),
        at,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(labels: &[(&str, &str)]) -> Container {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Container { labels, ..Container::default() }
    }

    fn task(status: Status) -> Process {
        Process { status: status.into(), pid: 7, exit_status: 137, ..Process::default() }
    }

    #[test]
    fn a_state_is_what_records_and_task_say_together() {
        let of = |labels: &[(&str, &str)], task: Option<Process>| {
            state(&container(labels), task.as_ref(), || Some(true))
        };
        let started: &[(&str, &str)] = &[(labels::STARTED, "1")];
        let ended: &[(&str, &str)] = &[
            (labels::STARTED, "1"),
            (labels::EXIT, r#"{"code":3,"out_of_memory":false,"at":"2026-11-24T09:55:07Z"}"#),
        ];
        assert_eq!(of(&[], None), InstanceState::Incomplete);
        assert_eq!(of(started, Some(task(Status::Created))), InstanceState::Incomplete);
        assert_eq!(of(&[], Some(task(Status::Running))), InstanceState::Running { pid: 7 });
        let code = |state: InstanceState| match state {
            InstanceState::Exited(exit) => (exit.code, exit.out_of_memory),
            other => panic!("{other:?}"),
        };
        assert_eq!(code(of(started, Some(task(Status::Stopped)))), (Some(137), true));
        assert_eq!(code(of(ended, Some(task(Status::Stopped)))), (Some(3), false));
        assert_eq!(code(of(ended, None)), (Some(3), false));
        assert_eq!(code(of(started, None)), (None, false));
        assert_eq!(of(started, Some(task(Status::Unknown))), InstanceState::Running { pid: 7 });
        assert_eq!(code(of(ended, Some(task(Status::Unknown)))), (Some(3), false));
    }
}
