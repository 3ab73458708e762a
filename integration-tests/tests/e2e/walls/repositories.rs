//! Git repositories: git of a builder reaches what builds may reach and nothing else, wherever a repository redirects
//! it.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use integration_tests::daemon::{Daemon, Options};
use integration_tests::lone_cases;
use integration_tests::process::{self, Output};
use integration_tests::runner::Group;
use integration_tests::scripted::{Asked, Reply, Scripted};
use integration_tests::sources::Tree;
use integration_tests::wait::seconds;

use super::images::PrivateAddress;

pub fn group() -> Group {
    Group::new(
        "walls_repositories",
        lone_cases![
            a_repository_leads_git_to_no_internal_address,
            a_repository_is_fetched_by_http_and_https_alone,
            the_proxy_of_git_serves_its_builder_only,
        ],
    )
    .in_sequence()
}

fn git(directory: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.current_dir(directory).env("GIT_CONFIG_GLOBAL", "/dev/null").args([
        "-c",
        "user.name=test",
        "-c",
        "user.email=test@example.com",
        "-c",
        "init.defaultBranch=main",
    ]);
    let output = process::run(command.args(arguments), seconds(20));
    output.expect_code(0);
    output.stdout.trim().to_owned()
}

/// Creates `<root>/<name>.git` as a web server has it, with one file and optionally a submodule at a URL.
fn repository(root: &Path, name: &str, submodule: Option<(&str, &str)>) -> String {
    let work = root.join(format!("{name}-work"));
    fs::create_dir_all(&work).unwrap();
    git(&work, &["init", "-q"]);
    fs::write(work.join("proof"), name).unwrap();
    if let Some((url, commit)) = submodule {
        fs::write(work.join(".gitmodules"), format!("[submodule \"sub\"]\n\tpath = sub\n\turl = {url}\n"))
            .unwrap();
        git(&work, &["update-index", "--add", "--cacheinfo", &format!("160000,{commit},sub")]);
    }
    git(&work, &["add", "proof"]);
    if submodule.is_some() {
        git(&work, &["add", ".gitmodules"]);
    }
    git(&work, &["commit", "-q", "-m", "first"]);
    let bare = root.join(format!("{name}.git"));
    git(root, &["clone", "-q", "--bare", work.to_str().unwrap(), bare.to_str().unwrap()]);
    git(&bare, &["update-server-info"]);
    git(&work, &["rev-parse", "HEAD"])
}

/// Serves repositories as files, and redirects paths below `/away/`.
fn serve(address: &str, root: &Path, away: &str) -> Scripted {
    let (root, away) = (root.to_owned(), away.to_owned());
    let script = move |asked: &Asked| {
        let path = asked.path.split('?').next().unwrap_or_default().trim_start_matches('/').to_owned();
        if let Some(rest) = path.strip_prefix("away/") {
            return Reply::new(302, "").header("location", &format!("{away}/{rest}"));
        }
        match fs::read(root.join(&path)) {
            Ok(content) if !path.contains("..") => Reply::new(200, content),
            _ => Reply::new(404, ""),
        }
    };
    Scripted::start_at(&format!("{address}:0"), script).unwrap()
}

fn add(room: &Daemon, name: &str, line: &str) -> Output {
    room.put(name, &Tree::new().dockerfile(&format!("FROM scratch\n{line}\n")));
    room.build(&format!("{name}:1"), name, &["--json"])
}

fn a_repository_leads_git_to_no_internal_address() {
    const ADDRESS: &str = "10.231.79.1";
    let _link = PrivateAddress::make("hwi-git0", "10.231.79.1/32");
    let files = tempfile::tempdir().unwrap();
    let root = files.path();
    // Any request to the inner server would find an honest repository.
    let commit = repository(root, "honest", None);
    let inner = serve("127.0.0.1", root, "");
    let port = inner.host().rsplit_once(':').unwrap().1.to_owned();
    let outer = serve(ADDRESS, root, &format!("http://{}", inner.host()));
    let submodules = [
        ("relative", "../honest.git".to_owned()),
        ("sub-http", format!("http://{}/honest.git", inner.host())),
        ("sub-name", format!("http://localhost:{port}/honest.git")),
        ("sub-https", format!("https://{}/honest.git", inner.host())),
        ("sub-away", format!("http://{}/away/honest.git", outer.host())),
        ("sub-git", format!("git://{}/honest.git", inner.host())),
        ("sub-ssh", format!("ssh://{}/honest.git", inner.host())),
        ("sub-file", format!("file://{}/honest.git", root.display())),
    ];
    for (name, url) in &submodules {
        repository(root, name, Some((url, &commit)));
    }
    let allow = format!("[builds.egress]\nallow = [\"0.0.0.0/0\", \"{ADDRESS}\"]\n");
    let room = Daemon::start(Options::room("wi-git").config(&allow));
    let url = |path: &str| format!("http://{}/{path}.git", outer.host());

    let output = add(&room, "honest", &format!("ADD {} /", url("honest")));
    output.expect_code(0);
    assert_eq!(room.image("honest:1").file("proof"), "honest");
    let output = add(&room, "kept", &format!("ADD --keep-git-dir=true {}#main /", url("honest")));
    output.expect_code(0);
    assert!(room.image("kept:1").has(".git/HEAD"));
    add(&room, "relative", &format!("ADD {} /", url("relative"))).expect_code(0);
    assert_eq!(room.image("relative:1").file("sub/proof"), "honest");

    for name in ["away/honest", "sub-http", "sub-name", "sub-https", "sub-away"] {
        let output = add(&room, &name.replace('/', "-"), &format!("ADD {} /", url(name)));
        let error = output.json()["error"].clone();
        assert_eq!(error["code"], "egress_refused", "{name}: {output}");
        assert_eq!(error["dockerfile"]["start_line"], 2, "{name}: {output}");
        output.says(&[if name == "sub-name" { "localhost" } else { "127.0.0.1" }, &port, "builds.egress"]);
    }
    for (name, transport) in [("sub-git", "git"), ("sub-ssh", "ssh"), ("sub-file", "file")] {
        let output = add(&room, name, &format!("ADD {} /", url(name)));
        assert_eq!(output.json()["error"]["code"], "repository_not_fetched", "{name}: {output}");
        output.says(&[&format!("transport '{transport}' not allowed")]);
    }
    assert_eq!(inner.connections(), 0, "{:?}", inner.asked());
}

fn a_repository_is_fetched_by_http_and_https_alone() {
    let room = Daemon::start(Options::room("wi-transport"));
    let inner = Scripted::start(|_| Reply::new(200, ""));
    for (at, url) in [
        format!("git://{}/a.git", inner.host()),
        format!("ssh://git@{}/a.git", inner.host()),
        "git@127.0.0.1:a.git".to_owned(),
    ]
    .iter()
    .enumerate()
    {
        let output = add(&room, &format!("other-{at}"), &format!("ADD {url} /"));
        let error = output.json()["error"].clone();
        assert_eq!(error["code"], "git_transport_refused", "{url}: {output}");
        assert_eq!(error["dockerfile"]["start_line"], 2, "{url}: {output}");
        output.says(&["line 2", "https"]);
    }
    assert_eq!(inner.connections(), 0);
}

/// Sends a request to the proxy, followed by the content for its tunnel; returns the response.
fn raw(proxy: &str, request: &str, then: &str) -> String {
    let mut stream = TcpStream::connect(proxy).unwrap();
    stream.set_read_timeout(Some(seconds(10))).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = vec![0; 1024];
    let read = stream.read(&mut answer).unwrap();
    answer.truncate(read);
    if !then.is_empty() {
        stream.write_all(then.as_bytes()).unwrap();
        stream.read_to_end(&mut answer).unwrap();
    }
    String::from_utf8_lossy(&answer).into_owned()
}

fn the_proxy_of_git_serves_its_builder_only() {
    const ADDRESS: &str = "10.231.80.1";
    let _link = PrivateAddress::make("hwi-git1", "10.231.80.1/32");
    let files = tempfile::tempdir().unwrap();
    repository(files.path(), "honest", None);
    let outer = serve(ADDRESS, files.path(), "");
    let room = Daemon::start(
        Options::room("wi-proxy")
            .config(&format!("[builds.egress]\nallow = [\"0.0.0.0/0\", \"{ADDRESS}\"]\n"))
            .environment("no_proxy", "*"),
    );
    let base = room.base_image();
    let url = format!("http://{}/honest.git", outer.host());
    room.put("steps", &Tree::new().dockerfile(&format!("FROM {base}\nADD {url} /\nRUN env > /env\n")));
    room.build_ok("steps:1", "steps", &[]);
    // Steps have no proxy settings.
    let environment = room.image("steps:1").file("env").to_lowercase();
    assert!(!environment.contains("proxy") && !environment.contains("/git/"), "{environment}");

    let settings = find_settings(&room.state().join("builders")).expect("settings of git");
    let proxy = settings.lines().find_map(|line| line.trim().strip_prefix("proxy = http://")).unwrap();
    let (password, proxy) = proxy.split_once('@').unwrap();
    assert!(proxy.starts_with("127.0.0.1:"), "{proxy}");
    let known = format!("Proxy-Authorization: Basic {}\r\n", STANDARD.encode(password));
    let connect = |authorization: &str| {
        format!("CONNECT {0} HTTP/1.1\r\nHost: {0}\r\n{authorization}\r\n", outer.host())
    };
    let asked = outer.connections();
    assert!(raw(proxy, &connect(""), "").starts_with("HTTP/1.1 407"));
    assert_eq!(outer.connections(), asked);
    // https uses a tunnel.
    let through = raw(proxy, &connect(&known), "GET /honest.git/HEAD HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(through.starts_with("HTTP/1.1 200") && through.contains("refs/heads/main"), "{through}");
    assert!(!room.log().contains(password.split_once(':').unwrap().1));
}

fn find_settings(builders: &Path) -> Option<String> {
    let directories = fs::read_dir(builders).ok()?.flatten();
    directories
        .map(|entry| entry.path().join("git/.gitconfig"))
        .find_map(|path| fs::read_to_string(path).ok())
}
