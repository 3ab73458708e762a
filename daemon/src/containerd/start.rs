//! Start of an instance.
//!
//! ```text
//! snapshot (a garbage collection root) -> user, specification -> container -> task created -> task started
//!     '------------------------ a failure anywhere: all of it is removed -------------------------'
//! ```

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use containerd_client::services::v1 as services;
use containerd_client::types::Mount;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use prost::Message as _;
use services::{
    Container, CreateContainerRequest, CreateTaskRequest, GetContainerRequest, StartRequest,
    UpdateContainerRequest,
};

use super::channel::{call, limit};
use super::failure::{ContainerdFault, unless_missing};
use super::images::{self, SnapshotImage};
use super::rootfs::{self, EmptyDirectory};
use super::spec::types::{RuntimeSpec, SPEC_URL};
use super::spec::user::{ROOT_HOME, ResolvedUser, UserSpec};
use super::spec::{self, HostFeatures};
use super::{ContainerdContext, cgroup, labels};
use crate::deploy::port::{InstanceSpec, RuntimeError};
use crate::instance_log::KEEPER_ARGUMENT;
use crate::model::MountTarget;
use crate::model::fault::ErrorCode;

const SHIM: &str = "io.containerd.runc.v2";
const OPTIONS_URL: &str = "containerd.runc.v1.Options";

/// The used part of `containerd.runc.v1.Options`.
#[derive(Clone, PartialEq, prost::Message)]
struct RuncOptions {
    #[prost(string, tag = "6")]
    binary_name: String,
    #[prost(string, tag = "7")]
    root: String,
}

impl ContainerdContext {
    pub(super) async fn start(&self, spec: &InstanceSpec) -> Result<(), RuntimeError> {
        // The cleanup after a failure below must not remove an earlier start of the instance.
        let request = GetContainerRequest { id: spec.label.instance.to_string() };
        let found = call(limit::RECORD, self.connection.containers().get(request)).await;
        if unless_missing(found).map_err(ContainerdFault::into_runtime_error)?.is_some() {
            return Err(RuntimeError::Other(format!("instance {} is there already", spec.label.instance)));
        }
        let started = self.start_parts(spec).await;
        if started.is_err()
            && let Err(error) = self.remove(&spec.label.instance).await
        {
            let instance = &spec.label.instance;
            tracing::warn!(%error, instance.id = %instance, "failed to remove leftovers of a failed start");
        }
        started
    }

    async fn start_parts(&self, spec: &InstanceSpec) -> Result<(), RuntimeError> {
        let id = spec.label.instance.as_str();
        let stored = self.read_checked(&spec.image).await?;
        let label = labels::instance(&spec.label).map_err(|error| RuntimeError::Other(error.to_string()))?;
        let snapshotter = self.snapshotter().await.map_err(ContainerdFault::into_runtime_error)?;
        let mounts = self.prepare_writable(spec, &stored, snapshotter, &label).await?;
        let user = resolve_user(&stored, &mounts).await?;
        fill_volumes(spec, &stored.config.volumes, &mounts).await?;
        let cgroup = cgroup::path(&self.namespace, id);
        let oci = spec::build(spec, &stored.config, &user, host_features(), &cgroup).map_err(|fault| {
            RuntimeError::StartFailed { code: ErrorCode::NoCommand, message: fault.to_string() }
        })?;
        let json = |oci: &RuntimeSpec| {
            serde_json::to_vec(oci).map_err(|error| RuntimeError::Other(error.to_string()))
        };
        // Specification that the runtime keeps once the process has its environment.
        let redacted_spec = if spec.confidential.is_empty() {
            None
        } else {
            Some(json(&oci.without_variables(&spec.confidential))?)
        };
        let oci = json(&oci)?;
        let options = self.options();
        let container = Container {
            id: id.to_owned(),
            labels: HashMap::from([
                (labels::INSTANCE.to_owned(), label),
                (labels::STOP_SIGNAL.to_owned(), stored.config.stop_signal.to_string()),
            ]),
            image: spec.image.manifest.to_string(),
            runtime: Some(services::container::Runtime { name: SHIM.to_owned(), options: options.clone() }),
            spec: Some(prost_types::Any { type_url: SPEC_URL.to_owned(), value: oci }),
            snapshotter: snapshotter.to_owned(),
            snapshot_key: id.to_owned(),
            ..Container::default()
        };
        let request = CreateContainerRequest { container: Some(container) };
        call(limit::RECORD, self.connection.containers().create(request))
            .await
            .map_err(ContainerdFault::into_runtime_error)?;
        self.start_task(id, &spec.log, mounts, options, redacted_spec).await
    }

    /// Prepares the instance's writable snapshot on top of its image.
    async fn prepare_writable(
        &self,
        spec: &InstanceSpec,
        stored: &SnapshotImage,
        snapshotter: &str,
        label: &str,
    ) -> Result<Vec<Mount>, RuntimeError> {
        let labels = HashMap::from([
            (labels::INSTANCE.to_owned(), label.to_owned()),
            (labels::ROOT.to_owned(), jiff::Timestamp::now().to_string()),
        ]);
        let (key, parent) = (spec.label.instance.as_str(), stored.top().unwrap_or_default());
        let snapshot =
            || images::prepare_snapshot(&self.connection, snapshotter, key, parent, labels.clone());
        match snapshot().await {
            // The image was never prepared here, or has been released since.
            Err(ContainerdFault::NotFound(_)) => {
                self.prepare(&spec.image).await?;
                snapshot().await.map_err(ContainerdFault::into_runtime_error)
            }
            other => other.map_err(ContainerdFault::into_runtime_error),
        }
    }

    async fn start_task(
        &self,
        id: &str,
        log: &Path,
        rootfs: Vec<Mount>,
        options: Option<prost_types::Any>,
        redacted_spec: Option<Vec<u8>>,
    ) -> Result<(), RuntimeError> {
        let keeper = keeper_url(&self.keeper, log);
        let request = CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            stdout: keeper.clone(),
            stderr: keeper,
            options,
            ..CreateTaskRequest::default()
        };
        let created = call(limit::PROCESS, self.connection.tasks().create(request)).await;
        created.map_err(ContainerdFault::into_start_error)?;
        // The label is written while the process starts. If the daemon crashes in between, the instance is considered
        // exited with an unknown status.
        let container = Container {
            id: id.to_owned(),
            labels: HashMap::from([(labels::STARTED.to_owned(), "1".to_owned())]),
            spec: redacted_spec
                .clone()
                .map(|value| prost_types::Any { type_url: SPEC_URL.to_owned(), value }),
            ..Container::default()
        };
        let mut update_mask = labels::field_mask(&format!("labels.{}", labels::STARTED));
        if let (Some(mask), true) = (&mut update_mask, redacted_spec.is_some()) {
            mask.paths.push("spec".to_owned());
        }
        let request = UpdateContainerRequest { container: Some(container), update_mask };
        let mut containers = self.connection.containers();
        let marked = call(limit::RECORD, containers.update(request));
        let request = StartRequest { container_id: id.to_owned(), exec_id: String::new() };
        let mut tasks = self.connection.tasks();
        let started = call(limit::PROCESS, tasks.start(request));
        let (marked, started, redacted) =
            tokio::join!(marked, started, self.redact_bundle_spec(id, redacted_spec));
        started.map_err(ContainerdFault::into_start_error)?;
        marked.map(|_| ()).map_err(ContainerdFault::into_runtime_error)?;
        redacted
    }

    /// Removes the confidential variables from the shim's copy of the specification, which the shim has already read.
    /// Does nothing for an external containerd, because the location of that copy is unknown.
    async fn redact_bundle_spec(&self, id: &str, redacted_spec: Option<Vec<u8>>) -> Result<(), RuntimeError> {
        let (Some(tasks), Some(redacted_spec)) = (&self.tasks, redacted_spec) else { return Ok(()) };
        let path = tasks.join(&self.namespace).join(id).join("config.json");
        let written =
            crate::task::blocking("forget-secrets", move || std::fs::write(path, redacted_spec)).await;
        match written.map_err(std::io::Error::other).flatten() {
            // The shim and its directory are gone already.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.map_err(|error| {
                RuntimeError::Other(format!(
                    "the shim's copy of the specification keeps its secrets: {error}"
                ))
            }),
        }
    }

    pub(super) fn options(&self) -> Option<prost_types::Any> {
        let runc = self.runc.as_ref()?;
        let options = RuncOptions {
            binary_name: runc.program.to_string_lossy().into_owned(),
            root: runc.root.to_string_lossy().into_owned(),
        };
        Some(prost_types::Any { type_url: OPTIONS_URL.to_owned(), value: options.encode_to_vec() })
    }
}

async fn resolve_user(stored: &SnapshotImage, mounts: &[Mount]) -> Result<ResolvedUser, RuntimeError> {
    let text = stored.config.user.clone();
    if UserSpec::parse(&text).is_root_without_groups() {
        return Ok(ResolvedUser { home: Some(ROOT_HOME.to_owned()), ..ResolvedUser::default() });
    }
    let mounts = mounts.to_vec();
    let read = crate::task::blocking("read-users", move || rootfs::read_user_files(&mounts)).await;
    let read = read.map_err(std::io::Error::other).and_then(|read| read);
    let (passwd, group) =
        read.map_err(|error| RuntimeError::Other(format!("the image's users cannot be read: {error}")))?;
    UserSpec::parse(&text).resolve(&passwd, &group).map_err(|fault| RuntimeError::StartFailed {
        code: ErrorCode::UserNotFound,
        message: fault.to_string(),
    })
}

/// Fills the empty directories with the image's content at their targets.
async fn fill_volumes(
    spec: &InstanceSpec,
    volumes: &[MountTarget],
    mounts: &[Mount],
) -> Result<(), RuntimeError> {
    let empty = spec.mounts.iter().filter(|mount| mount.fill).map(|mount| EmptyDirectory {
        target: mount.target.clone(),
        directory: mount.source.clone(),
        is_volume: volumes.contains(&mount.target),
    });
    let empty: Vec<_> = empty.collect();
    if empty.is_empty() {
        return Ok(());
    }
    let mounts = mounts.to_vec();
    let filled = crate::task::blocking("fill-volumes", move || rootfs::fill(&mounts, &empty)).await;
    filled.map_err(std::io::Error::other).flatten().map_err(|error| match error.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => RuntimeError::DiskFull,
        _ => RuntimeError::Other(format!("the image's files for a volume cannot be copied: {error}")),
    })
}

fn host_features() -> HostFeatures {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    HostFeatures {
        seccomp: Path::new("/proc/sys/kernel/seccomp").is_dir(),
        swap_accounting: cgroup::swap_accounting(),
        open_files: files.unwrap_or(u64::MAX),
    }
}

/// Characters that stay unescaped in a URL's query: containerd passes it on as the program's arguments.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b'/');

/// Returns containerd's URL for a program that receives an instance's output.
fn keeper_url(program: &Path, log: &Path) -> String {
    let encoded =
        |path: &Path| percent_encoding::percent_encode(path.as_os_str().as_bytes(), PLAIN).to_string();
    let argument = utf8_percent_encode(KEEPER_ARGUMENT, PLAIN);
    format!("binary://{}?{argument}={}", encoded(program), encoded(log))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_is_named_by_a_url() {
        let url = keeper_url(Path::new("/usr/bin/hearthd"), Path::new("/var/lib/a b/x&y=z/log"));
        assert_eq!(url, "binary:///usr/bin/hearthd?instance-log=/var/lib/a%20b/x%26y%3Dz/log");
    }
}
