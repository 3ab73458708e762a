//! A directory of a client becomes an image of the room: what crosses the wire, and how long it takes.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use integration_tests::binaries::binaries;
use integration_tests::process;
use integration_tests::wait::seconds;

use super::figures::Figure;
use super::side::Bench;
use super::trees;
use super::turns::{alone, in_turns};

/// As [`super::pack::TAR`], then sent over the same connection: what one would do without `hearth pack`.
const TAR_AND_SEND: &str = "set -o pipefail; tar -C \"$0\" -cf - . | zstd -3 -T2 -q -f -o \"$1\" && \"$2\" storage put \"$1\" sent.tar.zst";

pub fn chapter(bench: &Bench) -> Vec<Figure> {
    let tree = bench.large();
    let source = bench.work.join("upload-source");
    trees::copy(&tree.path, &source);
    let wire = Wire::before(bench);
    let send = |tag: &str| {
        let mut command = bench.daemon.client();
        command.env("HEARTH_ADDR", wire.address()).args(["pack", "--tag", tag]).arg(&source);
        process::run(&mut command, seconds(300)).expect_code(0);
    };
    let archive = bench.work.join("sent.tar.zst");
    // Each first upload is of content that the room has not met: every file is another than before.
    let first = in_turns(
        |round| {
            mark_all(&source, round);
            rustix::fs::sync();
            move || send("upload:1")
        },
        |_| {
            || {
                let mut command = Command::new("bash");
                command.args(["-c", TAR_AND_SEND]).arg(&source).arg(&archive).arg(&binaries().hearth);
                command.env("HEARTH_ADDR", wire.address());
                process::run(&mut command, seconds(300)).expect_code(0);
                bench.hearth(&["storage", "rm", "sent.tar.zst"]);
            }
        },
    );
    let unchanged = alone(|_| || send("upload:1"));
    let mut sent = Vec::new();
    let changed = alone(|round| {
        fs::write(source.join("part/changed"), format!("change {round}")).expect("write");
        let before = wire.sent();
        sent.push(before);
        || send("upload:1")
    });
    let last = wire.sent() - sent.last().copied().unwrap_or_default();
    let percent = last as f64 / tree.bytes as f64 * 100.0;
    let _ = fs::remove_dir_all(&source);
    let shown = tree.shown();
    vec![
        Figure::ratio(
            format!("upload of {shown}, first"),
            first,
            "`tar \\| zstd -3 -T2`, then one file sent",
            Some(1.2),
        ),
        Figure::time("the same, unchanged", &unchanged, Duration::from_millis(500)),
        Figure::time("the same, one file changed", &changed, Duration::from_secs(1)),
        Figure::amount("bytes on the wire for that, of all", percent, "%", 1.0),
    ]
}

/// Gives every file other content than before.
fn mark_all(directory: &std::path::Path, round: usize) {
    let mut find = Command::new("find");
    let script = format!("for file; do echo '// round {round}' >> \"$file\"; done");
    find.arg(directory).args(["-type", "f", "-exec", "sh", "-c", &script, "sh", "{}", "+"]);
    process::run(&mut find, seconds(120)).expect_code(0);
}

/// A socket in front of the daemon's that counts what clients send.
struct Wire {
    path: PathBuf,
    sent: Arc<AtomicU64>,
}

impl Wire {
    fn before(bench: &Bench) -> Self {
        let path = bench.work.join("wire.sock");
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).expect("a socket");
        let (daemon, sent) = (bench.daemon.socket(), Arc::new(AtomicU64::new(0)));
        let count = Arc::clone(&sent);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = UnixStream::connect(&daemon) else { continue };
                let (Ok(from_client), Ok(to_client)) = (client.try_clone(), server.try_clone()) else {
                    continue;
                };
                let count = Arc::clone(&count);
                thread::spawn(move || relay(from_client, server, &count));
                thread::spawn(move || relay(to_client, client, &AtomicU64::new(0)));
            }
        });
        Self { path, sent }
    }

    fn address(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

fn relay(mut from: UnixStream, mut to: UnixStream, count: &AtomicU64) {
    let mut buffer = vec![0; 256 << 10];
    let _: io::Result<()> = (|| {
        loop {
            let length = from.read(&mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            count.fetch_add(length as u64, Ordering::Relaxed);
            to.write_all(&buffer[..length])?;
        }
    })();
    // Either end may be gone by now.
    let _ = to.shutdown(std::net::Shutdown::Write);
}
