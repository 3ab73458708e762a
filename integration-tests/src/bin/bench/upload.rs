//! A directory of a client as a build's context, and as an image of the room: bytes on the wire, and time.
//!
//! The rows with bounds are those of a pack for a build, which the daemon stores as it arrives, like the single file
//! that is sent for comparison. For a pack with a tag, the daemon also makes an image: those rows have no bound.

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
use super::turns::{alone, in_turns, time};

/// Archives like [`super::pack::TAR`] and sends the result over the same connection: the alternative to `hearth pack`.
const TAR_AND_SEND: &str = "set -o pipefail; tar -C \"$0\" -cf - . | zstd -3 -T2 -q -f -o \"$1\" && \"$2\" storage put \"$1\" sent.tar.zst";

/// Dockerfile of a small build, because the time of the build itself counts.
const DOCKERFILE: &str = "FROM scratch\nCOPY part/changed /\n";

pub fn chapter(bench: &Bench) -> Vec<Figure> {
    let tree = bench.large();
    let source = bench.work.join("upload-source");
    trees::copy(&tree.path, &source);
    // An ignore file that hides files here would not hide them from tar.
    let _ = fs::remove_file(source.join(".dockerignore"));
    let upload = Upload { bench, wire: Wire::before(bench), source };
    let archive = bench.work.join("sent.tar.zst");
    // Each first upload is of content that the room does not have: every file differs from before.
    let (first, beside) = in_turns(
        |round| {
            upload.change_all(&format!("build {round}"));
            || upload.build()
        },
        |_| {
            || {
                let mut command = Command::new("bash");
                command.args(["-c", TAR_AND_SEND]).arg(&upload.source).arg(&archive).arg(&binaries().hearth);
                command.env("HEARTH_ADDR", upload.wire.address());
                process::run(&mut command, seconds(300)).expect_code(0);
                bench.hearth(&["storage", "rm", "sent.tar.zst"]);
            }
        },
    );
    let unchanged = alone(|_| || upload.build());
    let mut sent = 0;
    let changed = alone(|round| {
        upload.change_one(&format!("one of them, build {round}"));
        sent = upload.wire.sent();
        || upload.build()
    });
    let percent = (upload.wire.sent() - sent) as f64 / tree.bytes as f64 * 100.0;
    // Measured once: all content that is new to the room costs it some memory, which is measured at the end.
    upload.change_all("tag");
    let tagged_first = time(|| upload.tag());
    let tagged_unchanged = alone(|_| || upload.tag());
    let tagged_changed = alone(|round| {
        upload.change_one(&format!("one of them, tag {round}"));
        || upload.tag()
    });
    let _ = fs::remove_dir_all(&upload.source);
    let (shown, file) = (tree.shown(), "`tar \\| zstd -3 -T2`, then one file sent");
    vec![
        Figure::ratio(
            format!("upload of {shown} for a build, first; with the build, a COPY of one file"),
            (first, beside),
            file,
            Some(1.2),
        ),
        Figure::time("the same, unchanged", &unchanged, Duration::from_millis(500)),
        Figure::time("the same, one file changed", &changed, Duration::from_secs(1)),
        Figure::amount("bytes on the wire for that, of all", percent, "%", 1.0),
        Figure::shown("upload of it to a tag, its image made by the room, first (one run)", &[tagged_first]),
        Figure::shown("the same, unchanged", &tagged_unchanged),
        Figure::shown("the same, one file changed", &tagged_changed),
    ]
}

struct Upload<'a> {
    bench: &'a Bench,
    wire: Wire,
    source: PathBuf,
}

impl Upload<'_> {
    fn build(&self) {
        self.run(&["build", "--tag", "upload-build:1", "--pack"]);
    }

    fn tag(&self) {
        self.run(&["pack", "--tag", "upload:1"]);
    }

    fn run(&self, arguments: &[&str]) {
        let mut command = self.bench.daemon.client();
        command.env("HEARTH_ADDR", self.wire.address()).args(arguments).arg(&self.source);
        process::run(&mut command, seconds(300)).expect_code(0);
    }

    /// Gives every file new content.
    fn change_all(&self, mark: &str) {
        let mut find = Command::new("find");
        let script = format!("for file; do echo '// {mark}' >> \"$file\"; done");
        find.arg(&self.source).args(["-type", "f", "-exec", "sh", "-c", &script, "sh", "{}", "+"]);
        process::run(&mut find, seconds(120)).expect_code(0);
        fs::write(self.source.join("Dockerfile"), DOCKERFILE).expect("Dockerfile");
        self.change_one(mark);
        // Writing back dirty pages would slow the next measurement.
        rustix::fs::sync();
    }

    fn change_one(&self, mark: &str) {
        fs::write(self.source.join("part/changed"), mark).expect("write");
    }
}

/// A socket in front of the daemon's that counts the bytes that clients send.
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
    // Either end may be closed already.
    let _ = to.shutdown(std::net::Shutdown::Write);
}
