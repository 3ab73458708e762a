//! A small HTTP/1.1 client over plain sockets, with one request for each connection. It can send what a well-behaved
//! client library refuses to send: half a body, a wrong length.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

pub const ANY_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
     application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    path: String,
    /// Value of the `host` header; `None` for the address.
    host: Option<String>,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Length to declare when it differs from that of the body.
    declared: Option<usize>,
}

#[derive(Clone)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    /// Creates a request. `path` may also be a whole URL, as in a `Location`: then its path and query are used.
    pub fn new(method: &str, path: &str) -> Self {
        let path = match path.split_once("://") {
            Some((_, rest)) => rest.find('/').map_or("/", |at| &rest[at..]),
            None => path,
        };
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            host: None,
            headers: Vec::new(),
            body: Vec::new(),
            declared: None,
        }
    }

    pub fn host(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn bearer(self, token: &str) -> Self {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub fn basic(self, user: &str, password: &str) -> Self {
        self.header("authorization", &format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Declares a longer body than is sent; the connection is then closed in the middle of it.
    pub fn declare_length(mut self, length: usize) -> Self {
        self.declared = Some(length);
        self
    }

    #[track_caller]
    pub fn send(&self, address: &str) -> Answer {
        self.try_send(address)
            .unwrap_or_else(|error| panic!("{} {} at {address}: {error}", self.method, self.path))
    }

    pub fn try_send(&self, address: &str) -> io::Result<Answer> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_write_timeout(Some(Duration::from_secs(60)))?;
        let host = self.host.as_deref().unwrap_or(address);
        let mut head =
            format!("{} {} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n", self.method, self.path);
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        let length = self.declared.unwrap_or(self.body.len());
        if length > 0 || matches!(self.method.as_str(), "POST" | "PUT" | "PATCH") {
            head.push_str(&format!("content-length: {length}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        // A server may refuse and close in the middle of a body; its response can still be read.
        let sent = stream.write_all(&self.body);
        if length > self.body.len() {
            stream.shutdown(std::net::Shutdown::Write)?;
        }
        match read_answer(&mut BufReader::new(stream), self.method == "HEAD") {
            Err(error) => Err(sent.err().unwrap_or(error)),
            answer => answer,
        }
    }
}

pub(crate) fn read_answer(from: &mut impl BufRead, head_only: bool) -> io::Result<Answer> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    loop {
        let status = line(from)?;
        let status =
            status.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| invalid("status"))?;
        let mut headers = Vec::new();
        loop {
            let text = line(from)?;
            if text.is_empty() {
                break;
            }
            let (name, value) = text.split_once(':').ok_or_else(|| invalid("header"))?;
            headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        // Informational responses, such as 100 Continue, come before the final response.
        if (100..200).contains(&status) {
            continue;
        }
        let mut answer = Answer { status, headers, body: Vec::new() };
        if head_only || status == 204 || status == 304 {
            return Ok(answer);
        }
        if answer.header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked")) {
            answer.body = chunks(from)?;
        } else if let Some(length) = answer.header("content-length") {
            let length = length.parse().map_err(|_| invalid("content-length"))?;
            answer.body = vec![0; length];
            from.read_exact(&mut answer.body)?;
        } else {
            from.read_to_end(&mut answer.body)?;
        }
        return Ok(answer);
    }
}

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut text = String::new();
    if from.read_line(&mut text)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(text.trim_end().to_owned())
}

fn chunks(from: &mut impl BufRead) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let size = line(from)?;
        let size = size.split(';').next().unwrap_or_default().trim();
        let size = usize::from_str_radix(size, 16)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("chunk size {size:?}")))?;
        let start = body.len();
        body.resize(start + size, 0);
        from.read_exact(&mut body[start..])?;
        line(from)?;
        if size == 0 {
            return Ok(body);
        }
    }
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(given, _)| given == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("not JSON: {error}: {self:?}"))
    }

    #[track_caller]
    pub fn expect(&self, status: u16) -> &Self {
        assert_eq!(self.status, status, "{self:?}");
        self
    }

    /// Returns the first error code of a registry's response (OCI distribution spec, "Error codes").
    #[track_caller]
    pub fn registry_code(&self) -> String {
        let body = self.json();
        body["errors"][0]["code"].as_str().unwrap_or_else(|| panic!("no error code: {self:?}")).to_owned()
    }
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = &self.body[..self.body.len().min(2000)];
        write!(f, "{} {:?} {}", self.status, self.headers, String::from_utf8_lossy(shown))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Answer {
        read_answer(&mut text.as_bytes(), false).unwrap()
    }

    #[test]
    fn bodies_by_length_by_chunks_and_to_the_end_are_read() {
        assert_eq!(parse("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcd").text(), "abc");
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).text(), "abcde");
        assert_eq!(parse("HTTP/1.1 200 OK\r\n\r\nabc").text(), "abc");
    }

    #[test]
    fn an_interim_answer_is_skipped_and_headers_have_no_case() {
        let answer = parse(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nLOCATION: /x\r\ncontent-length: 0\r\n\r\n",
        );
        assert_eq!((answer.status, answer.header("location")), (201, Some("/x")));
    }

    #[test]
    fn a_whole_url_is_reduced_to_path_and_query() {
        assert_eq!(Request::new("PUT", "http://127.0.0.1:1/v2/a?b=c").path, "/v2/a?b=c");
        assert_eq!(Request::new("PUT", "/v2/a?b=c").path, "/v2/a?b=c");
    }
}
