//! Listening sockets of the processes of an instance, read from `/proc/PID/net/tcp` and `tcp6` (proc(5)): addresses are
//! hexadecimal words in the byte order of the machine, and state 0A is LISTEN.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const LISTEN: &str = "0A";
/// Maximum number of bytes read of a table: thousands of sockets, and those of the app are among the first.
const MAX_TABLE: u64 = 1 << 20;

/// Address and port of a listening TCP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ListeningSocket {
    pub(super) address: IpAddr,
    pub(super) port: u16,
}

impl ListeningSocket {
    /// Reports whether only processes inside the instance can connect.
    pub(super) const fn is_local(&self) -> bool {
        self.address.is_loopback()
    }
}

/// Returns the listening sockets in the network namespace of a process; none if the process is gone. Blocking.
pub(super) fn listening_sockets(pid: u32) -> BTreeSet<ListeningSocket> {
    let mut found = BTreeSet::new();
    for table in ["tcp", "tcp6"] {
        let Ok(file) = File::open(format!("/proc/{pid}/net/{table}")) else { continue };
        let mut text = String::new();
        if file.take(MAX_TABLE).read_to_string(&mut text).is_ok() {
            found.extend(text.lines().filter_map(parse_line));
        }
    }
    found
}

/// Parses one line: `sl local_address rem_address st ..`.
fn parse_line(line: &str) -> Option<ListeningSocket> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let (local, state) = (words.next()?, words.nth(1)?);
    if state != LISTEN {
        return None;
    }
    let (address, port) = local.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let address = match address.len() {
        8 => IpAddr::from(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let mut bytes = [0; 16];
            for (part, word) in bytes.chunks_exact_mut(4).zip(words) {
                part.copy_from_slice(&word);
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(ListeningSocket { address, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_of_this_process_are_found_with_who_can_reach_them() {
        let local = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let open = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
        let found = listening_sockets(std::process::id());
        let of = |port| found.iter().find(|listener| listener.port == port).unwrap();
        assert!(of(local.local_addr().unwrap().port()).is_local());
        assert!(!of(open.local_addr().unwrap().port()).is_local());
        assert!(listening_sockets(u32::MAX).is_empty());
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_table_of_the_kernel_is_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   1: 0100007F:1F41 0100007F:9999 01 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0
   2: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00
   3: nonsense";
        let found: Vec<ListeningSocket> = table.lines().filter_map(parse_line).collect();
        assert_eq!(
            found,
            [
                ListeningSocket { address: "127.0.0.1".parse().unwrap(), port: 8000 },
                ListeningSocket { address: "::1".parse().unwrap(), port: 80 }
            ]
        );
    }
}
