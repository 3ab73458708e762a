//! Quickly made images that services are started from: busybox, some files, a command.

use crate::daemon::Daemon;
use crate::http::{Answer, Request};
use crate::sources::Tree;

/// Port on which the apps of tests listen.
pub const PORT: &str = "8000";

/// Shell command that serves `/site`. It handles SIGTERM, which busybox's httpd ignores as the first process of a
/// container.
const SERVE: &str = "trap 'exit 0' TERM; httpd -f -p 8000 -h /site & wait";

/// A small app, as the image that `hearth pack` makes of it.
pub struct App {
    tree: Tree,
    command: Vec<String>,
    more: Vec<String>,
}

impl App {
    /// Creates an app that answers with this text at `/`, and at `/cgi-bin/headers` with the request as it received it.
    pub fn page(text: &str) -> Self {
        let headers = "#!/bin/sh\necho 'content-type: text/plain'\necho\nenv\n";
        let tree =
            Tree::new().file("site/index.html", text).file_with_mode("site/cgi-bin/headers", headers, 0o755);
        Self { tree, command: Vec::new(), more: Vec::new() }
            .with(&["--expose", PORT])
            .command(&["sh", "-c", SERVE])
    }

    /// Creates an app that runs this shell script and exposes no port. `exec httpd -f -p 8000 -h /site` makes it
    /// answer.
    pub fn script(script: &str) -> Self {
        let tree = Tree::new().file("site/index.html", "script\n");
        Self { tree, command: Vec::new(), more: Vec::new() }.command(&["sh", "-c", script])
    }

    pub fn command(mut self, command: &[&str]) -> Self {
        self.command = command.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    pub fn file(mut self, path: &str, content: &str) -> Self {
        self.tree = self.tree.file(path, content);
        self
    }

    pub fn program(mut self, path: &str, content: Vec<u8>) -> Self {
        self.tree = self.tree.file_with_mode(path, content, 0o755);
        self
    }

    /// Adds flags for `hearth pack`.
    pub fn with(mut self, flags: &[&str]) -> Self {
        self.more.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    /// Packs the app as the image `tag` of the room.
    #[track_caller]
    pub fn pack(self, daemon: &Daemon, tag: &str) {
        let base = daemon.base_image();
        let directory = tempfile::tempdir_in(daemon.directory()).expect("a directory");
        self.tree.write(directory.path());
        let command = serde_json::to_string(&self.command).expect("JSON");
        let path = directory.path().to_str().expect("UTF-8");
        let mut arguments = vec!["pack", path, "--tag", tag, "--base", base, "--cmd", &command];
        arguments.extend(self.more.iter().map(String::as_str));
        daemon.hearth_ok(&arguments);
    }
}

/// Requests a path of a host from the ingress.
#[track_caller]
pub fn get(daemon: &Daemon, host: &str, path: &str) -> Answer {
    Request::new("GET", path).host(host).send(&daemon.ingress())
}

/// Returns the page that a host shows at the moment.
#[track_caller]
pub fn page(daemon: &Daemon, host: &str) -> String {
    get(daemon, host, "/").expect(200).text()
}
