//! HTTP/2 frame by frame, on a blocking socket, to send what a well-behaved client library cannot send.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketType, bind, connect, socket};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
const ACK: u8 = 1;
const MAX_FRAME: usize = 16_384;
const INITIAL_WINDOW_SIZE: u16 = 4;
const DEFAULT_WINDOW: i64 = 65_535;

/// Connects from an address of this machine, such as 127.0.3.1.
pub fn connect_from(source: [u8; 4], address: &str) -> io::Result<TcpStream> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let socket: OwnedFd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&socket, &SocketAddr::from((source, 0)))?;
    connect(&socket, &address)?;
    Ok(TcpStream::from(socket))
}

/// A client's connection. It respects the server's flow-control windows, and no other obligation of a client.
pub struct Http2 {
    stream: TcpStream,
    initial: i64,
    connection: i64,
    windows: HashMap<u32, i64>,
    /// Streams that the server has ended.
    pub ended: HashSet<u32>,
    pub goaway: bool,
}

impl Http2 {
    pub fn connect(address: &str) -> io::Result<Self> {
        Self::begin(TcpStream::connect(address)?)
    }

    pub fn begin(mut stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.set_write_timeout(Some(Duration::from_secs(3)))?;
        stream.write_all(PREFACE)?;
        let (windows, ended) = (HashMap::new(), HashSet::new());
        let initial = DEFAULT_WINDOW;
        let mut client = Self { stream, initial, connection: initial, windows, ended, goaway: false };
        client.frame(SETTINGS, 0, 0, &[])?;
        Ok(client)
    }

    /// Sets how long the server may be silent before a read fails.
    pub fn patience(&mut self, limit: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(limit))
    }

    pub fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        self.stream.write_all(&encode(kind, flags, stream, payload))
    }

    /// Writes several frames at once.
    pub fn write(&mut self, frames: &[u8]) -> io::Result<()> {
        self.stream.write_all(frames)
    }

    /// Opens a stream with a gRPC request whose body follows.
    pub fn call(&mut self, stream: u32, path: &str, token: Option<&str>) -> io::Result<()> {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let mut fields = vec![
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "hearth"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        fields.extend(bearer.as_deref().map(|bearer| ("authorization", bearer)));
        self.frame(HEADERS, END_HEADERS, stream, &block(&fields))
    }

    /// Sends as many of these bytes as the server accepts before it ends the stream; reports whether that was all.
    pub fn send(&mut self, stream: u32, mut bytes: &[u8]) -> io::Result<bool> {
        while !bytes.is_empty() {
            if self.ended.contains(&stream) || self.goaway {
                return Ok(false);
            }
            let window = *self.windows.entry(stream).or_insert(self.initial);
            let count = window.min(self.connection).min(MAX_FRAME as i64).max(0) as usize;
            let count = count.min(bytes.len());
            if count == 0 {
                self.read_frame()?;
                continue;
            }
            self.frame(DATA, 0, stream, &bytes[..count])?;
            self.connection -= count as i64;
            self.windows.insert(stream, window - count as i64);
            bytes = &bytes[count..];
        }
        Ok(true)
    }

    /// Reads and handles one frame of the server.
    pub fn read_frame(&mut self) -> io::Result<()> {
        let mut head = [0; 9];
        self.stream.read_exact(&mut head)?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        let stream = u32::from_be_bytes(stream);
        self.stream.read_exact(&mut payload)?;
        let number = |bytes: &[u8]| i64::from(u32::from_be_bytes(bytes.try_into().unwrap_or_default()));
        match kind {
            SETTINGS if flags & ACK == 0 => {
                for setting in payload.chunks_exact(6) {
                    if u16::from_be_bytes([setting[0], setting[1]]) == INITIAL_WINDOW_SIZE {
                        let initial = number(&setting[2..]);
                        self.windows.values_mut().for_each(|window| *window += initial - self.initial);
                        self.initial = initial;
                    }
                }
                self.frame(SETTINGS, ACK, 0, &[])?;
            }
            PING if flags & ACK == 0 => self.frame(PING, ACK, 0, &payload)?,
            WINDOW_UPDATE if stream == 0 => self.connection += number(&payload),
            WINDOW_UPDATE => *self.windows.entry(stream).or_insert(self.initial) += number(&payload),
            GOAWAY => self.goaway = true,
            RST_STREAM => drop(self.ended.insert(stream)),
            HEADERS | DATA if flags & END_STREAM != 0 => drop(self.ended.insert(stream)),
            _ => {}
        }
        Ok(())
    }

    /// Reads frames until the server closes the connection or sends nothing for `quiet`.
    pub fn read_to_quiet(&mut self, quiet: Duration) -> io::Result<()> {
        self.stream.set_read_timeout(Some(quiet))?;
        loop {
            match self.read_frame() {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
    }
}

pub fn encode(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut frame = vec![a, b, c, kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Encodes header fields as literals without indexing (RFC 7541, 6.2.2).
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(&mut block, text.len());
            block.extend(text.as_bytes());
        }
    }
    block
}

/// Encodes an integer with a prefix of seven bits (RFC 7541, 5.1).
fn integer(block: &mut Vec<u8>, number: usize) {
    const PREFIX: usize = 127;
    if number < PREFIX {
        return block.push(number as u8);
    }
    block.push(PREFIX as u8);
    let mut rest = number - PREFIX;
    while rest >= 128 {
        block.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    block.push(rest as u8);
}
