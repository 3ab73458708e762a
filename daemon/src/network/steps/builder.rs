//! Step network of one builder: a CNI configuration, a plugin directory, and the socket on which the plugin reaches the
//! daemon.
//!
//! ```text
//! <builder>/cni/
//!   steps.conflist          names the socket
//!   plugins/hearth-step     link to hearthd      plugins/loopback   the same
//!   socket
//! ```

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::attachments::BuilderKey;
use super::plugin::{self, PluginConfig};
use super::plugin_protocol::{self, PluginAnswer, PluginCall, code};
use super::refusals::RefusedConnection;
use super::{StepNetwork, StepNetworkShared};
use crate::task;

const DIRECTORY: &str = "cni";
/// Maximum number of concurrent calls; further ones wait in the socket's queue.
const MAX_CALLS: usize = 16;
/// Directory in which BuildKit's CNI library records each call until it is told to delete the record.
const CNI_RESULTS_DIR: &str = "/var/lib/cni/results";

/// Network of one builder's steps. The socket is served until the last clone is dropped.
#[derive(Clone)]
pub struct BuilderNetwork {
    shared: Arc<StepNetworkShared>,
    key: BuilderKey,
    directory: PathBuf,
    _serving: Arc<DropGuard>,
}

impl BuilderNetwork {
    /// Opens the network for the builder whose files are in `directory`.
    pub(super) fn open(network: &StepNetwork, key: BuilderKey, directory: &Path) -> io::Result<Self> {
        let directory = directory.join(DIRECTORY);
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
        let socket = socket(&directory);
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        let stop = CancellationToken::new();
        let (shared, stopped) = (Arc::clone(&network.shared), stop.clone());
        task::spawn("steps-network", async move {
            stopped.run_until_cancelled(serve(listener, shared, key)).await;
        });
        let shared = Arc::clone(&network.shared);
        Ok(Self { shared, key, directory, _serving: Arc::new(stop.drop_guard()) })
    }

    /// Returns the file for BuildKit's `cniConfigPath`.
    pub fn config(&self) -> PathBuf {
        self.directory.join("steps.conflist")
    }

    /// Returns the directory for BuildKit's `cniBinaryPath`.
    pub fn plugins(&self) -> PathBuf {
        self.directory.join("plugins")
    }

    /// Returns the address of the DNS resolver for steps.
    pub fn resolver(&self) -> Ipv4Addr {
        self.shared.resolver
    }

    /// Writes the configuration and the links to the plugin; called before each start of the builder.
    pub fn prepare(&self) -> io::Result<()> {
        let plugins = self.plugins();
        fs::create_dir_all(&plugins)?;
        for name in [plugin::STEP_PLUGIN, plugin::LOOPBACK_PLUGIN] {
            let link = plugins.join(name);
            if fs::read_link(&link).is_ok_and(|to| to == self.shared.plugin) {
                continue;
            }
            let new = plugins.join(format!("{name}.new"));
            let _ = fs::remove_file(&new);
            std::os::unix::fs::symlink(&self.shared.plugin, &new)?;
            fs::rename(new, link)?;
        }
        let config = PluginConfig {
            cni_version: String::new(),
            name: String::new(),
            kind: plugin::STEP_PLUGIN.to_owned(),
            socket: Some(socket(&self.directory)),
        };
        let mut config = serde_json::to_value(config)?;
        if let Some(keys) = config.as_object_mut() {
            // The list has these keys, and CNI copies them into the configuration of each plugin.
            keys.remove("cniVersion");
            keys.remove("name");
        }
        let list = json!({ "cniVersion": plugin::CNI_VERSION, "name": "hearth", "plugins": [config] });
        let new = self.directory.join("steps.conflist.new");
        fs::write(&new, serde_json::to_vec_pretty(&list)?)?;
        fs::rename(new, self.config())
    }

    /// Removes the networks of all steps of this builder. Blocking.
    pub fn release(&self) -> io::Result<()> {
        self.shared.release_all(self.key)
    }

    /// Returns the refused connections of this builder's steps, and of the builder itself, since a moment.
    pub async fn refused_since(&self, moment: Instant) -> io::Result<Vec<RefusedConnection>> {
        self.shared.refused_since(self.key, moment).await
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("socket")
}

async fn serve(listener: UnixListener, shared: Arc<StepNetworkShared>, key: BuilderKey) {
    let places = Arc::new(Semaphore::new(MAX_CALLS));
    loop {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "failed to accept a step network call");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let shared = Arc::clone(&shared);
        task::spawn("step-network-call", async move {
            let done = task::blocking("step-network", move || {
                let stream = stream.into_std()?;
                stream.set_nonblocking(false)?;
                serve_one(&stream, &shared, key)
            });
            match done.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(%error, "failed to answer a step network call"),
                Err(error) => tracing::error!(%error, "step network call panicked"),
            }
            drop(place);
        });
    }
}

fn serve_one(stream: &UnixStream, shared: &StepNetworkShared, key: BuilderKey) -> io::Result<()> {
    let answer = match plugin_protocol::receive_call(stream) {
        Ok((call, namespace)) => {
            let container = call.container().to_owned();
            let started = Instant::now();
            let outcome = match call {
                PluginCall::Add { interface, .. } => match namespace {
                    Some(namespace) => {
                        shared.attach(key, &container, &interface, namespace).map(PluginAnswer::Wired)
                    }
                    None => Err(call_error(code::INVALID_ENVIRONMENT, "no namespace came with the call")),
                },
                PluginCall::Check { .. } => shared.check(key, &container).map(|()| PluginAnswer::Done),
                PluginCall::Del { .. } => shared.detach(key, &container).map(|()| PluginAnswer::Done),
            };
            tracing::debug!(container.id = container, took = ?started.elapsed(), ok = outcome.is_ok(), "step network call finished");
            outcome.unwrap_or_else(|error| {
                tracing::warn!(
                    container.id = container,
                    error = error.message,
                    "failed to serve a step network call"
                );
                PluginAnswer::Failed { code: error.code, message: error.message }
            })
        }
        Err(error) => PluginAnswer::Failed { code: code::DECODING, message: error.to_string() },
    };
    plugin_protocol::send_answer(stream, &answer)
}

fn call_error(code: u32, message: &str) -> super::attachments::AttachError {
    super::attachments::AttachError { code, message: message.to_owned() }
}

/// Removes the records that BuildKit's CNI library keeps of containers whose end it was never told.
pub(super) fn remove_cni_results(containers: &[String]) {
    let Ok(entries) = fs::read_dir(CNI_RESULTS_DIR) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let of_ours = |container: &String| name.to_string_lossy().contains(&format!("-{container}-"));
        if containers.iter().any(of_ours)
            && let Err(error) = fs::remove_file(entry.path())
        {
            tracing::debug!(%error, "failed to remove a CNI record");
        }
    }
}
