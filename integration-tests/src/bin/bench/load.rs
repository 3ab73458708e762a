//! A load generator that sends each request as soon as the last one is answered: a fixed number of requests on a fixed
//! number of kept connections, with the time of each. It has one thread, so that it takes little from what it measures.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use integration_tests::wait::seconds;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::serve::{content_length, head_end};

const LIMIT: Duration = seconds(300);
const CHUNK: usize = 256 << 10;

/// Address of the server, and host of the requests.
#[derive(Clone)]
pub struct Target {
    /// Address of the server: `host:port`.
    pub address: String,
    pub host: String,
}

#[derive(Clone, Copy)]
pub enum Ask {
    Get(&'static str),
    /// Path, and number of bytes of the body.
    Post(&'static str, u64),
}

#[derive(Clone, Copy)]
pub struct Load {
    pub ask: Ask,
    /// Expected length of the body of each response, in bytes.
    pub answer: u64,
    pub connections: usize,
    pub requests: usize,
    /// Time that a client waits before it reads a response.
    pub late: Duration,
}

pub struct Times {
    pub whole: Duration,
    /// Time of each request, in ascending order.
    each: Vec<Duration>,
}

impl Times {
    pub fn p99(&self) -> Duration {
        self.each[self.each.len().saturating_sub(1) * 99 / 100]
    }
}

impl Load {
    /// Runs the load. Stops at the first response that is not 200 or does not have the expected length.
    #[track_caller]
    pub fn run(&self, target: &Target) -> Times {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let times = runtime.block_on(async { tokio::time::timeout(LIMIT, self.ask_all(target)).await });
        let shown = &target.address;
        times
            .unwrap_or_else(|_| panic!("requests to {shown} took longer than {LIMIT:?}"))
            .unwrap_or_else(|error| panic!("request to {shown}: {error}"))
    }

    async fn ask_all(&self, target: &Target) -> io::Result<Times> {
        // Connects before the time begins: the measurement is of kept connections.
        let mut connections = Vec::new();
        for number in 0..self.connections {
            let stream = TcpStream::connect(&target.address).await?;
            stream.set_nodelay(true)?;
            let share = (self.requests + number) / self.connections;
            connections.push((stream, share));
        }
        let (head, body) = (Arc::new(self.head(&target.host)), Arc::new(vec![b'x'; CHUNK]));
        let mut clients = JoinSet::new();
        let start = Instant::now();
        for (stream, share) in connections {
            clients.spawn(self.ask_on(stream, share, Arc::clone(&head), Arc::clone(&body)));
        }
        let mut each = Vec::with_capacity(self.requests);
        while let Some(times) = clients.join_next().await {
            each.extend(times??);
        }
        let whole = start.elapsed();
        each.sort();
        assert_eq!(each.len(), self.requests);
        Ok(Times { whole, each })
    }

    fn head(&self, host: &str) -> String {
        match self.ask {
            Ask::Get(path) => format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n"),
            Ask::Post(path, length) => {
                format!("POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\n\r\n")
            }
        }
    }

    async fn ask_on(
        self,
        mut stream: TcpStream,
        share: usize,
        head: Arc<String>,
        body: Arc<Vec<u8>>,
    ) -> io::Result<Vec<Duration>> {
        let mut times = Vec::with_capacity(share);
        let mut buffer = Vec::with_capacity(CHUNK);
        for _ in 0..share {
            let begun = Instant::now();
            stream.write_all(head.as_bytes()).await?;
            if let Ask::Post(_, length) = self.ask {
                let mut left = length;
                while left > 0 {
                    let part = body.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    stream.write_all(&body[..part]).await?;
                    left -= part as u64;
                }
            }
            if !self.late.is_zero() {
                tokio::time::sleep(self.late).await;
            }
            let length = read_answer(&mut stream, &mut buffer).await?;
            if length != self.answer {
                return Err(io::Error::other(format!(
                    "the body has {length} bytes instead of {}",
                    self.answer
                )));
            }
            times.push(begun.elapsed());
        }
        Ok(times)
    }
}

/// Reads a response and returns the length of the body, which is discarded.
async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<u64> {
    buffer.clear();
    let end = loop {
        if let Some(end) = head_end(buffer) {
            break end;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    let head = String::from_utf8_lossy(&buffer[..end]);
    if !head.starts_with("HTTP/1.1 200 ") {
        return Err(io::Error::other(format!("{:?}", head.lines().next().unwrap_or_default())));
    }
    let length = content_length(&head)?;
    let mut read = (buffer.len() - end) as u64;
    while read < length {
        buffer.clear();
        match stream.read_buf(buffer).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => read += count as u64,
        }
    }
    Ok(length)
}
