//! An HTTP server on an address of this machine that answers by a script and records its requests: a registry or a web
//! server with scripted misbehaviour. One request for each connection.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

/// Time limit for a client to send its request.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);

#[derive(Clone, Debug)]
pub struct Asked {
    pub method: String,
    /// Path with the query.
    pub path: String,
    headers: Vec<(String, String)>,
}

impl Asked {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

#[derive(Clone, Debug)]
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

pub struct Scripted {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    connections: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Scripted {
    pub fn start(script: impl Fn(&Asked) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1:0", script).expect("a loopback port")
    }

    pub fn start_at(
        address: &str,
        script: impl Fn(&Asked) -> Reply + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let (asked, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (remember, stopped) = (Arc::clone(&asked), Arc::clone(&stop));
        let script = Arc::new(script);
        let connections = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&connections);
        let server = std::thread::spawn(move || {
            for connection in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(connection) = connection else { continue };
                count.fetch_add(1, Ordering::SeqCst);
                let (remember, script) = (Arc::clone(&remember), Arc::clone(&script));
                // A client that closes the connection is no fault of the script.
                std::thread::spawn(move || drop(answer(&connection, &remember, &*script)));
            }
        });
        Ok(Self { address, asked, connections, stop, server: Some(server) })
    }

    /// Address of the server: `host:port`.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().clone()
    }

    /// Number of connections so far, including those without a readable request.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// Stops the server and frees its port.
    pub fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.end();
    }
}

fn answer(
    connection: &TcpStream,
    asked: &Mutex<Vec<Asked>>,
    script: &dyn Fn(&Asked) -> Reply,
) -> io::Result<()> {
    connection.set_read_timeout(Some(REQUEST_LIMIT))?;
    connection.set_write_timeout(Some(REQUEST_LIMIT))?;
    let request = read(connection)?;
    asked.lock().push(request.clone());
    let reply = script(&request);
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
    if reply.status != 304 {
        head += &format!("content-length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let mut out = connection;
    out.write_all(format!("{head}\r\n").as_bytes())?;
    if request.method != "HEAD" && reply.status != 304 {
        out.write_all(&reply.body)?;
    }
    out.flush()
}

fn read(connection: &TcpStream) -> io::Result<Asked> {
    let mut reader = BufReader::new(connection.take(1 << 20));
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    Ok(Asked { method, path, headers })
}
