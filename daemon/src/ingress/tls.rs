//! TLS certificates: read from files, reloaded when they change, and selected by the name that a client asks for.
//!
//! An unreadable pair never affects the others: at start it is skipped with a warning (it is an error only if
//! no pair can be read); after a later change the previous certificate stays in use.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::options::TlsSource;
use crate::model::CertificateFiles;
use crate::task;

/// Interval between two checks of the files.
const RELOAD: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    #[error("no certificate can be used; the last was wrong: {0}")]
    None(Box<TlsError>),
    #[error("no certificate is named")]
    Empty,
    #[error("TLS: {0}")]
    Other(String),
}

/// Terminates TLS on accepted connections.
pub struct TlsTerminator {
    acceptor: TlsAcceptor,
    certificates: Arc<CertificateStore>,
}

#[derive(Debug)]
struct CertificateStore {
    pairs: Vec<CertificateFiles>,
    loaded: RwLock<Vec<LoadedCertificate>>,
}

/// Certificate of one pair of files; `key` is `None` while the pair has never been readable.
#[derive(Clone, Debug)]
struct LoadedCertificate {
    stamp: Option<[SystemTime; 2]>,
    key: Option<Arc<CertifiedKey>>,
}

impl TlsTerminator {
    /// Reads the certificates. Blocking.
    pub fn open(source: TlsSource) -> Result<Self, TlsError> {
        let (pairs, loaded) = match source {
            TlsSource::Files(pairs) => {
                let loaded = load_all(&pairs)?;
                (pairs, loaded)
            }
            TlsSource::SelfSigned => {
                (Vec::new(), vec![LoadedCertificate { stamp: None, key: Some(Arc::new(self_signed()?)) }])
            }
        };
        let certificates = Arc::new(CertificateStore { pairs, loaded: RwLock::new(loaded) });
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| TlsError::Other(error.to_string()))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificates) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), certificates })
    }

    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<tokio_rustls::server::TlsStream<TcpStream>> {
        self.acceptor.accept(stream).await
    }

    /// Reloads the files whenever they change, until `stop`.
    pub async fn watch(&self, stop: CancellationToken) {
        if self.certificates.pairs.is_empty() {
            return;
        }
        while stop.run_until_cancelled(tokio::time::sleep(RELOAD)).await.is_some() {
            let certificates = Arc::clone(&self.certificates);
            if let Err(error) = task::blocking("certificates", move || certificates.reload()).await {
                tracing::error!(%error, "certificate reload task panicked; certificates are no longer reloaded");
                return;
            }
        }
    }
}

impl CertificateStore {
    fn reload(&self) {
        let before = self.loaded.read().clone();
        let mut after = before.clone();
        let mut changed = false;
        for (files, loaded) in self.pairs.iter().zip(&mut after) {
            let stamp = stamp(files);
            if stamp == loaded.stamp {
                continue;
            }
            // Set in any case, so that an invalid pair is reported once for each change.
            loaded.stamp = stamp;
            changed = true;
            match load(files) {
                Ok(key) => {
                    tracing::info!(path = %files.certificate.display(), "certificate reloaded");
                    loaded.key = Some(Arc::new(key));
                }
                Err(error) => {
                    tracing::warn!(%error, "failed to reload a certificate; the previous one stays in use");
                }
            }
        }
        if changed {
            *self.loaded.write() = after;
        }
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let name = hello.server_name().and_then(|name| ServerName::try_from(name).ok());
        let loaded = self.loaded.read();
        let mut keys = loaded.iter().filter_map(|loaded| loaded.key.as_ref());
        let named = name.and_then(|name| keys.clone().find(|key| is_for(key, &name)));
        named.or_else(|| keys.next()).cloned()
    }
}

fn is_for(key: &CertifiedKey, name: &ServerName<'_>) -> bool {
    key.cert
        .first()
        .and_then(|certificate| ParsedCertificate::try_from(certificate).ok())
        .is_some_and(|certificate| verify_server_name(&certificate, name).is_ok())
}

fn load_all(pairs: &[CertificateFiles]) -> Result<Vec<LoadedCertificate>, TlsError> {
    let mut last = None;
    let loaded: Vec<_> = pairs
        .iter()
        .map(|files| {
            // Taken before the files are read: a change in between is then noticed at the next check.
            let stamp = stamp(files);
            let key = match load(files) {
                Ok(key) => Some(Arc::new(key)),
                Err(error) => {
                    tracing::warn!(%error, "failed to load a certificate; it is not used");
                    last = Some(error);
                    None
                }
            };
            LoadedCertificate { stamp, key }
        })
        .collect();
    if loaded.iter().all(|loaded| loaded.key.is_none()) {
        return Err(last.map_or(TlsError::Empty, |last| TlsError::None(Box::new(last))));
    }
    Ok(loaded)
}

fn stamp(files: &CertificateFiles) -> Option<[SystemTime; 2]> {
    let modified = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    Some([modified(&files.certificate)?, modified(&files.key)?])
}

fn load(files: &CertificateFiles) -> Result<CertifiedKey, TlsError> {
    let wrong = |path: &Path, reason: &dyn std::fmt::Display| TlsError::File {
        path: path.to_owned(),
        reason: reason.to_string(),
    };
    let chain = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| wrong(&files.certificate, &error))?;
    if chain.is_empty() {
        return Err(wrong(&files.certificate, &"no certificate is in it"));
    }
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| wrong(&files.key, &error))?;
    CertifiedKey::from_der(chain, key, &ring::default_provider()).map_err(|error| wrong(&files.key, &error))
}

fn self_signed() -> Result<CertifiedKey, TlsError> {
    let wrong = |error: &dyn std::fmt::Display| TlsError::Other(error.to_string());
    let names = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let made = rcgen::generate_simple_self_signed(names).map_err(|error| wrong(&error))?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    CertifiedKey::from_der(vec![made.cert.der().clone()], key, &ring::default_provider())
        .map_err(|error| wrong(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, name: &str, host: &str) -> CertificateFiles {
        let made = rcgen::generate_simple_self_signed([host.to_owned()]).unwrap();
        let files = CertificateFiles {
            certificate: directory.join(format!("{name}.crt")),
            key: directory.join(format!("{name}.key")),
        };
        std::fs::write(&files.certificate, made.cert.pem()).unwrap();
        std::fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        files
    }

    fn shown(tls: &TlsTerminator, host: &str) -> usize {
        let name = ServerName::try_from(host).unwrap();
        let loaded = tls.certificates.loaded.read();
        loaded.iter().position(|loaded| loaded.key.as_ref().is_some_and(|key| is_for(key, &name))).unwrap()
    }

    #[test]
    fn one_unreadable_certificate_does_not_take_the_others_down() {
        let directory = tempfile::tempdir().unwrap();
        let good = write(directory.path(), "good", "a.example");
        let bad = write(directory.path(), "bad", "b.example");
        std::fs::write(&bad.certificate, "no certificate").unwrap();
        let other = write(directory.path(), "other", "c.example");
        let tls = TlsTerminator::open(TlsSource::Files(vec![bad.clone(), good, other])).unwrap();
        assert_eq!((shown(&tls, "a.example"), shown(&tls, "c.example")), (1, 2));
        let error = TlsTerminator::open(TlsSource::Files(vec![bad])).err().unwrap();
        assert!(error.to_string().contains("bad.crt"), "{error}");
        assert!(matches!(TlsTerminator::open(TlsSource::Files(Vec::new())), Err(TlsError::Empty)));
    }

    #[test]
    fn a_changed_pair_is_read_again_and_a_broken_one_leaves_the_one_before() {
        let directory = tempfile::tempdir().unwrap();
        let files = write(directory.path(), "a", "a.example");
        let tls = TlsTerminator::open(TlsSource::Files(vec![files.clone()])).unwrap();
        let key = || tls.certificates.loaded.read()[0].key.clone().unwrap();
        let first = key();
        tls.certificates.reload();
        assert!(Arc::ptr_eq(&first, &key()), "nothing has changed");
        std::thread::sleep(Duration::from_millis(20));
        write(directory.path(), "a", "b.example");
        tls.certificates.reload();
        assert_eq!(shown(&tls, "b.example"), 0);
        let second = key();
        std::thread::sleep(Duration::from_millis(20));
        std::fs::write(&files.key, "cut").unwrap();
        tls.certificates.reload();
        assert!(Arc::ptr_eq(&second, &key()));
    }

    #[test]
    fn a_self_signed_one_is_for_localhost() {
        let tls = TlsTerminator::open(TlsSource::SelfSigned).unwrap();
        assert_eq!((shown(&tls, "localhost"), shown(&tls, "127.0.0.1")), (0, 0));
    }
}
