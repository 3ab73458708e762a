//! Authentication: participant tokens on TCP, the peer's uid on the unix socket, and no access without either.

use std::process::Command;

use hearth_proto::v1::{GetInfoRequest, ListBuildsRequest, MintTokenRequest};
use integration_tests::binaries::binaries;
use integration_tests::daemon::{Daemon, Options};
use integration_tests::grpc::{Api, block_on, spec};
use integration_tests::http::Request;
use integration_tests::process;
use integration_tests::runner::{Case, Group};
use integration_tests::shared_cases;
use integration_tests::sources::Tree;
use integration_tests::wait::seconds;
use tonic::Code;

pub fn group() -> Group {
    let mut cases = shared_cases![
        the_registry_asks_for_a_token,
        the_api_asks_for_a_token,
        a_made_up_or_altered_token_is_refused,
        an_expired_token_is_refused,
        a_token_without_a_grant_is_refused_each_verb,
        grants_are_by_repository,
        no_link_leads_out_of_the_part_of_storage_that_a_token_is_for,
        only_admins_mint_tokens,
        the_client_over_tcp_uses_its_token,
        another_user_is_refused_on_the_socket,
        the_rooms_secret_is_for_the_daemons_user_only,
    ];
    cases.push(Case::alone(
        "a_token_of_another_room_is_refused_and_so_is_one_with_another_rooms_grant",
        a_token_of_another_room_is_refused_and_so_is_one_with_another_rooms_grant,
    ));
    Group::new("access", cases)
}

fn v2(daemon: &Daemon, token: Option<&str>) -> u16 {
    let request = Request::new("GET", "/v2/");
    let request = match token {
        Some(token) => request.basic("anyone", token),
        None => request,
    };
    request.send(&daemon.listen()).status
}

fn api_code(daemon: &Daemon, token: Option<&str>) -> Code {
    block_on(seconds(20), async {
        let api = Api::connect(&daemon.listen(), token.map(ToOwned::to_owned)).await;
        match api.builds().list(ListBuildsRequest::default()).await {
            Ok(_) => Code::Ok,
            Err(status) => status.code(),
        }
    })
}

fn the_registry_asks_for_a_token(daemon: &Daemon) {
    let answer = Request::new("GET", "/v2/").send(&daemon.listen());
    assert_eq!(answer.expect(401).registry_code(), "UNAUTHORIZED");
    assert!(
        answer.header("www-authenticate").is_some(),
        "the response has an authentication challenge: {answer:?}"
    );
    assert_eq!(v2(daemon, Some(daemon.token())), 200);
    Request::new("GET", "/v2/").bearer(daemon.token()).send(&daemon.listen()).expect(200);
    for path in ["/v2/a/tags/list", "/v2/a/blobs/uploads/", "/v2/_catalog"] {
        for method in ["GET", "POST", "PUT", "DELETE"] {
            let answer = Request::new(method, path).send(&daemon.listen());
            assert!(answer.status == 401 || answer.status == 405, "{method} {path}: {answer:?}");
        }
    }
}

fn the_api_asks_for_a_token(daemon: &Daemon) {
    assert_eq!(api_code(daemon, None), Code::Unauthenticated);
    assert_eq!(api_code(daemon, Some("")), Code::Unauthenticated);
    assert_eq!(api_code(daemon, Some(daemon.token())), Code::Ok);
}

fn a_made_up_or_altered_token_is_refused(daemon: &Daemon) {
    let token = daemon.token();
    let parts: Vec<&str> = token.split('.').collect();
    assert_eq!(parts.len(), 3, "a JWT");
    let altered = |at: usize, text: &str| {
        let mut parts = parts.clone();
        parts[at] = text;
        parts.join(".")
    };
    let flipped: String = parts[2].chars().rev().collect();
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0"; // {"alg":"none","typ":"JWT"}
    for token in
        ["nonsense", "a.b.c", &altered(2, &flipped), &altered(2, ""), &format!("{none}.{}.", parts[1])]
    {
        assert_eq!(v2(daemon, Some(token)), 401, "{token}");
        assert_eq!(api_code(daemon, Some(token)), Code::Unauthenticated, "{token}");
    }
}

fn an_expired_token_is_refused(daemon: &Daemon) {
    let token = daemon.mint(&["--scope", "full", "--ttl", "1s"]);
    std::thread::sleep(seconds(3));
    assert_eq!(v2(daemon, Some(&token)), 401);
    assert_eq!(api_code(daemon, Some(&token)), Code::Unauthenticated);
    let output = tcp_client(daemon, &token, &["builds", "list"]);
    output.expect_code(3).says(&["expired"]);
}

fn a_token_without_a_grant_is_refused_each_verb(daemon: &Daemon) {
    let token = daemon.mint(&["--name", "nobody", "--scope", "{}"]);
    let answer = Request::new("GET", "/v2/any/manifests/1").bearer(&token).send(&daemon.listen());
    assert_eq!(answer.expect(403).registry_code(), "DENIED");
    let answer = Request::new("POST", "/v2/any/blobs/uploads/").bearer(&token).send(&daemon.listen());
    assert_eq!(answer.expect(403).registry_code(), "DENIED");
    assert_eq!(api_code(daemon, Some(&token)), Code::PermissionDenied);
    block_on(seconds(20), async {
        let api = Api::connect(&daemon.listen(), Some(token.clone())).await;
        let status = api.submit(spec("denied:1", "denied")).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
        let list = hearth_proto::v1::ListFilesRequest::default();
        // A streaming call may fail at once or with its first message.
        let code = match api.storage().list(list).await {
            Ok(mut stream) => stream.get_mut().message().await.unwrap_err().code(),
            Err(status) => status.code(),
        };
        assert_eq!(code, Code::PermissionDenied);
    });
    tcp_client(daemon, &token, &["storage", "ls"]).expect_code(3).says(&["denied"]);
}

fn grants_are_by_repository(daemon: &Daemon) {
    daemon.put("granted", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", ""));
    for tag in ["team/one:1", "other/one:1"] {
        daemon.build_ok(tag, "granted", &[]);
    }
    let scope =
        r#"{"containers": {"use_containers": true, "registry": {"list": ["team/*"], "pull": ["team/*"]}}}"#;
    let token = daemon.mint(&["--scope", scope]);
    let get = |path: &str| Request::new("GET", path).bearer(&token).send(&daemon.listen()).status;
    assert_eq!(get("/v2/team/one/manifests/1"), 200);
    assert_eq!(get("/v2/other/one/manifests/1"), 403);
    let push = Request::new("POST", "/v2/team/one/blobs/uploads/").bearer(&token).send(&daemon.listen());
    push.expect(403);
    let status = block_on(seconds(20), async {
        let api = Api::connect(&daemon.listen(), Some(token.clone())).await;
        api.submit(spec("team/two:1", "granted")).await.unwrap_err()
    });
    assert_eq!(status.code(), Code::PermissionDenied, "no write grant, no build: {status:?}");
}

fn no_link_leads_out_of_the_part_of_storage_that_a_token_is_for(daemon: &Daemon) {
    daemon.put("theirs", &Tree::new().dockerfile("FROM scratch\nCOPY secret /\n").file("secret", "canary"));
    daemon.put("mine", &Tree::new().dockerfile("FROM scratch\nCOPY file /\n").file("file", "mine"));
    std::os::unix::fs::symlink("../theirs", daemon.room_files().join("mine/link")).unwrap();
    let scope = r#"{"containers": {"use_containers": true, "logs": true, "registry": {"write": ["*"], "pull": ["*"]}},
                    "storage": {"paths": [{"path": "mine"}]}}"#;
    let token = daemon.mint(&["--scope", scope]);
    let by = |args: &[&str]| tcp_client(daemon, &token, args);
    let packed = daemon.directory().join("link-tree");
    Tree::new().file("a", "a").write(&packed);
    let packed = packed.to_str().unwrap();
    let refused: [&[&str]; 7] = [
        &["storage", "ls", "mine/link"],
        &["storage", "get", "mine/link/secret"],
        &["storage", "put", packed, "mine/link/new"],
        &["storage", "rm", "mine/link/secret"],
        &["build", "--tag", "linked:1", "--mount-room-path", "mine/link"],
        &["context", "cat", "secret", "--mount-room-path", "mine/link"],
        &["pack", packed, "--tag", "linked:1", "--room-path", "mine/link/new.tar"],
    ];
    for args in refused {
        let output = by(args);
        assert_ne!(output.code, 0, "{args:?}: {output}");
        output.says(&["is a link or goes through one"]);
        assert!(!output.to_string().contains("canary"), "{args:?}: {output}");
    }
    assert!(!daemon.room_files().join("theirs/new").exists());
    assert!(!daemon.room_files().join("theirs/new.tar").exists());
    assert_eq!(std::fs::read(daemon.room_files().join("theirs/secret")).unwrap(), b"canary");
    by(&["build", "--tag", "linked:1", "--mount-room-path", "mine"]).expect_code(0);
    // Links are followed inside the storage for a caller that may use all of it.
    daemon.build_ok("linked:2", "mine/link", &[]);
}

fn only_admins_mint_tokens(daemon: &Daemon) {
    let token = daemon.mint(&["--name", "agent", "--scope", "agentDefault"]);
    let code = |token: &str| {
        let token = token.to_owned();
        block_on(seconds(20), async {
            let api = Api::connect(&daemon.listen(), Some(token)).await;
            match api.system().mint_token(MintTokenRequest::default()).await {
                Ok(_) => Code::Ok,
                Err(status) => status.code(),
            }
        })
    };
    assert_eq!(code(&token), Code::PermissionDenied);
    assert_eq!(code(daemon.token()), Code::Ok);
}

/// Runs the client as a remote user does: with an address and a token.
fn tcp_client(daemon: &Daemon, token: &str, arguments: &[&str]) -> process::Output {
    let mut command = daemon.client();
    command
        .env("HEARTH_ADDR", format!("http://{}", daemon.listen()))
        .env("HEARTH_TOKEN", token)
        .args(arguments);
    process::run(&mut command, seconds(60))
}

fn the_client_over_tcp_uses_its_token(daemon: &Daemon) {
    daemon.put("tcp", &Tree::new().dockerfile("FROM scratch\nCOPY a /\n").file("a", ""));
    let build = ["build", "--tag", "tcp:1", "--mount-room-path", "tcp"];
    tcp_client(daemon, daemon.token(), &build).expect_code(0);
    tcp_client(daemon, "nonsense", &build).expect_code(3).says(&["token"]);
    tcp_client(daemon, "", &build).expect_code(3).says(&["token"]);
    let file = daemon.directory().join("token");
    std::fs::write(&file, format!("{}\n", daemon.token())).unwrap();
    let mut command = daemon.client();
    command.env("HEARTH_ADDR", format!("http://{}", daemon.listen()));
    command.args(["--token-file", file.to_str().unwrap(), "images", "list"]);
    process::run(&mut command, seconds(60)).expect_code(0);
}

fn another_user_is_refused_on_the_socket(daemon: &Daemon) {
    // Both the path to the socket and the binary must be open to that user, so that only the daemon refuses.
    use std::os::unix::fs::PermissionsExt;
    let open = |path: &std::path::Path, mode: u32| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(daemon.directory().parent().unwrap(), 0o755);
    open(daemon.directory(), 0o755);
    open(&daemon.socket(), 0o666);
    let copy = daemon.directory().join("hearth");
    std::fs::copy(&binaries().hearth, &copy).unwrap();
    open(&copy, 0o755);
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&copy).args(["builds", "list"]);
    command.env_clear().env("HOME", "/nonexistent").current_dir("/");
    command.env("HEARTH_ADDR", format!("unix://{}", daemon.socket().display()));
    process::run(&mut command, seconds(60)).expect_code(3).says(&["denied"]);
}

fn the_rooms_secret_is_for_the_daemons_user_only(daemon: &Daemon) {
    let mut find = Command::new("find");
    find.arg(daemon.state()).args([
        "-maxdepth",
        "2",
        "-type",
        "f",
        "-iname",
        "*secret*",
        "-printf",
        "%m %P\n",
    ]);
    let output = process::run(&mut find, seconds(20));
    assert!(!output.stdout.is_empty(), "the state directory has a file with the room's secret");
    for line in output.stdout.lines() {
        assert!(line.starts_with("600 "), "mode of the secret: {line}");
    }
}

fn a_token_of_another_room_is_refused_and_so_is_one_with_another_rooms_grant() {
    let ours = Daemon::start(Options::room("ours"));
    let theirs = Daemon::start(Options::room("theirs"));
    let token = theirs.token().to_owned();
    assert_eq!((v2(&theirs, Some(&token)), v2(&ours, Some(&token))), (200, 401), "another room's secret");
    assert_eq!(api_code(&ours, Some(&token)), Code::Unauthenticated);
    // The secret is the same, but the grant names the room by its old name.
    let token = ours.token().to_owned();
    ours.terminate();
    ours.restart_with(Options::room("renamed"));
    assert!(matches!(v2(&ours, Some(&token)), 401 | 403), "another room's grant");
    assert!(matches!(api_code(&ours, Some(&token)), Code::Unauthenticated | Code::PermissionDenied));
    // Over the socket, which requires no token, the daemon reports its current room name.
    let room = block_on(seconds(20), async {
        let fresh = ours.mint(&["--scope", "full"]);
        let api = Api::connect(&ours.listen(), Some(fresh)).await;
        api.system().get_info(GetInfoRequest {}).await.unwrap().into_inner().room
    });
    assert_eq!(room, "renamed");
}
