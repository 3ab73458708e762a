//! The network outside of the daemons under test: a network namespace behind a routed pair of links, with web servers
//! at addresses that the machine reaches by a route, and a name server on the machine's loopback that resolves their
//! names.
//!
//! The namespace has no route to anything but the machine's end of the pair: traffic from behind the machine has to
//! come through NAT. Dropping the value removes everything.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::process::{self, Output};
use crate::wait::{self, seconds};

pub struct World {
    /// Name of the namespace, and of the machine's end of the pair.
    name: String,
    /// The machine's own address on the pair.
    pub host: Ipv4Addr,
    /// Two hosts of the world, and one with an address of a private network.
    pub one: Ipv4Addr,
    pub two: Ipv4Addr,
    pub private: Ipv4Addr,
    servers: Vec<Child>,
    names: Names,
    directory: PathBuf,
}

impl World {
    /// Creates the world. `one` serves its own address, the client's address and a file named `page`; so do the others.
    pub fn make(directory: &Path) -> Self {
        let directory = directory.join("world");
        let site = directory.join("site/cgi-bin");
        fs::create_dir_all(&site).expect("directory of the world");
        fs::write(directory.join("site/page"), "the world\n").expect("page");
        let script = site.join("who");
        fs::write(&script, "#!/bin/sh\nprintf 'content-type: text/plain\\n\\n%s\\n' \"$REMOTE_ADDR\"\n")
            .expect("script");
        process::run(Command::new("chmod").args(["0755"]).arg(&script), seconds(5)).expect_code(0);
        let number: u32 = std::process::id() % 0x400 * 4 + next() % 4;
        // Addresses from a public block for experiments of radio amateurs (44.44.0.0/16), and from a private network.
        let net = 0x2c2c_0000 + number * 8;
        let private: Ipv4Addr = (0xac1f_0000 + number % 0x2000 * 8 + 2).into();
        let (host, one, two): (Ipv4Addr, Ipv4Addr, Ipv4Addr) =
            ((net + 1).into(), (net + 2).into(), (net + 3).into());
        let name = format!("wld{number:x}");
        let names = Names::serve([
            ("one.test", one),
            ("www.one.test", one),
            ("two.test", two),
            ("private.test", private),
            ("metadata.test", Ipv4Addr::new(169, 254, 169, 254)),
            ("loopback.test", Ipv4Addr::LOCALHOST),
        ]);
        let mut world = Self { name, host, one, two, private, servers: Vec::new(), names, directory };
        world.wire();
        for address in [one, two, private] {
            let mut server = Command::new("ip");
            server.args([
                "netns",
                "exec",
                &world.name,
                "busybox",
                "httpd",
                "-f",
                "-p",
                &format!("{address}:80"),
                "-h",
            ]);
            server
                .arg(world.directory.join("site"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            world.servers.push(server.spawn().expect("a web server of the world"));
        }
        let reached = |address| {
            std::net::TcpStream::connect_timeout(&SocketAddr::from((address, 80)), seconds(1)).is_ok()
        };
        wait::until(seconds(20), "the world is up", || [one, two, private].into_iter().all(reached));
        world
    }

    fn wire(&self) {
        let Self { name, host, one, two, private, .. } = self;
        let inner = format!("{name}i");
        let lines = [
            format!("netns add {name}"),
            format!("link add {name} type veth peer name {inner}"),
            format!("link set {inner} netns {name}"),
            format!("address add {host}/32 dev {name}"),
            format!("link set {name} up"),
            format!("netns exec {name} ip link set lo up"),
            format!("netns exec {name} ip address add {one}/32 dev {inner}"),
            format!("netns exec {name} ip address add {two}/32 dev {inner}"),
            format!("netns exec {name} ip address add {private}/32 dev {inner}"),
            format!("netns exec {name} ip link set {inner} up"),
            format!("netns exec {name} ip route add {host}/32 dev {inner}"),
            format!("route add {one}/32 dev {name} src {host}"),
            format!("route add {two}/32 dev {name} src {host}"),
            format!("route add {private}/32 dev {name} src {host}"),
        ];
        for line in lines {
            process::run(Command::new("ip").args(line.split(' ')), seconds(10)).expect_code(0);
        }
    }

    /// Returns a command that runs in the world's namespace.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(words);
        command
    }

    pub fn run(&self, words: &[&str]) -> Output {
        process::run(&mut self.command(words), seconds(30))
    }

    /// Address of the name server: `host:port`.
    pub fn resolver(&self) -> String {
        self.names.address.to_string()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        for line in [format!("link delete {}", self.name), format!("netns delete {}", self.name)] {
            let ended = process::run(Command::new("ip").args(line.split(' ')), seconds(10));
            if ended.code != 0 {
                eprintln!("ip {line}\n{ended}");
            }
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn next() -> u32 {
    static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

/// A name server that knows a few names, and answers that all others do not exist.
struct Names {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Names {
    fn serve<const N: usize>(names: [(&'static str, Ipv4Addr); N]) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).expect("a name server");
        socket.set_read_timeout(Some(Duration::from_millis(200))).expect("time limit");
        let (address, stop) = (socket.local_addr().expect("address"), Arc::new(AtomicBool::new(false)));
        let (names, stopped) = (BTreeMap::from(names), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
                if let Some(answer) = answer(&buffer[..length], &names) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        Self { address, stop, thread: Some(thread) }
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(query: &[u8], names: &BTreeMap<&'static str, Ipv4Addr>) -> Option<Vec<u8>> {
    let (mut name, mut at) = (Vec::new(), 12);
    while *query.get(at)? != 0 {
        let length = usize::from(query[at]);
        name.push(String::from_utf8_lossy(query.get(at + 1..at + 1 + length)?).to_lowercase());
        at += 1 + length;
    }
    let end = at + 5;
    let of_ipv4 = query.get(at + 1..at + 3)? == [0, 1];
    let address = names.get(name.join(".").as_str());
    let mut answer = query.get(..end)?.to_vec();
    answer[2] |= 0x80;
    answer[3] = if address.is_some() { 0x80 } else { 0x83 };
    answer[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    if let Some(address) = address.filter(|_| of_ipv4) {
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 30, 0, 4]);
        answer.extend(address.octets());
    }
    Some(answer)
}
