//! Registry that listens, and a client for it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hearthd::model::access::{ApiScope, Caller};
use hearthd::registry::blobs::BlobStore;
use hearthd::registry::{RegistryApi, UploadLimits};
use hearthd::store::StateStore;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";

pub struct Room {
    pub root: PathBuf,
    pub address: SocketAddr,
    pub registry: RegistryApi,
    client: Client<HttpConnector, Body>,
    server: tokio::task::JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.server.abort();
    }
}

pub async fn room() -> Room {
    room_with(UploadLimits::default()).await
}

pub async fn room_with(limits: UploadLimits) -> Room {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("registry");
    room_at(directory, root, limits).await
}

/// Creates a registry. `root` may be a file system of its own; the database is beside it.
pub async fn room_at(directory: tempfile::TempDir, root: PathBuf, limits: UploadLimits) -> Room {
    let store = StateStore::open(&directory.path().join("state.db")).unwrap();
    let registry = RegistryApi::new(limits, BlobStore::open(&root).unwrap(), Arc::new(store));
    let router = registry.router().layer(from_fn(identify));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = hearthd::task::spawn("test registry", async move {
        axum::serve(listener, router).await.unwrap();
    });
    let client = Client::builder(TokioExecutor::new()).build_http();
    Room { root, address, registry, client, server, _directory: directory }
}

/// The user name of `Authorization: Basic` selects the grants.
async fn identify(mut request: Request, next: Next) -> Response {
    let header = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let basic = header.and_then(|header| STANDARD.decode(header.strip_prefix("Basic ")?).ok());
    if let Some(name) =
        basic.and_then(|basic| Some(String::from_utf8(basic).ok()?.split(':').next()?.to_owned()))
    {
        let grant = match name.as_str() {
            "reader" => json!({"pull": ["team/*"]}),
            "writer" => json!({"write": ["team/*"]}),
            "lister" => json!({"list": ["team/*"]}),
            "nobody" => json!({}),
            "all" | "third" => json!({"list": ["*"], "pull": ["*"], "write": ["*"]}),
            // Skopeo without credentials sends an empty name and password.
            _ => return next.run(request).await,
        };
        let scope: ApiScope = serde_json::from_value(json!({"containers": {"registry": grant}})).unwrap();
        request.extensions_mut().insert(Caller::new(name, scope));
    }
    next.run(request).await
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status.as_u16(), status, "{self:?}");
        self
    }

    /// Checks status and code of a refusal in the form of the spec.
    #[track_caller]
    pub fn refused(self, status: u16, code: &str) -> String {
        let answer = self.expect(status);
        let error = answer.json()["errors"][0].clone();
        assert_eq!(error["code"], code, "{answer:?}");
        error["message"].as_str().unwrap().to_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// Request as one caller.
#[derive(Clone, Copy)]
pub struct As<'a> {
    pub room: &'a Room,
    pub caller: &'a str,
}

impl Room {
    pub fn client(&self, caller: &'static str) -> As<'_> {
        As { room: self, caller }
    }

    /// Returns a caller with all grants.
    pub fn all(&self) -> As<'_> {
        self.client("all")
    }

    /// Lists files below a directory of the registry.
    pub fn files(&self, directory: &str) -> usize {
        count(&self.root.join(directory))
    }
}

fn count(path: &Path) -> usize {
    let entries = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { count(&path) } else { 1 }).sum()
}

impl As<'_> {
    pub fn authorization(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{}:x", self.caller)))
    }

    pub async fn send(&self, method: &str, path: &str) -> Answer {
        self.send_with(method, path, &[], Body::empty()).await
    }

    pub async fn send_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Body>,
    ) -> Answer {
        let mut request =
            http::Request::builder().method(method).uri(format!("http://{}{path}", self.room.address));
        if !self.caller.is_empty() {
            request = request.header("authorization", self.authorization());
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.room.client.request(request.body(body.into()).unwrap()).await.unwrap();
        let (parts, body) = response.into_parts();
        Answer {
            status: parts.status,
            headers: parts.headers,
            body: body.collect().await.unwrap().to_bytes(),
        }
    }

    /// Pushes a blob the way most clients do; returns its descriptor.
    pub async fn put_blob(&self, repository: &str, content: &[u8]) -> Value {
        let location = self.begin(repository).await;
        let digest = digest(content);
        self.send_with("PUT", &format!("{location}?digest={digest}"), &[], content.to_vec())
            .await
            .expect(201);
        json!({"mediaType": "application/octet-stream", "digest": digest, "size": content.len()})
    }

    pub async fn begin(&self, repository: &str) -> String {
        let answer = self.send("POST", &format!("/v2/{repository}/blobs/uploads/")).await.expect(202);
        answer.header("location").to_owned()
    }

    pub async fn put_json(&self, repository: &str, name: &str, media_type: &str, manifest: &Value) -> Answer {
        let path = format!("/v2/{repository}/manifests/{name}");
        self.send_with("PUT", &path, &[("content-type", media_type)], manifest.to_string()).await
    }

    /// Pushes an image of one small layer; returns the manifest's descriptor.
    pub async fn put_image(&self, repository: &str, tag: &str, content: &str) -> Value {
        let layer = self.put_blob(repository, content.as_bytes()).await;
        let config = self.put_blob(repository, b"{}").await;
        let manifest =
            json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [layer]});
        self.put_json(repository, tag, MANIFEST, &manifest).await.expect(201);
        describe(MANIFEST, &manifest)
    }
}

pub fn describe(media_type: &str, manifest: &Value) -> Value {
    let text = manifest.to_string();
    json!({"mediaType": media_type, "digest": digest(text.as_bytes()), "size": text.len()})
}

pub fn digest(content: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(content)))
}

/// Returns incompressible, unique content.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(size)
    .collect()
}

pub fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}
