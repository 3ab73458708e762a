//! Protocol between the CNI plugin and the daemon, over the socket in the builder's directory.
//!
//! ```text
//! plugin:  {"command":"add","container":"k3..","interface":"eth1"} and the namespace's file descriptor, then end of stream
//! daemon:  {"wired":{...}} | "done" | {"failed":{"code":..,"message":".."}}, then end of stream
//! ```
//!
//! The namespace is sent as a descriptor, because its path exists only in the builder's mount namespace.

use std::io::{self, IoSlice, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, Shutdown};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::{Deserialize, Serialize};

/// Read and write timeout. The peer answers within milliseconds, unless the machine is very busy.
const LIMIT: Duration = Duration::from_secs(20);
/// Maximum size of one message in bytes.
const MAX_MESSAGE: usize = 4 << 10;
/// Maximum length of a container id, as CNI specifies it; those of BuildKit have 25 characters.
const MAX_ID: usize = 128;
/// Maximum length of a link name in the kernel.
const MAX_LINK_NAME: usize = 15;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum PluginCall {
    /// Attaches the namespace whose descriptor is sent with the call.
    Add {
        container: String,
        interface: String,
    },
    /// Checks that the namespace is still in the state in which it was attached.
    Check {
        container: String,
    },
    Del {
        container: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PluginAnswer {
    Wired(StepInterface),
    Done,
    Failed { code: u32, message: String },
}

/// Network interface that a step was given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StepInterface {
    pub(super) address: Ipv4Addr,
    pub(super) gateway: Ipv4Addr,
    /// Name of the host end of the pair.
    pub(super) outside: String,
}

/// Error codes of the CNI specification; our own ones start at 100.
pub(super) mod code {
    pub(in crate::network::steps) const INCOMPATIBLE_VERSION: u32 = 1;
    pub(in crate::network::steps) const UNKNOWN_CONTAINER: u32 = 3;
    pub(in crate::network::steps) const INVALID_ENVIRONMENT: u32 = 4;
    pub(in crate::network::steps) const IO: u32 = 5;
    pub(in crate::network::steps) const DECODING: u32 = 6;
    pub(in crate::network::steps) const INVALID_CONFIG: u32 = 7;
    pub(in crate::network::steps) const TRY_AGAIN: u32 = 11;
    pub(in crate::network::steps) const NO_ADDRESS: u32 = 100;
    pub(in crate::network::steps) const WIRING: u32 = 101;
}

impl PluginCall {
    pub(super) fn container(&self) -> &str {
        match self {
            Self::Add { container, .. } | Self::Check { container } | Self::Del { container } => container,
        }
    }

    fn check(&self) -> Result<(), String> {
        let id = self.container();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(plain) {
            return Err("the container id is not valid under the CNI specification".to_owned());
        }
        if let Self::Add { interface, .. } = self
            && (interface.is_empty() || interface.len() > MAX_LINK_NAME || !interface.bytes().all(plain))
        {
            return Err("the interface name is not valid for the kernel".to_owned());
        }
        Ok(())
    }
}

/// Sends a call to the daemon at `socket`, and returns the answer.
pub(super) fn send_call(
    socket: &Path,
    call: &PluginCall,
    namespace: Option<BorrowedFd<'_>>,
) -> io::Result<PluginAnswer> {
    let mut stream = UnixStream::connect(socket)?;
    set_limits(&stream)?;
    let message = serde_json::to_vec(call)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = namespace.map(|descriptor| [descriptor]);
    if let Some(descriptors) = &descriptors {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    let sent = rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&stream, &[IoSlice::new(&message)], &mut control, SendFlags::NOSIGNAL)
    })?;
    stream.write_all(&message[sent..])?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.take(MAX_MESSAGE as u64 + 1).read_to_end(&mut answer)?;
    if answer.is_empty() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon gave no answer"));
    }
    Ok(serde_json::from_slice(&answer)?)
}

/// Receives one call from the plugin. Blocking.
pub(super) fn receive_call(stream: &UnixStream) -> io::Result<(PluginCall, Option<OwnedFd>)> {
    set_limits(stream)?;
    let mut message = vec![0; MAX_MESSAGE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let flags = RecvFlags::CMSG_CLOEXEC;
        rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut message)], &mut control, flags)
    })?;
    let mut namespace = None;
    for one in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = one {
            // Surplus descriptors are closed here.
            namespace = descriptors.last();
        }
    }
    message.truncate(received.bytes);
    stream.take((MAX_MESSAGE - received.bytes) as u64).read_to_end(&mut message)?;
    let call: PluginCall = serde_json::from_slice(&message)?;
    call.check().map_err(|reason| io::Error::new(io::ErrorKind::InvalidInput, reason))?;
    Ok((call, namespace))
}

pub(super) fn send_answer(stream: &UnixStream, answer: &PluginAnswer) -> io::Result<()> {
    let mut to = stream;
    to.write_all(&serde_json::to_vec(answer)?)?;
    stream.shutdown(Shutdown::Write)
}

fn set_limits(stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    fn add(container: &str, interface: &str) -> PluginCall {
        PluginCall::Add { container: container.to_owned(), interface: interface.to_owned() }
    }

    #[test]
    fn a_call_comes_with_its_descriptor_and_gets_its_answer() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let namespace = File::open("/proc/self/ns/net").unwrap();
        std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                let (stream, _) = listener.accept().unwrap();
                let taken = receive_call(&stream).unwrap();
                send_answer(&stream, &PluginAnswer::Done).unwrap();
                taken
            });
            let answer = send_call(&socket, &add("abc", "eth1"), Some(namespace.as_fd())).unwrap();
            assert_eq!(answer, PluginAnswer::Done);
            let (call, descriptor) = server.join().unwrap();
            assert_eq!(call, add("abc", "eth1"));
            let (one, two) = (rustix::fs::fstat(descriptor.unwrap()), rustix::fs::fstat(&namespace));
            assert_eq!(one.unwrap().st_ino, two.unwrap().st_ino);
        });
    }

    #[test]
    fn names_that_are_none_are_refused() {
        for wrong in [
            add("", "eth1"),
            add("../x", "eth1"),
            add("a", ""),
            add("a", "a-name-too-long-"),
            add("a", "x/y"),
        ] {
            wrong.check().unwrap_err();
        }
        add(&"a".repeat(MAX_ID), "eth1").check().unwrap();
        PluginCall::Del { container: "a".repeat(MAX_ID + 1) }.check().unwrap_err();
    }
}
