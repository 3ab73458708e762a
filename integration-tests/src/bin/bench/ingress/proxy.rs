//! Other proxies in front of the same instance, each a process of its own that ends when its value is dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use integration_tests::http::Request;
use integration_tests::process::{self, Running};
use integration_tests::wait::{self, seconds};

use super::super::load::Target;
use super::super::side::{free_port, installed};

pub struct Proxy {
    pub target: Target,
    /// Dropping it ends its process group.
    _process: Running,
}

impl Proxy {
    /// Starts nginx; `None` when it is not installed.
    pub fn nginx(work: &Path, to: &Target) -> Option<Self> {
        let program = installed("nginx")?;
        let directory = directory(work, "nginx");
        let port = free_port();
        let config = directory.join("nginx.conf");
        fs::write(&config, nginx_config(&directory, port, to)).expect("configuration");
        let mut command = Command::new(program);
        command.arg("-p").arg(&directory).arg("-c").arg(&config);
        Some(Self::start("nginx", &mut command, port, to))
    }

    /// Starts caddy; `None` when it is not installed.
    pub fn caddy(work: &Path, to: &Target) -> Option<Self> {
        let program = installed("caddy")?;
        let directory = directory(work, "caddy");
        let port = free_port();
        let config = directory.join("Caddyfile");
        let text = format!(
            "{{\n\tadmin off\n\tauto_https off\n}}\n\nhttp://:{port} {{\n\tbind 127.0.0.1\n\treverse_proxy {}\n}}\n",
            to.address
        );
        fs::write(&config, text).expect("configuration");
        let mut command = Command::new(program);
        command.args(["run", "--adapter", "caddyfile", "--config"]).arg(&config);
        command.env("HOME", &directory).env("XDG_CONFIG_HOME", &directory).env("XDG_DATA_HOME", &directory);
        Some(Self::start("caddy", &mut command, port, to))
    }

    /// Starts kamal-proxy; `None` when it is not installed. Its request log, which cannot be turned off, is discarded.
    pub fn kamal(work: &Path, to: &Target) -> Option<Self> {
        let program = installed("kamal-proxy")?;
        let directory = directory(work, "kamal-proxy");
        let (port, tls_port) = (free_port(), free_port());
        let at_home = |mut command: Command| {
            command.env("HOME", &directory).env("XDG_RUNTIME_DIR", &directory);
            command.env("XDG_CONFIG_HOME", &directory);
            command
        };
        let mut run = at_home(Command::new("sh"));
        run.args(["-c", "exec \"$0\" \"$@\" >/dev/null"]).arg(&program).arg("run");
        run.args(["--http-port", &port.to_string(), "--https-port", &tls_port.to_string()]);
        let process = process::start(&mut run);
        let mut deploy = at_home(Command::new(program));
        deploy.args([
            "deploy",
            "app",
            "--health-check-path",
            "/",
            "--target",
            &to.address,
            "--host",
            &to.host,
        ]);
        wait::until(seconds(20), "kamal-proxy accepts the instance", || {
            process::run(&mut deploy, seconds(40)).code == 0
        });
        Some(Self::leading("kamal-proxy", process, port, to))
    }

    fn start(name: &str, command: &mut Command, port: u16, to: &Target) -> Self {
        Self::leading(name, process::start(command), port, to)
    }

    fn leading(name: &str, process: Running, port: u16, to: &Target) -> Self {
        let target = Target { address: format!("127.0.0.1:{port}"), host: to.host.clone() };
        wait::until(seconds(20), &format!("{name} forwards to the instance"), || {
            let asked = Request::new("GET", "/").host(&target.host).try_send(&target.address);
            asked.is_ok_and(|answer| answer.status == 200)
        });
        Self { target, _process: process }
    }
}

/// Returns a configuration of nginx for speed: kept connections on both sides, no request log. It forwards the client's
/// address to the app, as the ingress does.
fn nginx_config(directory: &Path, port: u16, to: &Target) -> String {
    let (directory, app) = (directory.display(), &to.address);
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {directory}/{kind};\n"))
        .concat();
    format!(
        "daemon off;
user root;
worker_processes auto;
pid {directory}/pid;
error_log stderr;
events {{
    worker_connections 1024;
}}
http {{
    access_log off;
{temporary}    client_max_body_size 0;
    keepalive_requests 100000000;
    upstream app {{
        server {app};
        keepalive 64;
        keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Host $host;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
"
    )
}

fn directory(work: &Path, name: &str) -> PathBuf {
    let directory = work.join(name);
    fs::create_dir_all(&directory).expect("directory");
    directory
}
