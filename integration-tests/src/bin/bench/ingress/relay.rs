//! The minimum that anything between a client and an instance can do: connections whose bytes the kernel moves from one
//! to the other (`splice`) without inspection. Its time is the lower bound for this machine.

use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::thread;

use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, pipe, splice};

use super::super::load::Target;

/// Size of the pipe between two connections, and of one move, in bytes.
const PIECE: usize = 1 << 20;

/// Starts the relay, which runs until the process ends; each connection runs until both of its sides end.
pub fn start(to: &Target) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    let app = to.address.clone();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if let Ok(app) = TcpStream::connect(&app) {
                join(client, app).expect("both halves of a connection");
            }
        }
    });
    Target { address, host: to.host.clone() }
}

fn join(client: TcpStream, app: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    app.set_nodelay(true)?;
    let (there, back) = ((client.try_clone()?, app.try_clone()?), (app, client));
    for (from, to) in [there, back] {
        let (outlet, inlet) = pipe()?;
        fcntl_setpipe_size(&inlet, PIECE)?;
        thread::spawn(move || {
            // An error ends the connection like a normal end: the measuring client reports what is missing.
            let _ = relay(&from, &to, &outlet, &inlet);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    Ok(())
}

fn relay(from: &TcpStream, to: &TcpStream, outlet: &OwnedFd, inlet: &OwnedFd) -> io::Result<()> {
    loop {
        let mut waiting = splice(from, None, inlet, None, PIECE, SpliceFlags::MOVE)?;
        if waiting == 0 {
            return Ok(());
        }
        while waiting > 0 {
            waiting -= splice(outlet, None, to, None, waiting, SpliceFlags::MOVE)?;
        }
    }
}
