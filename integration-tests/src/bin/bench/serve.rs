//! `bench --serve PORT`: the app behind the ingress in benchmarks. It is fast enough not to limit the measurement.
//!
//! It speaks HTTP/1.1 with keep-alive. `GET /` returns a tiny response, and `GET /bytes/N` a body of N bytes. A body
//! that is sent to `/sink` is read and counted; `/sink/late` waits for [`READ_DELAY`] before it reads.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

pub const TINY: &str = "hello\n";
/// Time that a slow reader waits before it reads a body, so that the ingress has to hold the body back.
pub const READ_DELAY: Duration = Duration::from_millis(300);
const MAX_HEAD: usize = 16 << 10;
const CHUNK: usize = 256 << 10;

/// Serves until the process is ended.
pub fn run(port: u16) -> io::Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let listener = TcpListener::bind(("0.0.0.0", port)).await?;
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            // A broken connection ends its task; the client opens another one.
            connections.spawn(async move { drop(connection(stream).await) });
            while connections.try_join_next().is_some() {}
        }
    })
}

struct RequestHead {
    get: bool,
    path: String,
    length: u64,
}

async fn connection(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(CHUNK);
    let body = vec![b'x'; CHUNK];
    while let Some((request, head_length)) = read_head(&mut stream, &mut buffer).await? {
        buffer.drain(..head_length);
        if request.path == "/sink/late" {
            tokio::time::sleep(READ_DELAY).await;
        }
        skip_body(&mut stream, &mut buffer, request.length).await?;
        let bytes = request.path.strip_prefix("/bytes/").and_then(|count| count.parse::<u64>().ok());
        match (request.get, request.path.as_str(), bytes) {
            (true, "/", _) => reply(&mut stream, "200 OK", TINY).await?,
            (true, _, Some(count)) => {
                stream.write_all(head_of("200 OK", count).as_bytes()).await?;
                let mut left = count;
                while left > 0 {
                    let part = body.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    stream.write_all(&body[..part]).await?;
                    left -= part as u64;
                }
            }
            (false, "/sink" | "/sink/late", _) => {
                reply(&mut stream, "200 OK", &format!("{}\n", request.length)).await?;
            }
            _ => reply(&mut stream, "404 Not Found", "").await?,
        }
    }
    Ok(())
}

fn head_of(status: &str, length: u64) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n")
}

async fn reply(stream: &mut TcpStream, status: &str, body: &str) -> io::Result<()> {
    stream.write_all((head_of(status, body.len() as u64) + body).as_bytes()).await
}

/// Returns the next request and the length of its head; `None` at the end of the connection.
async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<(RequestHead, usize)>> {
    loop {
        if let Some(end) = head_end(buffer) {
            let text = String::from_utf8_lossy(&buffer[..end]);
            let mut words = text.split(' ');
            let get = words.next() == Some("GET");
            let path = words.next().unwrap_or_default().to_owned();
            return Ok(Some((RequestHead { get, path, length: content_length(&text)? }, end)));
        }
        if buffer.len() > MAX_HEAD {
            return Err(io::Error::other("the request head is too long"));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

async fn skip_body(stream: &mut TcpStream, buffer: &mut Vec<u8>, length: u64) -> io::Result<()> {
    let mut left = length;
    loop {
        let here = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        buffer.drain(..here);
        left -= here as u64;
        if left == 0 {
            return Ok(());
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Returns the length of the head with its empty line.
pub fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// Returns the declared length of the body, or zero. Chunked bodies are not supported: the ingress keeps a declared
/// length.
pub fn content_length(head: &str) -> io::Result<u64> {
    let value = |name: &str| {
        head.lines()
            .filter_map(|line| line.split_once(':'))
            .find_map(|(given, value)| given.eq_ignore_ascii_case(name).then(|| value.trim()))
    };
    if value("transfer-encoding").is_some() {
        return Err(io::Error::other("chunked bodies are not supported"));
    }
    value("content-length").map_or(Ok(0), |length| length.parse().map_err(io::Error::other))
}
