//! Netlink connection to the kernel's routing tables. A socket always belongs to the network namespace of the thread
//! that opened it, whichever thread uses it later.
//!
//! Several requests are sent in one message and executed in order; a failed one does not stop those after it.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// Receive timeout. The kernel answers at once; this covers the case that it never does.
const LIMIT: Duration = Duration::from_secs(10);
/// Size in bytes, above the 32 KiB that the kernel puts into one message of a dump.
const BUFFER: usize = 64 << 10;
/// An inconsistent dump is repeated after a pause, which doubles from the first to the longest until the time limit: on
/// a machine where containers come and go, quiet moments are short but frequent.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(64);

pub(crate) struct NetlinkSocket {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

pub(crate) struct NetlinkRequest {
    /// Description for error messages.
    what: String,
    message: RouteNetlinkMessage,
    flags: u16,
    /// Errors that mean that nothing needs to be done.
    harmless: &'static [Errno],
}

impl NetlinkRequest {
    /// Creates an object that must not exist yet.
    pub(crate) fn create(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self { what: what.into(), message, flags: NLM_F_CREATE | NLM_F_EXCL, harmless: &[] }
    }

    /// Creates an object, or replaces an existing one.
    pub(crate) fn replace(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self { what: what.into(), message, flags: NLM_F_CREATE | NLM_F_REPLACE, harmless: &[] }
    }

    pub(crate) fn change(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        Self { what: what.into(), message, flags: 0, harmless: &[] }
    }

    /// Deletes an object, which may not exist.
    pub(crate) fn delete(what: impl Into<String>, message: RouteNetlinkMessage) -> Self {
        let fine = &[Errno::NODEV, Errno::NOENT, Errno::SRCH, Errno::ADDRNOTAVAIL];
        Self { what: what.into(), message, flags: 0, harmless: fine }
    }
}

impl NetlinkSocket {
    pub(crate) fn open() -> io::Result<Self> {
        let socket = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            // NETLINK_ROUTE
            None,
        )?;
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(LIMIT))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Executes all `requests` in order. Returns the first error, with the description of its request.
    pub(crate) fn run(&mut self, requests: Vec<NetlinkRequest>) -> io::Result<()> {
        let first = self.sequence.wrapping_add(1);
        let mut out = Vec::new();
        let mut waiting = Vec::new();
        for request in requests {
            self.send(&mut out, request.message, NLM_F_REQUEST | NLM_F_ACK | request.flags);
            waiting.push((request.what, request.harmless));
        }
        self.write(&out)?;
        let mut failed = None;
        let mut answered = 0;
        while answered < waiting.len() {
            self.read(|header, payload| {
                let number = header.sequence_number.wrapping_sub(first) as usize;
                let (Some((what, fine)), NetlinkPayload::Error(answer)) = (waiting.get(number), payload)
                else {
                    return;
                };
                answered += 1;
                let error = answer.to_io();
                let harmless = answer.code.is_none()
                    || fine.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
                if !harmless && failed.is_none() {
                    failed = Some((number, io::Error::new(error.kind(), format!("{what}: {error}"))));
                }
            })?;
        }
        failed.map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Returns the single object that `message` asks for; `None` if it does not exist.
    pub(crate) fn get(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        let mut out = Vec::new();
        self.send(&mut out, message, NLM_F_REQUEST);
        self.write(&out)?;
        let sequence = self.sequence;
        let mut found = None;
        while found.is_none() {
            self.read(|header, payload| {
                if header.sequence_number != sequence {
                    return;
                }
                match payload {
                    NetlinkPayload::InnerMessage(message) => found = Some(Ok(Some(message))),
                    NetlinkPayload::Error(answer) => {
                        let error = answer.to_io();
                        let gone = [Errno::NODEV, Errno::NOENT, Errno::NETUNREACH, Errno::HOSTUNREACH]
                            .iter()
                            .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
                        found = Some(if gone { Ok(None) } else { Err(error) });
                    }
                    _ => {}
                }
            })?;
        }
        found.unwrap_or(Ok(None))
    }

    /// Returns all objects of the kind of `message`, as one consistent list.
    pub(crate) fn dump(&mut self, message: &RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        let started = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(found) = self.dump_once(message)? {
                return Ok(found);
            }
            if started.elapsed() > LIMIT {
                let what = "the kernel's list of links, addresses or routes keeps changing";
                return Err(io::Error::new(io::ErrorKind::TimedOut, what));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Returns `None` if something changed meanwhile: the list may lack some objects and have others twice.
    fn dump_once(&mut self, message: &RouteNetlinkMessage) -> io::Result<Option<Vec<RouteNetlinkMessage>>> {
        let mut out = Vec::new();
        self.send(&mut out, message.clone(), NLM_F_REQUEST | NLM_F_DUMP);
        self.write(&out)?;
        let sequence = self.sequence;
        let (mut found, mut end, mut disturbed) = (Vec::new(), None, false);
        while end.is_none() {
            self.read(|header, payload| {
                if header.sequence_number != sequence {
                    return;
                }
                disturbed |= header.flags & NLM_F_DUMP_INTR != 0;
                match payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Done(_) => end = Some(Ok(())),
                    NetlinkPayload::Error(answer) => end = Some(Err(answer.to_io())),
                    _ => {}
                }
            })?;
        }
        end.unwrap_or(Ok(()))?;
        Ok((!disturbed).then_some(found))
    }

    /// Appends one message to those that are sent together.
    fn send(&mut self, out: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let begin = out.len();
        out.resize(begin + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut out[begin..]);
    }

    fn write(&self, out: &[u8]) -> io::Result<()> {
        let sent = rustix::io::retry_on_intr(|| rustix::net::send(&self.socket, out, SendFlags::empty()))?;
        if sent == out.len() { Ok(()) } else { Err(io::Error::other("a netlink message was cut short")) }
    }

    /// Passes every message of one datagram to `take`.
    fn read(
        &mut self,
        mut take: impl FnMut(&NetlinkHeader, NetlinkPayload<RouteNetlinkMessage>),
    ) -> io::Result<()> {
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recv(&self.socket, &mut self.buffer[..], RecvFlags::TRUNC)
        });
        let (_, length) = match received {
            Err(Errno::AGAIN) => {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the kernel does not answer"));
            }
            other => other?,
        };
        let mut rest =
            self.buffer.get(..length).ok_or_else(|| io::Error::other("the kernel's answer is too long"))?;
        while !rest.is_empty() {
            let frame = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
            let end = frame.length() as usize;
            match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&rest[..end]) {
                Ok(message) => {
                    let (header, payload) = message.into_parts();
                    take(&header, payload);
                }
                // A link of an unknown kind is none of ours.
                Err(error) => tracing::debug!(%error, "skipped a netlink message"),
            }
            rest = rest.get(end.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}
