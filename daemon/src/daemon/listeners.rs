//! TCP ports and unix socket: bound at start, served later, published in `addresses.json`.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::task::JoinHandle;

use crate::api::serve::{ServeOptions, serve};
use crate::config::Config;
use crate::connections::ConnectionLimiter;
use crate::disk::is_disk_full;
use crate::ingress::{Ingress, TlsTerminator};
use crate::task;

const ADDRESSES: &str = "addresses.json";
/// Pause between two attempts to write the addresses on a full disk.
const ADDRESSES_PAUSE: Duration = Duration::from_secs(1);

/// Addresses of the daemon.
#[derive(Clone, Debug, Serialize)]
pub struct DaemonAddresses {
    pub listen: SocketAddr,
    pub ingress: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_tls: Option<SocketAddr>,
    pub socket: PathBuf,
    /// Address of the registry for BuildKit on this machine: always loopback, for which BuildKit uses plain HTTP
    /// without configuration.
    #[serde(skip)]
    pub registry: SocketAddr,
}

pub(super) struct BoundListeners {
    pub(super) addresses: DaemonAddresses,
    tcp: Vec<TcpListener>,
    unix: UnixListener,
    ingress: TcpListener,
    ingress_tls: Option<TcpListener>,
}

/// Port of the API for services, if the daemon's own port may vary.
const SERVICE_PORT: u16 = 4327;

impl BoundListeners {
    pub(super) async fn bind(config: &Config) -> Result<Self> {
        let main = bind_tcp(config.listen).await?;
        let ingress = bind_tcp(config.ingress).await?;
        let ingress_tls = match config.ingress_tls {
            Some(address) => Some(bind_tcp(address).await?),
            None => None,
        };
        let listen = main.local_addr()?;
        let mut tcp = vec![main];
        let registry = match listen.ip() {
            ip if ip.is_loopback() => listen,
            ip if ip.is_unspecified() => SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), listen.port()),
            _ => {
                let local = bind_tcp(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0)).await?;
                let address = local.local_addr()?;
                tcp.push(local);
                address
            }
        };
        let unix = bind_unix(&config.socket).await?;
        let addresses = DaemonAddresses {
            listen,
            ingress: ingress.local_addr()?,
            ingress_tls: ingress_tls.as_ref().map(TcpListener::local_addr).transpose()?,
            socket: config.socket.clone(),
            registry,
        };
        Ok(Self { addresses, tcp, unix, ingress, ingress_tls })
    }

    /// Makes the API reachable on an address of the service network. Its port stays the same across restarts if
    /// possible, because running services know it.
    pub(super) async fn listen_for_services(&mut self, address: Ipv4Addr) -> Result<SocketAddr> {
        let listen = self.addresses.listen;
        if listen.ip().is_unspecified() {
            return Ok(SocketAddr::new(address.into(), listen.port()));
        }
        let listener = match bind_tcp((address, SERVICE_PORT).into()).await {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "failed to bind the port for services; running services use it until they are restarted"
                );
                bind_tcp((address, 0).into()).await?
            }
        };
        let bound = listener.local_addr()?;
        self.tcp.push(listener);
        Ok(bound)
    }

    /// Serves the API on TCP according to `app`, on the unix socket with the connection pool `places`, and the ingress.
    pub(super) fn serve(
        self,
        app: &ServeOptions,
        socket_connections: ConnectionLimiter,
        ingress: Arc<Ingress>,
        tls: Option<Arc<TlsTerminator>>,
    ) -> Vec<JoinHandle<()>> {
        let (stop, grace) = (&app.stop, app.grace);
        let mut servers: Vec<_> =
            self.tcp.into_iter().map(|listener| task::spawn("tcp", serve(listener, app.clone()))).collect();
        for connections in [&app.connections, &socket_connections] {
            servers.push(task::spawn("connections", connections.clone().sweep_loop(stop.clone())));
        }
        servers.push(task::spawn(
            "unix",
            serve(self.unix, ServeOptions { connections: socket_connections, ..app.clone() }),
        ));
        if let (Some(listener), Some(tls)) = (self.ingress_tls, tls) {
            let (watched, ended) = (Arc::clone(&tls), stop.clone());
            servers.push(task::spawn("certificates", async move { watched.watch(ended).await }));
            let served = Arc::clone(&ingress).serve(listener, Some(tls), stop.clone(), grace);
            servers.push(task::spawn("ingress-tls", served));
        }
        servers.push(task::spawn("ingress", ingress.serve(self.ingress, None, stop.clone(), grace)));
        servers
    }
}

impl DaemonAddresses {
    /// Writes the file atomically, so that a process that waits for it can read it as soon as it appears.
    fn write(&self, state: &Path) -> std::io::Result<()> {
        let draft = state.join("addresses.json.new");
        fs::write(&draft, serde_json::to_vec(self)?)?;
        fs::rename(draft, state.join(ADDRESSES))
    }
}

/// Writes the file of addresses; on a full disk, as soon as there is space.
pub(super) fn publish_addresses(addresses: &DaemonAddresses, state: &Path) -> Result<()> {
    match addresses.write(state) {
        Err(error) if is_disk_full(&error) => {
            tracing::error!(%error, "failed to write addresses.json on a full disk; retrying");
            let (addresses, state) = (addresses.clone(), state.to_owned());
            drop(task::spawn("addresses", async move {
                while addresses.write(&state).is_err() {
                    tokio::time::sleep(ADDRESSES_PAUSE).await;
                }
            }));
            Ok(())
        }
        written => written.context("addresses.json"),
    }
}

pub(super) fn forget_addresses(state: &Path) -> Result<()> {
    match fs::remove_file(state.join(ADDRESSES)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("addresses.json"),
        _ => Ok(()),
    }
}

pub(super) fn remove_socket(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(%error, socket = %path.display(), "failed to remove the socket; the next start removes it");
    }
}

async fn bind_tcp(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))
}

/// Binds the unix socket. A socket that a killed daemon left is replaced; one that answers is not.
async fn bind_unix(path: &Path) -> Result<UnixListener> {
    let socket_name = || format!("socket {}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(socket_name)?;
    }
    if path.exists() {
        if UnixStream::connect(path).await.is_ok() {
            bail!("another daemon answers on {}; give each its own --socket", path.display());
        }
        fs::remove_file(path).with_context(socket_name)?;
    }
    let listener = UnixListener::bind(path).with_context(socket_name)?;
    // Everyone may connect: the kernel reports the peer's user, and everybody but root and the daemon's user needs a
    // token.
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).with_context(socket_name)?;
    Ok(listener)
}
