//! A plain registry in memory, for `buildctl` to push to: no authentication, no disk, no fsync, so that the other side
//! of the comparison pays only for BuildKit's own work.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;

use integration_tests::sources::sha256;
use parking_lot::Mutex;

#[derive(Default)]
struct Content {
    /// Open uploads; the index is the name of the upload.
    uploads: Vec<Vec<u8>>,
    blobs: HashMap<String, Vec<u8>>,
    /// Media type and bytes by `repository/reference`.
    manifests: HashMap<String, (String, Vec<u8>)>,
}

struct Asked {
    method: String,
    path: String,
    query: String,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

struct Answer {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

/// Serves on a free port of the loopback address until the process ends.
pub fn serve() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let content = Arc::new(Mutex::new(Content::default()));
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let content = content.clone();
            // A broken connection ends its thread; the client opens another one.
            thread::spawn(move || drop(connection(&stream, &content)));
        }
    });
    Ok(address)
}

fn connection(stream: &TcpStream, content: &Mutex<Content>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut from = BufReader::with_capacity(256 * 1024, stream);
    while let Some(asked) = read(&mut from, stream)? {
        let answer = answer(&asked, content);
        let mut head = format!("HTTP/1.1 {}\r\n", answer.status);
        for (name, value) in &answer.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !answer.headers.iter().any(|(name, _)| *name == "content-length") {
            head.push_str(&format!("content-length: {}\r\n", answer.body.len()));
        }
        head.push_str("\r\n");
        let mut to = stream;
        to.write_all(head.as_bytes())?;
        if asked.method != "HEAD" {
            to.write_all(&answer.body)?;
        }
    }
    Ok(())
}

fn read(from: &mut impl BufRead, mut to: &TcpStream) -> io::Result<Option<Asked>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(ToOwned::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    if headers.contains_key("expect") {
        to.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
    }
    let mut body = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|value| value.contains("chunked")) {
        loop {
            let mut size = String::new();
            from.read_line(&mut size)?;
            let size = u64::from_str_radix(size.trim(), 16).map_err(io::Error::other)?;
            io::copy(&mut from.take(size), &mut body)?;
            from.read_line(&mut String::new())?;
            if size == 0 {
                break;
            }
        }
    } else if let Some(length) = headers.get("content-length") {
        io::copy(&mut from.take(length.parse().map_err(io::Error::other)?), &mut body)?;
    }
    Ok(Some(Asked { method, path: path.to_owned(), query: query.to_owned(), headers, body }))
}

fn answer(asked: &Asked, content: &Mutex<Content>) -> Answer {
    let mut content = content.lock();
    let reply = |status, headers, body| Answer { status, headers, body };
    let missing = || reply("404 Not Found", vec![], br#"{"errors":[{"code":"UNKNOWN"}]}"#.to_vec());
    if asked.path == "/v2/" {
        return reply("200 OK", vec![], vec![]);
    }
    if let Some(at) = asked.path.find("/blobs/uploads/") {
        let repository = &asked.path[..at];
        if asked.method == "POST" {
            let id = content.uploads.len();
            content.uploads.push(Vec::new());
            let location = format!("{repository}/blobs/uploads/{id}");
            return reply("202 Accepted", vec![("location", location)], vec![]);
        }
        let id = asked.path.rsplit('/').next().and_then(|id| id.parse::<usize>().ok());
        let Some(upload) = id.and_then(|id| content.uploads.get_mut(id)) else { return missing() };
        upload.extend_from_slice(&asked.body);
        if asked.method == "PATCH" {
            let range = format!("0-{}", upload.len().saturating_sub(1));
            return reply("202 Accepted", vec![("location", asked.path.clone()), ("range", range)], vec![]);
        }
        let blob = std::mem::take(upload);
        let digest = sha256(&blob);
        if !asked.query.replace("%3A", ":").contains(&digest) {
            return reply("400 Bad Request", vec![], br#"{"errors":[{"code":"DIGEST_INVALID"}]}"#.to_vec());
        }
        content.blobs.insert(digest.clone(), blob);
        let location = format!("{repository}/blobs/{digest}");
        return reply("201 Created", vec![("location", location), ("docker-content-digest", digest)], vec![]);
    }
    if let Some((_, digest)) = asked.path.split_once("/blobs/") {
        let Some(blob) = content.blobs.get(digest) else { return missing() };
        let headers = vec![
            ("content-type", "application/octet-stream".to_owned()),
            ("content-length", blob.len().to_string()),
            ("docker-content-digest", digest.to_owned()),
        ];
        return reply("200 OK", headers, blob.clone());
    }
    let Some((repository, reference)) = asked.path.split_once("/manifests/") else { return missing() };
    if asked.method == "PUT" {
        let digest = sha256(&asked.body);
        let media_type = asked.headers.get("content-type").cloned().unwrap_or_default();
        for reference in [reference, &digest] {
            let manifest = (media_type.clone(), asked.body.clone());
            content.manifests.insert(format!("{repository}/{reference}"), manifest);
        }
        return reply("201 Created", vec![("docker-content-digest", digest)], vec![]);
    }
    match content.manifests.get(&format!("{repository}/{reference}")) {
        Some((media_type, body)) => {
            let headers = vec![
                ("content-type", media_type.clone()),
                ("content-length", body.len().to_string()),
                ("docker-content-digest", sha256(body)),
            ];
            reply("200 OK", headers, body.clone())
        }
        None => missing(),
    }
}
